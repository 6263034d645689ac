"""One thread a process: the tests' tensors are tiny, and threads that wait for each other slow a busy machine down."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
