"""``python -m krl_deploy``."""

import sys

from .cli import main

sys.exit(main())
