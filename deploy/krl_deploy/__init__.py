"""Deployment: run to bundle."""
