"""The one version of krl, read by both distributions."""

__version__ = "0.1.0"
