"""A user's own network and data set, in Python and on the command line."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from _helpers.custom_module import SOURCE, user_module
from krl_runtime.errors import DataError, ModelError, RunError, UsageError
from krl_train.cli import main
from krl_train.config import DataConfig, FitConfig, InputConfig, LoopConfig, OptimConfig, to_plain
from krl_train.custom import CustomName, is_custom, load_object, named
from krl_train.data import load_split, open_source
from krl_train.data.custom import open_custom
from krl_train.run import RECORD, Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=2, batch_size=30, device="cpu", precision="fp32")
FAST = ["--epochs", "2", "--batch-size", "30", "--device", "cpu", "--precision", "fp32"]
GIB = 2**30


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[ModuleType]:
    with user_module(tmp_path / "lib", "user_mine") as module:
        yield module


def config(out: Path, model: object, data: object, **changes) -> FitConfig:
    return FitConfig(model=model, out=out, data=DataConfig(data=data), loop=LOOP, **changes)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module be absent."""
    monkeypatch.delitem(sys.modules, "user_mine")
    monkeypatch.setattr(sys, "path", [item for item in sys.path if not item.endswith("/lib")])


def images_of(run: Run) -> torch.Tensor:
    return torch.from_numpy(load_split(run.record, "val")[0])


@pytest.mark.parametrize(
    ("name", "custom"),
    [
        ("package.module:Name", True),
        ("module:Outer.Inner", True),
        ("__main__:Tiny", True),
        ("tests:made.<locals>.Tiny", True),
        ("m:Squares(...)", True),
        ("timm/resnet18", False),
        ("resnet18", False),
        (r"C:\images", False),
        ("C:/images", False),
        ("./a:b", False),
        ("kd:weight=0.5", False),
        ("module:", False),
        (":name", False),
    ],
)
def test_a_name_with_a_colon_between_identifiers_is_the_users_own(name: str, custom: bool) -> None:
    assert is_custom(name) == custom


def test_on_the_command_line(tmp_path: Path, mine: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--model", "user_mine:Tiny", "--data", "user_mine:Squares", *FAST, "--lr", "0.1", "--epochs", "6"]
    assert main(["fit", *options, "--out", str(out)]) == 0
    run = Run.open(out)
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    assert list(run.record.sources) == [
        {"use": "model", "name": "user_mine:Tiny", "sha256": digest},
        {"use": "data", "name": "user_mine:Squares", "sha256": digest},
    ]
    assert run.record.labels == ("red", "green", "blue")
    assert run.record.preprocessing.shape == (3, 12, 12)
    counts = [run.record.data[split]["count"] for split in ("train", "val")]
    assert sum(counts) == 90
    assert 5 < counts[1] < 40
    assert run.record.metrics["top1"] == 1.0
    assert isinstance(run.network().backbone, mine.Tiny)
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 1.0
    assert main(["fit", "--resume", "--out", str(out)]) == 0


def test_the_current_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_here.py").write_text("x = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [item for item in sys.path if item])
    assert load_object("user_here:x", "model") == 5
    sys.modules.pop("user_here")


def test_objects_and_names_make_the_same_run(tmp_path: Path, mine: ModuleType) -> None:
    by_name = fit(config(tmp_path / "a", "user_mine:Tiny", "user_mine:split_squares"))
    by_object = fit(config(tmp_path / "b", mine.Tiny, mine.split_squares))
    assert by_name.record.weights_sha256 == by_object.record.weights_sha256
    assert (tmp_path / "a" / RECORD).read_text().count("user_mine") == 6
    stored = [json.loads((tmp_path / name / RECORD).read_bytes()) for name in "ab"]
    for record in stored:
        assert (record["data"]["train"]["count"], record["data"]["val"]["count"]) == (90, 30)
    assert stored[0]["sources"] == stored[1]["sources"]
    assert stored[0]["model"] == stored[1]["model"]


def test_an_instance_is_where_the_training_starts(tmp_path: Path, mine: ModuleType) -> None:
    network = mine.Tiny(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    still = OptimConfig(lr=1e-12, weight_decay=0)
    run = fit(config(tmp_path / "run", network, mine.Squares(), optim=still))
    for name, value in Run.open(run.path).network().backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)
    assert Run.open(run.path).record.model.name == "user_mine:Tiny"
    trained = fit(config(tmp_path / "trained", network, mine.Squares()))
    assert trained.record.metrics["top1"] > 0.5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("more", [{"width": 16}, {"activation": torch.tanh}])
def test_an_instance_that_its_class_does_not_make_is_asked_for(
    tmp_path: Path, mine: ModuleType, more: dict[str, object]
) -> None:
    run = fit(config(tmp_path / "run", mine.Tiny(3, **more), mine.Squares()))
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    opened = Run.open(run.path)
    with pytest.raises(RunError, match=r"makes another network; pass the network itself: Run.open\(path\).network\("):
        opened.network()
    with pytest.raises(RunError, match="makes another network"):
        opened.network(module=mine.Tiny(3))
    given = opened.network(module=mine.Tiny(3, **more))
    assert torch.equal(given(images), run.network()(images))


def test_what_has_no_name_in_a_module_is_asked_for(tmp_path: Path, mine: ModuleType) -> None:
    class Local(mine.Tiny):
        pass

    run = fit(config(tmp_path / "run", Local, mine.Squares()))
    opened = Run.open(run.path)
    assert "<locals>.Local" in opened.record.model.name
    with pytest.raises(RunError, match=r"which cannot be imported.*pass the network itself"):
        opened.network()
    assert opened.network(module=Local(3)).backbone is not None
    partial = fit(config(tmp_path / "partial", functools.partial(mine.Tiny, width=4), "user_mine:Squares"))
    assert Run.open(partial.path).record.model.name == "user_mine:Tiny(...)"
    assert Run.open(partial.path).record.sources[0]["sha256"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    with pytest.raises(RunError, match="pass the network itself"):
        Run.open(partial.path).network()
    assert Run.open(partial.path).network(module=mine.Tiny(3, width=4)).backbone.conv.out_channels == 4


def test_data_that_was_an_object_is_asked_for(
    tmp_path: Path, mine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config(tmp_path / "run", mine.Tiny, mine.Squares(60)))
    assert run.record.data["source"] == "user_mine:Squares(...)"
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 2
    assert "name others with --data: data user_mine:Squares(...) was an object in Python" in capsys.readouterr().err
    assert main(["evaluate", str(run.path), "--data", "user_mine:Squares", "--device", "cpu"]) == 0


def test_where_the_module_is_absent(
    tmp_path: Path, mine: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config(tmp_path / "run", mine.Tiny, "user_mine:Squares"))
    other = fit(config(tmp_path / "other", "resnet8", "user_mine:Squares"))
    forget(monkeypatch)
    needs = (
        "needs the module user_mine, which cannot be imported: No module named 'user_mine'; install it, or run where"
    )
    assert main(["evaluate", str(run.path)]) == 2
    assert f"error: run {run.path}: model user_mine:Tiny {needs}" in capsys.readouterr().err
    assert main(["evaluate", str(other.path)]) == 2
    message = capsys.readouterr().err
    assert f"error: run {other.path}: its data cannot be read again" in message
    assert f"data user_mine:Squares {needs}" in message
    for option in (["--model", "user_mine:Tiny"], ["--model", "resnet8", "--data", "user_mine:Squares"]):
        assert main(["fit", "--data", "digits", *option, "--out", str(tmp_path / "new")]) == 2
        assert needs in capsys.readouterr().err


def test_a_source_that_changed_is_warned_of(tmp_path: Path, mine: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(config(tmp_path / "run", "user_mine:Tiny", "user_mine:Squares"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "krl"):
        Run.open(run.path).network()
        images_of(run)
    assert caplog.messages == []
    changed = SOURCE + "# more\n"
    Path(mine.__file__).write_text(changed)
    old, new = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (SOURCE, changed))
    with caplog.at_level(logging.WARNING, "krl"):
        Run.open(run.path).network()
        images_of(run)
    assert [item.levelname for item in caplog.records] == ["WARNING"] * 2
    for use, message in zip(("model user_mine:Tiny", "data user_mine:Squares"), caplog.messages, strict=True):
        assert f"the source of {use} has changed since: its SHA-256 was {old} and is {new}" in message


def test_tied_weights_and_lazy_layers(tmp_path: Path, mine: ModuleType) -> None:
    source = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a = nn.LazyLinear(48)
        self.b, self.c = nn.Linear(48, 48), nn.Linear(48, 48)
        self.c.weight = self.b.weight
        self.head = nn.Linear(48, num_classes)
    def forward(self, x):
        return self.head(self.c(self.b(self.a(x.flatten(1)).relu()).relu()).relu())
"""
    with user_module(tmp_path / "other", "user_tied", source) as module:
        run = fit(config(tmp_path / "run", module.Net, mine.Squares()))
        opened = Run.open(run.path).network()
        assert opened.backbone.c.weight is opened.backbone.b.weight
        images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
        assert torch.equal(opened(images), run.network()(images))


class _Wrong:
    """Networks that are none, or not the right ones."""

    not_callable = 5

    @staticmethod
    def needs_more(num_classes, depth):
        raise AssertionError

    @staticmethod
    def no_network():
        return lambda x: x

    @staticmethod
    def raises():
        raise ZeroDivisionError("of mine")

    @staticmethod
    def no_parameters(num_classes):
        return nn.Flatten()

    @staticmethod
    def other_classes():
        return nn.Sequential(nn.Flatten(), nn.Linear(432, 7))

    @staticmethod
    def other_input():
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))

    @staticmethod
    def a_map(in_channels):
        return nn.Conv2d(in_channels, 3, 1)

    @staticmethod
    def a_tuple(num_classes):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(432, num_classes)

            def forward(self, x):
                return self.head(x.flatten(1)), x

        return Two()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Wrong.needs_more, "needs arguments that krl does not know: depth; accepted: num_classes, in_channels"),
        (_Wrong.no_network, "gives a function; accepted: a torch.nn.Module"),
        (_Wrong.raises, r"called with nothing, fails: ZeroDivisionError: of mine \(test_custom.py, line \d+\)"),
        (_Wrong.no_parameters, "has no parameters"),
        (
            _Wrong.other_classes,
            r"returns float32 of shape \[2, 7\] for two images; accepted: a tensor of logits \[N, 3\]",
        ),
        (_Wrong.other_input, r"on an input of \[2, 3, 12, 12\] fails: RuntimeError"),
        (_Wrong.a_map, r"returns float32 of shape \[2, 3, 12, 12\]"),
        (_Wrong.a_tuple, "returns a tuple; accepted"),
        ("user_mine:Tony", "module user_mine has no Tony; did you mean 'Tiny'"),
        ("user_mine:Tiny.small", "module user_mine has no Tiny.small"),
        ("__main__:NotHere", "was defined in a script that is not the one that runs; define it in a module"),
        ("user_mine:np.pi", "model user_mine:np.pi cannot be called: 3.14159"),
    ],
)
def test_networks_that_cannot_be_used(tmp_path: Path, mine: ModuleType, model: object, message: str) -> None:
    with pytest.raises((ModelError, UsageError), match=message):
        fit(config(tmp_path / "run", model, mine.Squares()))
    assert not (tmp_path / "run").exists()


def test_options_that_do_not_go_with_a_network_of_ones_own(tmp_path: Path, mine: ModuleType) -> None:
    with pytest.raises(ModelError, match="leave out --pretrained"):
        fit(config(tmp_path / "run", mine.Tiny, mine.Squares(), pretrained=True))
    with pytest.raises(UsageError, match="for --task classification and embedding, not gan"):
        fit(config(tmp_path / "run", mine.Tiny, mine.Squares(), task="gan"))
    with pytest.raises(UsageError, match="--model is 5; accepted: a name"):
        config(tmp_path / "run", 5, "digits")
    large = [(np.full((100, 90, 3), index, np.uint8), index % 2) for index in range(40)]
    with pytest.raises(UsageError, match="--size is needed"):
        fit(config(tmp_path / "run", mine.Tiny, large))
    run = fit(config(tmp_path / "run", mine.Tiny, large, input=InputConfig(size=(8,))))
    assert run.record.preprocessing.shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import user_not_there", "which needs user_not_there, and that is not installed"),
        ("raise ValueError('bad day')", r"importing it fails: ValueError: bad day \(user_broken.py, line 1\)"),
        ("def (", "importing it fails: SyntaxError"),
        ("import sys; sys.exit(3)", "importing it fails: SystemExit"),
    ],
)
def test_modules_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "user_broken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"model user_broken:Tiny needs the module user_broken.*{message}"):
        fit(config(tmp_path / "run", "user_broken:Tiny", "digits"))


def test_a_configuration_holds_text(tmp_path: Path, mine: ModuleType) -> None:
    made = config(tmp_path, mine.Tiny(3), tmp_path)
    assert made.data.data == str(tmp_path)
    assert isinstance(made.model, CustomName)
    plain = to_plain(made)
    assert type(plain["model"]) is str
    assert plain["model"] == "user_mine:Tiny"
    assert named(lambda: None, "--loss").endswith("<lambda>")


RAW = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
GRAY = RAW[:, :, 0]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RAW, RAW),
        (GRAY, GRAY[:, :, None]),
        (GRAY[:, :, None], GRAY[:, :, None]),
        (Image.fromarray(RAW), RAW),
        (Image.fromarray(GRAY), GRAY[:, :, None]),
        (Image.fromarray(RAW).convert("RGBA"), RAW),
        (torch.from_numpy(RAW).permute(2, 0, 1), RAW),
        (torch.from_numpy(RAW).permute(2, 0, 1) / 255, RAW),
        (torch.from_numpy(GRAY)[None].double() / 255, GRAY[:, :, None]),
    ],
)
def test_images_of_every_kind(image: object, expected: np.ndarray) -> None:
    images = open_custom(named([(image, 0), (image, np.int64(1))], "--data"), GIB)
    assert np.array_equal(images.parts["all"].image(1), expected)
    assert (images.size, images.channels) == ((8, 6), expected.shape[2])
    assert images.labels == ("0", "1")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((RAW / 255, 0), r"item 1: the image is an array of float64 and shape \[8, 6, 3\]; accepted: a Pillow image"),
        ((RAW.astype(np.int32), 0), "item 1: the image is an array of int32"),
        ((RAW[None], 0), r"item 1: the image is an array of uint8 and shape \[1, 8, 6, 3\]"),
        ((np.zeros((0, 4), np.uint8), 0), r"shape \[0, 4\]"),
        ((torch.from_numpy(RAW), 0), r"a tensor of uint8 and shape \[8, 6, 3\]"),
        ((torch.randn(3, 8, 8), 0), "with values from -.* accepted: 0 to 1. krl normalizes images itself"),
        ((torch.full((3, 8, 8), torch.nan), 0), "with values from nan to nan"),
        (("a.png", 0), "item 1: the image is a str"),
        ((RAW, 1.5), "item 1: the label is 1.5; accepted: the number of a class"),
        ((RAW, -1), "item 1: the label is -1"),
        ((RAW, True), "item 1: the label is True"),
        ((RAW, torch.tensor([1, 0])), r"item 1: the label is a tensor of int64 and shape \[2\]"),
        ((RAW, "cat"), "item 1: the label is 'cat'"),
        ((RAW, 0, 1), "item 1 is 3 values; accepted: two"),
        (RAW, "item 1 is a ndarray; accepted: two"),
    ],
)
def test_items_that_cannot_be_used_are_named(item: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_custom(named([(RAW, 0), item], "--data"), GIB)


class _Listed(list):
    classes: object = None


def listed(classes: object, labels: tuple[int, ...] = (0, 1)) -> _Listed:
    made = _Listed((RAW, label) for label in labels)
    made.classes = classes
    return made


class _Failing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> object:
        if index == 2:
            raise OSError("no disk")
        return RAW, index


class _Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[object]:
        return iter(())


def _by_split(split: str) -> object:
    return listed(["a", "b"] if split == "train" else ["b", "a"])


def _no_val(split: str) -> object:
    return {"train": [(RAW, 0)]}[split]


def _needs_root(root: str, split: str) -> object:
    raise AssertionError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"list\(...\) is empty"),
        ([(RAW, 0)] * 4, "has one class, '0'"),
        (_Failing(), r"item 2 fails: OSError: no disk \(test_custom.py, line \d+\)"),
        (_Stream(), "gives a _Stream; accepted: a torch.utils.data.Dataset with __len__"),
        (lambda: 5, "gives a int; accepted"),
        (_by_split, "train and val splits have other classes"),
        (_no_val, r"called with split='val', fails: KeyError"),
        (_needs_root, "needs arguments that krl does not know: root; accepted: split"),
        (listed("ab"), "its classes are 'ab'"),
        (listed(["a", "a"]), r"its classes are \['a', 'a'\]"),
        (listed(["a", "b"], (0, 2)), "a label is 2, and there are 2 classes"),
    ],
)
def test_data_sets_that_cannot_be_used(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(DataConfig(data=data))


def test_the_split_goes_by_the_images_and_what_does_not_fit_is_read_again(tmp_path: Path, mine: ModuleType) -> None:
    dataset = mine.Squares()
    source = open_source(DataConfig(data=dataset))
    preprocessing = fit(config(tmp_path / "run", mine.Tiny, dataset)).record.preprocessing
    digests = [hashlib.sha256(image.tobytes()).digest() for image in dataset.images]
    places = [np.flatnonzero(np.array(dataset.labels) == label) for label in range(3)]
    held_out = sorted(int(index) for own in places for index in sorted(own, key=digests.__getitem__)[: len(own) // 5])
    val = source.read("val", preprocessing)
    assert np.array_equal(val.pixels(np.arange(len(val))).numpy(), dataset.images[held_out].transpose(0, 3, 1, 2))
    assert val.labels.tolist() == dataset.labels[held_out].tolist()
    assert len(source.read("train", preprocessing)) + len(val) == len(source.read("all", preprocessing)) == 90
    limited = source.read("train", preprocessing, limit=9)
    assert sorted(limited.labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    small = open_custom(named(dataset, "--data"), 1000)
    assert small.parts["all"].images == []
    options = {"margin": 0, "choose": lambda labels, _: list(range(len(labels))), "val_fraction": 0.2}
    assert small.read("val", preprocessing, memory_limit=GIB, **options).identity == val.identity
    with pytest.raises(DataError, match="90 images of 3x12x12 take more than --memory-limit-mb 0"):
        small.read("all", preprocessing, memory_limit=1000, **options)


def test_a_run_of_before_has_no_sources(tmp_path: Path) -> None:
    few = DataConfig(data="digits", limit=60, val_limit=20)
    run = fit(FitConfig(model="resnet8", out=tmp_path / "run", data=few, loop=LOOP))
    values = json.loads((run.path / RECORD).read_bytes())
    assert values.pop("sources") == []
    (run.path / RECORD).write_text(json.dumps(values))
    assert Run.open(run.path).record.sources == ()


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "importlib.util:find_spec"])
def test_a_run_cannot_name_what_python_brings(name: str) -> None:
    with pytest.raises(UsageError, match="is in Python's standard library; accepted: a module of yours"):
        load_object(name, "run r")
