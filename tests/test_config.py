"""Profiles are typed, mistakes are one line with a fix, and an identity covers what decides a run."""

import pytest
import yaml

from anl import config
from anl.io import UserError


@pytest.mark.parametrize("name", config.profiles())
def test_every_packaged_profile_is_valid_with_all_its_variants(name):
    loaded = config.load_config(profile=name)
    assert loaded.profile == name
    for experiment in loaded.experiments:
        assert all(variant.seeds for variant in loaded.variants(experiment).values())


def test_files_that_are_missing_broken_or_repeat_a_key(tmp_path):
    path = tmp_path / "params.yaml"
    for text, words in ((None, "cannot be read"), ("a: [", "not valid YAML"), ("- 1", "not a mapping"),
                        ("base: small\nseed: 1\nseed: 2", "occurs twice"), ("base: smal", "did you mean 'small'")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=words):
            config.load_config(path)


def test_a_profile_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "params.yaml"
    assert config.activate("smoke", path) and not config.activate("smoke", path)
    assert config.load_config(path) == config.load_config(profile="smoke")
    assert yaml.safe_load(path.read_text())["training"]["clip_norm"] == 1.0


def small(*overrides):
    return config.load_config(profile="small", overrides=overrides)


@pytest.mark.parametrize("override, words", [
    ("method.step", "write KEY=VALUE, for example method.step=10"), ("method.step=[", "not valid YAML"),
    ("method.step=1001", "method.step"), ("method.attention=enrgy", "did you mean 'energy'"),
    ("training.jpeg_quality=[100, 90]", "the lower first"), ("method.target=none", "are the same detector"),
    ("traning.steps=1", "unknown key 'traning'; did you mean 'training'"),
    ("models.pixel.chanels=[8]", "'models.pixel' unknown key 'chanels'; did you mean 'channels'"),
    ("training.steps=3.5", "'training.steps' must be a whole number, not 3.5"),
    ("training.steps=true", "'training.steps' must be a whole number, not True"),
    ("training.learning_rate=fast", "'training.learning_rate' must be a valid number"),
    ("training.learning_rate=.inf", "'training.learning_rate' must be a finite number"),
    ("training.learning_rate=0", "greater than 0"), ("training.warmup_steps=400", "must be below training.steps"),
    ("training.resize_scale=[0.5]", "two numbers"), ("training.jpeg_quality=[0, 90]", "training.jpeg_quality.0"),
    ("seeds=3", "'seeds' must be a valid list"), ("seeds=[]", "at least 1 item"), ("seeds=[-1]", "seeds.0"),
    ("seed=4294967296", "less than"), ("data=photos", "'data' must be a valid dictionary"),
    ("data.split.test=0.3", "'data.split' the three shares must sum to 1"),
    ("data.least_factor=1.0", "greater than or equal to 2"), ("benchmark.size=50", "multiple of 16"),
    ("benchmark.size=256", "patches of 512 pixels must fit"), ("detector.patch=5", "'detector.patch' must be at least 2"),
    ("benchmark.held_out=[ddim]", "must not name a generator of `seen`"), ("benchmark.held_out=[x]", "'x' is not in families"),
    ("detector.stride=0", "detector.stride"), ("benchmark.seen=[gan]", "'gan' is not in families"),
    ("benchmark.seen=[ddim, ddim]", "twice"), ("families.ddim.strength=0.9", "max_strength"),
    ("families.ddim.model=pixl", "did you mean 'pixel'"), ("families.ddim.sampler=null", "a model of kind pixel needs it"),
    ("families.flow.inference_steps=null", "'families.flow.inference_steps' is missing"),
    ("families.latent.decoder=null", "'families.latent.decoder' is missing"), ("families.latent.decoder=vea", "did you mean 'vae'"),
    ("families.vae.region=[0.1, 0.2]", "needs a model of kind `pixel`"), ("families.unconditional.paired=true", "paired"),
    ("families.vae.model=published", "kind manifest"), ("models.superres.scale=3", "must divide"),
    ("models.vae.channels=[]", "'models.vae.channels' is missing"), ("prior.revision=abc", "commit of a `source`"),
    ("other_priors.random={channels: [8]}", "is the name of a target"),
    ("other_priors.denoiser={channels: [8]}", "must be denoiser"),
    ("method.target=pior", "'pior' is not a target; did you mean 'prior'"), ("method.loss_weight=-1", "greater than"),
    ("seeds=[1, 1]", "twice"),
    ("baselines.encoder=vit", "baselines.encoder"), ("method.target=ffdnet", "denoiser_weights"),
    ("evaluation.views=[matched]", "must contain raw"), ("evaluation.views=[raw, jpg96]", "'evaluation.views.1' must be 'raw'"),
    ("evaluation.views=[raw, jpeg96]", "'evaluation.headline' must be one of"),
    ("evaluation.perturbations.rotate=[1]", "'rotate' is not a kind of perturbation"),
    ("evaluation.perturbations.jpeg=[101]", "must be from 1 to 100"), ("evaluation.target_fpr=0.5", "target_fpr"),
    ("evaluation.bootstrap=5", "evaluation.bootstrap"), ("experiments.step_t.vary={}", "state settings to vary"),
    ("experiments.step_t.vary={method.step: [0]}", "experiments.step_t: 'method.step'"),
    ("experiments.step_t.vary={method.stpe: [1]}", "did you mean 'step'"),
    ("experiments.step_t.vary={method: [{step: 1}]}", "use `variants`")])
def test_every_value_that_cannot_work_is_refused(override, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")) as caught:
        small(override)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_missing_key_is_named(tmp_path):
    value = small().model_dump(exclude_none=True)
    del value["training"]["clip_norm"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(value))
    with pytest.raises(UserError, match="mine.yaml: the key 'training.clip_norm' is missing; add it"):
        config.load_config(tmp_path / "mine.yaml")


def test_a_profile_states_differences_from_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: smoke\nprofile: mine\ntraining: {learning_rate: 1e-3}\nmodels: {vq: null}\n"
                                        "families: {vq: null}\n")
    mine, smoke = config.load_config(tmp_path / "mine.yaml"), config.load_config(profile="smoke")
    assert mine.training == smoke.training.model_copy(update={"learning_rate": 0.001})
    assert set(smoke.families) - set(mine.families) == {"vq"} and mine.data == smoke.data
    (tmp_path / "other.yaml").write_text("base: mine\nprofile: other\n")  # a base in the same folder
    assert config.load_config(tmp_path / "other.yaml").training == mine.training
    (tmp_path / "loop.yaml").write_text("base: loop\n")
    with pytest.raises(UserError, match="its own base"):
        config.load_config(tmp_path / "loop.yaml")


def test_overrides_are_yaml():
    found = small("method.step=7", "training.learning_rate=2e-3", "seeds=[4, 5]", "method.target=highpass")
    assert (found.method.step, found.training.learning_rate, found.seeds) == (7, 0.002, [4, 5])
    with pytest.raises(UserError, match="contradicts"):
        small("method.step=7", "method.step.x=1")


def test_a_config_is_frozen_and_an_override_leaves_it_alone():
    found = small()
    with pytest.raises(UserError, match="must be none for a baseline"):
        found.override(method={"baseline": "npr", "target": "prior"})
    before = found.model_dump()
    with pytest.raises(ValueError, match="frozen"):
        found.method.step = 3
    with pytest.raises(UserError, match="profile small: 'method.step'"):
        found.override(method={"step": 0})
    found.override(families={"ddim": {"strength": 0.2}}, seeds=[9])
    assert found.model_dump() == before


def names(**experiment):
    base = config.load_config(profile="caltech")
    return base.override(experiments={"mine": experiment}).variants("mine")


def test_variant_names_follow_one_rule():
    grid = names(vary={"method.loss_weight": [0.1, 1], "method.attention": ["none", "gate"]})
    assert list(grid) == ["lambda=0.1,attention=none", "lambda=0.1,attention=gate", "lambda=1,attention=none",
                          "lambda=1,attention=gate"]
    assert list(names(vary={"benchmark.seen": [["ddim", "flow"], ["vae"]]})) == ["seen=ddim+flow", "seen=vae"]
    assert list(names(vary={"training.flip": [True, False]})) == ["flip=true", "flip=false"]
    close = names(vary={"method.loss_weight": [0.1, 0.1000001]})
    assert len(close) == len({variant.identity() for variant in close.values()}) == 2


def test_a_grid_holds_the_plain_detector_once():
    found = names(vary={"method.target": ["none", "prior"], "method.step": [1, 10]}, variants={"npr": {"method.baseline": "npr"}},
                  seeds=[7])
    assert list(found) == ["plain", "target=prior,t=1", "target=prior,t=10", "npr"]
    assert all(variant.seeds == [7] for variant in found.values())
    assert found["plain"].method.attention == "none" and found["npr"].method.target == "none"
    assert names(variants={"a": {}})["a"].seeds == config.load_config(profile="caltech").seeds


def test_two_names_of_one_detector_are_refused():
    with pytest.raises(UserError, match="'a' and 'b' are the same detector"):
        names(variants={"a": {"method.target": "none"}, "b": {"method.target": "none", "method.step": 10}})
    with pytest.raises(UserError, match="no experiment 'stept'; did you mean 'step_t'"):
        small().variants("stept")


def changed(base, **sections):
    return base.override(**sections).identity() != base.identity()


def test_settings_without_effect_do_not_change_an_identity():
    anl = small()
    for section, change in (("run", {"jobs": 2}), ("evaluation", {"bootstrap": 99}), ("training", {"checkpoint_seconds": 9}),
                            ("other_priors", {"other_prior": {"steps": 9}}), ("method", {"error_draws": 2}), ("seeds", [5]),
                            ("experiments", {"main": None}), ("detector", {"gate_width": 8}), ("baselines", {"margin": 2.0}),
                            ("profile", "mine")):
        assert not changed(anl, **{section: change})
    plain = anl.override(method={"target": "none"})
    for method in ({"step": 9}, {"loss_weight": 3.0}, {"noise_on": "real"}, {"detach": True}, {"error_draws": 2}):
        assert not changed(plain, method=method)
    assert not changed(plain, prior={"steps": 10}) and not changed(plain, detector={"attention_dim": 4})
    highpass = anl.override(method={"target": "highpass"})
    assert not changed(highpass, method={"step": 9}) and not changed(highpass, prior={"steps": 9})
    npr = anl.override(method={"baseline": "npr"})
    assert not changed(npr, prior={"steps": 10}) and not changed(npr, baselines={"error_draws": 9})


def test_settings_with_an_effect_change_an_identity():
    anl = small().override(method={"attention": "affinity"})
    for section, change in (("seed", 3), ("data", {"source_side": 400}), ("families", {"vae": {"paired": False}}),
                            ("models", {"vae": {"steps": 9}}), ("benchmark", {"size": 32}), ("detector", {"patch": 8}),
                            ("detector", {"attention_dim": 8}), ("training", {"warmup_steps": 3}), ("prior", {"steps": 3}),
                            ("training", {"clip_norm": 2.0}), ("training", {"pairs": 60}), ("method", {"step": 2}),
                            ("prior", {"precision": "fp32"}),
                            ("evaluation", {"mirrored": True}), ("method", {"noise_on": "real"})):
        assert changed(anl, **{section: change})
    assert changed(anl.override(method={"target": "error"}), method={"error_draws": 2})
    ensemble = anl.override(method={"target": "ensemble"})
    assert changed(ensemble, other_priors={"other_prior": {"precision": "fp32"}}) and changed(ensemble, prior={"steps": 9})
    assert not changed(ensemble, other_priors={"tenth_prior": {"precision": "fp32"}})
    assert changed(anl.override(method={"attention": "gate"}), detector={"gate_width": 8})
    assert changed(anl.override(method={"attention": "transfer"}), method={"attention_weight": 0.2})
    denoiser = anl.override(method={"target": "denoiser"},
                            other_priors={"denoiser": {"channels": [8], "objective": "denoiser"}})
    assert changed(denoiser, other_priors={"denoiser": {"noise_step": 20}})
    lare = anl.override(method={"baseline": "lare"})
    assert changed(lare, baselines={"error_draws": 9}) and changed(lare, prior={"precision": "fp32"})


def test_a_setting_that_a_later_edition_adds_leaves_runs_valid():
    class Later(config.Config):
        added: int = 0

    settings = small().model_dump()
    assert Later.model_validate(settings).identity() == small().identity() != Later.model_validate({**settings, "added": 1}).identity()


def test_profiles_that_share_the_pulled_data_agree_on_it():
    first, other = (config.load_config(profile=name).model_dump(include={"seed", "data", "models", "prior", "families"})
                      for name in ("smoke", "small"))
    assert other == first


def test_families_that_share_a_network():
    families = small().families
    assert families["latent"].networks & families["vae"].networks == {"vae"}
    assert families["ddim"].networks == families["inpaint"].networks and not families["vq"].networks & families["vae"].networks


@pytest.mark.parametrize("pairs, words", [(["steps"], "write KEY=VALUE"), (["=3"], "write KEY=VALUE"),
                                          (["a=[1"], "not valid YAML"), (["a=1", "a=2"], "set twice")])
def test_settings_that_cannot_be_read(pairs, words):
    with pytest.raises(UserError, match=words):
        config.parse_settings(pairs)


def test_settings_are_yaml():
    assert config.parse_settings(["steps=[1, 10]", "flag=false", "none="]) == {"steps": [1, 10], "flag": False, "none": None}


@pytest.mark.parametrize("profile", config.profiles())
def test_what_a_page_compares_with_is_among_the_variants(profile):
    found = config.load_config(profile=profile)
    for experiment, baselines in (("attention", {"attention=none"}), ("main", {"plain"})):
        if experiment in found.experiments:
            assert baselines & found.variants(experiment).keys()
