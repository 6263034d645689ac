"""Ranges of a network's activations on real pictures: collected, kept with their identity, and refused when stale."""
