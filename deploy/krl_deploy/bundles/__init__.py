"""Writing bundles, and Triton model repositories made from them."""
