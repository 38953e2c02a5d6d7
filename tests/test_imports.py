"""Imports between the packages point one way, and no modules import each other in a circle."""

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
# lowest first: a package may import from itself and from those before it
ORDER = ("io", "seeds", "config", "data", "models", "training", "evaluation", "report", "detect", "bench", "verify", "cli")


def modules():
    """{dotted name: path} of the package's modules."""
    paths = sorted((ROOT / "anl").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path, known):
    """Modules of `anl` that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "anl":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in known else node.module for name in inner}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("anl."))


MODULES = modules()
IMPORTS = {name: set(imported(path, MODULES)) for name, path in MODULES.items()}


def package(name):
    return name.split(".")[1] if "." in name else ""


def test_every_package_has_a_place_in_the_order():
    assert {package(name) for name in MODULES} - {""} <= set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_downwards(name):
    allowed = {"", *ORDER[:ORDER.index(name) + 1]}
    assert not [f"{module} imports {other}" for module, others in IMPORTS.items() if package(module) == name
                for other in others if package(other) not in allowed]


def test_no_circular_imports():
    graph = networkx.DiGraph((name, other) for name, others in IMPORTS.items() for other in others
                             if name != "anl" and other != "anl")  # whose functions import what they need
    assert not [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
