"""The quick start in Python: teacher, distilled student, bundle, INT8, predictions, on the embedded digits.

Usage: python examples/07_python_api.py FOLDER [EPOCHS]
"""

import sys
from pathlib import Path

import krl_compress
import krl_deploy
import krl_runtime
import krl_train


def main(folder: Path, epochs: int) -> None:
    digits = krl_train.unpack(data="digits", out=folder / "digits").out
    teacher = krl_train.fit(data=digits, model="resnet20", size=8, epochs=epochs, out=folder / "teacher")
    student = krl_compress.distill(
        teacher=teacher.run, student="dscnn-0.25", data=digits, epochs=epochs, baseline=True, out=folder / "student"
    )
    bundle = krl_deploy.export(run=student.run, out=folder / "student.krl").bundle
    int8 = krl_deploy.quantize(bundle=bundle, data=digits, max_drop=2)
    print(f"top-1 of the teacher: {teacher.metrics['top1']:.2%}, of the student: {student.student['top1']:.2%}")
    print(f"without a teacher: {student.baseline['top1']:.2%}, in INT8: {int8.scores['int8.cpu']['top1']:.2%}")
    print(f"ready for JetPack 6.2: {krl_deploy.check(model=bundle, target='jetpack-6.2').ready}")

    with krl_runtime.load(bundle, variant="int8") as model:
        print(model.backend.reason)
        for image in sorted((digits / "val" / "7").iterdir())[:3]:
            result = model(image)
            print(f"{image.name}: {result.label} ({result.score:.1%})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
