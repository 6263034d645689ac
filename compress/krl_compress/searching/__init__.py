"""Searching a student that fits a budget; the one part of compression that makes bundles and measures them."""
