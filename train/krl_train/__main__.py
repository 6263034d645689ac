"""``python -m krl_train``, which torchrun needs."""

import sys

from .cli import main

sys.exit(main())
