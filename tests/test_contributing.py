"""The worked examples of CONTRIBUTING.md: the changes fit the code, and the commands below them do what they say."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from tests.conftest import ROOT, photograph
from tests.data.trees import encode, encoded, photo_card, write
from tests.project import make_project

RUN = "import json, sys; from anl import cli; sys.exit(max(cli.main(words) or 0 for words in json.loads(sys.argv[1])))"


def examples():
    """[(title, diff, words of each command)]."""
    parts = re.split(r"^## Add ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        diff, script = (re.search(rf"```{kind}\n(.*?)```", part, re.DOTALL)[1] for kind in ("diff", "bash"))
        found.append((part.splitlines()[0], diff, [shlex.split(line)[1:] for line in script.splitlines()]))
    return found


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """A project with all changes, after all commands; and what these printed."""
    root = tmp_path_factory.mktemp("fork")
    shutil.copytree(ROOT / "anl", root / "anl", ignore=shutil.ignore_patterns("__pycache__"))
    for _, diff, _ in examples():
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=root, check=True)
    photos = {f"{name}.png": (encode(photograph(name, 300, 320)), {"width": 320, "height": 300}) for name in range(8)}
    write(root / "data/photos", {name: data for name, (data, _) in photos.items()})
    photo_card(root / "data/photos.csv", photos)
    with zipfile.ZipFile(root / "holiday.zip", "w") as archive:
        for number, (split, kind, name) in enumerate(itertools.product(("train", "test"), ("real", "generated"), "ab")):
            archive.writestr(f"{split}/{kind}/{name}.png", encoded(number))
    config = make_project(root, seeds=[0])
    settings = config.model_dump(mode="json", exclude_none=True)
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    commands = json.dumps([words for _, _, commands in examples() for words in commands])
    done = subprocess.run([sys.executable, "-c", RUN, commands], cwd=root, check=False, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_examples_are_short():
    assert len(examples()) == 4 and all(len(diff.splitlines()) <= 30 for _, diff, _ in examples())


def test_the_examples_work(outcome):
    root, printed = outcome
    assert (root / "models/generators/tiny/config.json").is_file()
    assert (root / "data/sources/holiday.parquet").is_file() and "holiday" in printed
    variants = [path.read_text() for path in (root / "runs").rglob("run.json")]
    assert any('"variant": "median"' in text for text in variants) and len(variants) >= 3
