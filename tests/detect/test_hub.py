"""A detector from the hub, in a process of its own: the hub's client reads the environment when it is imported."""

import os
import subprocess
import sys

from tests import tiny_hub
from tests.conftest import ROOT
from tests.tiny_hub import COMMIT

LOAD = """
import sys
import anl
detector = anl.load_detector("hf://tiny/detector", revision=sys.argv[1])
print(detector.card.weights_sha256)
"""

PUSH = """
import sys
import anl
anl.load_detector(sys.argv[1]).push_to_hub("tiny/detector", token="hf_secret")
"""


def run(script, argument, server, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
                   "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
                   "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", script, argument], env=environment, check=False, text=True, capture_output=True,
                          timeout=120, cwd=tmp_path)


def test_what_is_pushed_is_the_card_and_the_weights_and_comes_back(folder, in_use, tmp_path):
    with tiny_hub.serving("models", "tiny/detector", {}) as server:
        done = run(PUSH, str(folder.resolve()), server, tmp_path)
        assert done.returncode == 0, done.stderr
        assert server.made["name"] == "detector" and server.token == "Bearer hf_secret"
        assert "hf_secret" not in done.stdout + done.stderr
        assert set(server.files) == {"card.json", "model.safetensors", "README.md"}
        readme = server.files["README.md"].decode()
        assert readme.startswith("---\nlibrary_name: anl\n") and "More Information Needed" not in readme
        assert all(f"- {limit}\n" in readme for limit in in_use.card.whole["limits"]) and "| `ddim`, raw, trained on | 3 |" in readme
        assert all(server.files[name] == (folder / name).read_bytes() for name in ("card.json", "model.safetensors"))
        done = run(LOAD, COMMIT, server, tmp_path)
    assert done.stdout.strip() == in_use.card.weights_sha256, done.stderr


def test_a_pinned_detector_is_downloaded_without_what_it_does_not_need(folder, in_use, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"evil.py": b"raise SystemExit(1)", "m.bin": b"pickle"}
    with tiny_hub.serving("models", "tiny/detector", files) as server:
        done = run(LOAD, COMMIT, server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == in_use.card.weights_sha256
    assert {path.name for path in tmp_path.rglob("*") if path.is_symlink()} == {"card.json", "model.safetensors"}
