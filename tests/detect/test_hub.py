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
detector = anl.load_detector("tiny/detector", revision=sys.argv[1])
print(detector.card.weights_sha256)
"""


def test_a_pinned_detector_is_downloaded_without_what_it_does_not_need(folder, in_use, tmp_path):
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"evil.py": b"raise SystemExit(1)", "m.bin": b"pickle"}
    with tiny_hub.serving("models", "tiny/detector", files) as server:
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path),
                       "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
                       "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", LOAD, COMMIT], env=environment, check=False, text=True,
                              capture_output=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == in_use.card.weights_sha256
    assert {path.name for path in tmp_path.rglob("*") if path.is_symlink()} == {"card.json", "model.safetensors"}
