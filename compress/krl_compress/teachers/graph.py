"""Networks that are ONNX graphs: ONNX Runtime computes them, and any tensor inside can be read as a feature."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from krl_runtime.backends.base import run_in_parts
from krl_runtime.backends.onnxruntime import open_session, tensor_specs
from krl_runtime.bundle import TensorSpec
from krl_runtime.bundle.onnx_file import Graph, read_graphs
from krl_runtime.bundle.output_kind import OutputKind, margins
from krl_runtime.errors import BackendError, MissingExtraError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network
from krl_train.models.features import FeatureMap

from .features import EMBEDDING, Features

__all__ = ["ADVICE", "GraphFeatures", "GraphNetwork", "OnnxGraph"]

_log = logging.getLogger("krl")

_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # numbers of ModelProto.graph, GraphProto.output and ValueInfoProto.name
_BYTES = 2  # protobuf's encoding of a field with a length
_LAYERS = (frozenset({b"Gemm", b"MatMul"}), frozenset({b"Conv"}))  # a classifier is the last of the former, or latter
_CHANNELS = (1, 3)  # gray and RGB, which krl makes of images
_TAKEN = ("float32", "float16", "uint8")
ADVICE = "Make a bundle of it, which teaches as well: krl-deploy import"
"""Advice for an ONNX file that cannot teach."""

_FLOATS = frozenset({"float16", "float32", "float64"})
_NOISE_IMAGES = 4  # as for torch networks: a channel with negative values has some among the positions of one image


class OnnxGraph(nn.Module):
    """One ONNX file with one input of images; it has no weights for torch, and copies share its sessions.

    Sessions are opened when they are needed: on CUDA where the images are, if ONNX Runtime can, else on the CPU; and
    another one where further tensors are to be read.

    Args:
        data: The bytes of the file; weights in other files and oversized constants are refused.
        where: Its path, for messages.
        output: The name of the output that counts; the only one by default.
        kind: What the outputs are; probabilities become log-probabilities, which are logits.

    Attributes:
        taken: The input.
        channels_last: Whether images go in as ``[N, H, W, C]``.

    Raises:
        ModelError: ONNX Runtime cannot open it, or its input is not one tensor of images, or it has several outputs.
    """

    def __init__(self, data: bytes, where: str, *, output: str | None = None, kind: OutputKind = "logits") -> None:
        super().__init__()
        self._data, self._where, self.kind = data, where, kind
        self._sessions: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._wanted: dict[str, str] = {}
        self._found: dict[str, Tensor] = {}
        self._outputs: tuple[str, ...] = ()
        session = self._opened("cpu", ())
        inputs, outputs = tensor_specs(session.get_inputs()), tensor_specs(session.get_outputs())
        self._sessions["cpu", ()] = session
        self._outputs = tuple(spec.name for spec in outputs)
        self.taken, self.channels_last = _image_input(where, inputs)
        if output is None and len(outputs) != 1:
            raise ModelError(f"teacher {where} has {len(outputs)} outputs: {_show(outputs)}; accepted: one. {ADVICE}")
        self.output = output or outputs[0].name

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxGraph:
        """Return itself: nothing in it changes, and a session cannot be copied."""
        del memo
        return self

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes pixels as they are, uint8 of 0 to 255, and normalizes them itself."""
        return self.taken.dtype == "uint8"

    @property
    def shape(self) -> tuple[int | str, int | str, int | str]:
        """Channels, height and width of an image; a text where the graph takes any."""
        first, second, third = self.taken.shape[1:]
        return (third, first, second) if self.channels_last else (first, second, third)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]``, pixels or normalized ones, to the output, of float32."""
        made = self._run(self._session(images, self._wanted.values()), images, [self.output, *self._wanted.values()])
        found = {name: torch.from_numpy(array).to(images.device) for name, array in made.items() if name != self.output}
        self._found.update({key: found[name] for key, name in self._wanted.items()})
        result = made[self.output] if self.kind == "logits" else margins(self.kind, made[self.output])
        return torch.from_numpy(result.astype(np.float32)).to(images.device)

    @contextmanager
    def reading(self, tensors: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each forward pass inside the block, of float32, by the keys given here.

        Args:
            tensors: Names in the graph.
        """
        self._wanted, self._found = dict(tensors), {}
        try:
            yield self._found
        finally:
            self._wanted, self._found = {}, {}

    def inner_tensors(self, images: Tensor) -> dict[str, npt.NDArray[Any]]:
        """Return all floating-point tensors ``[N, …]`` that the nodes make, in their order.

        Args:
            images: Of the batch size that the graph is for, where that is fixed.
        """
        names = [_text(name) for node in self.graph().nodes for name in node.outputs]
        unique = list(dict.fromkeys(name for name in names if name))
        further, count = tuple(name for name in unique if name not in self._outputs), len(images)
        made = self._run(self._opened("cpu", further), images, unique)  # a session that is not kept: it holds them all
        return {
            name: array
            for name, array in made.items()
            if isinstance(array, np.ndarray) and array.dtype.name in _FLOATS and array.shape[:1] == (count,)
        }

    def graph(self) -> Graph:
        """Return the main graph of the file, as the strict reader reads it."""
        return read_graphs(self._data)[0]

    def _run(self, session: Any, images: Tensor, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Run a graph of any batch size at once, and one of a fixed size in parts."""
        batch = self.taken.shape[0]
        array = images.detach().cpu().numpy().astype(self.taken.dtype)
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1) if self.channels_last else array)

        def run(part: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            given = part["images"]
            count = len(given)
            if isinstance(batch, int) and count < batch:  # the last image fills the batch up
                given = np.concatenate([given, np.repeat(given[-1:], batch - count, 0)])
            try:
                made = session.run(list(names), {self.taken.name: given})
            except Exception as error:  # ONNX Runtime's own types share no base class but this one
                message = " ".join(str(error).split())
                raise ModelError(f"teacher {self._where} failed on {list(given.shape)} images: {message}") from error
            return {name: _rows(value, len(given), count) for name, value in zip(names, made, strict=True)}

        return run_in_parts(run, {"images": array}, batch if isinstance(batch, int) else len(array))

    def _session(self, images: Tensor, wanted: Iterable[str]) -> Any:
        """Return the session where images are, which puts out further tensors as well."""
        key = ("cuda" if images.is_cuda else "cpu", tuple(sorted(set(wanted) - set(self._outputs))))
        if key not in self._sessions:
            self._sessions[key] = self._opened(*key)
        return self._sessions[key]

    def _opened(self, device: str, further: tuple[str, ...]) -> Any:
        data, threads = self._data + _as_outputs(further), torch.get_num_threads()
        if device == "cuda":
            try:
                return open_session(data, cuda=True, strict=False, threads=threads)
            except (BackendError, MissingExtraError) as error:
                _log.warning("teacher %s runs on the CPU, not on the GPU: %s", self._where, error)
        try:
            return open_session(data, cuda=False, threads=threads)
        except BackendError as error:
            raise ModelError(f"teacher {self._where}: {error}") from error


class GraphNetwork(Network):
    """An ONNX graph with the interface of a classifier that is a torch network.

    Args:
        backbone: The graph.
        preprocessing: From an image to its input; mean and std are applied here unless the graph takes pixels.
        classes: See ``Network``.
    """

    backbone: OnnxGraph

    def __init__(
        self, backbone: OnnxGraph, preprocessing: Preprocessing, *, classes: Sequence[int] | None = None
    ) -> None:
        super().__init__(backbone, preprocessing, classes=classes)

    def normalized(self, pixels: Tensor) -> Tensor:
        """See ``Network.normalized``; a graph that takes pixels gets whole numbers, as on a device."""
        if self.backbone.takes_pixels:
            return pixels.clamp(0, 255).round().to(torch.uint8)
        return super().normalized(pixels)


class GraphFeatures:
    """Features of an ONNX graph: its maps are its tensors of four dimensions, by their names in the file.

    The last tensor of a resolution ends its stage. The classifier's input is that of the last Gemm or MatMul or, where
    there is none, of the last Conv.

    Args:
        network: The network.
    """

    def __init__(self, network: GraphNetwork) -> None:
        self.network, self.graph = network, network.backbone

    @property
    def height(self) -> int:
        """See ``FeatureSource.height``."""
        return self.network.preprocessing.height

    def list_maps(self) -> list[FeatureMap]:
        """See ``FeatureSource.list_maps``."""
        batch = self.graph.taken.shape[0]
        count = batch if isinstance(batch, int) else 2  # two: a tensor whose length is 1 is none of the batch's
        tensors = self.graph.inner_tensors(self.network.normalized(self._images(count)))
        maps = [_as_map(name, array.shape, self.network.preprocessing) for name, array in tensors.items()]
        return [item for item in maps if item is not None]

    def stages(self) -> list[FeatureMap]:
        """See ``FeatureSource.stages``."""
        last = {item.shape[1]: item for item in self.list_maps()}
        return [last[height] for height in sorted(last, reverse=True)]

    @contextmanager
    def reading(self, taps: Sequence[FeatureMap], *, embedding: bool) -> Iterator[Features]:
        """See ``FeatureSource.reading``."""
        tensors = {tap.name: tap.name for tap in taps} | ({EMBEDDING: self._embedding()} if embedding else {})
        with self.graph.reading(tensors) as found:
            yield Features(taps, found)

    def run_once(self) -> None:
        """See ``FeatureSource.run_once``."""
        self.network(torch.zeros_like(self._images(1)))

    def has_negative_values(self, tap: FeatureMap) -> bool:
        """See ``FeatureSource.has_negative_values``."""
        with self.graph.reading({tap.name: tap.name}) as found:
            self.network(self._images(_NOISE_IMAGES))
            return bool((found[tap.name] < 0).any())

    def _images(self, count: int) -> Tensor:
        """Return images of noise."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, *self.network.preprocessing.shape)
        return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)

    def _embedding(self) -> str:
        """Return the name of the classifier's input."""
        graph = self.graph.graph()
        made = {name for node in graph.nodes for name in node.outputs if node.operator != b"Constant"}
        for kinds in _LAYERS:
            for node in reversed(graph.nodes):
                given = [name for name in node.inputs if name in made]
                if node.operator in kinds and given:
                    return given[0].decode()
        raise UsageError("the teacher's graph has neither Gemm, MatMul nor Conv, before which an embedding is taken")


def _image_input(where: str, inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, bool]:
    """Return the one input, and whether its channels come last."""
    found = _show(inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype not in _TAKEN:
        raise ModelError(
            f"teacher {where} has the inputs: {found}; accepted: one of float32, float16 or uint8, [N, C, H, W] or "
            f"[N, H, W, C] with 1 or 3 channels. {ADVICE}"
        )
    first, last = inputs[0].shape[1], inputs[0].shape[3]
    channels_last = first not in _CHANNELS and last in _CHANNELS
    if not channels_last and isinstance(first, int) and first not in _CHANNELS:
        raise ModelError(f"teacher {where} takes {found}; accepted: images of 1 or 3 channels. {ADVICE}")
    return inputs[0], channels_last


def _as_map(name: str, shape: tuple[int, ...], preprocessing: Preprocessing) -> FeatureMap | None:
    """Describe a tensor of four dimensions; which are height and width shows in the proportions of the input."""
    if len(shape) != 4:
        return None
    _, first, second, third = shape
    height, width = preprocessing.height, preprocessing.width

    def fits(tall: int, wide: int) -> bool:
        return abs(tall * width - wide * height) <= (max(height, width) if height != width else 0)

    last = fits(first, second) and not fits(second, third)
    tap = FeatureMap(name, (third, first, second) if last else (first, second, third), channels_last=last)
    return tap if tap.shape[1] * tap.shape[2] > 1 else None


def _as_outputs(names: Sequence[str]) -> bytes:
    """Return bytes that make tensors outputs of a model when they follow its own: protobuf merges the graphs."""
    if not names:
        return b""
    outputs = [_field(_OUTPUT, _field(_NAME, name.encode())) for name in names]
    return _field(_GRAPH, b"".join(outputs))


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes."""
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value >= 128:  # seven bits in each byte, and the eighth says that there are more
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _rows(value: Any, batch: int, count: int) -> Any:
    """Return the first rows of what a batch gave; a tensor of no batch stays whole."""
    return value[:count] if isinstance(value, np.ndarray) and value.shape[:1] == (batch,) else value


def _text(name: bytes) -> str | None:
    """Return a name that is text."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _show(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs) or "none"
