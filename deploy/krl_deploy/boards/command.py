"""A command line for a board, checked on this machine before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from krl_runtime.cli.commandline import take_verbose
from krl_runtime.cli.dispatch import checked_arguments
from krl_runtime.cli.program import check_arguments, command_parsers
from krl_runtime.cli.suggestions import suggest
from krl_runtime.errors import UsageError

from .arguments import options_of_class, options_of_parser
from .on import Command

__all__ = ["board_command"]


def board_command(arguments: Sequence[str], configurations: Mapping[str, type], *, quiet: bool = False) -> Command:
    """Return a command line for a board.

    Args:
        arguments: The command of ``krl-runtime`` or ``krl-deploy`` and its arguments.
        configurations: The configuration of each command of ``krl-deploy``.
        quiet: Whether it logs warnings alone.

    Raises:
        UsageError: The command or an option is not known, or a value is not accepted.
        SystemExit: The same, found by a parser, which prints it; or help was asked for, and printed.
    """
    runtime, verb, rest = command_parsers(), next(iter(arguments), ""), list(arguments[1:])
    known = [*runtime, *configurations]
    if verb not in known:
        raise UsageError(f"unknown command {verb!r} for a board{suggest(verb, known)}; accepted: {', '.join(known)}")
    if verb in runtime:
        plain, verbose = take_verbose(rest)
        check_arguments([verb, *plain])
        given = [*(["--verbose"] if verbose else []), *plain]
        return Command("krl-runtime", verb, given, options_of_parser(runtime[verb]), quiet)
    checked = checked_arguments(f"krl-deploy {verb}", configurations[verb], rest)
    return Command("krl-deploy", verb, checked, options_of_class(configurations[verb]), quiet)
