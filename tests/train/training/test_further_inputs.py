"""``krl-train fit`` with several inputs: attributes, further images and descriptors beside the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from _helpers.further_inputs import SIDE, write_list
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import DataError, KrlError, RunError, UsageError
from krl_train import evaluate
from krl_train.config import AugmentConfig, DataConfig, FitConfig, FurtherInputsConfig, LoopConfig, TransferConfig
from krl_train.data.sources import load_set
from krl_train.models.fusion import FusionNetwork
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=8, batch_size=16, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list(tmp_path_factory.mktemp("listed"))


def config(data: Path, out: Path, further: FurtherInputsConfig, **changes: Any) -> FitConfig:
    made = FitConfig(
        model="resnet8",
        out=out,
        data=DataConfig(data=str(data)),
        loop=LOOP,
        augment=AugmentConfig(augment=False),
        further=further,
    )
    return replace(made, **changes)


@pytest.mark.parametrize("fusion", ["late", "gated"])
def test_what_only_the_attributes_tell_is_learned(fusion: Any, listed: Path, tmp_path: Path) -> None:
    further = FurtherInputsConfig(attributes=("kind", "weight"), input_fusion=fusion)
    run = fit(config(listed, tmp_path / "run", further, loop=replace(LOOP, epochs=25)))
    assert run.record.metrics["top1"] > 0.8  # the image says nothing: chance is a half
    (stated,) = run.record.inputs
    kind, weight = stated["columns"]
    assert kind == {"name": "kind", "values": ["coin", "note"]}
    assert 0 <= weight["minimum"] < 1 < 9 < weight["maximum"] <= 10
    assert evaluate(run=run.path).metrics["top1"] == run.record.metrics["top1"]
    again = Run.open(run.path).network()
    assert isinstance(again, FusionNetwork)
    part = load_set(run.record, "val")
    (numbers,) = part.further
    assert isinstance(numbers, torch.Tensor)
    assert numbers.shape == (40, 3)
    one, other = (again(part.pixels(np.arange(4)), value) for value in (numbers[:4], -numbers[:4]))
    assert not torch.allclose(one, other)


def test_a_further_image_is_seen_by_the_same_weights(listed: Path, tmp_path: Path) -> None:
    further = FurtherInputsConfig(further_images=("other",))
    run = fit(config(listed, tmp_path / "run", further))
    alone = fit(config(listed, tmp_path / "alone", FurtherInputsConfig()))
    assert run.record.metrics["top1"] > 0.9
    mine, theirs = run.record.metrics["parameters"], alone.record.metrics["parameters"]
    assert mine - theirs < 2 * 128 * (64 + 4)  # another last layer and a fusion, and no second backbone
    assert run.record.metrics["macs"] > 1.8 * alone.record.metrics["macs"]


def test_both_images_get_the_same_view(tmp_path: Path) -> None:
    from krl_runtime.images.preprocessing import Preprocessing
    from krl_train.data import open_source
    from krl_train.data.splits import read_training
    from krl_train.loop import BatchStream
    from krl_train.training.further import with_further
    from krl_train.worker import Worker

    path = write_list(tmp_path)
    path.write_text(path.read_text().replace("other-", ""))  # the further image is the image itself
    preprocessing = Preprocessing(SIDE, SIDE)
    source = open_source(DataConfig(data=str(path)), columns=((), ("other",)))
    source = with_further(source, FurtherInputsConfig(further_images=("other",)), preprocessing)
    for augment in (AugmentConfig(flip="horizontal"), AugmentConfig(flip="horizontal", auto_augment="trivialaugment")):
        training = read_training(source, preprocessing, augment, 0)
        stream = BatchStream(training.train, training.augmentation, 16, 0)
        for batch in stream.epoch(0, 0, Worker(torch.device("cpu"))):
            assert torch.equal(batch.pixels, batch.further[0])
            shown = training.train.pixels(batch.indices.numpy())
            assert not torch.equal(shown[:, :, 1:-1, 1:-1].float(), batch.pixels.float())


def test_descriptors_are_those_of_the_image_that_a_device_sees(listed: Path, tmp_path: Path) -> None:
    run = fit(config(listed, tmp_path / "run", FurtherInputsConfig(descriptors=("color-histogram", "hog"))))
    part = load_set(run.record, "val")
    (found,) = part.further
    (item,) = run.record.model.further(run.record.preprocessing)
    pixels = run.record.preprocessing(part.files[3])
    assert torch.allclose(found[3], torch.from_numpy(item(pixels)), atol=1e-6)


def test_a_resumed_training_is_the_same(listed: Path, tmp_path: Path) -> None:
    further, loop = FurtherInputsConfig(attributes=("kind",), further_images=("other",)), replace(LOOP, epochs=2)
    whole = fit(config(listed, tmp_path / "whole", further, loop=loop))
    again = config(listed, tmp_path / "again", further, loop=loop)
    with stopped_at_checkpoint(1), pytest.raises(KeyboardInterrupt):
        fit(again)
    first, second = whole.state(), fit(replace(again, resume=True)).state()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_steps_in_parts_see_their_part_of_what_is_beside(listed: Path, tmp_path: Path) -> None:
    further = FurtherInputsConfig(attributes=("kind", "weight"))
    run = fit(config(listed, tmp_path / "run", further, loop=replace(LOOP, epochs=2, accumulate=2)))
    assert run.record.metrics["count"] == 40


@pytest.mark.parametrize(
    ("further", "changes", "error", "message"),
    [
        ({"attributes": ("color",)}, {}, DataError, "color"),
        ({"attributes": ("kind",)}, {"data": DataConfig(data="digits")}, UsageError, "digits has no column 'kind'"),
        ({"further_images": ("kind",)}, {}, DataError, "coin"),
        ({"attributes": ("kind",)}, {"augment": AugmentConfig(mixup=0.2)}, UsageError, "--mixup and --cutmix mix"),
        ({"attributes": ("kind",)}, {"transfer": TransferConfig("resnet18")}, KrlError, "--from"),
    ],
)
def test_what_cannot_be_is_refused(
    further: dict[str, Any], changes: dict[str, Any], error: type[KrlError], message: str, listed: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fit(replace(config(listed, tmp_path / "run", FurtherInputsConfig(**further)), **changes))


def test_an_input_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'kind' is named twice"):
        FurtherInputsConfig(attributes=("kind", "kind:category"))
    with pytest.raises(UsageError, match="--input-fusion is for several inputs"):
        FurtherInputsConfig(input_fusion="gated")


def test_data_without_the_columns_is_refused_when_a_run_is_measured(listed: Path, tmp_path: Path) -> None:
    run = fit(config(listed, tmp_path / "run", FurtherInputsConfig(attributes=("kind",)), loop=replace(LOOP, epochs=1)))
    (tmp_path / "plain").mkdir()
    plain = write_list(tmp_path / "plain", columns=False)
    with pytest.raises(KrlError, match="kind"):
        evaluate(run=run.path, data=str(plain))


def test_a_run_without_its_inputs_is_damaged(listed: Path, tmp_path: Path) -> None:
    run = fit(config(listed, tmp_path / "run", FurtherInputsConfig(attributes=("kind",)), loop=replace(LOOP, epochs=1)))
    file = run.path / "run.json"
    file.write_text(file.read_text().replace('"kind": "attributes"', '"kind": "tastes"'))
    with pytest.raises((RunError, KrlError)):
        Run.open(run.path).network()
