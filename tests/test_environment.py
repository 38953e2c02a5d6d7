"""The lock, pyproject.toml and environment.yml name the same versions, and no place to get them from."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!_-]+)")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines):
    """['A_b==1'] -> {'a-b': '1'}; every line has to be one exact pin."""
    found = {}
    for line in lines:
        match = PIN.fullmatch(line)
        assert match, f"'{line}' is no exact pin"
        assert canonical(match[1]) not in found, f"{match[1]} is pinned twice"
        found[canonical(match[1])] = match[2]
    return found


def lock_lines():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_lock_holds_exact_pins_only():
    assert len(pins(lock_lines())) > 100


def test_pyproject_agrees_with_the_lock():
    lock = pins(lock_lines())
    table = project()["project"]
    asked = pins(table["dependencies"] + table["optional-dependencies"]["test"])
    assert {name: lock.get(name) for name in asked} == asked


def test_dvc_reads_yaml_by_the_compiled_parser():
    """Without it a `dvc repro` with nothing to do takes twice as long, and nothing says so."""
    from ruamel.yaml import YAML
    from ruamel.yaml.main import CParser

    assert CParser is not None and YAML(typ="safe").Parser is CParser


def test_environment_yml_agrees_with_lock_and_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [item["pip"] for item in dependencies if isinstance(item, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [item for item in dependencies if isinstance(item, str) and item.startswith("python=")]
    least = project()["project"]["requires-python"].removeprefix(">=")
    version = tuple(map(int, python.removeprefix("python=").split(".")))
    assert version >= tuple(map(int, least.split(".")))
    assert not [item for item in dependencies if isinstance(item, str) and not re.match(r"python=|pip$", item)]


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "environment.yml"])
def test_no_index_address(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"://|index-url|find-links|trusted-host", text)


def test_lock_leaves_out_what_only_cuda_machines_have():
    left_out = [name for name in pins(lock_lines()) if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
    assert left_out == ["nvidia-ml-py"]  # bindings in plain Python, which DVCLive installs everywhere


def test_this_environment_is_the_locked_one():
    installed = {canonical(item.metadata["Name"]): item.version for item in metadata.distributions()}
    differing = {name: (version, installed.get(name)) for name, version in pins(lock_lines()).items()
                 if installed.get(name) != version}
    assert not differing, "run `make setup`"
