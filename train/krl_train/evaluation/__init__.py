"""Measuring a run, or a generator's bundle, on data."""
