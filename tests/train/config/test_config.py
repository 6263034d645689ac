"""Everything that is said of arguments without torch, against what torch and torchvision know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

from krl_runtime.cli.options import refuse_other_tasks
from krl_runtime.errors import DataError, ModelError, RunError, UsageError
from krl_train.config import (
    AugmentConfig,
    FitConfig,
    TransferConfig,
    check_data,
    check_model,
    check_run,
    model_names,
    recorded_task,
)
from krl_train.config.base import DataConfig, OptimConfig
from krl_train.config.model_names import torchvision_classifiers
from krl_train.config.tasks import GenerationConfig, RestorationConfig
from krl_train.models.cifar import cifar_names
from krl_train.models.generators import is_generator
from krl_train.models.restorers import build_restorer, restorer_names
from krl_train.run import ModelSpec


def test_torchvisions_classifiers_are_found_in_its_source():
    assert torchvision_classifiers() == sorted(torchvision.models.list_models(module=torchvision.models))


def test_classifiers_are_those_that_can_be_built():
    known = model_names("classification")
    assert set(cifar_names()) - {"wrn-16-2", "wrn-40-2"} <= set(known)
    for name in (
        *cifar_names()[:-2],
        "wrn-28-10",
        "dscnn-0.5",
        "lenet5",
        "resnet18",
        "timm/tinynet_e",
        "mine.nets:Tiny",
    ):
        check_model(name, "classification")
    for name in ("resnet9", "wrn-16", "dscnn-x", "edsr-4-16"):
        with pytest.raises(ModelError, match=f"unknown model '{name}' for classification"):
            check_model(name, "classification")
    with pytest.raises(ModelError, match=r"did you mean .*mobilenet_v3_small"):
        check_model("mobilenet_v3_smal", "classification")


@pytest.mark.parametrize("task", ["gan", "vae"])
def test_generators_are_those_that_can_be_built(task: str):
    names = [name.replace("WIDTH", "8").replace("UNITS", "16") for name in model_names(task)]
    assert all(is_generator(name) for name in names)
    for name in (*names, "dcgan-8x2"):
        check_model(name, task)
    with pytest.raises(ModelError, match="unknown model 'resnet18'"):
        check_model("resnet18", task)


def test_restorers_are_those_that_can_be_built():
    assert set(restorer_names()) <= set(model_names("restoration"))
    for name in ("espcn", "espcn-8", "fsrcnn", "fsrcnn-8-4-1", "edsr-2-8", "unet-8-2", "style-8"):
        check_model(name, "restoration")
        arguments = {"scale": 1 if name[0] in "us" else 2, "color": "y", "overlap": None, "degradation": {}}
        from krl_train.training.restoration import restorer_preprocessing

        build_restorer(ModelSpec(name, 0, 1, arguments), restorer_preprocessing(1, (16, 16)))
    with pytest.raises(ModelError, match=r"accepted: espcn, .*, edsr-BLOCKS-WIDTH"):
        check_model("edsr-4", "restoration")


def test_errors_in_arguments_do_not_wait_for_torch(tmp_path: Path):
    (tmp_path / "images").mkdir()
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from krl_train.cli import main\n"
        "from krl_compress.cli import main as compress\n"
        "fit = ['fit', '--out', 'r', '--data', 'images', '--model']\n"
        "print([main([*fit, 'resnet9']), main([*fit, 'resnet8', '--from', 'none']), main([*fit[:-3], '--data', 'x', "
        "'--model', 'resnet8']), main([*fit, 'resnet8', '--beta', '2']), compress(['distill', '--teacher', 'none', "
        "'--student', 'resnet8', '--out', 'r'])])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "[2, 2, 2, 2, 2]\n", done.stderr
    for message in (
        "unknown model 'resnet9'",
        "run none does not exist",
        "data 'x' is neither a folder nor a known data set",
        "--beta is for gan and vae; the task is classification",
    ):
        assert message in done.stderr
    assert "needs torch" not in done.stderr


def test_a_bundle_where_a_run_is_expected(tmp_path: Path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="is a bundle, where a run is needed"):
        check_run(tmp_path)
    with pytest.raises(RunError, match="does not exist; a run is the folder"):
        check_run(tmp_path / "none")
    with pytest.raises(DataError, match="neither a folder nor a known data set; known: digits, mnist"):
        check_data("nowhere")
    check_data("digits")
    check_data(None)


def test_the_task_of_a_run(tmp_path: Path):
    assert recorded_task(None) == recorded_task(tmp_path) == "classification"
    (tmp_path / "run.json").write_text('{"task": "restoration"}')
    assert recorded_task(tmp_path) == "restoration"
    (tmp_path / "run.json").write_text("[")
    assert recorded_task(tmp_path) == "classification"


@pytest.mark.parametrize(
    ("task", "section", "option"),
    [
        ("gan", {"augment": AugmentConfig(mixup=0.2)}, "--mixup"),
        ("gan", {"augment": AugmentConfig(cutmix=0.2)}, "--cutmix"),
        ("vae", {"augment": AugmentConfig(auto_augment="trivialaugment")}, "--auto-augment"),
        ("gan", {"augment": AugmentConfig(erase=0.2)}, "--erase"),
        ("restoration", {"augment": AugmentConfig(random_resized_crop=True)}, "--random-resized-crop"),
        ("translation", {"augment": AugmentConfig(color_jitter=(0.4,))}, "--color-jitter"),
        ("gan", {"pretrained": True}, "--pretrained"),
        ("gan", {"optim": OptimConfig(optimizer="adamw")}, "--optimizer"),
        ("vae", {"generation": GenerationConfig(r1=2.0)}, "--r1"),
        ("classification", {"restoration": RestorationConfig(color="rgb")}, "--color"),
        (
            "restoration",
            {"transfer": TransferConfig("x"), "optim": OptimConfig(label_smoothing=0.1)},
            "--label-smoothing",
        ),
        ("restoration", {"data": DataConfig(disk_cache_mb=5)}, "--disk-cache-mb"),
    ],
)
def test_options_of_other_tasks_are_refused(task, section, option):
    with pytest.raises(UsageError, match=f"{option} is for .*; the task is {task}, leave it out"):
        refuse_other_tasks(FitConfig(out=Path("r"), model="m", task=task, **section), task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(optimizer="adamw", momentum=0.5), "--momentum and --no-nesterov are for --optimizer sgd"),
        (lambda: OptimConfig(milestones=(0.5,)), "--milestones is for --schedule multistep"),
        (lambda: RestorationConfig("denoise", scale=2), "--scale is for --restore super-resolution"),
        (lambda: RestorationConfig(noise_level=9), "--noise-level is for --restore denoise"),
        (lambda: RestorationConfig(jpeg_quality=9), "--jpeg-quality is for --restore jpeg"),
    ],
)
def test_options_that_another_one_rules_out_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
