import dataclasses

import pytest

from anl import analysis, detector, files, params, runs, verify_compare
from anl.errors import UserError
from tests.conftest import ROOT


def test_slugs_say_what_a_run_is(world):
    specs = runs.main_specs(world.params)
    assert [spec.slug for spec in specs] == ["plain-s0", "plain-s1", "prior-t1-affinity-s0", "prior-t1-affinity-s1"]
    assert runs.make_spec(world.params, "prior", 1, "gate", 0.3, 2).slug == "prior-t1-gate-w0.3-s2"
    detached = runs.make_spec(world.params, "error", 1, "gate", 1, 2, noise_on="real", gradient="detached", pairs=50,
                              formats="leaky")
    assert detached.slug == "error-t1-gate-real-detached-n50-leaky-s2"
    assert runs.make_spec(world.params, "prior", 1, "gate", 1, 2, noise_on="generated").slug == "prior-t1-gate-generated-s2"
    assert runs.make_spec(world.params, "prior", 1, "gate", 1, 2, consistent=True).slug == "prior-t1-gate-consistent-s2"
    assert runs.make_spec(world.params, "prior", 1, "gate", 1, 2, reads="noise").slug == "prior-t1-gate-noise-s2"
    assert runs.make_spec(world.params, "none", 1, "gate", 1, 2, reads="residual").slug == "plain-residual-s2"
    assert runs.make_spec(world.params, "none", 1, "gate", 1, 2, noise_on="real", pairs=50).slug == "plain-n50-s2"
    assert len(runs.step_specs(world.params)) == 4 and len(runs.attention_specs(world.params)) == 4


def test_identity_follows_what_decides_the_weights_and_nothing_else(world):
    spec = runs.main_specs(world.params)[0]
    longer = dataclasses.replace(world.params, training=dataclasses.replace(world.params.training, steps=5))
    more_runs = dataclasses.replace(world.params, runs=dataclasses.replace(world.params.runs, seeds=[0, 1, 2]))
    assert spec.identity(world.params) == spec.identity(more_runs) != spec.identity(longer)


@pytest.mark.parametrize("part, switch, value", [("training", "flip", True), ("evaluation", "mirrored", True)])
def test_a_later_switch_of_a_profile_changes_the_identity_only_where_it_is_on(world, part, switch, value):
    spec = runs.main_specs(world.params)[0]
    on, off = (dataclasses.replace(world.params, **{part: dataclasses.replace(getattr(world.params, part), **{switch: item})})
               for item in (value, type(value)(0)))
    assert spec.identity(on) != spec.identity(off) == spec.identity(world.params)


def test_committed_runs_keep_their_identity():
    """What the stored results of CIFAKE were made by."""
    settings = params.load(ROOT / "profiles/cifake.yaml")
    assert runs.main_specs(settings)[0].identity(settings) == "85f2115beee5"


def test_plain_is_one_run_whatever_the_unused_fields(world):
    make = runs.make_spec
    assert make(world.params, "none", 100, "gate", 3.0, 0) == make(world.params, "none", 1, "affinity", 1.0, 0)


def test_missing_runs_are_trained_and_found_again(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world.root)
    specs = runs.main_specs(world.params)
    folders = runs.find_or_train(specs, world.params, root=str(tmp_path))
    monkeypatch.setattr(runs, "train_run", lambda *a, **k: pytest.fail("trained twice"))
    assert runs.find_or_train(specs, world.params, root=str(tmp_path)) == folders
    assert all((folder / "model.safetensors").is_file() for folder in folders.values())
    detector.load(folders[specs[0]] / "model.safetensors")

    table = analysis.run_table(folders, world.params)
    assert len(table) == len(specs) * len(world.params.evaluation.views) * len(world.params.families)
    groups = {"plain": [folders[s] for s in specs[:2]], "anl": [folders[s] for s in specs[2:]]}
    summary = analysis.summary(groups, world.params)
    unseen = summary[(summary["generator"] == "unseen") & (summary["metric"] == "AP") & (summary["method"] == "anl")]
    mine = table[(table["view"] == "matched") & ~table["seen"] & table["slug"].str.startswith("prior")]
    assert unseen["mean"].item() == pytest.approx(mine["AP"].mean())  # the bootstrap's row 0 is the sample itself
    assert unseen["low"].item() <= unseen["mean"].item() <= unseen["high"].item()
    difference = analysis.paired_difference(groups, "plain", world.params)
    plain = table[(table["view"] == "matched") & ~table["seen"] & table["slug"].str.startswith("plain")]["AP"].mean()
    row = difference[(difference["generator"] == "unseen") & (difference["metric"] == "AP")]
    assert row["difference"].item() == pytest.approx(mine["AP"].mean() - plain)
    rates = analysis.control_rates(groups, world.params)
    assert set(rates["control"]) == {"raw", *world.params.evaluation.controls}
    assert rates["false_positive_rate"].between(0, 1).all()


def test_an_unknown_group_is_refused(world):
    with pytest.raises(UserError, match="no group 'other'"):
        runs.train_run(runs.main_specs(world.params)[0], world.params, "other")


def test_the_profiles_own_loss_weight_is_not_in_the_folders_name(world):
    """dvc.yaml names the folder without it."""
    own = dataclasses.replace(world.params, method=dataclasses.replace(world.params.method, loss_weight=0.5))
    names = [runs.run_folder(own, runs.make_spec(own, "prior", 1, "affinity", weight, 0), "main").name for weight in (0.5, 2.0)]
    assert names == ["prior-t1-affinity-s0", "prior-t1-affinity-w2-s0"]


@pytest.mark.parametrize("change", [{"noise_on": "fakes"}, {"gradient": "half"}, {"formats": "jpeg"}, {"branch": "deep"},
                                    {"reads": "sound"}])
def test_a_mistyped_choice_is_named(world, change):
    with pytest.raises(UserError, match="cannot be '(fakes|half|jpeg|deep|sound)'; choose one of"):
        runs.make_spec(world.params, "prior", 1, "affinity", 1, 0, **change)


def test_every_switch_changes_the_identity(world):
    base = {"noise_on": "both", "gradient": "joint", "pairs": 0, "formats": "lossless"}
    changes = [{}, {"noise_on": "real"}, {"gradient": "detached"}, {"pairs": 3}, {"formats": "leaky"},
               {"consistent": True}, {"branch": "shallow"}, {"reads": "residual"}, {"reads": "noise"}]
    identities = {runs.make_spec(world.params, "prior", 1, "affinity", 1, 0, **base | change).identity(world.params)
                  for change in changes}
    assert len(identities) == len(changes)


def test_runs_of_the_stem_are_what_they_were_before_there_was_a_branch(world):
    """The hash without the key, as it was taken then; the plain detector has a run of each branch."""
    spec = runs.make_spec(world.params, "prior", 1, "affinity", 1, 0)
    parts = {key: dataclasses.asdict(world.params)[key] for key in ("seed", "data", "models", "prior", "families", "benchmark",
                                                                    "use", "detector", "training")}
    del parts["training"]["flip"]
    fields = {key: value for key, value in dataclasses.asdict(spec).items() if key not in ("consistent", "baseline", "branch", "reads")}
    views = [world.params.evaluation.views, world.params.evaluation.controls]
    assert spec.identity(world.params) == files.identity({"spec": fields, **parts, "views": views})
    assert runs.make_spec(world.params, "none", 1, "none", 1, 0, branch="shallow").slug == "plain-shallow-s0"
    assert dataclasses.replace(spec, branch="shallow").slug == "prior-t1-affinity-shallow-s0"


def test_the_branch_experiment_trains_both_detectors_without_the_stem(world):
    more = dataclasses.replace(world.params, runs=dataclasses.replace(world.params.runs, branches=["shallow"], seeds=[3]))
    assert [spec.slug for spec in runs.experiment_specs(more)["branch"]] == ["plain-shallow-s3", "prior-t1-affinity-shallow-s3"]


def test_two_trainings_of_one_run_are_identical_to_a_comparison(world, monkeypatch, tmp_path):
    """Whatever run.json records of the machine and the hour must be known to `anl verify` as what varies."""
    monkeypatch.chdir(world.root)
    spec = runs.main_specs(world.params)[0]
    folders = [runs.train_run(spec, world.params, "adhoc", tmp_path / name) for name in "ab"]
    found = verify_compare.compare(*folders)
    assert found.verdict == verify_compare.IDENTICAL, found.largest
