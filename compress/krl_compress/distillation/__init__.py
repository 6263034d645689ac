"""From a configuration to a finished student."""
