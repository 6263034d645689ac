"""From a run to a bundle; the only modules of krl_deploy that import torch."""
