"""What ``krl-train fit --task NAME`` does: a module NAME for each task, with a function ``fit``."""
