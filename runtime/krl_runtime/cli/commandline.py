"""The shared part of the four commands: exit codes, error messages, log, JSON, and what to type next.

Exit codes: 0 done, 1 an unexpected failure or a check whose answer is no, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from krl_runtime import progress
from krl_runtime.errors import KrlError, MissingExtraError, UsageError

from .bars import progress_bar

__all__ = ["guard", "next_command", "print_json", "take_quiet", "take_verbose"]


_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "accelerate", "safetensors", "torchmetrics", "sklearn"), "train"),
    "matplotlib": "compress",
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "deploy"),
    "onnxruntime": "cpu",
    "cryptography": "sign",
}
"""Optional libraries that a whole command stands on, and the extra that brings each."""


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time, so that lines do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr)


def _print_nothing() -> None:
    """Let this process's standard output lead nowhere, until it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def take_quiet(arguments: list[str]) -> tuple[list[str], bool]:
    """Take ``--quiet`` out of a command line; return the other arguments, and whether it was there."""
    return [item for item in arguments if item != "--quiet"], "--quiet" in arguments


def take_verbose(arguments: list[str]) -> tuple[list[str], bool]:
    """Take ``--verbose`` out of a command line; return the other arguments, and whether it was there."""
    return [item for item in arguments if item != "--verbose"], "--verbose" in arguments


def next_command(*commands: str) -> None:
    """Say on standard error what one would type next, unless the command is quiet.

    ``KRL_NEXT_PREFIX`` stands in for the program where the command runs for another machine: ``krl-deploy on BOARD``.
    """
    sys.stdout.flush()  # where both streams are one file, it comes after the result
    prefix = os.environ.get("KRL_NEXT_PREFIX")
    for command in commands:
        program, _, rest = command.partition(" ")
        shown = f"{prefix} {rest}" if prefix and program.startswith("krl-") else command
        logging.getLogger("krl.next").info("next: %s", shown)


def guard(prog: str, command: Callable[[], int | None], *, quiet: bool = False, verbose: bool = False) -> int:
    """Run a command and turn what it raises into a message on standard error and an exit code.

    Args:
        prog: Name of the command, for messages.
        command: What to run; its return value, or 0 for ``None``, becomes the exit code.
        quiet: Log warnings and errors alone, and show no progress.
        verbose: Log details as well, such as why each backend was skipped.

    Returns:
        The exit code.
    """
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("krl")
    logger.handlers[:] = [handler]
    logger.propagate = False
    try:
        logger.setLevel("WARNING" if quiet else "DEBUG" if verbose else _log_level())
        progress.show_with(None if quiet else progress_bar)
        if os.environ.get("RANK", "0") == "0":
            return command() or 0
        # Of several training processes one logs and prints.
        logger.setLevel("ERROR")
        _print_nothing()
        return command() or 0
    except KrlError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            traceback.print_exc()
            return 1
        print(f"{prog}: error: {MissingExtraError(library, _EXTRAS[library], 'this command')}", file=sys.stderr)
        return MissingExtraError.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _print_nothing()  # nobody reads on; nothing to flush into
        return 0
    except OSError as error:
        message = _explain(error)
        if message is None:
            traceback.print_exc()
            return 1
        print(f"{prog}: error: {message}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print(f"{prog}: this is a failure of krl, not of your input; please report it", file=sys.stderr)
        return 1


def _log_level() -> str:
    accepted = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    level = os.environ.get("KRL_LOG_LEVEL", "INFO").upper()
    if level not in accepted:
        raise UsageError(f"KRL_LOG_LEVEL is {level!r}; accepted: {', '.join(accepted)}")
    return level


def _explain(error: OSError) -> str | None:
    """Return a sentence for the errors of an operating system that a user can mend, ``None`` for others."""
    where = f" ({error.filename})" if error.filename else ""
    sentences = {
        errno.ENOSPC: "the disk is full; what was there before is untouched; free some space and run it again",
        errno.EDQUOT: "the disk quota is used up; what was there before is untouched; free some space",
        errno.EACCES: "permission denied; check the owner and the mode of the file or folder",
        errno.EPERM: "operation not permitted; check the owner and the mode of the file or folder",
        errno.EROFS: "the file system is read-only; write somewhere else",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EISDIR: "this is a folder; a file is needed",
        errno.EEXIST: "it exists already; give another name",
        errno.ENAMETOOLONG: "the name is too long",
        errno.EFBIG: "the file grew beyond what this file system or limit allows; what was there before is untouched",
    }
    sentence = sentences.get(error.errno or 0)
    return sentence + where if sentence else None


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    """Turn numpy values, paths and the like into JSON types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value)
