"""Options that the commands of ``krl-runtime`` share, and loading the bundle that they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from krl_runtime.backends.select import ALL_KINDS
from krl_runtime.bundle import MANIFEST, Bundle
from krl_runtime.errors import UsageError
from krl_runtime.images.folders import OnBadImage, find_images
from krl_runtime.pipelines import Classifier, Embedder, Generator, Restorer, load
from krl_runtime.pipelines.base import Pipeline

from .suggestions import suggest

__all__ = [
    "PROG",
    "add_bundle",
    "add_command",
    "add_model_options",
    "add_on_bad_image",
    "add_threads",
    "add_trust",
    "bundle_and_images",
    "expand",
    "load_model",
    "natural",
    "open_bundle",
    "points",
    "positive",
    "refuse_misspelled",
    "share",
    "where",
]

PROG = "krl-runtime"
_Pipeline = TypeVar("_Pipeline", Classifier, Embedder, Restorer, Generator)


def add_command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.set_defaults(run=run)
    return parser


def refuse_misspelled(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse a command or an option that does not exist, with the nearest one that does.

    Raises:
        UsageError: There is one.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    names: dict[str, argparse.ArgumentParser] = commands.choices
    if not argv or argv[0].startswith("-"):
        return
    if argv[0] not in names:
        raise UsageError(f"unknown command {argv[0]!r}{suggest(argv[0], names)}; accepted: {', '.join(names)}")
    known = names[argv[0]]._option_string_actions
    for option in (item.partition("=")[0] for item in argv[1:]):
        if option == "--":
            return
        if option.startswith("--") and not any(name.startswith(option) for name in known):
            accepted = sorted(name for name in known if name.startswith("--"))
            raise UsageError(f"unknown option {option}{suggest(option, accepted)}; accepted: {', '.join(accepted)}")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, the command's first argument."""
    parser.add_argument("bundle", type=Path, metavar="NAME.krl", help="the bundle, a folder")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the keys of which one has to have signed the bundle."""
    parser.add_argument(
        "--trust",
        type=Path,
        action="append",
        default=[],
        metavar="KEY",
        help="public key: refuse a bundle that it has not signed, and load its engines; may be repeated",
    )


def open_bundle(arguments: argparse.Namespace) -> Bundle:
    """Open the bundle that a command names, signed by a trusted key if there is one."""
    return Bundle.open(arguments.bundle, trust=arguments.trust)


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """Add the number of threads."""
    shown = default or "one a physical core"
    parser.add_argument(
        "--threads", type=positive, default=default, metavar="N", help=f"CPU threads for one call (default: {shown})"
    )


def add_model_options(parser: argparse.ArgumentParser, threads: int | None = None) -> None:
    """Add what says which variant is to run on what."""
    parser.add_argument("--variant", metavar="NAME", help="fp32, fp16 or int8 (default: the bundle's for the device)")
    parser.add_argument(
        "--backend",
        choices=("auto", *ALL_KINDS),
        default="auto",
        help="where to begin in the order TensorRT, CUDA, CPU, which has OpenVINO only if asked for (default: auto, "
        f"what {PROG} tune chose, else the beginning)",
    )
    parser.add_argument("--require", choices=ALL_KINDS, help="run on this or not at all")
    parser.add_argument("--device", type=natural, default=0, metavar="N", help="number of the GPU (default: 0)")
    add_threads(parser, threads)
    add_trust(parser)


def add_on_bad_image(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add what to do with files that are not readable images; ``otherwise`` is what happens if they are refused."""
    parser.add_argument(
        "--on-bad-image",
        choices=("refuse", "skip"),
        default="refuse",
        help=f"refuse: one unreadable file, and {otherwise} (default); skip: name it and go on",
    )


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """Return a whole number from 0 on."""
    return _at_least(0, text)


def _at_least(minimum: int, text: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; accepted: {minimum} or more")
    return int(text)


def points(text: str) -> float:
    """Return a number from 0 to 100."""
    value = _number(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; accepted: 0 to 100")
    return value


def share(text: str) -> float:
    """Return a number above 0 and below 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; accepted: above 0 and below 1, as 0.05")
    return value


def _number(text: str) -> float:
    """Return a number; one that is negative, and so never accepted, for other text."""
    try:
        return float(text)
    except ValueError:
        return -1.0


@overload
def load_model(arguments: argparse.Namespace, pipeline: type[_Pipeline]) -> _Pipeline: ...
@overload
def load_model(arguments: argparse.Namespace, pipeline: None) -> Any: ...
def load_model(arguments: argparse.Namespace, pipeline: type[Any] | None) -> Any:
    """Load the bundle as the options say; bundles that are not for ``pipeline`` are refused, if one is given."""
    return load(
        arguments.bundle,
        pipeline,
        variant=arguments.variant,
        backend=arguments.backend,
        require=arguments.require,
        threads=arguments.threads,
        device=arguments.device,
        trust=arguments.trust or None,
        build=getattr(arguments, "build", None),  # which only serve has
        build_batch=getattr(arguments, "max_batch", 1),
    )


def where(model: Pipeline) -> dict[str, Any]:
    """Return the loaded backend and variant, for JSON."""
    return {
        "bundle": str(model.bundle.path),
        "backend": model.backend.name,
        "variant": model.backend.variant,
        "reason": model.backend.reason,
    }


def bundle_and_images(bundle: Path | None, paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Tell the bundle from the images: what ``--bundle`` gives, else the one path that is a bundle.

    Where none is, the first path is taken for it, so that the message says what is wrong with that one.
    """
    if bundle is not None:
        return bundle, list(paths)
    bundles = [path for path in paths if (path / MANIFEST).is_file()]
    if len(bundles) > 1:
        raise UsageError(f"{len(bundles)} bundles were given: {', '.join(map(str, bundles))}; give one")
    chosen = bundles[0] if bundles else paths[0]
    images = [path for path in paths if path != chosen]
    if not images:
        raise UsageError(f"no images were given beside {chosen}; accepted: a bundle, and image files or folders")
    return chosen, images


def expand(paths: Sequence[Path], on_bad: OnBadImage) -> list[Path]:
    """Replace folders by the images in them."""
    files: list[Path] = []
    for path in paths:
        files += find_images(path, on_bad=on_bad) if path.is_dir() else [path]
    return list(dict.fromkeys(files))
