"""Search for a student that meets a budget; the one place of this package that may import ``krl_deploy``."""
