"""Calibration and evaluation data: folders of images, and arrays as graphs take them."""
