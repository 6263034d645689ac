"""Classifiers that teach from a file: a bundle, which says what it takes, and an ONNX file, which does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.output_kind import OutputKind, is_multi_label, output_kind
from krl_runtime.errors import ModelError, UsageError, require
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.classifier import Classifier
from krl_train.config import InputConfig
from krl_train.data import Source, preprocessing_for

from .graph import ADVICE, GraphFeatures, GraphNetwork, OnnxGraph
from .kinds import VARIANT
from .loading import LoadedTeacher

__all__ = ["file_identity", "library", "load_bundle_teacher", "load_onnx_teacher", "read_onnx"]

_log = logging.getLogger("krl")

_TRIED = 4  # images of noise whose outputs show whether they are probabilities
_SUM_TOLERANCE = 0.02  # of the sum of probabilities: ten of an INT8 graph are each off by up to 1/512


def library() -> str:
    """Return the library that computes a file's outputs, with its version."""
    ort = require("onnxruntime", extra="cpu", purpose="a teacher that is a bundle or an ONNX file")
    return f"onnxruntime {ort.__version__}"


def file_identity(kind: str, path: str, data: bytes, **further: str) -> dict[str, str]:
    """Return the identity of a teacher's file, for the record of a student.

    Args:
        kind: Of the teacher.
        path: Where it lies.
        data: The bytes of the ONNX file.
        further: What else its outputs depend on.
    """
    return {"kind": kind, "path": str(Path(path).resolve()), "sha256": sha256_bytes(data), **further}


def read_onnx(name: str) -> bytes:
    """Return the bytes of an ONNX file.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"teacher {name} cannot be read: {error}") from error


def load_bundle_teacher(name: str) -> LoadedTeacher:
    """Load the FP32 variant of a classifier's bundle, with the hashed bytes and the bundle's own preprocessing.

    Raises:
        BundleError: It is damaged, of another schema version, or no classifier's.
        ModelError: ONNX Runtime cannot run it.
    """
    bundle = Bundle.open(name)
    Classifier.check(bundle)
    manifest = bundle.manifest
    kind = output_kind(manifest.settings)
    if kind in ("probabilities", "sigmoid"):
        _say_probabilities(name)
    data = bundle.read(manifest.variants[VARIANT].file)
    graph = OnnxGraph(data, name, output=manifest.outputs[0].name, kind=kind)
    identity = file_identity("bundle", name, data, variant=VARIANT, output_kind=kind)
    network = GraphNetwork(graph, manifest.preprocessing)
    several, features = is_multi_label(kind), GraphFeatures(network)
    return LoadedTeacher(name, network, identity, manifest.labels, None, features, library(), several)


def load_onnx_teacher(name: str, source: Source, config: InputConfig, *, numbered: bool) -> LoadedTeacher:
    """Load a classifier's ONNX file.

    Args:
        name: Its path.
        source: The data: where the file leaves the size open, images are of the data's, and mean and deviation are
            measured where ``config`` has none. Its labels are the classes where their number is the same.
        config: What the user says of the input.
        numbered: Whether the classes are numbers in any case, which ``--map-labels`` then names.

    Raises:
        UsageError: The file cannot be read, or its size of images is not known.
        ModelError: It is no classifier's that krl knows how to run; the message has what was found and what to do.
    """
    data = read_onnx(name)
    graph = OnnxGraph(data, name)
    network = GraphNetwork(graph, _input(graph, source, config, name))
    classes = _classes(network, name, several=source.multi_label)
    labels = source.labels if classes == len(source.labels) and not numbered else tuple(map(str, range(classes)))
    if graph.kind in ("probabilities", "sigmoid"):
        _say_probabilities(name)
    taken = network.preprocessing
    if graph.takes_pixels:
        _log.info("teacher %s takes images of %dx%dx%d as they are, 0 to 255", name, *taken.shape)
    else:
        _log.info(
            "teacher %s takes images of %dx%dx%d, mean %s and std %s; give --size, --channels, --mean and --std if it "
            "was trained with others",
            *(name, *taken.shape, taken.mean, taken.std),
        )
    identity = file_identity("onnx", name, data, output_kind=graph.kind)
    features = GraphFeatures(network)
    return LoadedTeacher(name, network, identity, labels, None, features, library(), source.multi_label)


def _input(graph: OnnxGraph, source: Source, config: InputConfig, name: str) -> Preprocessing:
    """Return the input: what the graph fixes, then what the user says, then what the data has."""
    channels, height, width = graph.shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else config.size or source.size
    if size is None:
        raise UsageError(f"--size is needed: teacher {name} takes images of any size")
    own = channels if isinstance(channels, int) else config.channels or source.channels
    same = own == (config.channels or own)
    asked = replace(
        config, size=size, channels=own, mean=config.mean if same else None, std=config.std if same else None
    )
    return preprocessing_for(asked, source, name)


def _classes(network: GraphNetwork, name: str, *, several: bool) -> int:
    """Return the number of classes, found by running the graph; note where its outputs are probabilities.

    Args:
        network: The graph.
        name: Its path.
        several: Whether the labels are independent of each other, so that a sigmoid makes their scores.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_TRIED, *network.preprocessing.shape)
    outputs = network(torch.randint(0, 256, shape, generator=generator).to(torch.uint8)).numpy()
    if outputs.ndim != 2 or outputs.shape[0] != _TRIED or outputs.shape[1] < 2:
        raise ModelError(
            f"teacher {name} answers {_TRIED} images with an output of {list(outputs.shape)}; accepted: logits or "
            f"probabilities [N, classes] of two classes or more. {ADVICE}"
        )
    network.backbone.kind = _kind(outputs, several=several)
    return int(outputs.shape[1])


def _kind(outputs: np.ndarray[Any, Any], *, several: bool) -> OutputKind:
    inside = bool((outputs >= 0).all() and (outputs <= 1).all())
    if several:
        return "sigmoid" if inside else "sigmoid-logits"
    return "probabilities" if inside and np.allclose(outputs.sum(1), 1, atol=_SUM_TOLERANCE) else "logits"


def _say_probabilities(name: str) -> None:
    _log.info("teacher %s ends in probabilities; its logits are made of them", name)
