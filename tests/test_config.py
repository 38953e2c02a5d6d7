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


@pytest.mark.parametrize("override, words", [
    ("method.stpe=1", "unknown key 'stpe'; did you mean 'step'"), ("method.step=0", "method.step"),
    ("method.step=1001", "method.step"), ("training.steps=many", "training.steps"), ("method.attention=enrgy", "energy"),
    ("training.jpeg_quality=[100, 90]", "the lower first"), ("seeds=[1, 1]", "twice"), ("method.step", "method.step=10"),
    ("method.target=none", "are the same detector")])
def test_a_mistake_is_one_line(override, words):
    with pytest.raises(UserError, match=words) as caught:
        config.load_config(profile="smoke", overrides=[override])
    assert "\n" not in str(caught.value)


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


def test_variants_differ_in_what_they_name():
    small = config.load_config(profile="small")
    assert [variant.method.step for variant in small.variants("step_t").values()] == [1, 10, 100, 500]
    assert list(small.variants("step_t")) == ["t=1", "t=10", "t=100", "t=500"]
    assert small.override(method={"step": 7}).method.step == 7 and small.method.step == 1


def test_the_identity_covers_what_decides_a_run_and_nothing_else():
    small = config.load_config(profile="small")
    same = small.identity()
    assert small.override(run={"jobs": 2}).identity() == same
    for change in ({"method": {"loss_weight": 0.5}}, {"prior": {"precision": "fp32"}}, {"training": {"clip_norm": 2.0}},
                   {"method": {"step": 2}}):
        assert small.override(**change).identity() != same
    plain = small.override(method={"target": "none", "attention": "none"})
    assert plain.override(method={"step": 10}).identity() == plain.identity()
    other = small.override(method={"target": "tenth_prior"})
    assert other.override(other_priors={"tenth_prior": {"steps": 500}}).identity() != other.identity()
