import dataclasses
import re

import pytest

from anl import prior_presets
from anl.errors import UserError


def test_every_row_names_what_a_user_must_know():
    assert list(prior_presets.PRESETS) == ["ddpm-cifar10-32", "ddpm-ema-celebahq-256", "ddpm-ema-bedroom-256",
                                           "adm-imagenet-256", "stable-diffusion-1.5"]
    for name, preset in prior_presets.PRESETS.items():
        assert preset.name == name and re.fullmatch(r"[\w.-]+/[\w.-]+", preset.repo)
        assert preset.revision is None or re.fullmatch(r"[0-9a-f]{40}", preset.revision)
        assert preset.licence and preset.trained_on and preset.overlaps and "timestep 0" in preset.first_step
        assert not preset.verified, "nobody here could reach the hub; whoever loads one may say so"
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.repo = "other/model"


def test_the_latent_rows_samplers_start_one_step_later():
    assert "steps_offset: 1" in prior_presets.get("stable-diffusion-1.5").first_step
    assert "steps_offset" not in prior_presets.get("adm-imagenet-256").first_step


@pytest.mark.parametrize("preset, benchmark", [
    ("ddpm-cifar10-32", "cifake"), ("adm-imagenet-256", "genimage"), ("adm-imagenet-256", "diffusionforensics-imagenet"),
    ("ddpm-ema-bedroom-256", "forensynths"), ("ddpm-ema-bedroom-256", "diffusionforensics-lsun"),
    ("ddpm-ema-celebahq-256", "diffusionforensics-celebahq"), ("stable-diffusion-1.5", "univfd-laion")])
def test_a_prior_that_knows_the_reals_is_warned_of(preset, benchmark):
    sentence = prior_presets.overlap_warning(preset, benchmark)
    row = prior_presets.get(preset)
    assert preset in sentence and benchmark in sentence and row.trained_on in sentence and "\n" not in sentence
    assert prior_presets.overlap_warning(preset, "embedded") is None


def test_an_unknown_preset():
    with pytest.raises(UserError, match="there is no prior preset 'ddpm'; choose one of ddpm-cifar10-32, .*1.5"):
        prior_presets.overlap_warning("ddpm", "cifake")


def test_the_table_is_tidy():
    table = prior_presets.table()
    assert len(table) == len(prior_presets.PRESETS) and table["name"].is_unique
    assert table.set_index("name").loc["adm-imagenet-256", "overlaps"].startswith("genimage ")
    assert not table["verified"].any()
