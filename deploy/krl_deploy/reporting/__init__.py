"""``krl-deploy report``: one self-contained page of what is known of bundles, their runs and their measurements."""
