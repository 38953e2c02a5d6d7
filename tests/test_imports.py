"""Imports between the packages point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "anl"
# lowest first: a package may import from itself and from what stands before it
ORDER = ("__version__", "errors", "io", "seeds", "config", "data", "models", "training", "evaluation", "report", "detect")
CHECKED = ("models", "training", "evaluation", "report")


def imported(path):
    """First names below `anl` that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "anl":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("anl."))


@pytest.mark.parametrize("package", CHECKED)
def test_imports_point_downwards(package):
    files = [PACKAGE / f"{package}.py"] if (PACKAGE / f"{package}.py").is_file() else sorted((PACKAGE / package).rglob("*.py"))
    allowed = set(ORDER[:ORDER.index(package) + 1])
    wrong = {f"{path.relative_to(PACKAGE)} imports {name}" for path in files for name in imported(path) if name not in allowed}
    assert files and not wrong
