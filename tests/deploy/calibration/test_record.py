from __future__ import annotations

from dataclasses import replace

import pytest

from krl_deploy.calibration.record import Calibration, Identity
from krl_runtime.errors import BundleError, CheckFailedError

IDENTITY = Identity("a" * 64, {"height": 4, "width": 4}, "b" * 64, 512, "minmax", "auto")


def test_it_comes_back_as_it_was_written():
    ranges = {"x": (-1.5, 2.25), "y": (0.0, 0.1)}
    calibration = Calibration(IDENTITY, ranges, {"z": (0.0, 9.0)}, {"x": (0.5, -0.25)}, {"y": (2.0, 0.5)})
    assert Calibration.from_bytes(calibration.to_bytes()) == calibration
    assert calibration.to_bytes() == Calibration.from_bytes(calibration.to_bytes()).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph_sha256": "c" * 64}, r"graph_sha256 is aaaaaaaaaaaa… there and cccccccccccc… now"),
        ({"count": 100}, "count is 512 there and 100 now"),
        ({"method": "percentile 99.999"}, "method is minmax there and percentile 99.999 now"),
        ({"preprocessing": {"height": 4, "width": 5}}, '"width": 5'),
        ({"equalize": "none"}, "equalize is auto there and none now"),
        ({"images": "d" * 64}, "images is"),
    ],
)
def test_each_item_that_differs_is_named(change, message):
    with pytest.raises(CheckFailedError, match=message) as caught:
        Calibration(IDENTITY, {}).check(replace(IDENTITY, **change))
    assert str(caught.value).count(" there and ") == 1


def test_the_same_identity_passes():
    Calibration(IDENTITY, {}).check(replace(IDENTITY))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schema_version": 9}', b'{"schema_version": 2, "ranges": {"x": [1]}}'])
def test_damaged_files_are_refused(data):
    with pytest.raises(BundleError, match=r"calibration.json cannot be used .* calibrate again"):
        Calibration.from_bytes(data)
