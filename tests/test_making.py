import dataclasses
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from anl import making
from anl.errors import UserError
from anl.files import sha256_of
from tests import small_disk


def test_only_training_photographs_are_sources(world):
    from anl.data.patches import split_photos
    from anl.data.photos import read_card

    split = split_photos(read_card(world.params.data.card), dataclasses.asdict(world.params.data.split), world.params.seed)
    sources = making.training_sources(world.params)
    assert len(sources) == list(split.values()).count("train")
    assert {source.shape for source in sources} == {(75, 95, 3)} and sources[0].dtype == np.uint8


def test_the_priors_sources_are_halved(world):
    assert {source.shape for source in making.training_sources(world.params, halved=True)} == {(37, 47, 3)}


def test_models_and_prior_are_made_whole(world, tmp_path):
    for made in (making.make_model("vae", world.params, tmp_path / "models", tmp_path / "cache"),
                 making.make_model("latent", world.params, tmp_path / "models", tmp_path / "cache"),
                 making.make_prior(world.params, "prior", tmp_path / "models", tmp_path / "cache"),
                 making.make_prior(world.params, "other_prior", tmp_path / "models", tmp_path / "cache")):
        assert (made / "curve.csv").is_file()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["latent", "other_prior", "prior", "vae"]


def test_a_failure_leaves_the_model_that_was_there(world, tmp_path, monkeypatch):
    def fail(name, sources, config, out, **options):
        (out / "config.json").write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text("old")
    monkeypatch.setattr(making, "fit_model", fail)
    with pytest.raises(KeyboardInterrupt):
        making.make_model("vae", world.params, tmp_path, tmp_path / "cache")
    assert (tmp_path / "vae/config.json").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["vae"]


def test_latent_needs_the_vae(world, tmp_path):
    with pytest.raises(UserError, match="vae holds no vae model .*`anl generate vae`"):
        making.make_model("latent", world.params, tmp_path, tmp_path / "cache")


def test_an_unknown_model(world, tmp_path):
    with pytest.raises(UserError, match="there is no generator model 'gan'"):
        making.make_model("gan", world.params, tmp_path, tmp_path / "cache")


def test_another_diffusion_model_is_checked_and_put_in_the_priors_place(world, tmp_path, capsys):
    from anl.prior import NoisePrior

    source = f"{world.models}/other_prior"
    config = dataclasses.replace(world.params.prior, source=source)
    settings = dataclasses.replace(world.params, prior=config)
    made = making.make_prior(settings, "prior", tmp_path / "models", tmp_path / "cache")
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(NoisePrior.load(made).noise(x, 1), NoisePrior.load(source).noise(x, 1))
    before = sha256_of(made)
    broken = dataclasses.replace(settings, prior=dataclasses.replace(config, source=str(tmp_path)))
    with pytest.raises(UserError, match="holds no diffusion prior"):
        making.make_prior(broken, "prior", tmp_path / "models", tmp_path / "cache")
    narrow = dataclasses.replace(settings, benchmark=dataclasses.replace(settings.benchmark, size=33))
    with pytest.raises(UserError, match="a crop of 33 pixels does not fit"):
        making.make_prior(narrow, "prior", tmp_path / "models", tmp_path / "cache")
    assert sha256_of(made) == before


def test_an_unknown_prior(world, tmp_path):
    with pytest.raises(UserError, match="there is no prior 'third_prior'; choose one of prior, other_prior"):
        making.make_prior(world.params, "third_prior", tmp_path, tmp_path / "cache")


def test_missing_photographs(world, tmp_path):
    away = dataclasses.replace(world.params, data=dataclasses.replace(world.params.data, folder=str(tmp_path / "no")))
    with pytest.raises(UserError, match="no is missing; get it with `dvc pull data.dvc`"):
        making.make_prior(away, "prior", tmp_path, tmp_path / "cache")


def test_config_is_what_is_set(world):
    assert "codes" not in making.config_dict(world.params.models["pixel"])
    assert making.config_dict(world.params.models["vq"])["codes"] == 16


def hear_interrupts():
    """A shell's background job ignores SIGINT, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_anl_prior_interrupted_leaves_no_half_model_and_goes_on(world, tmp_path, number, status):
    """The command itself, stopped in the middle of its training; the second call ends and leaves nothing behind."""
    settings = {**world.settings, "prior": {**world.settings["prior"], "steps": 100_000}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    code = ("import sys; from anl import cli, fitting; fitting.fit.__kwdefaults__['checkpoint_seconds'] = 0; "
            "sys.exit(cli.main(['prior']))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               preexec_fn=hear_interrupts)  # noqa: PLW1509
    for _ in range(600):
        if list((tmp_path / ".cache/anl").glob("prior-*.pt")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == status, error
    assert "Traceback" not in error
    if number == signal.SIGINT:
        assert error.splitlines()[-1] == "anl prior: interrupted; run the same command again to go on from here"
    assert not (tmp_path / "models/prior").exists()
    made = making.make_prior(world.params, "prior", tmp_path / "models", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["prior"] and len(sha256_of(made)) == 64


def test_anl_prior_on_a_full_disk_is_one_line(world, tmp_path):
    settings = tmp_path.with_name(f"{tmp_path.name}.yaml")
    settings.write_text(yaml.safe_dump(world.settings))
    done = small_disk.run(tmp_path, 'cp "$2" params.yaml && "$1" -m anl.cli prior; echo status $?; ls -A models',
                          sys.executable, settings)
    assert done.stdout.split() == ["status", "2"], done.stderr  # and nothing is left in models
    assert done.stderr.splitlines()[-1].startswith("anl prior: no space left on the disk") and "Traceback" not in done.stderr
