"""Generators trained with each kind of knowledge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from _helpers.digits import LABELS, write_digits
from krl_runtime.conditions import encode
from krl_train.config import ConditioningConfig, DataConfig, FitConfig, GenerationConfig, InputConfig, LoopConfig
from krl_train.models.generators import GeneratorNetwork
from krl_train.training.fit import fit

SIZES = ("small", "large")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return digits, and beside them a file for each kind of conditions; a digit is large from 5 on."""
    root = tmp_path_factory.mktemp("knowledge")
    write_digits(root / "digits", per_class=10, val_per_class=4)
    rows = [(path.relative_to(root / "digits"), path.parent.name) for path in sorted((root / "digits").rglob("*.png"))]
    size = {label: SIZES[int(label) >= 5] for label in LABELS}
    tables = {
        "attributes": ["image,digit,size", *(f"{name},{label},{size[label]}" for name, label in rows)],
        "text": ["image,text", *(f"{name},a {size[label]} {label}" for name, label in rows)],
        "graph": [f"{label},size,{size[label]}\n{label},digit,the {label}" for label in LABELS],
    }
    for kind, lines in tables.items():
        (root / f"{kind}.csv").write_text("\n".join(lines))
    return root


def config(data: Path, out: Path, kind: str) -> FitConfig:
    file = data / f"{kind}.csv"
    return FitConfig(
        task="gan",
        model="dcgan-2",
        out=out,
        data=DataConfig(data=str(data / "digits")),
        input=InputConfig(size=(8,)),
        loop=LoopConfig(epochs=1, batch_size=25, device="cpu", precision="fp32"),
        generation=GenerationConfig(latent=4),
        conditioning=ConditioningConfig(kind, file if file.is_file() else None, condition_dim=8),
    )


@pytest.mark.parametrize(
    ("kind", "conditions"),
    [
        ("labels", ("3", "8")),
        ("attributes", ("digit=3", "digit=3,size=large")),
        ("text", ("a large 3", "small 8")),
        ("graph", ("3", "digit=the 3,size=large")),
    ],
)
def test_a_run_makes_images_of_what_is_asked_for(
    data: Path, tmp_path: Path, kind: str, conditions: tuple[str, str]
) -> None:
    run = fit(config(data, tmp_path / "run", kind))
    settings = run.record.model.arguments["condition"]
    assert settings["kind"] == kind
    generator = run.module()
    assert isinstance(generator, GeneratorNetwork)
    tokens = torch.from_numpy(encode(list(conditions), settings))
    latent = torch.zeros(2, 4)
    with torch.no_grad():
        images = generator(latent, tokens)
    assert images.shape == (2, 1, 8, 8)
    assert not torch.equal(images[0], images[1])  # the latents are the same, the conditions are not


def test_a_guide_is_learned_from(data: Path, tmp_path: Path) -> None:
    plain = config(data, tmp_path / "run", "text")
    common = {"data": plain.data, "input": plain.input, "loop": plain.loop}
    guide = fit(FitConfig(model="dscnn-0.25", out=tmp_path / "guide", **common))
    knowledge = replace(plain.conditioning, guide=guide.path, guide_weight=0.5)
    run = fit(replace(plain, conditioning=knowledge))
    assert run.record.history[0]["guide"] > 0
    assert "guide" not in fit(replace(plain, out=tmp_path / "plain")).record.history[0]
