"""Loading a packaged detector, and scoring images of any size and kind."""

import base64
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import anl
from anl.data.images import pad
from anl.detect import card as cards
from anl.detect import export, maps, onnx_file
from anl.detect.detector import ImageDetector, InUse, load_detector
from anl.detect.tiles import MAX_CROPS, tile
from anl.io import UserError, read_json, sha256_of, write_json
from anl.models import checkpoint
from tests import tiny_hub
from tests.conftest import ROOT, photograph
from tests.detect.conftest import tiny


@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (32, 32), (33, 64), (90, 130), (700, 40), (333, 470)])
def test_crops_cover_an_image_or_sample_it_evenly(shape):
    pixels = photograph(1, *shape)
    crops, places = tile(pixels, 32)
    padded = pad(pixels, 32)
    assert 1 <= len(crops) <= MAX_CROPS
    for crop, (top, left) in zip(crops, places):
        assert np.array_equal(crop, padded[top:top + 32, left:left + 32])
    assert places.min() == 0 and (places.max(0) + 32).tolist() == list(padded.shape[:2])
    if -(-shape[0] // 32) * -(-shape[1] // 32) <= MAX_CROPS:
        covered = np.zeros(padded.shape[:2], bool)
        for top, left in places:
            covered[top:top + 32, left:left + 32] = True
        assert covered.all()


def test_a_score_is_the_mean_over_crops_with_the_cards_rule(detector, picture):
    score = detector.score(picture)
    logit = detector.logits(detector.tile(picture).crops).mean()
    assert score.logit == pytest.approx(logit, abs=1e-6) and (score.width, score.height, score.crops) == (130, 90, 15)
    assert score.probability == detector.card.probability(score.logit)
    assert score.verdict == detector.card.verdict(score.logit)


def test_a_score_depends_on_neither_batch_nor_neighbours(detector, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "x.png")
    others = [photograph(seed, 40 + seed, 200) for seed in range(3)]
    alone = detector.score(picture)
    together = detector.score(iter([*others, tmp_path / "x.png"]), batch_size=3)
    assert together[-1].logit == pytest.approx(alone.logit, abs=1e-6) and len(together) == 4


def test_every_kind_of_image_gives_the_same_score(detector, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "x.png")
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    logits = [detector.score(image).logit for image in (picture, tmp_path / "x.png", Image.fromarray(picture), tensor, tensor / 255)]
    np.testing.assert_allclose(logits, logits[0], atol=1e-6)


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((4, 4)), "float64 array of shape .*is not an image"), (torch.zeros(4, 4), "give .3, H, W"),
    (torch.full((3, 4, 4), 2.0), r"must be in \[0, 1\]"), (7, "a int is not an image"), ("no.png", "cannot be opened")])
def test_what_is_not_an_image_is_refused(detector, image, message):
    with pytest.raises(UserError, match=message):
        detector.score(image)


def test_animations_broken_pil_images_and_empty_batches_are_refused(detector, picture, tmp_path):
    frames = [Image.fromarray(picture), Image.fromarray(picture[::-1].copy())]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(picture).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-len(whole) // 4])
    closed = Image.open(tmp_path / "whole.jpg")
    closed.close()
    for image, message in ((Image.open(tmp_path / "x.gif"), "2 frames"), (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
                           (Image.open(tmp_path / "cut.jpg"), "cannot be read"), (closed, "cannot be read")):
        with pytest.raises(UserError, match=message):
            detector.score(image)
    with pytest.raises(UserError, match="a batch of 0 crops is empty"):
        detector.score(picture, batch_size=0)


@pytest.mark.parametrize("device", ["gpu", "meta", 3.5, *(() if torch.cuda.is_available() else ("cuda",))])
def test_only_devices_that_are_here_are_used(folder, device):
    with pytest.raises(UserError, match="is not a device here; choose cpu or cuda|there is no GPU for the device 'cuda' here"):
        load_detector(folder, device)


def test_evidence_of_the_cells_adds_up_to_the_log_odds(detector, picture):
    crops = detector.tile(picture).crops
    evidence, logit = detector.evidence(crops, batch_size=4), detector.logits(crops)
    np.testing.assert_allclose(evidence.mean((1, 2)), (logit - detector.card.midpoint) / detector.card.temperature, atol=1e-4)


def test_a_map_shows_the_picture_and_red_and_blue_crops(detector, picture, tmp_path):
    sheet = maps.draw(detector, detector.tile(picture), maps.overview(picture))
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 2 * 300
    red = maps.colour(np.full((32, 32, 3), 128, np.uint8), np.array([[9.0, -9.0], [0.0, 0.0]]))
    assert red[0, 0, 0] > red[0, 0, 2] and red[0, 31, 2] > red[0, 31, 0] and red[31, 0].tolist() == [128] * 3
    paths = [maps.save(tmp_path, f"{place}/a b.png", sheet) for place in "xy"]
    assert paths[0] != paths[1] and np.array_equal(np.asarray(Image.open(paths[0])), sheet)


def test_baselines_without_a_frozen_model_can_be_packaged_but_not_mapped(config, scores, tmp_path):
    from anl.models import baselines

    network = baselines.build("npr", config.detector.model_dump(), 32, config.baselines.model_dump()).eval()
    cards.write(network, tmp_path / "npr", config=config, scores=scores)
    loaded = load_detector(tmp_path / "npr")
    assert np.isfinite(loaded.score(photograph(1)).logit)
    with pytest.raises(UserError, match="kind 'baseline' has no evidence map"):
        loaded.evidence(np.zeros((1, 32, 32, 3), np.uint8))


# ---- loading ---------------------------------------------------------------------------------------------------------
def test_the_default_and_mistyped_paths_are_one_clear_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (None, "modles/detector", "/no/where"):
        with pytest.raises(UserError, match="is not a folder with a packaged detector; get the default one") as problem:
            anl.load_detector(path)
        assert "\n" not in str(problem.value)
    with pytest.raises(UserError, match="write hf://modles/detector and its revision"):
        anl.load_detector("modles/detector")
    shutil.copytree(folder, tmp_path / "models" / "detector")
    assert anl.load_detector().card == cards.read(folder)
    with pytest.raises(UserError, match="a folder, which has no revision"):
        anl.load_detector("models/detector", revision="0" * 40)


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_a_hub_id_needs_a_full_commit(revision):
    with pytest.raises(UserError, match=r"needs a revision, the full commit of 40 hex digits"):
        load_detector("hf://tiny/detector", revision=revision)
    with pytest.raises(UserError, match="is not a hub id"):
        load_detector("hf://a/b/c", revision="0" * 40)


def test_other_weights_than_the_cards_and_pickles_are_refused(folder, tmp_path):
    place = tmp_path / "detector"
    shutil.copytree(folder, place)
    checkpoint.save(tiny(seed=5), place / cards.WEIGHTS)
    with pytest.raises(UserError, match="not the file that its card was made for"):
        load_detector(place)
    (place / cards.WEIGHTS).rename(place / "model.bin")
    with pytest.raises(UserError, match="model.bin may be a pickle"):
        load_detector(place)


@pytest.mark.parametrize("change", [{"stem_width": 10**9}, {"size": float("nan")}, {"pretrained": True}, {"backbone": "hf-hub:x/y"}])
def test_settings_that_would_download_or_allocate_much_are_refused(folder, tmp_path, change):
    network = tiny()
    network.settings = network.settings | change
    checkpoint.save(network, tmp_path / cards.WEIGHTS)
    card = read_json(folder / cards.CARD) | {"weights_sha256": sha256_of(tmp_path / cards.WEIGHTS)}
    write_json(tmp_path / cards.CARD, card)
    with pytest.raises(UserError, match="cannot be rebuilt"):
        load_detector(tmp_path)


def test_code_in_a_detectors_folder_is_never_run(folder, picture, tmp_path):
    place = tmp_path / "detector"
    shutil.copytree(folder, place)
    for name in ("__init__.py", "modeling.py", "sitecustomize.py", "torch.py"):
        (place / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (place / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Model"}}')
    (place / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    before = list(sys.path)
    assert load_detector(place).score(picture).crops and sys.path == before and not (tmp_path / "ran").exists()


# ---- the hub, in a process of its own: its client reads the environment when it is imported ----------------------------
HUB = """
import sys
import anl
from anl.detect.detector import ImageDetector
anl.load_detector(sys.argv[1]).push_to_hub("tiny/detector", token="hf_secret")
one = anl.load_detector("hf://tiny/detector", revision=sys.argv[2])
assert ImageDetector.from_pretrained("tiny/detector", revision=sys.argv[2]).card == one.card
print(one.card.weights_sha256)
"""


def upload(self):
    """`do_POST` of the tiny hub: a repository is made, the server says how files are to be sent, and they come."""
    server, path = self.server, self.path.split("?")[0]
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    server.token, home = self.headers.get("Authorization"), f"http://127.0.0.1:{server.server_port}/{server.repo}"
    if path == "/api/repos/create":
        answer = {"url": home}
    elif path.endswith("/preupload/main"):
        answer = {"files": [{"path": item["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for item in json.loads(body)["files"]]}
    elif path == "/api/validate-yaml":
        answer = {"errors": [], "warnings": []}
    else:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        answer = {"commitUrl": f"{home}/commit/{tiny_hub.COMMIT}", "commitOid": tiny_hub.COMMIT, "success": True}
    self.send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode(), body=True)


def test_what_is_pushed_to_the_hub_is_card_and_weights_and_comes_back(folder, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_hub._Hub, "do_POST", upload, raising=False)
    with tiny_hub.serving("models", "tiny/detector", {"evil.py": b"raise SystemExit(1)", "m.bin": b"pickle"}) as server:
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
                       "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
                       "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", HUB, str(folder.resolve()), tiny_hub.COMMIT], env=environment, check=False,
                              text=True, capture_output=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.token == "Bearer hf_secret" and "hf_secret" not in done.stdout + done.stderr
    assert set(server.files) == {cards.CARD, cards.WEIGHTS, "README.md", "evil.py", "m.bin"}
    assert server.files["README.md"].startswith(b"---\nlibrary_name: anl\n")
    assert done.stdout.strip().splitlines()[-1] == detector.card.weights_sha256
    assert {path.name for path in tmp_path.rglob("*") if path.is_symlink()} == {cards.CARD, cards.WEIGHTS}


# ---- ONNX ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"attention": "relation", "noise": True, "front_end": "residual"}])
def test_onnx_equals_pytorch_at_any_batch_size(options, detector, picture, tmp_path):
    import onnx

    from anl.data.images import to_tensor
    other = ImageDetector(tiny(**options), detector.card)
    path = tmp_path / "x.onnx"
    assert onnx_file.export_onnx(other, path) <= onnx_file.TOLERANCE
    crops = other.tile(picture).crops
    logit, probability, evidence = onnx_file.open_session(path).run(None, {onnx_file.INPUT: to_tensor(crops).numpy()})
    np.testing.assert_allclose(logit, other.logits(crops), atol=1e-4)
    np.testing.assert_allclose(probability, [other.card.probability(value) for value in logit], atol=1e-5)
    np.testing.assert_allclose(evidence, other.evidence(crops), rtol=1e-3, atol=1e-3)
    model = onnx.load(path)
    assert json.loads({item.key: item.value for item in model.metadata_props}["card"]) == other.card.model_dump(mode="json")
    held = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert held < 1.05 * sum(value.numel() for value in other.network.state_dict().values()) + 1000  # no prior inside


def test_weights_in_int8_make_a_smaller_file_with_almost_the_same_outputs(detector, picture, tmp_path, monkeypatch):
    import onnx

    from anl.data.images import to_tensor
    other, crops = ImageDetector(tiny(), detector.card), to_tensor(detector.tile(picture).crops).numpy()
    full, small = tmp_path / "full.onnx", tmp_path / "small.onnx"
    onnx_file.export_onnx(other, full)
    monkeypatch.setattr(onnx_file, "INT8_FROM", 0)
    onnx_file.export_onnx(other, small, int8=True)
    weights = {tensor.data_type for tensor in onnx.load(small).graph.initializer if len(tensor.dims) == 4}
    assert weights == {onnx.TensorProto.INT8} and small.stat().st_size < 0.5 * full.stat().st_size
    wanted, found = (onnx_file.open_session(path).run(None, {onnx_file.INPUT: crops}) for path in (full, small))
    assert 0 < np.abs(wanted[0] - found[0]).max() < 0.05 * max(1, np.abs(wanted[0]).max())


def test_a_file_that_differs_is_not_written(detector, tmp_path, monkeypatch):
    program = types.SimpleNamespace(model=types.SimpleNamespace(metadata_props={}),
                                    save=lambda path, external_data: path.write_bytes(b"no model"))
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: program)
    with pytest.raises(UserError, match="onnx is not an ONNX model that can be run"):
        onnx_file.export_onnx(detector, tmp_path / "x.onnx")
    monkeypatch.setattr(onnx_file, "parity", lambda *arguments: 0.5)
    with pytest.raises(UserError, match="differs from PyTorch by 5.0e-01"):
        onnx_file.export_onnx(detector, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_what_is_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "export_onnx", lambda detector, path, int8: (path.parent.mkdir(), path.write_bytes(b"12"), 1e-6)[-1])
    lines = export.export(folder, tmp_path / "made", to="onnx")
    assert lines == [f"{tmp_path / 'made' / 'detector.onnx'}: 2 bytes; its scores are within 1.0e-06 of PyTorch's"]
    for arguments, message in [({"to": "tar"}, "--to tar is unknown"), ({"to": "onnx"}, "add --out"),
                               ({"to": "folder", "out": tmp_path / "x"}, "is a packaged detector already"), ({"to": "demo"}, "needs its profile"),
                               ({"to": "onnx", "out": folder / cards.CARD}, "does not end in .onnx")]:
        with pytest.raises(UserError, match=message):
            export.export(folder, **arguments)
    with pytest.raises(UserError, match="mian is neither a run's folder .* nor an experiment"):
        export.export("mian", tmp_path / "x")


def test_the_card_and_the_module_agree(detector):
    with torch.inference_mode():
        logit, probability, _ = InUse(detector.network, detector.card)(torch.zeros(1, 3, 32, 32))
    assert probability.item() == pytest.approx(detector.card.probability(logit.item()), abs=1e-5)
