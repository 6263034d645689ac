"""A seed in, images out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.backends.base import RunningBackend
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError, KrlError, ModelError, UsageError
from krl_runtime.images.luma import to_uint8
from krl_runtime.images.modes import colors

from .base import Pipeline
from .raster import Raster

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.conditions import Condition
    from krl_runtime.images.modes import ChannelOrder

__all__ = ["DISTRIBUTIONS", "Generator", "latents_of"]

LATENT, CONDITION = "latent", "condition"

DISTRIBUTIONS = ("normal", "uniform")
"""Distributions of latents: the standard normal one, and the uniform one from -1 to 1."""


def latents_of(seed: int, count: int, size: int, distribution: str = "normal") -> npt.NDArray[np.float32]:
    """Return the latents of a seed, drawn by numpy's ``Generator(PCG64(seed))`` in float32, row by row.

    Normal ones are its ``standard_normal``, and uniform ones twice its ``random``, less 1. So the first images of a
    seed do not depend on their number, the machine or the backend.

    Args:
        seed: A whole number, 0 or more.
        count: Number of latents, 1 or more.
        size: Numbers in a latent.
        distribution: One of ``DISTRIBUTIONS``.

    Returns:
        float32 ``[count, size]``.

    Raises:
        UsageError: ``seed`` is negative or ``count`` less than 1.

    Example:
        >>> latents_of(seed=1, count=3, size=8).shape
        (3, 8)
        >>> bool((latents_of(1, 2, 8) == latents_of(1, 3, 8)[:2]).all())
        True
    """
    if not all(isinstance(number, int | np.integer) for number in (seed, count)) or seed < 0 or count < 1:
        raise UsageError(f"the seed is {seed!r}, the count {count!r}; accepted: whole numbers from 0, and from 1")
    rng = np.random.Generator(np.random.PCG64(seed))
    if distribution == "uniform":
        return 2 * rng.random((count, size), dtype=np.float32) - 1
    return rng.standard_normal((count, size), dtype=np.float32)


class Generator(Pipeline):
    """Makes images from latents. ``krl_runtime.load`` makes it. Several threads may call it at once.

    The same latents give the same images on every backend, within the variant's tolerance in the manifest.
    ``krl-runtime selftest`` checks that.

    Attributes:
        latent_size: Numbers in a latent.
        distribution: Distribution that latents are drawn from, one of ``DISTRIBUTIONS``.
        condition: Settings of the condition that images are made for; ``None`` without conditions.
    """

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__(bundle, backend, channel_order=channel_order)
        settings = bundle.manifest.settings
        self.latent_size: int = settings["latent"]["size"]
        self.distribution: str = settings["latent"]["distribution"]
        self.condition: Mapping[str, Any] | None = settings.get("condition")
        self._output = bundle.manifest.outputs[0].name
        self._limit = bundle.batch_limit

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Check that a bundle's tensors, preprocessing and settings fit each other and this pipeline.

        Raises:
            BundleError: They do not.
        """
        manifest = bundle.manifest
        latent, condition = manifest.settings.get("latent"), manifest.settings.get("condition")
        size, kind = (latent.get("size"), latent.get("distribution")) if isinstance(latent, Mapping) else (None, None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1 or kind not in DISTRIBUTIONS:
            raise BundleError(
                f"bundle {bundle.path} is no generator: its settings have the latent {latent!r}; accepted: a size "
                f"of 1 or more, and the distribution {' or '.join(DISTRIBUTIONS)}; export it again"
            )
        expected = [(LATENT, "float32", [size])]
        if condition is not None:
            from krl_runtime.conditions import check_settings

            try:
                check_settings(condition)
            except KrlError as error:
                raise BundleError(f"bundle {bundle.path}: {error}; export it again") from error
            expected.append((CONDITION, "int64", [condition["length"]]))
        inputs = [(spec.name, spec.dtype, list(spec.shape[1:])) for spec in manifest.inputs]
        outputs = [(spec.dtype, list(spec.shape[1:])) for spec in manifest.outputs[:1]]
        made = ("float32", list(manifest.preprocessing.shape))
        if inputs != expected or outputs != [made]:
            raise BundleError(
                f"bundle {bundle.path} is no generator: it has inputs {inputs} and outputs {outputs}; accepted by its "
                f"settings and preprocessing: inputs {expected} and images {made}; export it again"
            )
        batch = manifest.inputs[0].shape[0]
        if isinstance(batch, int) and batch != 1:
            raise BundleError(
                f"bundle {bundle.path}: its graph takes {batch} latents at once; accepted: 1 or any number"
            )

    def generate(
        self, count: int = 1, *, seed: int = 0, condition: Condition | Sequence[Condition] | None = None
    ) -> list[Raster]:
        """Make images.

        Args:
            count: Number of images, 1 or more.
            seed: Seed of the latents; see ``latents_of``. The same seed gives the same images.
            condition: The condition of all images, by itself or in a list, or a list of one for each. Only generators
                that were trained with conditions take it. ``krl_runtime.conditions`` describes conditions.

        Returns:
            ``count`` images.

        Raises:
            UsageError: An argument is out of its range, a word or attribute is not known, or a condition is missing or
                not taken.
            ModelError: An output is not a finite number.
            BackendError: The device failed, or the model is closed.
        """
        return self.generate_from(latents_of(seed, count, self.latent_size, self.distribution), condition=condition)

    def generate_from(
        self, latents: npt.NDArray[np.float32], *, condition: Condition | Sequence[Condition] | None = None
    ) -> list[Raster]:
        """Make the images of given latents; see ``generate`` for the rest.

        Args:
            latents: float32 ``[N, latent_size]``, from the generator's ``distribution`` as a rule.
            condition: See ``generate``.

        Raises:
            UsageError: ``latents`` has another dtype or shape, or is not finite; and what ``generate`` raises.
            ModelError: An output is not a finite number.
            BackendError: The device failed, or the model is closed.
        """
        shown: object = list(getattr(latents, "shape", ()))
        if shown != [len(latents), self.latent_size] or not len(latents) or latents.dtype != np.float32:
            raise UsageError(
                f"latents have dtype {getattr(latents, 'dtype', type(latents).__name__)} and shape {shown}; accepted: "
                f"float32 [N, {self.latent_size}], N from 1"
            )
        if not np.isfinite(latents).all():
            raise UsageError(
                f"latents have numbers that are not finite; draw them from a {self.distribution} distribution"
            )
        tokens = self.tokens(condition, len(latents))
        images: list[Raster] = []
        for start in range(0, len(latents), self._limit):
            rows = slice(start, start + self._limit)
            images += self.interpret(self.values(latents[rows], None if tokens is None else tokens[rows]))
        return images

    def values(
        self, latents: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Run the network on its inputs as they are, in one batch.

        Args:
            latents: float32 ``[N, latent_size]``.
            tokens: What ``tokens`` returns, where the generator takes conditions.

        Returns:
            Images, float32 ``[N, channels, height, width]``, 0 to 255, neither rounded nor clipped.

        Raises:
            BackendError: An input has another dtype or shape, the device failed, or the model is closed.
        """
        feed: dict[str, npt.NDArray[Any]] = {LATENT: latents}
        if tokens is not None:
            feed[CONDITION] = tokens
        return self.backend.run(feed)[self._output].astype(np.float32, copy=False)

    def interpret(self, values: npt.NDArray[np.float32]) -> list[Raster]:
        """Round and clip the network's outputs.

        Args:
            values: float32 ``[N, channels, height, width]``.

        Raises:
            ModelError: A value is not a finite number.
        """
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self._where()} made numbers that are not finite, so there is no image; load another variant, and "
                f"run krl-runtime selftest {self.bundle.path}"
            )
        return [self._raster(pixels) for pixels in to_uint8(values)]

    def _raster(self, pixels: npt.NDArray[np.uint8]) -> Raster:
        """Return the image of pixels ``[channels, H, W]``."""
        ordered = colors(pixels.transpose(1, 2, 0), self.channel_order)
        return Raster(np.ascontiguousarray(ordered), channel_order=self.channel_order)

    def interpolate(
        self, first: int, last: int, steps: int, *, condition: Condition | Sequence[Condition] | None = None
    ) -> list[Raster]:
        """Make the images on the path from one seed's first image to another's.

        The path of normal latents is an arc (Shoemake, 1985, "Animating rotation with quaternion curves"). A straight
        line would lead through latents that are shorter than those of training. That of uniform latents is a straight
        line, which stays within -1 and 1.

        Args:
            first: The seed of the first image.
            last: The seed of the last image.
            steps: Number of images, 2 or more.
            condition: See ``generate``.

        Raises:
            UsageError: ``steps`` is less than 2; and what ``generate`` raises.
        """
        if steps < 2:
            raise UsageError(f"steps is {steps}; accepted: 2 or more")
        begin, end = (latents_of(seed, 1, self.latent_size, self.distribution)[0] for seed in (first, last))
        cosine = float(begin @ end / max(np.linalg.norm(begin) * np.linalg.norm(end), 1e-12))
        angle = float(np.arccos(np.clip(cosine, -1, 1)))
        share = np.linspace(0, 1, steps)[:, None]
        if self.distribution == "uniform" or np.sin(angle) < 1e-4:
            latents = (1 - share) * begin + share * end
        else:
            latents = (np.sin((1 - share) * angle) * begin + np.sin(share * angle) * end) / np.sin(angle)
        return self.generate_from(latents.astype(np.float32), condition=condition)

    def tokens(self, condition: Condition | Sequence[Condition] | None, count: int) -> npt.NDArray[np.int64] | None:
        """Return the graph's input for a condition, int64 ``[count, length]``; ``None`` if it takes none.

        Raises:
            UsageError: A word or attribute is not known, or a condition is missing or not taken.
        """
        if self.condition is None:
            if condition is not None:
                raise UsageError(
                    f"{self.bundle.manifest.name} was trained without conditions and cannot make {condition!r}; leave "
                    "the condition out"
                )
            return None
        if condition is None:
            raise UsageError(
                f"{self.bundle.manifest.name} makes images for a condition of {self.condition['kind']}; give one"
                f"{_examples(self.condition)}"
            )
        from krl_runtime.conditions import encode

        tokens = encode(condition, self.condition)
        if len(tokens) not in (1, count):
            raise UsageError(f"{len(tokens)} conditions were given for {count} images; accepted: 1, or {count}")
        return np.ascontiguousarray(np.broadcast_to(tokens, (count, tokens.shape[1])))

    def __repr__(self) -> str:
        """Return name, size of the images, backend and variant."""
        spec = self.preprocessing
        return f"Generator({self.bundle.manifest.name!r}, {spec.width}x{spec.height} {spec.mode}, {self._where()})"


def _examples(condition: Mapping[str, Any]) -> str:
    known = [entry for entry in condition["vocabulary"] if entry and not entry.endswith("=")]
    return f", of: {', '.join(known[:12])}{' …' if len(known) > 12 else ''}"
