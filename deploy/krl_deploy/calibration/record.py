"""``calibration.json``: the ranges, and their identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from krl_deploy.config import Equalize
from krl_runtime.errors import BundleError, CheckFailedError

if TYPE_CHECKING:
    from krl_deploy.graph.placement import Ranges

__all__ = ["Calibration", "Identity", "Int8Ranges"]

_SCHEMA_VERSION = 4  # of calibration.json; another one is refused


@dataclass(frozen=True)
class Identity:
    """The identity of ranges: they are used again only if all of it is the same.

    Attributes:
        graph_sha256: Hash of the float32 ONNX file: operators, weights and normalization.
        preprocessing: From an image to the input.
        images: Hash of the decoded images, or of the other inputs of the model.
        count: Number of images.
        method: How a range follows from the values, as ``"minmax"`` or ``"percentile 99.999"``.
        equalize: The option for equalization of activations.
        source: Origin of the inputs: images, latents of a seed, or a generator with its hash.
    """

    graph_sha256: str
    preprocessing: Mapping[str, Any]
    images: str
    count: int
    method: str
    equalize: Equalize
    source: str = "images"


@dataclass(frozen=True)
class Int8Ranges:
    """Smallest and largest value that INT8 represents, of each tensor that is quantized.

    Attributes:
        tensorrt: In TensorRT's graph, which takes the larger magnitude of both for both signs.
        cpu: In the CPU's graph.
    """

    tensorrt: Ranges
    cpu: Ranges


@dataclass(frozen=True)
class Calibration:
    """Ranges of a model's tensors, measured on real images, and the identity that they belong to.

    The tensors are those of the equalized model, which is the FP32 model with ``factors`` applied.

    Attributes:
        identity: Everything that the ranges depend on.
        ranges: Ranges of the tensors that are quantized, for each of the two graphs.
        extremes: Smallest and largest value of every float tensor on a sample; FP16 must hold them.
        means: Mean of each channel on the sample, for the inputs of weighted operators.
        factors: Divisors of the channels of an activation; see ``krl_deploy.precision.equalization``.
        given: Ranges that came with the model (trained with it, or of a quantized file), unchanged. If there are any,
            weighted operators whose inputs have none stay in floating point.
        weight_scales: Scales of weights that came with the model, one or ``[channels]``, by the weight's name.
        recalibrated: Whether ``given`` and ``weight_scales`` are kept for a later run alone, and everything was
            measured anew.
    """

    identity: Identity
    ranges: Int8Ranges
    extremes: Ranges = field(default_factory=dict)
    means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    given: Ranges = field(default_factory=dict)
    weight_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    recalibrated: bool = False

    @property
    def keeps_given(self) -> bool:
        """Return whether the ranges that came with the model are in use."""
        return bool(self.given) and not self.recalibrated

    def to_bytes(self) -> bytes:
        """Return the content of ``calibration.json``."""
        values = {"schema_version": _SCHEMA_VERSION, **asdict(self)}
        return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Parse ``calibration.json``.

        Raises:
            BundleError: It is not such a file, or of another schema version.
        """
        try:
            values = json.loads(data)
            if values["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema_version']}, not {_SCHEMA_VERSION}")
            channels = {
                key: {name: tuple(float(value) for value in each) for name, each in values[key].items()}
                for key in ("means", "factors", "weight_scales")
            }
            return cls(
                Identity(**values["identity"]),
                Int8Ranges(**{graph: _ranges(each) for graph, each in values["ranges"].items()}),
                _ranges(values["extremes"]),
                channels["means"],
                channels["factors"],
                _ranges(values["given"]),
                channels["weight_scales"],
                values.get("recalibrated", False) is True,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(
                f"calibration.json cannot be used ({error}); make the bundle again with krl-deploy "
                "export or import, then quantize it"
            ) from error

    def check(self, identity: Identity) -> None:
        """Refuse to be used for another identity.

        Raises:
            CheckFailedError: They are stale; names each item that differs.
        """
        pairs = [
            (item.name, getattr(self.identity, item.name), getattr(identity, item.name)) for item in fields(Identity)
        ]
        differing = [f"{name} is {_short(old)} there and {_short(new)} now" for name, old, new in pairs if old != new]
        if differing:
            raise CheckFailedError(
                f"the calibration in the bundle is stale: {'; '.join(differing)}. Run it without --reuse-calibration"
            )


def _ranges(values: Mapping[str, Sequence[float]]) -> Ranges:
    return {name: (float(low), float(high)) for name, (low, high) in values.items()}


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 40 or isinstance(value, Mapping) else f"{text[:12]}…"
