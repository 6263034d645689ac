"""The command ``krl-runtime``: run a bundle, and look at it and at this device."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from krl_runtime._version import __version__
from krl_runtime.backends.select import ALL_KINDS
from krl_runtime.errors import BackendError, CheckFailedError, UsageError
from krl_runtime.evaluation.limits import MAX_DROP_DB, MAX_DROP_POINTS
from krl_runtime.pipelines import pipeline_of
from krl_runtime.pipelines.classifier import Classifier
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.retrieval.gallery import Index
from krl_runtime.serve import serve
from krl_runtime.serve.config import ServeConfig

from .arguments import (
    PROG,
    add_bundle,
    add_command,
    add_model_options,
    add_on_bad_image,
    add_threads,
    add_trust,
    bundle_and_images,
    load_model,
    natural,
    open_bundle,
    points,
    positive,
    refuse_misspelled,
    where,
)
from .bench import add_bench
from .commandline import guard, next_command, print_json, take_quiet, take_verbose
from .evaluate import add_evaluate
from .explain import add_explain
from .generate_restore import add_generate, add_restore
from .retrieve import add_index, add_search
from .running import run_samples
from .samples import samples_of
from .tables import table

if TYPE_CHECKING:
    from krl_runtime.backends.tuning import Tuning

__all__ = ["check_arguments", "command_parsers", "main"]

_MAX_DROP_HELP = (
    "points of top-1 or recall@1, or dB of PSNR, that a variant may lose by the bundle's evidence "
    f"(default: {MAX_DROP_POINTS:g}, {MAX_DROP_DB:g})"
)
_log = logging.getLogger("krl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``krl-runtime``.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 1 a check whose answer is no, 2 bad input, 130 interrupted.
    """
    given, quiet = take_quiet(list(sys.argv[1:] if argv is None else argv))
    given, verbose = take_verbose(given)
    return guard(PROG, lambda: _run(given), quiet=quiet, verbose=verbose)


def check_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments of a command.

    Raises:
        UsageError: A command or an option is not known.
        SystemExit: Another fault, or help was asked for; argparse has printed it.
    """
    parser = _parser()
    refuse_misspelled(parser, argv)
    return parser.parse_args(argv)


def _run(argv: list[str]) -> int | None:
    arguments = check_arguments(argv)
    code: int | None = arguments.run(arguments)
    return code


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name."""
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="Runs krl bundles on TensorRT or ONNX Runtime.")
    parser.add_argument("-V", "--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    classify = add_command(commands, "classify", _classify, "say what images show")
    classify.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="NAME.krl|FILE",
        help="the bundle, and images, folders of images, or lists of images LIST.csv",
    )
    classify.add_argument("-b", "--bundle", type=Path, metavar="NAME.krl", help="the bundle, if not among these")
    classify.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further input of the model for all images: an attribute's value, or an image's file; may be repeated",
    )
    classify.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes in an answer (default: 5)")
    add_on_bad_image(classify, "nothing is answered")
    add_model_options(classify)

    add_generate(commands)
    add_restore(commands)
    add_index(commands)
    add_search(commands)

    info = add_command(commands, "info", _info, "show what a bundle says of itself, and check every file of it")
    add_bundle(info)
    add_trust(info)

    add_evaluate(commands)
    add_explain(commands)

    test = add_command(commands, "selftest", _selftest, "replay the golden inputs on every variant and backend")
    add_bundle(test)
    add_threads(test)
    test.add_argument("--require", choices=ALL_KINDS, help="test this backend alone; where it is not here, fail")
    add_trust(test)

    tune = add_command(
        commands, "tune", _tune, "measure which variant and backend is fastest here, and keep it for load"
    )
    add_bundle(tune)
    add_trust(tune)
    tune.add_argument("--max-drop", type=points, metavar="P", help=_MAX_DROP_HELP)
    tune.add_argument(
        "--threads", type=positive, nargs="+", default=[], metavar="N", help="CPU threads to try (default: 1, 2, 4 …)"
    )
    tune.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="keep the result there and not beside the bundle; load needs KRL_CACHE_DIR=DIR then",
    )
    tune.add_argument("--rounds", type=positive, default=7, metavar="N", help="measurements of each (default: 7)")

    add_bench(commands)

    serve = add_command(commands, "serve", _serve, "answer over HTTP: Open Inference Protocol, image upload, metrics")
    add_bundle(serve)
    serve.add_argument("--name", help="what clients call the model (default: the bundle's file name)")
    serve.add_argument("--index", type=Path, metavar="FILE", help="index of an embedding network, to search in")
    serve.add_argument("--host", default=ServeConfig.host, help=f"address to listen on (default: {ServeConfig.host})")
    for name, kind, default, text in (
        ("port", natural, ServeConfig.port, "port to listen on, 0 for any free one"),
        ("workers", positive, ServeConfig.workers, "requests worked on at once"),
        ("queue", natural, ServeConfig.queue, "requests that may wait; one more is answered with 503"),
        ("max-batch", positive, ServeConfig.max_batch, "images of several requests to run together, for GPUs"),
        ("max-delay-ms", natural, int(ServeConfig.max_delay_seconds * 1000), "how long an image waits for a batch"),
        ("max-body-mb", positive, ServeConfig.max_body_bytes >> 20, "MiB that a request may have"),
        ("max-megapixels", positive, ServeConfig.max_pixels // 10**6, "millions of pixels that an image may have"),
    ):
        serve.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    serve.add_argument(
        "--build", choices=("background",), help="build a missing TensorRT engine meanwhile, and change over to it"
    )
    add_model_options(serve, threads=1)

    add_command(commands, "doctor", _doctor, "say what this machine can run, and what to do about what it cannot")
    return parser


def _classify(arguments: argparse.Namespace) -> None:
    arguments.bundle, images = bundle_and_images(arguments.bundle, arguments.paths)
    with load_model(arguments, Classifier) as model:
        samples = samples_of(model.inputs, images, arguments.input, arguments.on_bad_image)
        heads = [head.name for head in model.heads]
        answers, bad = run_samples(model, samples, "classifying", arguments.on_bad_image, top_k=arguments.top_k)
        if arguments.json:
            results = [{"file": str(file), **answer.to_dict(logits=False)} for file, answer in answers.items()]
            skipped = [{"file": str(file), "cause": cause} for file, cause in bad.items()]
            print_json({**where(model), "results": results, "skipped": skipped})
            return
    rows = [
        (
            file,
            answer.prediction,
            f"{answer.score:.1%}",
            ", ".join(f"{label} {score:.1%}" for label, score in answer.top[answer.known :]),
            *(f"{other.label} {other.score:.1%}" for other in answer.others.values()),
        )
        for file, answer in answers.items()
    ]
    print(table(("file", "prediction", "score", "then", *heads), rows))
    next_command(f"{PROG} bench {arguments.bundle}")


def _info(arguments: argparse.Namespace) -> None:
    from .info import describe

    bundle = open_bundle(arguments)
    bundle.verify()
    if arguments.json:
        print_json({"path": str(bundle.path), "verified": True, **json.loads(bundle.manifest.to_bytes())})
    else:
        print(describe(bundle))
    next_command(f"{PROG} selftest {bundle.path}")


def _selftest(arguments: argparse.Namespace) -> None:
    from krl_runtime.device.selftest import selftest

    bundle = open_bundle(arguments)
    replays = selftest(bundle, threads=arguments.threads, require=arguments.require)
    failed = [replay for replay in replays if replay.state == "failed"]
    if arguments.json:
        print_json({"bundle": str(bundle.path), "passed": not failed, "replays": [asdict(item) for item in replays]})
    else:
        rows = [
            (
                replay.variant,
                replay.kind,
                replay.state,
                *(None if value is None else f"{value:.2e}" for value in (replay.max_abs_error, replay.tolerance)),
                _alike(replay.agreement, replay.psnr),
                _alike(replay.required_agreement, replay.required_psnr),
                replay.cause.partition("; ")[0],  # krl-runtime doctor has the advice
            )
            for replay in replays
        ]
        header = ("variant", "backend", "state", "max error", "tolerance", "agreement", "required", "cause")
        print(table(header, rows))
    if failed:
        names = ", ".join(f"{replay.variant} on {replay.kind}" for replay in failed)
        raise CheckFailedError(f"{len(failed)} of {len(replays)} replays failed: {names}")
    if all(replay.state == "unavailable" for replay in replays):
        raise BackendError(f"nothing was tested: no backend is here; {PROG} doctor says why")
    next_command(f"{PROG} tune {bundle.path}")


def _alike(agreement: float | None, psnr: float | None) -> str | None:
    """Return a share of equal answers, or the PSNR of images, for people."""
    if psnr is not None:
        return f"{psnr:.1f} dB"
    return None if agreement is None else f"{agreement:.1%}"


def _tune(arguments: argparse.Namespace) -> None:
    from krl_runtime.backends.tuning import tuning_file
    from krl_runtime.device.tune import tune

    if arguments.cache_dir is not None:
        os.environ["KRL_CACHE_DIR"] = str(arguments.cache_dir)
    bundle = open_bundle(arguments)
    options = {"max_drop": arguments.max_drop, "threads": arguments.threads, "rounds": arguments.rounds}
    tuning = tune(bundle, **options, write=False)
    file = tuning_file(bundle)
    try:
        tuning.write(file)
        unwritten = ""
    except OSError as error:
        unwritten = f"{file} cannot be written ({error.strerror}), so load will not use this; give --cache-dir DIR"
    if arguments.json:
        print_json({"bundle": str(bundle.path), "file": None if unwritten else str(file), **asdict(tuning)})
    else:
        _print_tuning(tuning)
    if unwritten:
        raise UsageError(unwritten)
    if not arguments.json:
        print(f"\nkept in {file}; krl_runtime.load uses it on this device until the bundle or a library changes")
    next_command(f"{PROG} bench {bundle.path}")


def _print_tuning(tuning: Tuning) -> None:
    best = tuning.measurements[0]
    rows = [
        (
            item.variant,
            item.kind,
            item.threads,
            None if item.milliseconds is None else f"{item.milliseconds:.3f}",
            None if item.max_abs_error is None else f"{item.max_abs_error:.2e}",
            item.cause.partition("; ")[0] or ("chosen" if item is best else ""),
        )
        for item in tuning.measurements
    ]
    print(table(("variant", "backend", "threads", "ms", "max error", "remark"), rows))


def _serve(arguments: argparse.Namespace) -> None:
    config = ServeConfig(
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        queue=arguments.queue,
        max_batch=arguments.max_batch,
        max_delay_seconds=arguments.max_delay_ms / 1000,
        max_body_bytes=arguments.max_body_mb << 20,
        max_pixels=arguments.max_megapixels * 10**6,
    )
    bundle = open_bundle(arguments)
    if not issubclass(pipeline_of(bundle), ImagePipeline):
        task = bundle.manifest.task
        raise UsageError(
            f"bundle {bundle.path} is for the task {task!r}; a bundle for classification or embedding is needed here"
        )
    with load_model(arguments, None) as model:
        index = None if arguments.index is None else Index.open(arguments.index, model)

        def started(url: str) -> None:
            _log.info("%s: listening on %s", model.bundle.manifest.name, url)
            if arguments.json:
                print_json({**where(model), "url": url})
                sys.stdout.flush()

        if not serve(model, config, index=index, started=started):
            sys.stdout.flush()
            os._exit(0)  # a library that is still at work would keep the process, or crash, while it is taken down


def _doctor(arguments: argparse.Namespace) -> None:
    from krl_runtime.device.doctor import can_run
    from krl_runtime.device.doctor import doctor as run_doctor

    findings = run_doctor()
    if arguments.json:
        print_json({"can_run": can_run(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.component, finding.state, finding.detail, finding.advice) for finding in findings]
        print(table(("component", "state", "found", "what to do"), rows))
    if not can_run(findings):
        raise CheckFailedError("no backend can run here; the table says what to install")


if __name__ == "__main__":
    raise SystemExit(main())
