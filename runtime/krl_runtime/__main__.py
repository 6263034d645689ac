"""``python -m krl_runtime``."""

import sys

from .cli import main

sys.exit(main())
