"""What the page "Try it" is fed, and the copy of what runs it."""

import base64
import gzip
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from anl import benchmark, demo, params
from anl.detect import card as cards
from anl.detect import crops, export
from anl.errors import UserError
from tests.conftest import ROOT

VENDOR = ROOT / "book" / demo.RUNTIME


@pytest.fixture(scope="module")
def settings():
    return params.from_dict(params.resolve("small", ROOT / "profiles"), "test")


@pytest.fixture(scope="module")
def written(settings, tmp_path_factory):
    """(folder, values for the prose) of the detector of the repository."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.write(folder, settings, ROOT / "models/detector", ROOT / "book", ROOT / ".cache/anl")


def value_of(path):
    return json.loads(re.fullmatch(r"\(window\.anlDemo \?\?= \{\}\)\.\w+ = (.*);\n", path.read_text(), re.DOTALL)[1])


def test_the_model_is_the_exported_detector_with_the_cards_rule(written):
    folder, values = written
    model, card = value_of(folder / "model.js"), cards.read(ROOT / "models/detector")
    session = export.open_session(_file(folder / "x.onnx", base64.b64decode(model["onnx"])))
    assert [item.name for item in session.get_outputs()] == list(export.OUTPUTS)
    assert model["card"]["threshold"] == card.threshold and model["card"]["lower"] == card.lower
    assert (model["card"]["midpoint"], model["card"]["temperature"]) == (card.midpoint, card.temperature)
    assert model["card"]["most"] == crops.MOST
    assert model["card"]["rule"] == card.rule and model["card"]["size"] == card.size
    assert len(base64.b64decode(model["card"]["draw"]["colours"])) == 3 * 256
    assert values["download"] == f"{sum(path.stat().st_size for path in [*VENDOR.glob('*.js'), folder / 'model.js']) / 1e6:.1f} MB"


def _file(path, data):
    path.write_bytes(data)
    return path


def test_samples_are_the_first_test_patches_of_photographs_in_the_order_of_their_hash(written, settings):
    samples = value_of(written[0] / "samples.js")
    manifest = benchmark.read_manifest(settings.benchmark.folder)
    test = manifest[manifest["split"] == "test"].set_index("sample_id")
    rows = test.loc[[sample["name"] for sample in samples]]
    assert list(rows["sha256"]) == sorted(rows["sha256"])
    assert set(rows["photo"]) == set(sorted(test["photo"].unique())[:len(samples)])  # a photograph each, the first by name
    makers = [generator for _, generator in sorted(zip(rows["photo"], rows["generator"]))]
    assert makers[::2] == ["real"] * (len(samples) // 2) and makers[1] == settings.benchmark.seen
    assert set(makers) == {"real", *settings.families} and str(len(samples)) == written[1]["samples"]
    pixels = benchmark.read_images(settings.benchmark.folder, rows.reset_index())
    for sample, row, wanted in zip(samples, rows.itertuples(), pixels):
        first = test[(test["generator"] == row.generator) & (test["photo"] == row.photo)].sort_values(["top", "left"])
        assert first.index[0] == sample["name"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(sample["png"])))), wanted)
        assert sample["credit"].startswith(row.photo) and sample["maker"] == row.generator
        assert ("not seen" in sample["of"]) == (row.generator not in ("real", settings.benchmark.seen))


def test_scripts_are_the_same_twice_and_the_export_is_kept(written, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export", None)  # to call it would fail
    demo.write(tmp_path, settings, ROOT / "models/detector", ROOT / "book", ROOT / ".cache/anl")
    for name in ("model.js", "samples.js"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()


def test_what_is_missing_is_named(settings, tmp_path):
    with pytest.raises(UserError, match="ort.wasm.min.js is missing; get it again with `git checkout"):
        demo.write(tmp_path, settings, ROOT / "models/detector", tmp_path)
    with pytest.raises(UserError, match="card.json is missing"):
        demo.write(tmp_path, settings, tmp_path, ROOT / "book")


def test_a_script_cannot_be_ended_by_its_text(tmp_path):
    demo.write_script(tmp_path / "x.js", "x", {"b": "</script>", "a": 1})
    assert "</script>" not in (tmp_path / "x.js").read_text() and value_of(tmp_path / "x.js") == {"a": 1, "b": "</script>"}


def test_the_runtime_is_the_one_that_its_readme_names():
    hashes = dict(re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})`", (VENDOR / "README.md").read_text(), re.MULTILINE))
    packed = json.loads((VENDOR / "ort-wasm.js").read_text().partition(" = ")[2].rstrip(";\n"))
    found = {"ort.wasm.min.js": (VENDOR / "ort.wasm.min.js").read_bytes(),
             **{f"ort-wasm-simd-threaded.{end}": gzip.decompress(base64.b64decode(packed[key]))
                for key, end in (("module", "mjs"), ("wasm", "wasm"))}}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == hashes
    assert "MIT License" in (VENDOR / "LICENSE").read_text()
