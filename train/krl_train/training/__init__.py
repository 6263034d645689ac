"""One module for each task of ``krl-train fit --task NAME``, each with a function ``fit``."""
