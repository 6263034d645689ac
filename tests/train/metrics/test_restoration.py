"""Which channels PSNR is computed on: RGB for every task, luma for super-resolution with RGB beside it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from _helpers.images import blurred_noise
from krl_deploy.evaluation.restoration import Restoration
from krl_runtime.images.folders import ImageFile
from krl_train.data import Truths
from krl_train.data.patches import read_truths
from krl_train.metrics import evaluate_restorer
from krl_train.worker import Worker

CPU = Worker(torch.device("cpu"))
BICUBIC = {"kind": "bicubic"}
# BT.601 in studio swing, of RGB from 0 to 255.
TO_YCC = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
OFFSET = np.array([16.0, 128.0, 128.0])


class Constant(nn.Module):
    """A network that makes one image, whatever it is given."""

    def __init__(self, image: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        self.made = torch.from_numpy(planes.astype(np.float32))[None]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.made


def photograph(side: int = 48) -> npt.NDArray[np.uint8]:
    return np.asarray(blurred_noise(side, 7, 2))


def other_chroma(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Nearly the same luma: blue changes luma by a tenth of its change."""
    changed = image.copy()
    changed[..., 2] = np.where(image[..., 2] > 127, image[..., 2] - 40, image[..., 2] + 40)
    return changed


def expected_psnr(made: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((made.astype(np.float64) - wanted) ** 2)))


def rounded_luma(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.rint(image @ TO_YCC[0] + 16).astype(np.uint8)


@pytest.mark.parametrize("kind", [{"kind": "none"}, {"kind": "noise", "sigma": 9.0}, {"kind": "jpeg", "quality": 40}])
def test_every_task_but_super_resolution_is_scored_in_color(kind: dict[str, Any]) -> None:
    truth = photograph()
    made = other_chroma(truth)
    inputs = (truth[:, ::-1].copy(),) if kind["kind"] == "none" else None
    found = evaluate_restorer(Constant(made), Truths(("a",), (truth,), inputs), 1, kind, CPU)
    assert found["psnr"] == pytest.approx(expected_psnr(made, truth), abs=1e-3)
    assert found["psnr"] < expected_psnr(rounded_luma(made), rounded_luma(truth)) - 8  # what luma alone would report
    if inputs:
        assert found["input_psnr"] == pytest.approx(expected_psnr(inputs[0], truth), abs=1e-3)
    assert "rgb_psnr" not in found


def test_gates_score_a_denoiser_in_color_whatever_it_was_imported_as() -> None:
    truth = photograph()
    made = other_chroma(truth)
    planes = made.transpose(2, 0, 1).astype(np.float32), truth.transpose(2, 0, 1)
    for settings in ({"degradation": BICUBIC}, {"degradation": {"kind": "noise", "sigma": 9.0}}):
        found = Restoration.quality(SimpleNamespace(scale=1, **settings), *planes)  # type: ignore[arg-type]
        assert found == pytest.approx(expected_psnr(made, truth), abs=1e-6)
    inner = slice(2, -2), slice(2, -2)
    found = Restoration.quality(SimpleNamespace(scale=2), *planes)  # type: ignore[arg-type]
    assert found == pytest.approx(expected_psnr(rounded_luma(made)[inner], rounded_luma(truth)[inner]), abs=0.01)


def test_super_resolution_in_color_reports_both() -> None:
    truth = photograph()
    made = other_chroma(truth)
    found = evaluate_restorer(Constant(made), Truths(("a",), (truth,)), 2, BICUBIC, CPU)
    inner = slice(2, -2), slice(2, -2)
    assert found["psnr"] == pytest.approx(
        expected_psnr(rounded_luma(made)[inner], rounded_luma(truth)[inner]), abs=0.01
    )
    assert found["rgb_psnr"] == pytest.approx(expected_psnr(made[inner], truth[inner]), abs=1e-3)
    small = Image.fromarray(truth).resize((24, 24), Image.Resampling.BICUBIC)
    planes = [Image.fromarray(np.asarray(small, np.float32)[..., channel]) for channel in range(3)]
    resized = [np.asarray(plane.resize((48, 48), Image.Resampling.BICUBIC)) for plane in planes]
    large = np.clip(np.rint(np.stack(resized, axis=-1)), 0, 255)
    assert found["rgb_input_psnr"] == pytest.approx(expected_psnr(large[inner], truth[inner]), abs=1e-3)
    assert found["images"][0]["rgb_psnr"] == found["rgb_psnr"]


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_super_resolution_of_luma_is_scored_in_color_with_the_devices_chroma(tmp_path: Path, memory_limit: int) -> None:
    truth = photograph(49)  # one row and column are cropped
    Image.fromarray(truth).save(tmp_path / "color.png")
    gray = Image.fromarray(truth).convert("L")
    gray.save(tmp_path / "gray.png")
    files = [ImageFile(tmp_path / name) for name in ("color.png", "gray.png")]
    truths = read_truths(files, "y", on_bad="refuse", memory_limit=memory_limit)
    truth = truth[:48, :48]
    made = rounded_luma(truth)
    found = evaluate_restorer(Constant(made), truths, 2, BICUBIC, CPU)
    small = np.asarray(Image.fromarray(truth).resize((24, 24), Image.Resampling.BICUBIC))
    chroma = (small @ TO_YCC.T + OFFSET)[..., 1:].astype(np.float32)
    planes = [Image.fromarray(chroma[..., index]).resize((48, 48), Image.Resampling.BICUBIC) for index in range(2)]
    ycc = np.stack([made.astype(np.float64), *map(np.asarray, planes)], axis=-1)
    shown = np.clip(np.rint((ycc - OFFSET) @ np.linalg.inv(TO_YCC).T), 0, 255)
    inner = slice(2, -2), slice(2, -2)
    expected = expected_psnr(shown[inner], truth[inner].astype(np.float64))
    assert found["images"][0]["psnr"] == 100
    assert found["images"][0]["rgb_psnr"] == pytest.approx(expected, abs=0.01)
    assert "rgb_psnr" not in found["images"][1]  # a gray image has no color
    assert found["rgb_psnr"] == found["images"][0]["rgb_psnr"]
    alone = read_truths(files[1:], "y", on_bad="refuse", memory_limit=memory_limit)
    gray_alone = evaluate_restorer(Constant(np.asarray(gray)[:48, :48]), alone, 2, BICUBIC, CPU)
    assert "rgb_psnr" not in gray_alone
    assert gray_alone["psnr"] == 100
