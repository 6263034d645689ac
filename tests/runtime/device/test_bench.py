from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import TinyNet, write_bundle
from krl_runtime import Bundle, BundleError, ImageError, Preprocessing, UsageError, load
from krl_runtime.device.bench import bench, board_rows, golden_image


def test_the_golden_image_is_a_jpeg_of_the_first_golden_input(tmp_path):
    spec = Preprocessing(48, 64, channels=1, mean=(0.5,), std=(0.5,))
    y, x = np.mgrid[0:48, 0:64]
    pixels = (x + y).astype(np.uint8)[None, None]
    from _helpers.bundles import npz

    golden = npz(pixels=pixels, logits=TinyNet.random(spec, 4).logits(pixels))
    bundle = write_bundle(tmp_path / "a.krl", preprocessing=spec, contents={"golden.npz": golden})
    image = Image.open(io.BytesIO(golden_image(bundle)))
    assert (image.format, image.mode, image.size) == ("JPEG", "L", (640, 480))
    again = np.asarray(image.resize((64, 48)))
    assert np.abs(again.astype(int) - pixels[0, 0]).max() <= 4


def test_without_golden_inputs_an_image_is_needed(tmp_path):
    with pytest.raises(BundleError, match="has no golden inputs"):
        golden_image(write_bundle(tmp_path / "a.krl", golden=0))


def test_the_numbers_fit_each_other(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    model = load(bundle.path, threads=1)
    calls = []
    run = model.backend.backend.run

    def slow(inputs: dict) -> dict:
        calls.append(len(inputs["pixels"]))
        time.sleep(0.004)
        return run(inputs)

    monkeypatch.setattr(model.backend.backend, "run", slow)
    result = bench(model, golden_image(bundle), batch=3, warmup=2, iterations=5).to_dict()
    assert calls == [3] * (1 + 2 + 5)
    assert (result["batch"], result["warmup"], result["iterations"]) == (3, 2, 5)
    whole, stages = result["latency_ms"], result["stages_ms"]
    assert list(stages) == ["preprocess", "inference", "postprocess"]
    for summary in (whole, *stages.values()):
        assert 0 < summary["p50"] <= summary["p95"] <= summary["p99"]
    assert stages["inference"]["p50"] >= 4
    assert stages["postprocess"]["p50"] < 4
    assert whole["mean"] == pytest.approx(sum(stage["mean"] for stage in stages.values()))
    assert result["throughput_per_s"] == pytest.approx(3 / whole["mean"] * 1e3)
    assert result["first_result_ms"] >= 4
    assert 20 < result["peak_memory_mib"] < 100_000


def test_no_warm_up(bundle: Bundle):
    assert bench(load(bundle.path), golden_image(bundle), warmup=0, iterations=1).warmup == 0


@pytest.mark.parametrize("counts", [{"batch": 0}, {"iterations": 0}, {"warmup": -1}])
def test_counts_are_checked(bundle: Bundle, counts: dict):
    with pytest.raises(UsageError, match="accepted: 1 or more for the first two, 0 or more for the last"):
        bench(load(bundle.path), b"", **counts)


def test_an_image_that_is_none(bundle: Bundle):
    with pytest.raises(ImageError, match="image of 3 bytes is not an image"):
        bench(load(bundle.path), b"abc")


def test_where_the_system_does_not_tell_the_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    real = Path.read_text

    def no_proc(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert bench(load(bundle.path), golden_image(bundle), iterations=1).peak_memory_mib is None


def test_what_the_board_tells(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    clock = {"current": 729.6, "maximum": 1728.0, "governor": "schedutil"}
    cold = {"power_mode": "MAXN", "temperatures_c": {"cpu-thermal": 51.84}, "clocks_mhz": {"policy0": clock}}
    hot = {"power_mode": "MAXN", "temperatures_c": {"cpu-thermal": 63, "gpu-thermal": 60}}
    for told, expected in ([cold, hot], {"before": cold, "after": hot}), ([{}, {}], None):
        states = iter(told)
        monkeypatch.setattr("krl_runtime.device.bench.board_state", lambda states=states: next(states))
        assert bench(load(bundle.path), golden_image(bundle), warmup=0, iterations=1).board == expected
    assert board_rows({"before": cold, "after": hot}) == [
        ("power mode", "MAXN", "MAXN"),
        ("cpu-thermal °C", "51.8", "63.0"),
        ("policy0 MHz", "730 of 1728", None),
        ("gpu-thermal °C", None, "60.0"),
    ]
