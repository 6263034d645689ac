"""The shared part of the four commands: exit codes, error messages, configuration files, JSON, tables, progress.

Exit codes: 0 done, 1 an unexpected failure or a check whose answer is no, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from krl_runtime.errors import KrlError, MissingExtraError, UsageError, require

__all__ = ["dispatch", "guard", "print_json"]


_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "accelerate", "safetensors", "torchmetrics", "sklearn"), "train"),
    "matplotlib": "compress",
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "deploy"),
    "onnxruntime": "cpu",
}
"""Optional libraries that a whole command stands on, and the extra that brings each."""


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time, so that lines do not tear a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr)


def guard(prog: str, command: Callable[[], int | None]) -> int:
    """Run a command and turn what it raises into a message on standard error and an exit code.

    Args:
        prog: Name of the command, for messages.
        command: What to run; its return value, or 0 for ``None``, becomes the exit code.

    Returns:
        The exit code.
    """
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("krl")
    logger.handlers[:] = [handler]
    logger.propagate = False
    try:
        logger.setLevel(_log_level())
        if os.environ.get("RANK", "0") == "0":
            return command() or 0
        # Of several training processes one logs.
        logger.setLevel("ERROR")
        with redirect_stdout(io.StringIO()):
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; nothing to flush into
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


def dispatch(
    prog: str,
    description: str,
    commands: Mapping[str, Callable[[Any], int | None]],
    argv: Sequence[str] | None = None,
    *,
    recipes: Path | None = None,
) -> int:
    """Parse ``prog COMMAND [options]`` with tyro and run the command, guarded.

    Each command is a function of one frozen dataclass, whose fields are the options. ``--config FILE.yaml`` is
    accepted by all of them: its keys are field names (sections are allowed), its values are what would stand
    on the command line, and what does stand there wins. Unknown keys are refused. ``--recipe NAME`` is short for
    a file that comes with the program.

    Args:
        prog: Name of the program.
        description: One paragraph for ``--help``.
        commands: By name; the annotation of the only parameter is the configuration.
        argv: Arguments; those of the process by default.
        recipes: Folder of the files that ``--recipe`` names, without their suffix.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guard(prog, lambda: _dispatch(prog, description, commands, arguments, recipes))


def _dispatch(
    prog: str,
    description: str,
    commands: Mapping[str, Callable[[Any], int | None]],
    argv: list[str],
    recipes: Path | None,
) -> int | None:
    import typing

    tyro = require("tyro", extra="train", purpose=f"the {prog} command")
    from krl_runtime._version import __version__

    if argv and argv[0] in ("-V", "--version"):
        print(f"{prog} {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [options]\n\n{description}\n\ncommands:")
        for name, command in commands.items():
            summary = (command.__doc__ or "").strip().partition("\n")[0]
            print(f"  {name:<14} {summary}")
        print(f"\n{prog} COMMAND --help lists a command's options; --config FILE.yaml reads them from a file.")
        if recipes is not None:
            print("--recipe NAME reads them from a file that comes with krl.")
        return 0 if argv else 2
    if argv[0] not in commands:
        raise UsageError(f"unknown command {argv[0]!r}{_suggest(argv[0], commands)}; accepted: {', '.join(commands)}")
    command = commands[argv[0]]
    hints = typing.get_type_hints(command, include_extras=True)
    configuration = next(hint for name, hint in hints.items() if name != "return")
    arguments = _read_config(argv[1:], recipes, set(_repeated(configuration)))
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    parsed = tyro.cli(
        configuration, prog=f"{prog} {argv[0]}", description=command.__doc__, args=arguments, config=options
    )
    return command(parsed)


def _suggest(word: str, accepted: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(accepted), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _read_config(arguments: list[str], recipes: Path | None, repeated: set[str]) -> list[str]:
    """Replace ``--config FILE`` and ``--recipe NAME`` by the options in the file.

    They are put before the other options, so that the others win; an option that may be repeated is taken from the
    command line where that has it, else from the last file that has it.
    """
    rest: list[str] = []
    files: list[list[tuple[str, list[str]]]] = []
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        if name != "--config" and not (name == "--recipe" and recipes is not None):
            rest.append(item)
            continue
        given = value if equals else next(items, None)
        if given is None:
            raise UsageError(f"{name} needs {'a YAML file' if name == '--config' else 'a name'}")
        path = Path(given) if recipes is None or name == "--config" else _recipe(given, recipes)
        files.append(list(_yaml_options(path, repeated)))
    settled = {item.partition("=")[0] for item in rest} & repeated
    options: list[str] = []
    for file in reversed(files):  # a repeated option counts where it is given last
        options = [part for option, values in file if option not in settled for part in (option, *values)] + options
        settled |= {option for option, _ in file} & repeated
    return options + rest


def _recipe(name: str, recipes: Path) -> Path:
    known = sorted(path.stem for path in recipes.glob("*.yaml"))
    if name not in known:
        raise UsageError(f"--recipe {name}: not known{_suggest(name, known)}; accepted: {', '.join(known)}")
    return recipes / f"{name}.yaml"


def _repeated(configuration: Any) -> Iterator[str]:
    """Yield the options of a configuration that may be given several times."""
    import dataclasses
    import typing

    tyro = require("tyro", extra="train", purpose="the command line")
    hints = typing.get_type_hints(configuration, include_extras=True)
    for item in dataclasses.fields(configuration):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from _repeated(hint)
        elif tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ()):
            yield f"--{item.name.replace('_', '-')}"


def _yaml_options(path: Path, repeated: set[str]) -> Iterator[tuple[str, list[str]]]:
    yaml = require("yaml", extra="train", purpose="--config")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"configuration {path} is not a mapping of option names to values")
    return _flatten(values, repeated)


def _flatten(values: Mapping[str, Any], repeated: set[str]) -> Iterator[tuple[str, list[str]]]:
    for key, value in values.items():
        option = f"--{str(key).replace('_', '-')}"
        if isinstance(value, dict):
            yield from _flatten(value, repeated)
        elif isinstance(value, bool):
            yield (option if value else f"--no-{option[2:]}"), []
        elif isinstance(value, list) and option in repeated:
            yield from ((option, [str(item)]) for item in value)
        else:
            yield option, [str(item) for item in (value if isinstance(value, list) else [value])]


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
