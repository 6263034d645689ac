"""The command ``krl-runtime``, and what the command lines of all four packages share."""

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``krl-runtime``; see ``krl_runtime.cli.program.main``.

    The program is imported here: the other three command lines use ``krl_runtime.cli.commandline`` alone.
    """
    from .program import main as run

    return run(argv)
