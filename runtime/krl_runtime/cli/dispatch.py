"""``PROGRAM COMMAND [options]`` from functions of one frozen dataclass each."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError, require

from .commandline import guard, take_quiet
from .config_files import merged, options_of, take_files
from .options import help_configuration, positional_options, repeated_options
from .suggestions import refuse_renamed, suggest

__all__ = ["Program", "checked_arguments", "dispatch", "run_nested", "value_of"]

_WIDTH = 80  # columns of the narrowest terminal that help texts are made for

Command = Callable[[Any], "int | None"]


@dataclass(frozen=True)
class Program:
    """A program with commands.

    Attributes:
        name: As it is typed.
        description: One paragraph for ``--help``.
        commands: By name; the annotation of the only parameter is the configuration.
        recipes: Folders of the files that ``--recipe`` names, without their suffix.
        task_of: For commands whose options depend on a task: from the arguments to the task, for ``--help``.
        record: Name of the file in ``--out`` that holds the configuration of an interrupted command.
        records: The same of commands that have another file.
        unparsed: Further commands, which take their arguments as they are.
    """

    name: str
    description: str
    commands: Mapping[str, Command]
    recipes: tuple[Path, ...] = ()
    task_of: Mapping[str, Callable[[Sequence[str]], str]] = field(default_factory=dict)
    record: str | None = None
    records: Mapping[str, str] = field(default_factory=dict)
    unparsed: Mapping[str, Callable[[list[str]], int | None]] = field(default_factory=dict)


def dispatch(program: Program, argv: Sequence[str] | None = None) -> int:
    """Parse ``PROGRAM COMMAND [options]`` with tyro and run the command, guarded.

    Each command is a function of one frozen dataclass, whose fields are the options. ``--config FILE.yaml`` is
    accepted by all of them: its keys are field names (sections are allowed), its values are what would stand on the
    command line, and what does stand there wins. Unknown keys are refused. ``--recipe NAME`` is short for a file that
    comes with the program. ``--resume --out RUN`` reads the options from the run.

    Args:
        program: The program.
        argv: Arguments; those of the process by default.

    Returns:
        The exit code.
    """
    arguments, quiet = take_quiet(list(sys.argv[1:] if argv is None else argv))
    return guard(program.name, lambda: _dispatch(program, arguments), quiet=quiet)


def run_nested(program: Program, arguments: list[str]) -> int | None:
    """Run a command of a program within a command of another one, as ``krl-deploy board add``."""
    return _dispatch(program, arguments)


def checked_arguments(prog: str, configuration: type, arguments: list[str]) -> list[str]:
    """Return a command's arguments with those of its ``--config`` files, after parsing them as the command would.

    Args:
        prog: The command, for messages.
        configuration: Its dataclass.
        arguments: Its arguments.

    Raises:
        KrlError: An option or a value is not accepted.
        SystemExit: The same, found by tyro, which prints it; or help was asked for.
    """
    import tyro

    found = _all_options(Program(prog, "", {}), "", configuration, arguments)
    tyro.cli(configuration, prog=prog, args=found, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes))
    return found


def value_of(arguments: Sequence[str], *options: str) -> str | None:
    """Return the value of an option on a command line that is not parsed yet, under any of its names."""
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        if name in options:
            return value if equals else next(items, None)
    return None


def _dispatch(program: Program, argv: list[str]) -> int | None:
    from krl_runtime._version import __version__

    require("tyro", extra="train", purpose=f"the {program.name} command")
    if argv and argv[0] in ("-V", "--version"):
        print(f"{program.name} {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program))
        return 0 if argv else 2
    refuse_renamed(program.name, argv, program.commands)
    name, arguments = argv[0], argv[1:]
    if name in program.unparsed:
        return program.unparsed[name](arguments)
    if name not in program.commands:
        known = (*program.commands, *program.unparsed)
        raise UsageError(f"unknown command {name!r}{suggest(name, known)}; accepted: {', '.join(known)}")
    command = program.commands[name]
    hints = typing.get_type_hints(command, include_extras=True)
    configuration = next(hint for key, hint in hints.items() if key != "return")
    if {"-h", "--help", "--help-all"} & set(arguments):
        return _help(program, name, configuration, arguments)
    parsed = _parse(program, name, configuration, _all_options(program, name, configuration, arguments))
    try:
        return command(parsed)
    except KeyboardInterrupt:
        _say_how_to_resume(program, name, parsed)
        raise


def _overview(program: Program) -> str:
    lines = [f"usage: {program.name} COMMAND [options]", "", program.description, "", "commands:"]
    for name, command in (*program.commands.items(), *program.unparsed.items()):
        summary = (command.__doc__ or "").strip().partition("\n")[0]
        lines.append(f"  {name:<14} {summary}")
    lines += ["", f"{program.name} COMMAND --help lists a command's options, --help-all all of them."]
    lines += ["--config FILE.yaml reads options from a file; --quiet logs warnings alone."]
    lines += ["--recipe NAME reads them from a file that comes with krl."] if program.recipes else []
    return "\n".join(lines)


def _help(program: Program, name: str, configuration: type, arguments: Sequence[str]) -> int:
    """Print the options of the task that the arguments name: the common ones, or all."""
    import tyro

    everything = "--help-all" in arguments
    task = program.task_of[name](arguments) if name in program.task_of else None
    shown = help_configuration(configuration, task, everything=everything)
    about = (program.commands[name].__doc__ or "").strip().partition("\n")[0]
    if task is not None:
        about += f" These are the options of the task {task}."
    if not everything:
        about += " --help-all shows all options."
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        tyro.cli(
            shown,
            prog=f"{program.name} {name}",
            description="",
            args=["--help"],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    usage, _, options = "\n".join(line.rstrip() for line in written.getvalue().splitlines()).partition("\n\n")
    usage, about = (
        textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        for text, indent in ((usage, "  "), (about, ""))
    )
    print(usage, about, options.strip("\n"), sep="\n\n")
    return 0


def _all_options(program: Program, name: str, configuration: type, arguments: list[str]) -> list[str]:
    """Return the command line with the options of files, and of the run that is to be resumed, before it."""
    repeated = set(repeated_options(configuration))
    rest, files = take_files(arguments, program.recipes, repeated)
    places: list[str] = []
    if "--resume" in rest and program.record is not None:
        stored = dict(_stored(program, name, value_of(rest, "--out", "-o")))
        places = [str(stored.pop(key)) for key in positional_options(configuration) if key in stored]
        files.insert(0, list(options_of(stored, repeated)))
    # Before all options: one that takes several values would take them for its own.
    given = list(takewhile(lambda item: not item.startswith("-"), rest))
    return [*(given or places), *merged(rest[len(given) :], files, repeated)]


def _stored(program: Program, name: str, out: str | None) -> Mapping[str, Any]:
    """Return the options that a run was begun with; none where there is no run."""
    file = Path(out, program.records.get(name, str(program.record))) if out is not None else None
    if file is None or not file.is_file():
        return {}
    try:
        values = json.loads(file.read_bytes())
        made_by, options = values["command"], values["configuration"]
    except (ValueError, KeyError, TypeError):
        return {}  # the command says what is wrong with it
    if made_by != f"{program.name} {name}" or not isinstance(options, dict):
        raise UsageError(f"{out} was begun by {made_by}; continue it with: {made_by} --resume --out {out}")
    return {key: value for key, value in options.items() if key not in ("out", "resume", "overwrite", "json")}


def _parse(program: Program, name: str, configuration: type, arguments: list[str]) -> Any:
    import tyro

    return tyro.cli(
        configuration,
        prog=f"{program.name} {name}",
        description=program.commands[name].__doc__,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _say_how_to_resume(program: Program, name: str, parsed: Any) -> None:
    out = getattr(parsed, "out", None)
    record = program.records.get(name, program.record)
    if record is not None and hasattr(parsed, "resume") and out and Path(out, record).is_file():
        print(f"continue with: {program.name} {name} --resume --out {shlex.quote(str(out))}", file=sys.stderr)
