from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from krl_deploy.calibration.record import Calibration, Identity, Int8Ranges
from krl_runtime.errors import BundleError, CheckFailedError

IDENTITY = Identity("a" * 64, {"height": 4, "width": 4}, "b" * 64, 512, "minmax", "auto")


def test_it_comes_back_as_it_was_written():
    ranges = Int8Ranges({"x": (-1.5, 2.25), "y": (0.0, 0.1)}, {"x": (-1.0, 2.25), "y": (0.0, 0.05)})
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
        Calibration(IDENTITY, Int8Ranges({}, {})).check(replace(IDENTITY, **change))
    assert str(caught.value).count(" there and ") == 1


def test_the_same_identity_passes():
    Calibration(IDENTITY, Int8Ranges({}, {})).check(replace(IDENTITY))


@pytest.mark.parametrize(
    "old",
    [
        {"schema_version": 2, "ranges": {"x": [0.0, 1.0]}},
        {"schema_version": 3, "ranges": {"x": [0.0, 1.0]}},
        {"schema_version": 3, "ranges": {"x": [-1.0, 1.0]}, "given": {"x": [-1.0, 1.0]}},
    ],
)
def test_a_file_of_another_schema_version_is_refused(old):
    rest = {**{key: {} for key in ("extremes", "means", "factors", "given", "weight_scales")}, **old}
    with pytest.raises(BundleError, match=r"schema version \d, not 4\); make the bundle again with krl-deploy export"):
        Calibration.from_bytes(json.dumps({"identity": asdict(IDENTITY), **rest}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schema_version": 9}', b'{"schema_version": 2, "ranges": {"x": [1]}}'])
def test_damaged_files_are_refused(data):
    with pytest.raises(BundleError, match=r"calibration.json cannot be used .* make the bundle again"):
        Calibration.from_bytes(data)
