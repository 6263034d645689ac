"""Runs krl bundles."""
