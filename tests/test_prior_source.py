"""Where a prior comes from. The hub is a small server of the test's own on 127.0.0.1; nothing leaves the machine."""

import os
import socket
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from anl import prior_source
from anl.errors import UserError
from anl.prior import NoisePrior
from tests import tiny_hub, tiny_priors
from tests.conftest import ROOT
from tests.tiny_hub import COMMIT

OTHER = "f" * 40
FETCH = """
import sys, time
time.sleep = lambda seconds: None  # the hub's client waits 23 s in all before it gives an address up
from anl.errors import UserError
from anl.prior_source import locate
try:
    print(*locate(sys.argv[1], sys.argv[2]), sep="\\n")
except UserError as problem:
    print(f"UserError: {problem}")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A server that holds a pixel prior and what must not be downloaded: a pickle, a variant, a whole checkpoint."""
    folder = tiny_priors.pixel_folder(tmp_path_factory.mktemp("hub") / "prior")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files |= {"unet/diffusion_pytorch_model.bin": b"pickle", "whole.safetensors": b"gigabytes",
              "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "README.md": b"read me"}
    with tiny_hub.serving("models", "tiny/prior", files) as server:
        server.folder = folder
        yield server


def fetch(source, revision, cache, endpoint, offline="0"):
    """`locate` in a process of its own: the hub's client reads the environment when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"),
                   "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
                   "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FETCH, source, revision], env=environment, check=False, text=True,
                          capture_output=True, timeout=120, cwd=cache.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


# ---- folders and names -------------------------------------------------------------------------------------------------
def test_a_folder_is_itself_even_where_it_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models/prior").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert prior_source.locate("models/prior") == (Path("models/prior"), "models/prior")
    assert prior_source.locate(tmp_path)[0] == tmp_path
    with pytest.raises(UserError, match="models/prior is a folder and has no revision"):
        prior_source.locate("models/prior", COMMIT)


@pytest.mark.parametrize("source", ["models/prior", "/no/such/place", "nothing", Path("models/prior"), ""])
def test_what_is_not_there_names_the_mend(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source == "":
        source = tmp_path / "none"
    with pytest.raises(UserError, match="holds no diffusion prior: .*`dvc pull prior`.*`anl prior`") as problem:
        NoisePrior.load(source)
    assert "\n" not in str(problem.value)


def test_a_folder_that_is_no_prior_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no diffusion prior: unet/ is missing; .*`dvc pull prior`"):
        NoisePrior.load(tmp_path)


@pytest.mark.parametrize("revision", [None, "main", "0123456", OTHER.upper(), 7])
def test_a_hub_id_without_a_full_commit_is_refused_and_says_why(revision):
    with pytest.raises(UserError, match="tiny/prior.*<40-hex commit>: a branch may hold other weights tomorrow"):
        NoisePrior.load("hf://tiny/prior", revision=revision)


@pytest.mark.parametrize("revision", [None, OTHER])
def test_a_mistyped_folder_is_never_looked_up_on_the_hub(revision, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="models/prio holds no diffusion prior: .*for a model of the hub write "
                                        "hf://models/prio with revision=<40-hex commit>") as problem:
        NoisePrior.load("models/prio", revision=revision)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("source", ["hf://", "hf://tiny", "hf://a/b/c", "hf://../x", "hf://a/b@main"])
def test_an_address_of_the_hub_has_an_owner_and_a_name(source):
    with pytest.raises(UserError, match="is no address of the hub; write hf://OWNER/NAME"):
        NoisePrior.load(source, revision=OTHER)


def test_a_preset_without_a_known_commit_asks_for_one():
    with pytest.raises(UserError, match=r"prior adm-imagenet-256 \(xutongda/.*\): pass revision=<40-hex commit>; we could "
                                        "not look it up offline"):
        NoisePrior.load("adm-imagenet-256")


@pytest.mark.parametrize("name, revision, asked", [
    ("ddpm-cifar10-32", None, ("google/ddpm-cifar10-32", "267b167dc01f0e4e61923ea244e8b988f84deb80")),
    ("ddpm-cifar10-32", OTHER, ("google/ddpm-cifar10-32", OTHER)),
    ("ddpm-ema-bedroom-256", OTHER, ("google/ddpm-ema-bedroom-256", OTHER))])
def test_a_preset_is_its_repository_at_its_commit_or_the_callers(monkeypatch, name, revision, asked):
    monkeypatch.setattr(prior_source, "_from_hub", lambda repo, commit: (repo, commit))
    assert prior_source.locate(name, revision) == asked


def test_neither_pickles_nor_variants_nor_whole_checkpoints_are_fetched():
    def fetched(file):
        return any(fnmatch(file, pattern) for pattern in prior_source.patterns())

    for file in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "config.json", "tokenizer/merges.txt",
                 "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.safetensors",
                 "unet/diffusion_pytorch_model.safetensors.index.json", "text_encoder/model.safetensors",
                 "scheduler/scheduler_config.json", "scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert fetched(file), file
    for file in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "modeling_ddpm.py",
                 "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder/model.bin",
                 "safety_checker/model.safetensors", "text_encoder/model.fp16.safetensors"):
        assert not fetched(file), file


# ---- the hub -----------------------------------------------------------------------------------------------------------
def test_a_pinned_model_is_downloaded_once_and_then_read_offline(hub, tmp_path):
    cache = tmp_path / "cache"
    folder, name = fetch("hf://tiny/prior", COMMIT, cache, address(hub))
    assert name == "tiny/prior@0123456789ab" and folder.startswith(str(cache))
    files = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert files == {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
                     "unet/diffusion_pytorch_model.safetensors"}
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(NoisePrior.load(folder).noise(x, 1), NoisePrior.load(hub.folder).noise(x, 1))
    asked = len(hub.asked)
    assert fetch("hf://tiny/prior", COMMIT, cache, address(hub), offline="1")[0] == folder and len(hub.asked) == asked


@pytest.mark.parametrize("repo, revision, message", [
    ("tiny/prior", OTHER, f"tiny/prior has no commit {OTHER} on http://127.0.0.1"),
    ("tiny/none", COMMIT, "shows no model tiny/none; check its name and whether you may read it, or download it")])
def test_what_the_hub_does_not_have(hub, tmp_path, repo, revision, message):
    (line,) = fetch(f"hf://{repo}", revision, tmp_path / "cache", address(hub))
    assert line.startswith("UserError: ") and message in line


def test_a_hub_that_cannot_be_reached(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    (line,) = fetch("hf://tiny/prior", COMMIT, tmp_path / "cache", endpoint)
    assert line.startswith("UserError: tiny/prior at 0123456789ab is not on this machine and " + endpoint)
    assert line.endswith("download it where the hub can be reached and pass the folder")
    (line,) = fetch("hf://tiny/prior", COMMIT, tmp_path / "cache", endpoint, offline="1")
    assert "cannot be reached (HF_HUB_OFFLINE is set)" in line


def test_a_repository_that_is_no_prior_is_named(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path))
    with pytest.raises(UserError, match="tiny/prior@0123456789ab holds no diffusion prior: unet/ is missing"):
        NoisePrior.load("hf://tiny/prior", revision=COMMIT)


def test_any_other_failure_of_a_download_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="tiny/prior at 0123456789ab cannot be downloaded .*No space left.*try again, or") as e:
        NoisePrior.load("hf://tiny/prior", revision=COMMIT)
    assert "\n" not in str(e.value)
