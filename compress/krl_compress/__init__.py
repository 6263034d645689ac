"""Compression: teacher run to student run."""
