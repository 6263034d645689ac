"""The command ``krl-train``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krl_runtime.cli.commandline import next_command, print_json
from krl_runtime.cli.dispatch import Program, dispatch, value_of
from krl_runtime.cli.recipes import show_recipes
from krl_runtime.cli.tables import table
from krl_runtime.device.explanation import EXPLANATION

from . import verbs
from .config import (
    RECORD,
    TRAINING_RECIPES,
    EvaluateConfig,
    ExplainConfig,
    FitConfig,
    ImportConfig,
    ModelsConfig,
    RecipesConfig,
    UnpackConfig,
    model_names,
)
from .processes import leave_group

__all__ = ["figure_note", "main"]

_ERROR = "_standard_error"
_CLASSES = 20  # rows of a table that fit a screen; the worst come first


def fit(config: FitConfig) -> None:
    """Train a network on images: a classifier, or what --task says."""
    _show_run(verbs.fit(config), config.json)


def evaluate(config: EvaluateConfig) -> None:
    """Measure a run on its own data or on any other."""
    result = verbs.evaluate(config).to_dict()
    if config.json:
        print_json(result)
    elif "samples" in result:
        where = f" ({result['variant']})" if "variant" in result else ""
        print(f"{result['run']}{where}: {result['samples']} generated images")
        print(_metrics_table(result) + figure_note(result))
    else:
        print(f"{result['run']} on {result['count']} images of {result['data']} ({result['split']})")
        print(f"trained on: {result['trained_on']}")
        if "head" in result:
            print(f"head: {result['head']}")
        print(_metrics_table({name: value for name, value in result.items() if name != "images"}))
        _show_each(result)
    if "variant" not in result:
        next_command(_export(result["run"]))


def _show_each(result: Mapping[str, Any]) -> None:
    """Show what was measured of each image, or of each class."""
    if "labels_without_images" in result:
        _show_labels(result)
        return
    if "psnr" not in result and "recall" not in result:
        return  # of embeddings there is nothing of single images
    if "recall" not in result:
        columns = ["name", "psnr", "ssim", "input_psnr", "input_ssim"]
        columns += [name for name in ("rgb_psnr", "rgb_input_psnr") if name in result]
        print("\n" + table(columns, [[image.get(column) for column in columns] for image in result["images"]]))
        return
    counts = {name: sum(row) for name, row in zip(result["recall"], result["confusion"], strict=True)}
    worst = sorted((value, name) for name, value in result["recall"].items() if value is not None)
    rows = [(name, counts[name], value) for value, name in worst]
    print("\n" + table(("class", "images", "recall"), rows[:_CLASSES]))
    if len(rows) > _CLASSES:
        print(f"and {len(rows) - _CLASSES} classes with a higher recall")


def _show_labels(result: Mapping[str, Any]) -> None:
    """Show the quality of each label at the threshold of 0.5, the worst first."""
    columns = ("images", "average_precision", "f1", "precision", "recall")
    found = [(name, each) for name, each in result["labels"].items() if each["images"]]
    worst = sorted(found, key=lambda item: float(item[1]["average_precision"]))
    shown = [(name, *(each[column] for column in columns)) for name, each in worst[:_CLASSES]]
    print("\n" + table(("label", *(column.replace("_", " ") for column in columns)), shown))
    if len(worst) > _CLASSES:
        print(f"and {len(worst) - _CLASSES} labels with a higher average precision")
    missing = result["labels_without_images"]
    if missing:
        print(f"no image has {', '.join(missing[:_CLASSES])}: not part of the mean (map, f1_macro)")


def explain(config: ExplainConfig) -> None:
    """Show where a run looks, what is near, and where its teacher's knowledge arrived."""
    result = verbs.explain(config).to_dict()
    if config.json:
        print_json(result)
        return
    _show_explained_images(result.get("images", []))
    if "teacher" in result:
        _show_agreement(result["teacher"])
    for factor in result.get("conditions", {}).get("factors", []):
        shown = [(item["value"], item["mean_absolute_change"]) for item in factor["values"]]
        print(f"\n{factor['name']}: {factor['figure']}\n" + table(("value", "mean absolute change"), shown))
    if "conditions" in result:
        print(f"another latent changes {result['conditions']['latent_change']} of 255 levels")
    for item in result["skipped"]:
        print(f"no {item['what']}: {item['cause']}")
    print(f"\n{result['out']} has the images and {EXPLANATION}")
    next_command(_export(result["run"]))


def _show_explained_images(images: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for item in images:
        probability = item.get("probability")
        nearest = ", ".join(f"{each['label']} {each['similarity']:.3f}" for each in item["neighbors"])
        shown = None if probability is None else f"{probability:.1%}"
        rows.append((item["file"], item.get("prediction"), shown, nearest, item["sheet"]))
    if rows:
        print(table(("file", "prediction", "probability", "neighbors", "sheet"), rows))


def _show_agreement(found: Mapping[str, Any]) -> None:
    """Show for each layer of the student the most similar one of the teacher, and the agreement at matched stages."""
    teachers = found["cka"]["teacher_layers"]
    rows = []
    for name, values in zip(found["cka"]["student_layers"], found["cka"]["matrix"], strict=True):
        known = [(value, layer) for value, layer in zip(values, teachers, strict=True) if value is not None]
        rows.append((name, *reversed(max(known, default=(None, None)))))
    print("\n" + table(("layer", "nearest of the teacher", "CKA"), rows))
    stages = [
        (item["student"], item["teacher"], item["cka"], f"{item['attention']} ± {item['attention_standard_error']}")
        for item in found["stages"]
    ]
    if stages:
        print("\n" + table(("stage", "teacher's stage", "CKA", "attention"), stages))


def import_(config: ImportConfig) -> None:
    """Turn third-party weights into a run, and measure them."""
    _show_run(verbs.import_weights(config), config.json)


def unpack(config: UnpackConfig) -> None:
    """Write a named data set as a folder of PNG files, train/CLASS and val/CLASS."""
    result = verbs.unpack(config)
    print(f"{result.count} images in {result.out}")
    next_command(f"krl-train fit --data {result.out} --model resnet20 --out RUN")


def recipes(config: RecipesConfig) -> None:
    """List the recipes, or show one."""
    show_recipes(config.name, (TRAINING_RECIPES,), "krl-train fit --recipe NAME --model NAME --data FOLDER --out RUN")


def models(config: ModelsConfig) -> None:
    """List the networks of a task by name; upper-case parts stand for numbers."""
    names = model_names(config.task)
    if config.json:
        print_json({"task": config.task, "models": names})
    else:
        print("\n".join(names))
    task = "" if config.task == "classification" else f" --task {config.task}"
    next_command(f"krl-train fit{task} --model NAME --data FOLDER --out RUN")


def _show_run(result: verbs.RunResult, json: bool) -> None:
    if json:
        print_json(result.to_dict())
    else:
        print(f"{result.run}: {result.model}")
        if "trained_on" in result.metrics:
            print(
                f"measured on the images of the split {result.metrics['split']}; trained on: "
                f"{result.metrics['trained_on']}"
            )
        print(_metrics_table(result.metrics) + figure_note(result.metrics))
        if "confusion" in result.metrics or "labels_without_images" in result.metrics:
            _show_each(result.metrics)
        if "source_confusion" in result.metrics:
            print("\nthe source's classes:")
            _show_each({name: result.metrics[f"source_{name}"] for name in ("recall", "confusion")})
    next_command(f"krl-compress distill --teacher {result.run} --student NAME --out STUDENT", _export(str(result.run)))


def _export(run: str) -> str:
    return f"krl-deploy export {run} -o NAME.krl"


def figure_note(metrics: Mapping[str, Any]) -> str:
    """Return the lines below a generator's table that say what its energy is; empty for other networks."""
    reference = metrics.get("energy_reference")
    if reference is None:
        return ""
    return (
        f"\nenergy: distance of {reference['generated']} generated images from {reference['real']} "
        f"{reference['images']}, 0 (alike) to 1\n"
        f"two halves of the {reference['images']} have {reference['floor']:.2g}; nothing is better than that"
    )


def _metrics_table(metrics: Mapping[str, Any]) -> str:
    """Show each metric that is one number, with its standard error if it has one."""
    rows = []
    for name, value in metrics.items():
        error = metrics.get(f"{name}{_ERROR}")
        if isinstance(value, int | float) and not name.endswith(_ERROR):
            rows.append((name, value if error is None else f"{value} ± {error}"))
    return table(("metric", "value"), rows)


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "explain": explain,
    "import": import_,
    "unpack": unpack,
    "models": models,
    "recipes": recipes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    program = Program(
        "krl-train",
        "Train large image models, or import third-party ones.",
        COMMANDS,
        recipes=(TRAINING_RECIPES,),
        task_of={"fit": lambda arguments: value_of(arguments, "--task") or "classification"},
        record=RECORD,
    )
    return leave_group(dispatch(program, argv))


if __name__ == "__main__":
    sys.exit(main())
