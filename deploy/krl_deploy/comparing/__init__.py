"""Comparing two variants of a bundle, or one on two backends, layer by layer."""
