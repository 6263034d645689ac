"""A search for a student against a list that somebody would pick by hand, at the same measured latency.

::

    python benchmarks/compress/search.py TEACHER --budget latency=0.4ms --epochs 9 --out search [-- more options]

The list is trained in full: each network at its own width, in FP32 and INT8, that meets the budget as measured here.
The search starts from its default architectures. Both measure bundles alike and train with the same options. Prints
the best of both for each seed, and the time that each took. What is in ``--out`` already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from krl_runtime.cli.tables import table

_BY_HAND = "resnet8@1,resnet20@1,dscnn-0.5@1,dscnn-1@1,dscnn-2@1,resnet20@0.5,wrn-16-2@0.5,resnet20-b@0.5"


def main() -> None:
    """Search, train the list, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path, help="the teacher's run")
    parser.add_argument("--budget", required=True, help="as of krl-compress search")
    parser.add_argument("--epochs", default="9", help="passes over the images of a full training")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the searches")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    options, more = parser.parse_args(given[:split]), given[split + 1 :]
    rows: list[tuple[str, ...]] = []
    differences = []
    for seed in range(options.seeds):
        common = ["--teacher", str(options.teacher), "--budget", options.budget, "--epochs", options.epochs]
        common += ["--seed", str(seed), *more]
        hand = ["--architectures", _BY_HAND, "--rounds", "1", "--shortlist", "99", "--no-prune-teacher"]
        found = {
            "list": _search([*common, *hand], options.out / f"list-{seed}"),
            "search": _search(common, options.out / f"search-{seed}"),
        }
        for name, state in found.items():
            result = state["result"]
            rows.append(
                (
                    str(seed),
                    name,
                    f"{result['student']}, {result['precision']}",
                    f"{100 * result['quality']:.2f} ± {100 * result['standard_error']:.2f}",
                    f"{result['cost']['latency']:.3f}",
                    f"{state['seconds'] / 60:.1f}",
                    str(len(state["trials"])),
                )
            )
        differences.append(100 * (found["search"]["result"]["quality"] - found["list"]["result"]["quality"]))
    print(table(("seed", "", "best", "top-1 %", "ms", "minutes", "trainings"), rows))
    spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
    print(f"search against list: {statistics.fmean(differences):+.2f}{spread} points")


def _search(arguments: list[str], out: Path) -> dict[str, Any]:
    """Return what a search found; an interrupted one goes on."""
    file = out / "search.json"
    if not file.exists() or not json.loads(file.read_text())["result"]:
        resume = ["--resume"] if file.exists() else []
        command = [sys.executable, "-m", "krl_compress", "search", *arguments, "--out", str(out), *resume]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    main()
