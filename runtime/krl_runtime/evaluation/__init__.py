"""How much accuracy a variant may lose: what deployment and the device judge by."""
