import copy

import pytest
import yaml

from anl import params
from anl.errors import UserError
from tests.conftest import ROOT

PROFILES = ["full", "small", "smoke"]


def settings():
    return params.resolve("small", ROOT / "profiles")


def changed(key, value):
    """The small profile with one dotted key set."""
    whole = copy.deepcopy(settings())
    *folders, last = key.split(".")
    place = whole
    for name in folders:
        place = place[name]
    place[last] = value
    return whole


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_valid_and_named_as_its_file(name):
    value = params.resolve(name, ROOT / "profiles")
    assert params.from_dict(value, name).profile == name


def test_the_active_profile_is_as_its_file_says():
    """A fresh clone has params.yaml as written by `anl profile`; edits are for the reader, not for a commit."""
    value = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert value == params.resolve(value["profile"], ROOT / "profiles")


def test_profiles_share_what_the_pulled_data_was_made_with():
    made_with = ("seed", "data", "models", "prior", "families", "benchmark")
    first, *others = [params.resolve(name, ROOT / "profiles") for name in PROFILES]
    for other in others:
        assert {key: other[key] for key in made_with} == {key: first[key] for key in made_with}


def test_activate_writes_once(tmp_path):
    path = tmp_path / "params.yaml"
    assert params.activate("smoke", ROOT / "profiles", path)
    assert not params.activate("smoke", ROOT / "profiles", path)
    assert params.load(path).profile == "smoke"


def test_a_published_set_stands_beside_the_active_profile(tmp_path):
    found = params.load(ROOT / "profiles/cifake.yaml")
    assert found.profile == "cifake" and found.models_folder == "models/cifake"
    assert params.from_dict(settings(), "small").models_folder == "models"
    with pytest.raises(UserError, match="a pipeline of its own, .* `dvc repro cifake/dvc.yaml`"):
        params.activate("cifake", ROOT / "profiles", tmp_path / "params.yaml")
    assert not (tmp_path / "params.yaml").exists()


def test_the_seen_family_of_a_published_set_is_published():
    value = params.resolve("cifake", ROOT / "profiles")
    value["families"]["sd14"] = {"model": "gan"}
    with pytest.raises(UserError, match="'families.sd14.model' cannot work: it is 'published'"):
        params.from_dict(value, "mine.yaml")
    del value["published"]["val"]
    with pytest.raises(UserError, match="the key 'published.val' is missing"):
        params.from_dict(value, "mine.yaml")


def test_a_file_with_a_base_is_read_with_it(tmp_path):
    (tmp_path / "small.yaml").write_text((ROOT / "profiles/small.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("base: small\nprofile: mine\ntraining: {steps: 3}\n")
    found = params.load(tmp_path / "mine.yaml")
    assert (found.profile, found.training.steps, found.training.batch_size) == ("mine", 3, 64)


def test_a_mapping_of_the_base_that_is_set_to_null_is_left_out(tmp_path):
    (tmp_path / "small.yaml").write_text((ROOT / "profiles/small.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("base: small\nprofile: mine\nfamilies: {vae: null}\nprior: {source: null}\n")
    found, base = params.load(tmp_path / "mine.yaml"), params.load(tmp_path / "small.yaml")
    assert set(base.families) - set(found.families) == {"vae"} and found.prior == base.prior
    (tmp_path / "mine.yaml").write_text("base: small\nprofile: mine\ntraining: null\n")
    with pytest.raises(UserError, match="the key 'training' is missing"):
        params.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("key, value, words", [
    ("traning", {}, "unknown key 'traning'"),
    ("training.step", 3, "unknown key 'training.step'"),
    ("models.pixel.widths", [8], "unknown key 'models.pixel.widths'"),
    ("training.steps", "many", "'training.steps' must be a whole number, not 'many'"),
    ("training.steps", 3.5, "'training.steps' must be a whole number"),
    ("training.steps", True, "'training.steps' must be a whole number"),
    ("training.learning_rate", "1e-3", "'training.learning_rate' must be a number"),
    ("runs.seeds", 3, "'runs.seeds' must be a list"),
    ("runs.seeds", [], "'runs.seeds' must be a list with at least one entry"),
    ("data", "photos", "'data' must be a mapping"),
    ("families", {}, "'families' must be a mapping with at least one entry"),
    ("method.step", 0, "'method.step' cannot work: 0 is not a step from 1 to 1000"),
    ("method.step", 1001, "'method.step' cannot work"),
    ("runs.steps", [10, -5], "'runs.steps' cannot work: -5 is not a step"),
    ("runs.steps", [10, 10], "an entry stands twice"),
    ("runs.seeds", [-1], "'runs.seeds' cannot work"),
    ("seed", -1, "'seed' cannot work"),
    ("seed", 2**32, "'seed' cannot work"),
    ("benchmark.size", 0, "'benchmark.size' cannot work"),
    ("benchmark.size", 50, "'benchmark.size' cannot work: a crop must be a multiple of 16"),
    ("benchmark.size", 4096, "'benchmark.size' cannot work: twice the crop must fit"),
    ("detector.patch", 5, "'detector.patch' cannot work"),
    ("benchmark.seen", "gan", "'benchmark.seen' cannot work: choose one of"),
    ("families.ddim.strength", 0.9, "'families.ddim.strength' cannot work"),
    ("families.ddim.model", "gan", "'families.ddim.model' cannot work"),
    ("data.split", {"train": 0.5, "val": 0.5, "test": 0.5}, "'data.split' cannot work"),
    ("data.least_factor", 1.0, "'data.least_factor' cannot work"),
    ("evaluation.perturbations", [90], "'evaluation.perturbations' must be a mapping"),
    ("evaluation.perturbations", {"jpeg": []}, "'evaluation.perturbations.jpeg' must be a list with at least one entry"),
    ("evaluation.perturbations", {"rotate": [1]}, "'evaluation.perturbations.rotate' cannot work: choose one of jpeg"),
    ("evaluation.perturbations", {"jpeg": [0]}, "'evaluation.perturbations.jpeg' cannot work: strengths must be from 1"),
    ("evaluation.perturbations", {"crop": [0.5, 0.9]}, "'evaluation.perturbations.crop' cannot work"),
    ("evaluation.perturbations", {"noise": [2, 2.0]}, "an entry stands twice"),
    ("runs.priors", ["third_prior"], "'runs.priors' cannot work: 'third_prior' is not one of untrained_prior"),
    ("runs.loss_weights", [1], "'runs.loss_weights' cannot work: method.loss_weight is run anyway"),
    ("runs.loss_weights", [-1], "'runs.loss_weights' cannot work: they must not be negative"),
    ("runs.quiet_attentions", ["soft"], "'runs.quiet_attentions' cannot work: 'soft' is not one of"),
    ("runs.noise_on", ["both"], "'runs.noise_on' cannot work: any of real, generated"),
    ("runs.gradients", ["joint"], "'runs.gradients' cannot work: any of detached"),
    ("runs.pairs", [0], "'runs.pairs' cannot work: they must be at least 1"),
    ("runs.formats", ["lossless"], "'runs.formats' cannot work: any of leaky"),
    ("runs.leaky_steps", [1], "'runs.leaky_steps' cannot work: add leaky to runs.formats"),
    ("runs.experiments", ["leak"], "'runs.experiments' cannot work: any of loss_weight"),
    ("runs.left_out", ["gan"], "'runs.left_out' cannot work: any of ddim"),
    ("detector.attention_dim", 0, "'detector.attention_dim' cannot work"),
    ("training.accumulate", 0, "'training.accumulate' cannot work"),
    ("training.ema", 1.0, "'training.ema' cannot work"),
    ("training.precision", "fp8", "'training.precision' cannot work: choose one of fp32, bf16, fp16"),
    ("prior.precision", "fp8", "'prior.precision' cannot work"),
    ("other_priors", {"vae": {"channels": [8], "layers_per_block": 1, "crop": 16, "batch_size": 2, "steps": 1,
                              "learning_rate": 0.1, "ema": 0.0}}, "'other_priors.vae' cannot work"),
    ("runs.targets", ["none"], "'runs.targets' cannot work: 'none' is not one of prior, multistep, ensemble, noised, error, highpass, random, shuffled"),
    ("runs.targets", ["prior"], "'runs.targets' cannot work: method.target is run anyway"),
    ("method.attention", "magic", "'method.attention' cannot work"),
    ("method.target", "magic", "'method.target' cannot work"),
    ("evaluation.target_fpr", 1.0, "'evaluation.target_fpr' cannot work"),
    ("evaluation.views", ["png"], "'evaluation.views' cannot work"),
    ("training.augment_probability", 1.5, "'training.augment_probability' cannot work: it must be from 0 to 1"),
    ("training.jpeg_quality", [90, 101], "'training.jpeg_quality' cannot work: two numbers from 1 to 100"),
    ("training.resize_scale", [0.9, 0.5], "'training.resize_scale' cannot work: two numbers from 0.1 to 1, the lower first"),
    ("training.blur_radius", [0.5], "'training.blur_radius' cannot work"),
    ("training.precision", "fp8", "'training.precision' cannot work"),
])
def test_what_cannot_work_is_named(key, value, words):
    with pytest.raises(UserError) as problem:
        params.from_dict(changed(key, value), "my.yaml")
    assert words in str(problem.value) and str(problem.value).startswith("my.yaml: ")
    assert "\n" not in str(problem.value)


def test_a_missing_key_is_named():
    value = settings()
    del value["training"]["steps"]
    with pytest.raises(UserError, match="the key 'training.steps' is missing"):
        params.from_dict(value, "my.yaml")


@pytest.mark.parametrize("text, words", [("a: [1", "is not valid YAML"), ("- 1", "holds no mapping"), ("", "holds no mapping")])
def test_a_file_that_is_no_profile(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as problem:
        params.load(tmp_path / "params.yaml")
    assert "\n" not in str(problem.value)


def test_a_misspelt_key_of_a_derived_profile_is_named(tmp_path):
    (tmp_path / "small.yaml").write_text((ROOT / "profiles/small.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("base: small\nprofile: mine\ntraining: {stepps: 3}\n")
    with pytest.raises(UserError, match="unknown key 'training.stepps'"):
        params.resolve("mine", tmp_path)


@pytest.mark.parametrize("given", [None, {}])
def test_a_profile_may_name_no_perturbation(given):
    value = changed("evaluation.perturbations", given)
    if given is None:
        del value["evaluation"]["perturbations"]
    assert params.from_dict(value, "test").evaluation.perturbations == {}
