"""Explanations of a network: where it looks, what is near, and its layers beside those of its teacher."""
