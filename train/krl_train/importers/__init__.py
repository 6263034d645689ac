"""Third-party weights: read without executing anything in them, matched to a network, and measured."""
