"""Each numeric constant of a module says why it has its value, or where that comes from."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("train/krl_train", "compress/krl_compress", "deploy/krl_deploy", "runtime/krl_runtime")


def is_numeric(value: ast.expr) -> bool:
    """Whether an expression is a number, computed from numbers, or a tuple of numbers."""
    if isinstance(value, ast.Constant):
        return isinstance(value.value, int | float) and not isinstance(value.value, bool)
    if isinstance(value, ast.UnaryOp):
        return is_numeric(value.operand)
    if isinstance(value, ast.BinOp):
        return is_numeric(value.left) and is_numeric(value.right)
    return isinstance(value, ast.Tuple) and bool(value.elts) and all(is_numeric(item) for item in value.elts)


def unexplained(source: str) -> list[str]:
    """Return the numeric module constants without a comment beside or above them, or a string below."""
    body, lines, found = ast.parse(source).body, source.splitlines(), []
    for index, node in enumerate(body):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None or not is_numeric(node.value):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        following = body[index + 1] if index + 1 < len(body) else None
        documented = (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        )
        beside = any("#" in lines[row] for row in range(node.lineno - 1, node.end_lineno or node.lineno))
        above = lines[node.lineno - 2].startswith("#") if node.lineno > 1 else False
        if not (documented or beside or above):
            found.append(f"{node.lineno}: {ast.unparse(target)} = {ast.unparse(node.value)}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_numeric_constants_have_a_reason(package: str):
    assert [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in unexplained(path.read_text("utf-8"))
    ] == []


def test_what_counts_as_a_reason():
    assert unexplained("A = 3\n") == ["1: A = 3"]
    assert unexplained("A, B = 3, -(2**4)\n") == ["1: (A, B) = (3, -2 ** 4)"]
    assert unexplained('# why\nA = 3\nB = 1e-3  # why\nC = 2\n"""Why."""\nD = "x"\nE = (1, "x")\nF = True\n') == []
