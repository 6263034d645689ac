"""Ranges of a network's activations on real images: collected, cut off, checked, and kept with their identity.

Histograms, thresholds and statistics of channels are here, and the record and checkpoint that hold them.
"""
