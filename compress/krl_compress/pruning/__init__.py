"""Structural pruning: whole channels are removed, so that what is left is an ordinary, thinner network."""
