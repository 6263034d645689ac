"""Requirements of tests that a machine may lack: a test is skipped, or fails where ``KRL_REQUIRE`` names them.

``KRL_REQUIRE=rtx,sshd`` names what a machine must have, so that continuous integration does not pass by skipping.
"""

import os

import pytest

from krl_runtime.backends.cuda import NoTensorRTError
from krl_runtime.backends.tensorrt.library import Library, rtx_library


def absent(name: str, reason: str) -> None:
    """Skip the test, or fail it if ``KRL_REQUIRE`` names what is absent."""
    if name in os.environ.get("KRL_REQUIRE", "").split(","):
        pytest.fail(f"KRL_REQUIRE names {name}, but {reason}")
    pytest.skip(reason)


def real_rtx() -> Library:
    """Return the installed TensorRT-RTX, whose parser and builder run without a GPU."""
    try:
        return rtx_library()
    except NoTensorRTError as error:
        absent("rtx", str(error))
        raise  # never reached: absent() raised
