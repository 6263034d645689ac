"""docs/bundle-format.md: its tables against the dataclasses, its examples against Pillow, hashlib and NumPy."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from krl_runtime import Preprocessing
from krl_runtime.attributes import AttributeInput, Category, Number
from krl_runtime.bundle import Engine, Manifest, TensorSpec, Variant, names, output_kind
from krl_runtime.bundle.further_inputs import INPUTS
from krl_runtime.bundle.manifest import SCHEMA_VERSION, FileEntry
from krl_runtime.files import dump_json
from krl_runtime.images import preprocessing as module
from krl_runtime.images.descriptors import ColorHistogram, Lbp

PAGE = (Path(__file__).parents[3] / "docs" / "bundle-format.md").read_text(encoding="utf-8")

TYPES = {
    "int": "integer",
    "int | None": "integer or null",
    "str": "text",
    "str | None": "text or null",
    "float": "number",
    "float | None": "number or null",
    "bool": "flag",
    "tuple[str, ...]": "list of text",
    "tuple[float, ...]": "list of number",
    "tuple[int | str, ...]": "list of integer or text",
    "tuple[int, int, int]": "three integers",
    "tuple[int, int, int] | None": "three integers or null",
    "tuple[TensorSpec, ...]": "list of [TensorSpec](#tensorspec)",
    "Preprocessing": "[Preprocessing](#preprocessing)",
    "tuple[tuple[int, int, int], ...]": "list of three integers",
    "Mapping[str, float]": "map of number",
    "Mapping[str, str]": "map of text",
    "Mapping[str, Any]": "map of anything",
    **{f"Mapping[str, {name}]": f"map of [{name}](#{name.lower()})" for name in ("Variant", "Engine", "FileEntry")},
}


def section(title: str) -> str:
    """Return the text below a heading, up to the next one."""
    found = re.split(rf"^#+ {re.escape(title)}\n", PAGE, flags=re.MULTILINE)
    assert len(found) == 2, title
    return re.split(r"^#+ ", found[1], flags=re.MULTILINE)[0]


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells of the table that begins with a head."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:] if line.startswith("|")]


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Manifest", Manifest),
        ("TensorSpec", TensorSpec),
        ("Variant", Variant),
        ("FileEntry", FileEntry),
        ("Engine", Engine),
        ("Preprocessing fields", Preprocessing),
    ],
)
def test_fields_and_types_are_those_of_the_code(title: str, kind: type):
    table = {name.strip("`"): shown for name, shown, _ in rows(section(title), "field")}
    assert table == {field.name: TYPES[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]


def test_files_are_those_of_the_code():
    listed = {row[0].strip("`") for row in rows(section("Files"), "file")}
    assert listed - {"engines/KEY.engine"} == {getattr(names, name) for name in names.__all__}


def test_settings_and_words_are_those_of_the_code():
    classification = section("Classification")
    settings = {row[0].strip("`") for row in rows(classification, "setting")}
    assert settings == {output_kind.OUTPUT_KIND, output_kind.LEAST_SCORE, INPUTS}
    kinds = [row[0].strip("`") for row in rows(classification, "output_kind")]
    assert kinds == list(get_args(output_kind.OutputKind))
    assert {row[0].strip("`") for row in rows(section("Resize"), "interpolation")} | {"nearest"} == {
        *module._INTERPOLATIONS
    }
    assert f"schema version {SCHEMA_VERSION}," in PAGE


def test_every_field_is_written(tmp_path: Path):
    """Also those with a default, so that a reader finds all of them."""
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "int8"))
    text = (bundle.path / "manifest.json").read_text(encoding="utf-8")
    assert set(re.findall(r'^ "(\w+)": ', text, re.MULTILINE)) == {field.name for field in fields(Manifest)}


def test_the_digest_by_removing_it(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", settings={"digest": "no", "x": {"digest": "no"}})
    data = (bundle.path / "manifest.json").read_bytes()
    found = re.findall(rb'^ "digest": "([0-9a-f]{64})",$', data, re.MULTILINE)
    assert found == [bundle.manifest.digest.encode()]
    assert hashlib.sha256(data.replace(found[0], b"", 1)).hexdigest() == bundle.manifest.digest


def test_the_example_of_a_digest():
    text = section("Digest")
    block = text[text.index("```json\n") + 8 :].split("```")[0]
    assert f"`{hashlib.sha256(block.encode()).hexdigest()}`" in text
    values = {"score": 1.0, "name": "flowers", "digest": "", "empty": {}, "classes": ["rose", "tülip"]}
    assert dump_json(values) == block.encode()


def test_the_rules_of_numbers_and_texts():
    written = dump_json({"n": [1, 1.0, 0.1, 1e-5, 1e-4, 1e16, 123456789012345.0], "t": '"\\/\b\f\n\r\t\x01\x7fé'})
    lines = written.decode().splitlines()
    assert [line.strip(" ,") for line in lines[2:9]] == [
        "1", "1.0", "0.1", "1e-05", "0.0001", "1e+16", "123456789012345.0",
    ]  # fmt: skip
    assert lines[10] == ' "t": "\\"\\\\/\\b\\f\\n\\r\\t\\u0001\x7fé"'


def test_the_example_of_a_crop():
    shown = re.search(r"has the box ([\d., ]+)\.\n", section("Crop"))
    assert shown is not None
    box = Preprocessing(224, 224, crop_fraction=0.875)._box(500, 375, 224, 224)
    assert tuple(map(float, shown[1].split(", "))) == box


def test_the_example_of_resizing():
    text = section("Resize")
    row = np.uint8([0, 10, 20, 40, 80, 160, 200, 255])
    assert ", ".join(map(str, row)) in text
    made = np.asarray(Image.fromarray(row[None]).resize((3, 1), Image.Resampling.BILINEAR))[0]
    for (_, first, last, fixed, result), pixel in zip(rows(text, "x"), made, strict=True):
        weights = [int(number) for number in fixed.split(", ")]
        part = row[int(first) : int(last)].astype(int)
        assert (2**21 + int(part @ weights)) >> 22 == int(result) == pixel
        assert abs(sum(weights) - 2**22) <= len(weights) / 2


FILTERS = {
    "bilinear": (1, lambda a: np.where(a < 1, 1 - a, 0)),
    "bicubic": (
        2,
        lambda a: np.where(a < 1, (1.5 * a - 2.5) * a * a + 1, np.where(a < 2, -0.5 * (((a - 5) * a + 8) * a - 4), 0)),
    ),
    "lanczos": (3, lambda a: np.where(a < 3, np.sinc(a) * np.sinc(a / 3), 0)),
}


def resize_pass(pixels: np.ndarray, made: int, low: float, high: float, name: str) -> np.ndarray:
    """Resize the last axis as the page says."""
    low, high = np.float32(low), np.float32(high)
    count = pixels.shape[-1]
    if made == count and low == 0 and high == made:
        return pixels
    scale = float(high - low) / made
    if name == "nearest":
        positions = itertools.accumulate([scale] * (made - 1), initial=float(low) + scale * 0.5)
        return pixels[..., [int(position) for position in positions]]
    support, weight = FILTERS[name]
    wide = max(1.0, scale)
    out = np.empty((*pixels.shape[:-1], made), np.uint8)
    for x in range(made):
        center = float(low) + (x + 0.5) * scale
        first = max(0, int(center - support * wide + 0.5))
        last = min(count, int(center + support * wide + 0.5))
        weights = weight(np.abs((np.arange(first, last) - center + 0.5) / wide))
        shares = weights / weights.sum() * 2**22
        fixed = (np.sign(shares) * np.floor(np.abs(shares) + 0.5)).astype(np.int64)
        out[..., x] = np.clip((2**21 + pixels[..., first:last].astype(np.int64) @ fixed) >> 22, 0, 255)
    return out


@pytest.mark.parametrize("name", ["nearest", *FILTERS])
def test_the_rules_of_resizing_and_gray_give_krl_s_pixels(name: str):
    rng = np.random.default_rng(7)
    for _ in range(12):
        width, height, w, h = (int(number) for number in rng.integers(1, 90, 4))
        channels = int(rng.choice([1, 3]))
        spec = Preprocessing(
            height,
            width,
            channels,
            str(rng.choice(["crop", "stretch"])),
            float(rng.choice([1.0, 0.875])),
            name,
            (0.5,) * channels,
            (0.5,) * channels,
        )
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        weighted = image.astype(int) @ [19595, 38470, 7471]
        planes = ((weighted + 32768) >> 16)[None].astype(np.uint8) if channels == 1 else image.transpose(2, 0, 1)
        left, upper, right, lower = 0.0, 0.0, float(w), float(h)
        if spec.resize == "crop":
            cover = min(w * spec.crop_fraction / width, h * spec.crop_fraction / height)
            cover = min(cover, w / width, h / height)
            left, upper = max(0, (w - cover * width) / 2), max(0, (h - cover * height) / 2)
            right, lower = min(left + cover * width, w), min(upper + cover * height, h)
        wide = resize_pass(planes, width, left, right, name)
        expected = resize_pass(wide.transpose(0, 2, 1), height, upper, lower, name).transpose(0, 2, 1)
        assert (spec(image) == expected).all(), (spec, image.shape)


def test_the_example_of_scores():
    shown = re.search(r"the logits ([-\d, ]+) have the scores ([\d., ]+)\. ", section("Classification"))
    assert shown is not None
    powers = np.exp(np.array(shown[1].split(", "), float))
    assert np.allclose(powers / powers.sum(), np.array(shown[2].split(", "), float), atol=5e-7)


@pytest.mark.parametrize(
    ("color", "gray"), [((7, 200, 30), 123), ((255, 255, 255), 255), ((0, 0, 0), 0), ((255, 0, 0), 76)]
)
def test_gray_of_a_color(color: tuple[int, int, int], gray: int):
    assert (Preprocessing(1, 1, 1, mean=(0.5,), std=(0.5,))(np.uint8([[color]])) == gray).all()
    assert (19595 * color[0] + 38470 * color[1] + 7471 * color[2] + 32768) >> 16 == gray
    assert "(7, 200, 30) becomes 123" in PAGE


def test_cmyk_becomes_rgb_as_the_page_says():
    inks = np.random.default_rng(3).integers(0, 256, (40, 30, 4), np.uint8)
    made = np.asarray(module.open_image(Image.fromarray(inks, "CMYK"), mode="RGB")).astype(int)
    rest = 255 - inks[..., 3:].astype(int)
    expected = np.clip(rest - np.floor(inks[..., :3] * rest / 255 + 0.5), 0, 255)
    assert (made == expected).all()


def test_the_example_of_attributes():
    found = re.search(
        r"values `(\w+)` and `(\w+)`, and `size` with a mean of (\d) and a std of (\d), make (.*) of", PAGE
    )
    assert found is not None
    blue, red, mean, std, numbers = found.groups()
    columns = (Category("color", (blue, red)), Number("size", 0.0, 9.0, float(mean), float(std)))
    made = AttributeInput(columns).encode({"color": "red", "size": 3.5})
    assert made.tolist() == [float(each) for each in numbers.split(", ")]


def test_the_formulas_of_descriptors():
    """The page's formulas, computed here without the code that the runtime has."""
    from skimage.feature import local_binary_pattern

    pixels = np.random.default_rng(5).integers(0, 256, (3, 9, 7), dtype=np.uint8)
    shares = [np.mean(channel.astype(float) * 8 // 256 == each) for channel in pixels for each in range(8)]
    np.testing.assert_allclose(ColorHistogram(8)(pixels), shares)
    red, green, blue = pixels.astype(float)
    gray = np.floor((299 * red + 587 * green + 114 * blue) / 1000).astype(np.uint8)
    patterns = local_binary_pattern(gray, 8, 1.0, "uniform")
    np.testing.assert_allclose(Lbp(8, 1.0)(pixels), [(patterns == code).mean() for code in range(10)])
