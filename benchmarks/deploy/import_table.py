"""Import third-party ONNX files, and compare each bundle with its file: the table of docs/import_table.md.

::

    python benchmarks/deploy/import_table.py WORK --data ../shared/data --page docs/import_table.md
    python benchmarks/deploy/import_table.py WORK --only resnet18 --only end_

Each file is made in WORK, and run by plain ONNX Runtime on inputs that NumPy normalizes. ``krl_deploy.import_onnx``
makes a bundle, whose predictions through ``krl_runtime.load`` are compared at batch 1, 2 and 16. Then it is converted
to FP16 and INT8, and all variants are shown to NVIDIA's parser and builder (TensorRT-RTX, which needs no GPU).

Results are kept in WORK/NAME.json: a run that was interrupted continues, and --again repeats. The weights are
random, so that agreement and SNR of FP16 and INT8 say only whether the conversion is sound.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.reference
import onnxruntime
from _peers import photographs
from _third_party import CLASSES, Item, items
from PIL import Image

import krl_deploy
from krl_runtime import load
from krl_runtime.errors import KrlError

BATCHES = (1, 2, 16)
IMAGES = 40  # half of them calibrate, and half are judged
LATENTS = 16
TOLERANCE = 1e-3  # of scores, as the importer accepts; FP16 files are compared at HALF
HALF = 2e-2  # of scores of a file that computes in FP16
LEVEL = 0.51  # of 255: images are rounded to levels
CELL = 400  # characters: a message of ONNX Runtime can be a page
NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
LIBRARIES = ("onnx", "onnxruntime", "torch", "torchvision", "timm", "tensorrt_rtx_cu13_libs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for files, bundles and results")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="its models/ are imported too")
    parser.add_argument("--only", action="append", metavar="NAME", help="files whose name contains this; repeatable")
    parser.add_argument("--again", action="store_true", help="repeat files that have a result")
    parser.add_argument("--page", type=Path, help="write the Markdown page to this file, and not to standard output")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # one file, in a process of its own
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    known = items(arguments.data)
    if arguments.part:
        (item,) = (item for item in known if item.name == arguments.part)
        print(json.dumps(judged(item, arguments.work)))
        return
    kept = {item.name: arguments.work / f"{item.name}.json" for item in known}
    for item in known:
        wanted = not arguments.only or any(part in item.name for part in arguments.only)
        if wanted and (arguments.again or not kept[item.name].exists()):
            found = in_process(item, arguments.work, arguments.data)
            kept[item.name].write_text(json.dumps(found))
            print(f"{item.name}: {' | '.join(cells(item, found)[3:])}", file=sys.stderr, flush=True)
    text = page([(item, json.loads(kept[item.name].read_text())) for item in known if kept[item.name].exists()])
    if arguments.page:
        arguments.page.write_text(text)
    else:
        print(text)


def in_process(item: Item, work: Path, data: Path) -> dict[str, Any]:
    """Judge a file in a process of its own, which may crash."""
    command = [sys.executable, __file__, str(work), "--data", str(data), "--part", item.name]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (work / f"{item.name}.log").write_text(done.stderr)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        found = {"result": f"**the process ended with {done.returncode}** (-11: ONNX Runtime crashed)"}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def judged(item: Item, work: Path) -> dict[str, Any]:
    """Make a file, import it, and return what the table has."""
    file = work / f"{item.name}.onnx"
    try:
        if not file.exists():  # in a process of its own: torch takes no part in the import
            maker = multiprocessing.get_context("spawn").Process(target=item.make, args=(file,))
            maker.start()
            maker.join()
            if maker.exitcode:
                raise RuntimeError(f"its process ended with {maker.exitcode}")
    except Exception as error:
        file.unlink(missing_ok=True)
        traceback.print_exc()
        return {"result": f"not made: {type(error).__name__}: {' '.join(str(error).split())[:150]}"}
    images = folder_of_images(item, work)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    found: dict[str, Any] = {"form": "", "differences": {}}
    try:
        found["form"] = form_of(file)
        bundle, stays = import_file(item, file, images, work)
    except Exception as error:
        return {**found, "result": failure(error)}
    found["result"] = "imported, the batch stays 1" if stays else "imported"
    found |= attempt("differences", lambda: differences(item, file, bundle, images))
    given = {} if item.task == "generation" else {"data": images}
    shared = {"bundle": bundle, "accept_unmeasured": True, "val_fraction": 0.5, **given}
    limits = {"min_psnr": 1} if item.task == "generation" else {"max_drop": 100}
    limits |= {"max_recall_drop": 100} if item.task == "classification" else {}
    found |= attempt("fp16", lambda: scores(krl_deploy.fp16(**shared, **limits).scores, "fp16.rounded"))
    found |= attempt("int8", lambda: scores(krl_deploy.quantize(**shared, **limits).scores, "int8.fp32", "int8.cpu"))
    found |= attempt("parser", lambda: parser_of(bundle))
    shutil.rmtree(bundle)
    file.unlink()
    file.with_suffix(".data").unlink(missing_ok=True)
    Path(f"{file}.data").unlink(missing_ok=True)
    return found


def attempt(name: str, function: Any) -> dict[str, Any]:
    try:
        return {name: function()}
    except Exception as error:
        return {name: failure(error)}


def failure(error: Exception) -> str:
    """Return the exit code and the message; an exception that the command line would not catch stands out."""
    message = " ".join(re.sub(r"\S+/(?=[\w.-]+\.(onnx|data|krl))", "", str(error)).split())
    if isinstance(error, KrlError):
        return f"exit {error.exit_code}: {message}"
    traceback.print_exception(error)
    return f"**{type(error).__name__}**: {message[:300]}"


def folder_of_images(item: Item, work: Path) -> Path:
    """Return a folder with classes of photographs of the size that the file takes."""
    side = item.side * item.options.get("scale", 1)
    root = work / f"images-{side}-{item.channels}"
    if not root.exists():
        for number, pixels in enumerate(photographs(IMAGES, side)):
            image = Image.fromarray(pixels.transpose(1, 2, 0))
            target = root / f"c{number % CLASSES}" / f"{number:02}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            (image.convert("L") if item.channels == 1 else image).save(target)
    return root


def form_of(file: Path) -> str:
    """Return the input of a file as ONNX Runtime reports it."""
    try:
        given = session_of(file).get_inputs()
    except Exception:  # ONNX Runtime's own types share no other base class
        return "not readable"
    return ", ".join(f"{one.type[7:-1]} [{', '.join(map(str, one.shape))}]" for one in given)


def session_of(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:  # float64 convolutions
        return _Reference(file)


class _Reference:
    """A file that ONNX's reference evaluator runs, called as a session of ONNX Runtime."""

    def __init__(self, file: Path) -> None:
        self.net = onnx.reference.ReferenceEvaluator(str(file))

    def get_inputs(self) -> list[SimpleNamespace]:
        names = self.net.input_names
        return [self._described(name, kind) for name, kind in zip(names, self.net.input_types, strict=True)]

    def get_outputs(self) -> list[SimpleNamespace]:
        names = self.net.output_names
        return [self._described(name, kind) for name, kind in zip(names, self.net.output_types, strict=True)]

    def run(self, _: None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.net.run(None, dict(feed))

    @staticmethod
    def _described(name: str, kind: Any) -> SimpleNamespace:
        shape = [side.dim_param or side.dim_value for side in kind.tensor_type.shape.dim]
        return SimpleNamespace(name=name, type="tensor(double)", shape=shape)


def import_file(item: Item, file: Path, images: Path, work: Path) -> tuple[Path, bool]:
    """Return the bundle, and whether it takes one image at a time."""
    options: dict[str, Any] = {"task": item.task, "golden": 4, **item.options}
    if item.task != "generation":
        options |= {"data": images}
    if item.task == "classification":
        shape = [] if form_of(file) == "not readable" else session_of(file).get_outputs()[0].shape
        classes = next((size for size in shape[::-1] if isinstance(size, int) and size > 1), CLASSES)
        options["labels"] = tuple(f"c{number}" for number in range(classes))
        if "uint8" not in form_of(file) and (item.mean, item.std) != ((0.0,) * item.channels, (1.0,) * item.channels):
            options |= {"mean": item.mean, "std": item.std}
    done = krl_deploy.import_onnx(model=file, out=work / f"{item.name}.krl", overwrite=True, **options)
    return done.bundle, "[1, " in done.details["input"]


# Comparison with the file, by ONNX Runtime and NumPy alone


def differences(item: Item, file: Path, bundle: Path, images: Path) -> dict[str, float]:
    """Return the largest difference of scores (of levels for images) at each batch."""
    session = session_of(file)
    with load(bundle, require="cpu", threads=1) as pipeline:
        if item.task == "generation":
            latents = np.random.default_rng(1).standard_normal((LATENTS, pipeline.latent_size)).astype(np.float32)
            wanted = (file_outputs(session, latents.reshape(LATENTS, -1, 1, 1)) + 1) * 127.5
            made = {n: np.stack([one.pixels for one in pipeline.generate_from(latents[:n])]) for n in BATCHES}
            made = {n: rows.transpose(0, 3, 1, 2) for n, rows in made.items()}
        else:
            paths = sorted(images.rglob("*.png"))[: BATCHES[-1]]
            pixels = np.stack([np.atleast_3d(np.asarray(Image.open(path))).transpose(2, 0, 1) for path in paths])
            inputs = file_inputs(item, session, pixels)
            if item.task == "classification":
                return {
                    str(n): of_classes(item, file_outputs(session, inputs[:n]), pipeline, paths[:n]) for n in BATCHES
                }
            wanted, restored = (
                file_outputs(session, inputs) * 255,
                np.stack([pipeline.restore_planes(p) for p in pixels]),
            )
            made = {n: restored[:n] for n in BATCHES}
    return {str(n): float(np.abs(rows - wanted[:n]).max()) for n, rows in made.items()}


def of_classes(item: Item, outputs: np.ndarray, pipeline: Any, paths: list[Path]) -> float:
    """Return the largest difference of a score, or of a logit as a share of the largest, where scores are 0 and 1."""
    outputs = outputs.reshape(len(paths), -1).astype(np.float64)
    results = (
        [pipeline(paths[0], top_k=len(pipeline.labels))]
        if len(paths) == 1
        else pipeline(paths, top_k=len(pipeline.labels))
    )
    made = np.array([[dict(one.top).get(label, 0) for label in pipeline.labels] for one in results])
    difference = np.abs(made - file_scores(item.kind, outputs)).max()
    if item.kind == "logits" and pipeline.output_kind == "logits":
        logits = np.stack([one.logits for one in results])
        difference = max(difference, np.abs(logits - outputs).max() / np.abs(outputs).max())
    return float(difference)


def file_inputs(item: Item, session: Any, pixels: np.ndarray) -> np.ndarray:
    """Return uint8 ``[N, C, H, W]`` as the file takes them."""
    (given,) = session.get_inputs()
    shape = given.shape
    if given.type == "tensor(uint8)":
        values = pixels
    else:
        range_ = item.options.get("input_range", "0-1")
        unit = {"0-1": pixels / 255, "0-255": pixels * 1.0, "symmetric": pixels / 127.5 - 1}[range_]
        values = (unit - np.reshape(item.mean, (1, -1, 1, 1))) / np.reshape(item.std, (1, -1, 1, 1))
        values = values.astype(NUMBERS[given.type])
    if item.options.get("channel_order") == "bgr":
        values = values[:, ::-1]
    if len(shape) == 2:
        return values.reshape(len(values), -1)
    return values.transpose(0, 2, 3, 1) if shape[-1] == item.channels else values


def file_outputs(session: Any, values: np.ndarray) -> np.ndarray:
    """Run the file, in its own batch if that is fixed."""
    (given,) = session.get_inputs()
    step = given.shape[0] if isinstance(given.shape[0], int) else len(values)
    padded = np.concatenate([values, values[: -len(values) % step]])
    parts = [session.run(None, {given.name: padded[at : at + step]})[0] for at in range(0, len(padded), step)]
    return np.concatenate([part if step > 1 else part.reshape(1, *part.shape[-3:]) for part in parts])[: len(values)]


def file_scores(kind: str, outputs: np.ndarray) -> np.ndarray:
    if kind == "logits":
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    return np.exp(outputs) if kind == "log-probabilities" else outputs


def scores(found: Mapping[str, Mapping[str, Any]], *names: str) -> str:
    """Return agreement and SNR, or PSNR, of variants, the name without its precision in front."""
    parts = []
    for score in (found[name] for name in names if name in found):
        if "agreement" in score:
            parts.append(f"{score['agreement']:.0%}, {score['snr_db']:.0f} dB")
        else:
            parts.append(f"{score['psnr_to_fp32']:.0f} dB")
    return "; ".join(parts)


def parser_of(bundle: Path) -> str:
    """Return what NVIDIA's parser and builder say to each variant."""
    said = {}
    for file in krl_deploy.check(model=bundle, target="rtx", parser=True).details["files"]:
        words = [one for one in file["findings"] if one["rule"].startswith(("parser/", "builder/"))]
        asked = file["parser"]
        accepted = asked and asked["parsed"] and asked["built"] is not False
        errors = [one for one in file["findings"] if one["severity"] == "error"]
        if accepted and not errors:
            said[file["variant"]] = "built" if asked["built"] else "parsed"
        else:
            first = (words or errors)[0]
            said[file["variant"]] = f"{first['rule']}: {first['op']} {first['why'][:200]}"
    if len({*said.values()}) == 1:
        return f"{', '.join(said)}: {next(iter(said.values()))}"
    return "; ".join(f"{name}: {text}" for name, text in said.items())


# The page


def page(rows: list[tuple[Item, Mapping[str, Any]]]) -> str:
    imported = [(item, found) for item, found in rows if found["result"].startswith("imported")]
    equal = sum(is_equal(item, found) for item, found in imported)
    built = sum(found["parser"].endswith("built") and ";" not in found["parser"] for _, found in imported)
    lines = [
        "# Table of imported files",
        "",
        "Third-party files, imported with `krl-deploy import` ([import.md](import.md)) and compared with the file:",
        "",
        "```sh",
        "python benchmarks/deploy/import_table.py WORK --data ../shared/data --page docs/import_table.md",
        "```",
        "",
        f"{date.today()}; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + ".",
        "",
        f"{len(rows)} files: {len(imported)} imported, of which {equal} have the file's predictions at every batch; "
        f"{built} were built by NVIDIA's builder in every variant. The others: see their rows.",
        "",
        "- Weights are random, images are crops of two photographs. Agreement and SNR are on 20 images, and say only "
        "whether the conversion is sound.",
        "- Difference: largest one of a score of 0 to 1, or of a logit as a share of the largest, from those of ONNX "
        "Runtime on the file, at batch 1, 2 and 16; for images, of a level of 255, which rounding makes up to 0.5. "
        "Quantized files become float models, whose scores differ.",
        "- FP16: every tensor rounded to FP16. INT8: Q/DQ model; form for ONNX Runtime's CPU provider.",
        "- Fixed batches of 1 stay where attention or axes are written for one image; the predictions are the file's.",
        "- Parser: TensorRT-RTX's parser and builder, without a GPU. Nothing has run on a GPU.",
        "",
        "| file | exporter | input | result | difference at 1 / 2 / 16 | FP16 | INT8 | parser |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(cells(item, found))} |" for item, found in rows), ""])


def is_equal(item: Item, found: Mapping[str, Any]) -> bool:
    values = found["differences"]
    limit = LEVEL if item.task == "generation" else HALF if "float16" in found["form"] else TOLERANCE
    return isinstance(values, dict) and all(value <= limit for value in values.values())


def cells(item: Item, found: Mapping[str, Any]) -> list[str]:
    values = found.get("differences") or {}
    shown = " / ".join(f"{value:.0e}" for value in values.values()) if isinstance(values, dict) else values
    texts = [
        item.name,
        item.exporter,
        found.get("form", ""),
        found["result"],
        shown,
        *(found.get(name, "") for name in ("fp16", "int8", "parser")),
    ]
    return [re.sub(r"/\S+/work", "WORK", " ".join(text.split())).replace("|", "\\|")[:CELL] for text in texts]


if __name__ == "__main__":
    main()
