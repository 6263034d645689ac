"""Classify what a camera sees: OpenCV's default camera, V4L2, GStreamer, or a camera of a Jetson.

Usage: python examples/09_camera.py NAME.krl [SOURCE]

SOURCE: opencv (default), v4l2:/dev/video0, jetson, jetson:1, or gstreamer:PIPELINE. Needs OpenCV (JetPack brings one
with GStreamer; the wheel opencv-python has none). Ctrl-C ends it.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from krl_runtime import Classifier, load

Frames = Iterator[npt.NDArray[np.uint8]]
WIDTH, HEIGHT, RATE = 1280, 720, 30  # what most cameras can do; the network needs less


def opencv(index: str = "0") -> Frames:
    """Yield frames of a camera by its number, through whatever OpenCV has on this machine."""
    import cv2

    return _frames(cv2.VideoCapture(int(index)), f"camera {index}")


def v4l2(device: str = "/dev/video0") -> Frames:
    """Yield frames of a Linux device, such as a camera on USB."""
    import cv2

    capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, WIDTH)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, HEIGHT)
    return _frames(capture, device)


def gstreamer(pipeline: str) -> Frames:
    """Yield frames of a GStreamer pipeline that ends in ``appsink`` with BGR."""
    import cv2

    return _frames(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), pipeline)


def jetson(sensor: str = "0") -> Frames:
    """Yield frames of a CSI camera of a Jetson: its image processor makes them, and they leave its memory once."""
    return gstreamer(
        f"nvarguscamerasrc sensor-id={sensor}"
        f" ! video/x-raw(memory:NVMM),width={WIDTH},height={HEIGHT},framerate={RATE}/1"
        " ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR"
        " ! appsink drop=true max-buffers=1"  # only the latest frame waits
    )


SOURCES: dict[str, Callable[..., Frames]] = {
    "opencv": opencv,
    "v4l2": v4l2,
    "gstreamer": gstreamer,
    "jetson": jetson,
}


def _frames(capture, name: str) -> Frames:  # noqa: ANN001  OpenCV has no type for it
    if not capture.isOpened():
        sys.exit(f"{name} cannot be opened; is it there, and not in use?")
    return _read(capture)


def _read(capture) -> Frames:  # noqa: ANN001
    try:
        while True:
            good, frame = capture.read()  # a new array each time, so that a frame may wait
            if not good:
                return
            yield frame
    finally:
        capture.release()


def main(bundle: str, source: str = "opencv") -> None:
    """Print the class of the latest frame, as fast as this machine can."""
    name, _, argument = source.partition(":")
    if name not in SOURCES:
        sys.exit(f"source {source} is not known; accepted: {', '.join(SOURCES)}")
    frames = SOURCES[name](argument) if argument else SOURCES[name]()
    with load(bundle, Classifier, channel_order="bgr") as model, model.watch(frames) as results:
        for item in results:
            print(f"{item} ({results.dropped} frames dropped)")


if __name__ == "__main__":
    main(*sys.argv[1:])
