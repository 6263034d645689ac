"""``python -m krl_compress``, which torchrun needs."""

import sys

from .cli import main

sys.exit(main())
