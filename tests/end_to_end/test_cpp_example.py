"""The example in C++: pixels and hashes as krl_runtime's, the logits of OpenVINO, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from krl_runtime import Bundle, load
from krl_runtime.files import dump_digested
from krl_runtime.images.preprocessing import Preprocessing

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"

# Without OpenVINO: everything that comes before the network.
DUMP = """
#include <cstdio>
#include "preprocess.hpp"
int main(int, char** arguments) try {
    const krl::Bundle bundle(arguments[1]);
    const auto file = bundle.manifest.at("variants", krl::Json::object).at("fp32", krl::Json::object).str("file");
    std::printf("%s %s\\n", krl::sha256(bundle.read(file)).c_str(),
                bundle.manifest.at("labels", krl::Json::array).items.back().text.c_str());
    const auto image = krl::read_pnm(krl::read_file(arguments[2], 1 << 30));
    const auto pixels = krl::preprocess(image, bundle.manifest.at("preprocessing", krl::Json::object));
    std::fwrite(pixels.data(), 1, pixels.size(), stdout);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\\n", error.what());
    return 2;
}
"""

Program = Callable[..., "subprocess.CompletedProcess[bytes]"]

pytestmark = pytest.mark.xdist_group("cpp")  # one process compiles


def program(path: Path) -> Program:
    return lambda *arguments: subprocess.run([path, *map(str, arguments)], capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Program:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "dump.cpp").write_text(DUMP)
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{EXAMPLE}", "-o", str(folder / "dump")]
    subprocess.run([compiler, *options, str(folder / "dump.cpp")], check=True)
    return program(folder / "dump")


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Program:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path_factory.mktemp("build")
    package = f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}"
    subprocess.run(["cmake", "-S", EXAMPLE, "-B", folder, package], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
    return program(folder / "classify")


def cases(count: int) -> list[tuple[Preprocessing, np.ndarray]]:
    """Return random preprocessing and images: enlarged and reduced, cropped and stretched, gray and colored."""
    rng = np.random.default_rng(9)
    found = []
    for _ in range(count):
        channels, given = (int(number) for number in rng.choice([1, 3], 2))
        spec = Preprocessing(
            *map(int, rng.integers(1, 60, 2)),
            channels=channels,
            resize=str(rng.choice(["crop", "stretch"])),
            crop_fraction=float(rng.choice([1.0, 0.875])),
            interpolation=str(rng.choice(["bilinear", "bicubic", "lanczos"])),
            mean=(0.4,) * channels,
            std=(0.2,) * channels,
        )
        shape = (*map(int, rng.integers(1, 200, 2)), *([3] if given == 3 else []))
        found.append((spec, rng.integers(0, 256, shape, np.uint8)))
    return [*found, (Preprocessing(28, 28), rng.integers(0, 256, (129, 29, 3), np.uint8))]  # rounding of the box


def write_image(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_pixels_are_those_of_the_runtime(dump: Program, tmp_path: Path):
    for number, (spec, pixels) in enumerate(cases(24)):
        labels = ("cat", "dog", "frog", 'a "ß" \\ \n€')
        bundle = write_bundle(tmp_path / f"{number}.krl", preprocessing=spec, labels=labels, golden=1)
        image = write_image(tmp_path / f"{number}.ppm", pixels)
        done = dump(bundle.path, image)
        assert done.returncode == 0, done.stderr
        expected = spec(image)
        first = f"{hashlib.sha256((bundle.path / 'model.fp32.onnx').read_bytes()).hexdigest()} {labels[-1]}\n".encode()
        assert done.stdout[: len(first)] == first
        made = np.frombuffer(done.stdout[len(first) :], np.uint8).reshape(expected.shape)
        assert (made == expected).all(), (spec, pixels.shape)


@pytest.mark.parametrize("least", [None, 0.999])
def test_logits_are_those_of_the_runtime_on_openvino(classify: Program, tmp_path: Path, least: float | None):
    settings = {} if least is None else {"least_score": least}
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"), settings=settings)
    image = write_image(tmp_path / "a.ppm", np.random.default_rng(2).integers(0, 256, (40, 31, 3), np.uint8))
    for variant in ("fp32", "int8"):
        with load(bundle.path, require="openvino", variant=variant) as model:
            expected = model(image)
        done = classify(bundle.path, image, "--variant", variant, "--logits")
        assert done.returncode == 0, done.stderr
        shown, *logits = done.stdout.decode().splitlines()
        assert np.abs(np.array(logits, float) - expected.logits).max() <= 1e-4
        assert shown == f"{'none of these: ' if least else ''}{expected.label} {100 * expected.score:.1f}%"


def test_usage_and_unknown_variants(classify: Program, tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl")
    image = write_image(tmp_path / "a.ppm", np.zeros((4, 4, 3), np.uint8))
    for arguments, message in (
        ((bundle.path,), b"usage: classify NAME.krl IMAGE.ppm"),
        ((bundle.path, image, "--variants", "int8"), b"usage: classify"),
        ((bundle.path, image, "--variant", "int4"), b"int4 is missing"),
    ):
        done = classify(*arguments)
        assert done.returncode == 2
        assert message in done.stderr


def change(bundle: Bundle, **values: object) -> None:
    """Write a manifest with other values, and the digest that belongs to them."""
    file = bundle.path / "manifest.json"
    file.write_bytes(dump_digested({**json.loads(file.read_bytes()), **values}))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = {"model.fp32.onnx": {"sha256": "0" * 64, "size": 1}}
FAULTS: dict[str, tuple[Callable[[Bundle, Path], object], str]] = {
    "weights": (lambda bundle, _: damage(bundle.path / "model.fp32.onnx"), "its SHA-256 differs"),
    "manifest": (
        lambda bundle, _: (bundle.path / "manifest.json").write_text(
            (bundle.path / "manifest.json").read_text().replace('"tiny"', '"tidy"')
        ),
        "its digest differs",
    ),
    "schema": (lambda bundle, _: change(bundle, schema_version=2), "another schema version than 3"),
    "size": (lambda bundle, _: change(bundle, files=FILES), "has more than 1 bytes"),
    "outside": (
        lambda bundle, _: change(
            bundle, variants={"fp32": {"precision": "fp32", "file": "../a.onnx"}}, files={"../a.onnx": FILES}
        ),
        "a file outside of the bundle",
    ),
    "nearest": (
        lambda bundle, _: change(bundle, preprocessing=Preprocessing(4, 4, interpolation="nearest").to_dict()),
        "interpolation nearest is not known here; accepted: bilinear, bicubic, lanczos",
    ),
    "nested": (lambda bundle, _: (bundle.path / "manifest.json").write_text("[" * 100_000), "nested too deeply"),
    "json": (lambda bundle, _: (bundle.path / "manifest.json").write_text('{"a": '), "manifest.json is damaged"),
    "png": (lambda _, image: Image.new("RGB", (4, 4)).save(image, "PNG"), "no binary PGM or PPM"),
    "levels": (lambda _, image: image.write_bytes(b"P6 1 1 65535\n" + bytes(6)), "another largest value than 255"),
    "truncated": (lambda _, image: image.write_bytes(image.read_bytes()[:-1]), "the image is truncated"),
    "large": (lambda _, image: image.write_bytes(b"P6 99999 99999 255\n"), "empty or too large"),
    "missing": (lambda _, image: image.unlink(), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(dump: Program, tmp_path: Path, fault: str):
    bundle = write_bundle(tmp_path / "tiny.krl")
    image = write_image(tmp_path / "a.ppm", np.zeros((4, 4, 3), np.uint8))
    assert dump(bundle.path, image).returncode == 0
    make, message = FAULTS[fault]
    make(bundle, image)
    done = dump(bundle.path, image)
    assert done.returncode == 2
    assert message in done.stderr.decode()


def test_comments_in_the_header_of_an_image(dump: Program, tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", preprocessing=Preprocessing(2, 3))
    image = tmp_path / "a.ppm"
    pixels = bytes(range(18))
    image.write_bytes(b"P6 # made by hand\n3 2\n# levels\n255\n" + pixels)
    done = dump(bundle.path, image)
    assert done.stdout[-18:] == np.frombuffer(pixels, np.uint8).reshape(2, 3, 3).transpose(2, 0, 1).tobytes()


def test_it_is_short():
    sources = [path for path in EXAMPLE.iterdir() if path.suffix in (".cpp", ".hpp")]
    lines = [line for path in sources for line in path.read_text().splitlines()]
    assert len(lines) <= 400
    assert max(map(len, lines)) <= 120
