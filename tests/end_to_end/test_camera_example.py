"""The example of cameras, with a module in the place of OpenCV."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from _helpers.bundles import write_bundle
from krl_runtime import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "09_camera.py"
RGB = np.random.default_rng(6).integers(0, 256, (3, 24, 20, 3), np.uint8)


class Capture:
    """A camera that gives a few frames in OpenCV's order, and is unplugged then."""

    made: list[Capture]

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.settings = arguments, {}
        self.frames, self.released = list(RGB[..., ::-1]), False
        self.made.append(self)

    def isOpened(self) -> bool:
        return self.arguments[0] != 9

    def set(self, name: int, value: float) -> bool:
        self.settings[name] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self) -> None:
        self.released = True


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(Capture, "made", [], raising=False)
    cv2 = ModuleType("cv2")
    vars(cv2).update(
        VideoCapture=Capture, CAP_V4L2=200, CAP_GSTREAMER=1800, CAP_PROP_FRAME_WIDTH=3, CAP_PROP_FRAME_HEIGHT=4
    )
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    spec = importlib.util.spec_from_file_location("camera_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # OpenCV is not needed to import it
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return module


@pytest.mark.parametrize("source", ["opencv", "opencv:2", "v4l2:/dev/video1", "jetson:1", "gstreamer:x ! appsink"])
def test_frames_of_each_source_reach_the_model_in_the_right_order(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
):
    bundle = write_bundle(tmp_path / "a.krl").path
    example.main(str(bundle), source)
    lines = capsys.readouterr().out.splitlines()
    with load(bundle) as model:
        last = model(RGB[-1])
    assert lines[-1].startswith(f"array 24x20x3: {last} (")
    assert len(lines) + int(lines[-1].rpartition("(")[2].split()[0]) == len(RGB)
    (camera,) = Capture.made
    assert camera.released


def test_cameras_are_opened_as_their_interface_wants(example: ModuleType):
    pipelines = {
        "opencv": (0,),
        "v4l2": ("/dev/video0", 200),
        "jetson": (
            "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! nvvidconv "
            "! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1",
            1800,
        ),
    }
    for name, arguments in pipelines.items():
        assert sum(1 for _ in example.SOURCES[name]()) == len(RGB)
        assert Capture.made[-1].arguments == arguments
        assert Capture.made[-1].settings == ({3: 1280, 4: 720} if name == "v4l2" else {})


def test_what_cannot_be_opened(example: ModuleType):
    with pytest.raises(SystemExit, match="camera 9 cannot be opened"):
        example.opencv("9")
    with pytest.raises(SystemExit, match="source webcam is not known; accepted: opencv, v4l2, gstreamer, jetson"):
        example.main("a.krl", "webcam")
