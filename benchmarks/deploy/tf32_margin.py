"""How far TF32 takes the outputs of FP32 networks from their golden ones, beside what the self-test accepts.

TF32 is simulated: the factors of all products are rounded to its 10 bits of the mantissa, on the golden inputs. A GPU
may truncate, and adds up in another order, so that its errors can be larger by a small factor: the margin.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from krl_deploy.bundles.reference import outputs_in_tf32
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.cli.tables import table
from krl_runtime.evaluation.golden import device_limits, likeness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="with an FP32 variant each")
    parser.add_argument("--json", action="store_true", help="print one JSON list on standard output")
    arguments = parser.parse_args()
    found = [measure(Bundle.open(path)) for path in arguments.bundles]
    if arguments.json:
        print(json.dumps(found))
        return
    print(table(tuple(found[0]), [tuple(map(_shown, item.values())) for item in found]))


def measure(bundle: Bundle) -> dict[str, str | float]:
    """Return the error in TF32, and the tolerances with and without it, with their margins."""
    golden, manifest = golden_arrays(bundle), bundle.manifest
    inputs = {spec.name: golden[spec.name] for spec in manifest.inputs}
    made = outputs_in_tf32(bundle.read(manifest.variants["fp32"].file), inputs)
    found = likeness(manifest, made, golden)
    exact, wide = (device_limits(manifest, "fp32", tf32=tf32).tolerance for tf32 in (False, True))
    return {
        "bundle": bundle.path.name,
        "largest output": found.largest,
        "error in TF32": found.error,
        "tolerance without": exact,
        "margin": exact / found.error,
        "tolerance with": wide,
        "margin with": wide / found.error,
    }


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
