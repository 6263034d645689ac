"""A calibration that is interrupted and gone on with gives what an undisturbed one gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from _helpers.graphs import graph, node
from krl_deploy.calibration import collect as module
from krl_deploy.calibration.checkpoint import Checkpoint
from krl_deploy.calibration.collect import collect_int8
from krl_deploy.calibration.record import Identity

IDENTITY = Identity("a" * 64, {}, "b" * 64, 70, "minmax", "auto")
NAMES = ["s", "c", "logits"]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (70, 1, 4, 4), dtype=np.uint8)
WEIGHT = RNG.normal(size=(2, 1, 3, 3)).astype(np.float32)


def model():
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Sub", ["f", "half"], "s"),
        node("Conv", ["s", "w"], "c"),
        node("Relu", ["c"], "logits"),
    ]
    values = {"half": np.float32(128), "w": WEIGHT}
    return graph(nodes, {"pixels": ["batch", 1, 4, 4]}, {"logits": None}, values, dtypes={"pixels": "uint8"})


@pytest.fixture(autouse=True)
def _save_always(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_SAVES", -1.0)


class Interrupted(Checkpoint):
    """Loses power after some saves."""

    def __init__(self, *args, saves, **kwargs):
        super().__init__(*args, **kwargs)
        self.saves = saves

    def save(self, arrays):
        super().save(arrays)
        self.saves -= 1
        if not self.saves:
            raise KeyboardInterrupt


def interrupt(path, method):
    checkpoint = Interrupted(path, IDENTITY, resume=False, saves=3)
    with pytest.raises(KeyboardInterrupt):
        collect_int8(model(), NAMES, PIXELS, method=method, checkpoint=checkpoint, size=7)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_going_on_gives_the_same_ranges(tmp_path, method, caplog, monkeypatch):
    caplog.set_level("INFO", logger="krl")
    expected = collect_int8(model(), NAMES, PIXELS, method=method, size=7)
    interrupt(tmp_path / "x.npz", method)
    seen = []
    original = module.batches
    monkeypatch.setattr(module, "batches", lambda pixels, *rest: seen.append(len(pixels)) or original(pixels, *rest))
    again = Checkpoint(tmp_path / "x.npz", IDENTITY, resume=True)
    assert collect_int8(model(), NAMES, PIXELS, method=method, checkpoint=again, size=7) == expected
    assert seen[-1] == 70 - 3 * 7
    assert "going on after 21 images" in caplog.text


def test_without_resume_it_starts_anew(tmp_path):
    interrupt(tmp_path / "x.npz", "minmax")
    assert Checkpoint(tmp_path / "x.npz", IDENTITY, resume=False).load() is None


def test_another_calibration_is_not_gone_on_from(tmp_path, caplog):
    interrupt(tmp_path / "x.npz", "minmax")
    other = replace(IDENTITY, images="c" * 64)
    assert Checkpoint(tmp_path / "x.npz", other, resume=True).load() is None
    assert "was of another model, other images or options; starting anew" in caplog.text


def test_a_damaged_file_is_reported(tmp_path, caplog):
    (tmp_path / "x.npz").write_bytes(b"no archive")
    assert Checkpoint(tmp_path / "x.npz", IDENTITY, resume=True).load() is None
    assert "cannot be read" in caplog.text


def test_nothing_to_go_on_from(tmp_path, caplog):
    caplog.set_level("INFO", logger="krl")
    assert Checkpoint(tmp_path / "x.npz", IDENTITY, resume=True).load() is None
    assert "no interrupted calibration" in caplog.text


def test_ranges_do_not_depend_on_the_batch():
    for method in ("percentile", "entropy", "mse"):
        one, many = (collect_int8(model(), ["s"], PIXELS, method=method, size=size) for size in (1, 32))
        assert one == many
        assert np.isfinite(one.cpu["s"]).all()
