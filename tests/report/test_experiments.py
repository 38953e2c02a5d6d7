"""The functions that notebooks use, and all notebooks of experiments, executed on made-up scores."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from anl import config as configuration
from anl.evaluation.runs import experiment_scores
from anl.evaluation.tables import read_experiment, scores_identity, scores_path, write_scores
from anl.io import UserError
from anl.report import experiments, figures
from anl.report.experiments import NOT_MEASURED
from tests.evaluation.synthetic import scores_table
from tests.project import make_project

# numbers for which a profile has neither the experiment nor committed results
LACKING = {("attention", "paper"): {"relation", "support", "support_none", "deletion"}, ("targets", "paper"): {"residual", "residual_jpeg", "added", "weight", "denoiser_1", "blind_denoiser", "other_prior", "ffdnet", "shuffled"}}
# pages that state committed results, too: profiles they are from
COMMITTED = {"cross_generator": ["cifake", "caltech"], "targets": ["caltech"], "attention": ["caltech"], "robustness": ["caltech"]}
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ["cross_generator", "step_t", "attention", "targets", "budget", "peers", "robustness", "claims"]


def made_up(config, name):
    """Scores of an experiment: everything but the plain detector separates the classes somewhat better."""
    shifts = {variant: 0.4 if item.method.target == "none" else 1.0 for variant, item in config.variants(name).items()}
    generators = (config.benchmark.seen[0], "ddpm", "flow", "vae", "vq")
    return scores_table(shifts, generators=generators, photographs=8, patches=1,
                        views=tuple(dict.fromkeys([*config.evaluation.views, *config.evaluation.controls])))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with an active profile, as function of its name; scores files are made up when they are first read."""
    monkeypatch.chdir(tmp_path)

    def read(config, name, test_set=None):
        path = scores_path(config, name, test_set)
        if not path.is_file():
            write_scores(path, made_up(config, name), scores_identity(config, name))
        return read_experiment(config, name, test_set)

    monkeypatch.setattr(experiments, "read_experiment", read)

    def activate(profile):
        configuration.activate(profile)
        settings = yaml.safe_load(Path("params.yaml").read_text())
        settings["evaluation"]["bootstrap"] = 20
        for experiment in settings["experiments"].values():  # a few values of each setting are enough
            experiment["vary"] = {key: values[:4] for key, values in experiment.get("vary", {}).items()}
        Path("params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        return experiments.load_config()
    return activate


@pytest.fixture
def page(monkeypatch):
    """What is displayed and glued: a list of (data, metadata), and a dict."""
    shown, glued = [], {}
    monkeypatch.setattr(experiments, "display", lambda data, raw=False, metadata=None: shown.append((data, metadata)))
    monkeypatch.setattr(experiments.myst_nb, "glue", lambda name, text, display: glued.update({name: text}))
    return shown, glued


def test_the_table_follows_the_configuration(project):
    config = project("small")
    scores = experiments.load_scores(config, "step_t")
    table = experiments.compare_variants(config, scores, "t=1")
    assert list(table) == experiments.TABLE_COLUMNS and set(table["view"]) == {"raw", "matched", "jpeg96"}
    assert "unseen" in set(table["generator"]) and set(table["seeds"]) == {3} and set(table["n"]) == {8}
    with_plain = experiments.add_main(config, scores, "plain")
    assert list(with_plain["variant"].unique()) == ["plain", *config.variants("step_t")]
    assert experiments.choose(scores, lambda name: name == "t=1")["variant"].unique().tolist() == ["t=1"]
    assert experiments.choose(scores, lambda name: False) is None
    with pytest.raises(UserError, match="has no scores"):
        experiments.compare_variants(config, scores, "ablation")


def test_gains_are_summed_over_generators(project):
    config = project("small")
    scores = experiments.load_scores(config, "main")
    table = experiments.compare_variants(config, scores, "plain", metrics=("auroc",))
    found = experiments.gain_table(config, scores, "plain", {"gap": {"unseen": 1, "ddim": -1}, "mean": {"ddim": 0.5, "vae": 0.5}})
    gain = {name: experiments.rows(table, variant="anl", view="matched", generator=name).iloc[0]["difference"]
            for name in ("unseen", "ddim", "vae")}
    for title, value in (("gap", gain["unseen"] - gain["ddim"]), ("mean", (gain["ddim"] + gain["vae"]) / 2)):
        row = experiments.rows(found, view="matched", generator=title).iloc[0]
        assert np.isclose(row["difference"], value) and row["difference_low"] < value < row["difference_high"]
    assert experiments.gain_table(config, None, "plain", {}) is None


def test_families_by_relation(project):
    config = project("small").override(benchmark={"seen": ["vae"]})
    scores = pd.DataFrame({"generator": [name for name in config.families if name != "flow"]})
    found = experiments.related(config, scores)
    assert set(found["seen"]) == {"vae"} and set(found["shared decoder"]) == {"latent"}
    assert {"ddim", "ddpm", "vq"} <= set(found["disjoint"]) and np.isclose(sum(found["disjoint"].values()), 1)
    assert "flow" not in found["disjoint"]
    assert set(experiments.related(project("small"), scores)["same model"]) == {"ddpm", "dpm", "inpaint"}


def test_scores_of_another_configuration_are_made_again(project, monkeypatch):
    config = project("small")
    called, _ = [], experiments.load_scores(config, "main")
    monkeypatch.setattr("anl.evaluation.runs.experiment_scores", lambda config, name, seeds=None, test_set=None: called.append((name, seeds)))
    experiments.load_scores(config, "main")
    assert called == []
    experiments.load_scores(config.override(training={"steps": 99}), "main")
    experiments.load_scores(config, "main", seeds=[0])
    assert called == [("main", None), ("main", [0])]


def rows_reversed(table):
    """A comparison table with the sign of its differences changed."""
    return table.assign(difference=-table["difference"], difference_low=-table["difference_high"], difference_high=-table["difference_low"])


def test_an_experiment_that_the_profile_lacks_is_explained(project, page):
    shown, glued = page
    config = project("small")
    assert experiments.load_scores(config, "peers") is None and experiments.variants_of(config, "peers") == {}
    assert "`anl profile caltech && dvc repro score@peers`" in shown[-1][0].data
    assert experiments.compare_variants(config, None) is None
    experiments.draw(experiments.forest, None, alt="x")
    assert "No results" in shown[-1][0].data
    experiments.glue_row("gain", None, variant="anl")
    experiments.show_best(None, "anl", view="raw", caption="caption", prefix="jpeg_")
    assert glued["gain"] == glued["jpeg_answer"] == experiments.NOT_MEASURED


def test_the_answer_about_all_rivals_leads_with_the_committed_one(project, page):
    _, glued = page
    config = project("small")
    table = experiments.compare_variants(config, experiments.load_scores(config, "main"), "anl")
    table = pd.concat([table, table[table["variant"] == "plain"].assign(variant="rival")])  # `plain` itself is no rival
    experiments.show_best(table, "anl", view="matched", caption="caption")
    own = glued["answer"]
    assert own.startswith("best (after Holm's correction better than 1 and worse than 0 of 1 other); compared with the strongest, rival: 0.")
    committed = rows_reversed(table)
    committed.attrs["profile"] = "caltech"
    experiments.show_best(table, "anl", view="matched", prefix="both_", caption="caption", reference=committed)
    assert glued["both_answer"].startswith("not best (after Holm's correction better than 0 and worse than 1 of 1 other); compared with rival: -0.")
    text, _, sample = own.removesuffix(")").rpartition(" (")
    assert glued["both_answer"].endswith(f" (caltech, {sample}; this run: {text}, {sample})")
    experiments.show_best(None, "anl", view="matched", prefix="committed_", caption="caption", reference=committed)
    assert glued["committed_answer"].endswith(f" (caltech, {sample})") and "this run" not in glued["committed_answer"]


def test_the_reference_is_read_and_named(project, page):
    shown, glued = page
    config = project("small")
    table = experiments.compare_variants(config, experiments.load_scores(config, "main"), "plain")
    assert experiments.load_reference(config, "cross_generator", "main") is None
    old = table[table["view"] == "raw"].assign(metric="average_precision")
    experiments.save_table("results/wild/tables", "cross_generator", {"main": table, "old": old, "x": None})
    reference, older = (experiments.load_reference(config, "cross_generator", name) for name in ("main", "old"))
    assert len(reference) == len(table) and reference.attrs["profile"] == "wild"
    chosen = {"variant": "anl", "generator": experiments.UNSEEN, "view": "raw"}
    experiments.glue_row("theirs", None, reference=reference, metric="auroc", **chosen)
    assert glued["theirs"].endswith(" photographs)") and " (wild, " in glued["theirs"]
    assert experiments.load_reference(config, "cross_generator", "x") is None
    experiments.save_table("results/caltech/tables", "cross_generator", {"main": table})
    origins = [experiments.load_reference(config, "cross_generator", name).attrs["profile"] for name in ("main", "old")]
    assert origins == ["caltech", "wild"]  # the first profile that has the experiment
    experiments.draw(experiments.forest, None, reference=older, alt="Points of another metric.")
    assert "hold nothing for this figure" in shown[-1][0].data
    experiments.draw(experiments.forest, None, reference=reference, view="raw", alt="Points.")
    assert "profile `wild`" in shown[-1][0].data and shown[-2][1]["image/png"]["alt"].startswith("Points.")


def test_tables_are_saved_for_the_pipeline_only(tmp_path):
    table = pd.DataFrame({"variant": ["anl"], "mean": [1 / 3]})
    experiments.save_table(None, "step_t", table)
    assert not list(tmp_path.iterdir())
    experiments.save_table(tmp_path, "step_t", table)
    assert (tmp_path / "step_t.csv").read_text() == "variant,mean\nanl,0.333333\n"
    experiments.save_table(tmp_path, "peers", {"peers": None})
    assert (tmp_path / "peers.csv").read_text().strip() == ",".join(experiments.TABLE_COLUMNS)


def test_a_table_shows_rounded_intervals_and_links_the_numbers(page):
    shown, glued = page
    table = pd.DataFrame([{"variant": "<anl>", "mean": 0.81234, "low": 0.79, "high": 0.834, "difference": 0.05, "difference_low": 0.01,
                           "difference_high": 0.09, "p": np.nan, "seeds": 3, "n": 33}])
    experiments.show_table(table, "AUROC.")
    html = shown[-1][0]["text/html"]
    assert "0.812 [0.790, 0.834]" in html and "0.050 [0.010, 0.090]" in html and "&lt;anl&gt;" in html
    assert 'href="data:text/csv;base64,' in html and ">p<" not in html
    experiments.show_table(table, "AUROC.")
    assert shown[-1] == shown[-2]
    experiments.glue_row("gain", table, "difference", variant="<anl>")
    assert glued["gain"] == "0.050 [0.010, 0.090] (3 seeds x 33 photographs)"
    experiments.glue_row("gain", table.assign(n=1029), "difference", unit="pictures", variant="<anl>")
    assert glued["gain"].endswith("(3 seeds x 1,029 pictures)")


def test_committed_results_are_folded_below_a_table_or_take_its_place(page):
    shown, _ = page
    table = pd.DataFrame([{"variant": "anl", "mean": 0.8, "low": 0.7, "high": 0.9}])
    committed = table.assign(mean=0.75)
    committed.attrs["profile"] = "caltech"
    experiments.show_table(table, "AUROC.", reference=committed)
    own, folded = shown[-1][0]["text/html"].split("<details>")
    assert "0.800 [0.700, 0.900]" in own and "0.750" not in own
    assert "committed results of profile caltech</summary>" in folded and "0.750 [0.700, 0.900]" in folded
    experiments.show_table(None, "AUROC.", reference=committed)
    alone = shown[-1][0]["text/html"]
    assert "<details>" not in alone and "These are committed results of profile caltech." in alone and "0.750" in alone
    same = table.copy()
    same.attrs["profile"] = "caltech"
    experiments.show_table(table, "AUROC.", reference=same)
    assert "<details>" not in shown[-1][0]["text/html"]  # a profile whose results are the committed ones
    before = len(shown)
    experiments.show_table(None, "AUROC.")
    assert len(shown) == before


def test_variants_are_grouped_by_method_in_the_order_of_their_setting():
    table = pd.DataFrame({"variant": ["plain,steps=500", "anl,steps=500", "anl,steps=125", "srm,steps=500", "plain"]})
    groups = experiments.by_method(table, "steps")
    assert groups == {"plain": {"plain,steps=500": 500}, "ANL": {"anl,steps=125": 125, "anl,steps=500": 500}, "srm": {"srm,steps=500": 500}}
    assert [*groups["ANL"]] == ["anl,steps=125", "anl,steps=500"]
    assert experiments.by_method(pd.DataFrame({"variant": ["target=prior,steps=9"]}), "steps")["ANL"] == {"target=prior,steps=9": 9}
    assert experiments.by_method(None, "steps") == {"plain": {}, "ANL": {}}


def test_provenance_and_settings_that_differ_are_shown(project, page):
    shown, _ = page
    config = project("small")
    experiments.show_differences(config.variants("step_t"))
    html = shown[-1][0]["text/html"]
    assert "method.step" in html and "t=1" in html and "method.target" not in html
    experiments.provenance(config, "step_t")
    line = shown[-1][0].data
    assert line.startswith("*Profile `small`") and "seeds 0" in line and "dvc repro notebook@step_t" in line and "\n" not in line


def perturbed(config, name="main", *, seeds):
    """Stands for scores of trained networks, which this test does not have."""
    scores = experiments.load_scores(config, name)
    views = [f"{kind}_{value:g}" for kind, values in config.evaluation.perturbations.items() for value in values[:2]]
    raw = scores[scores["view"] == "raw"]
    return pd.concat([raw, *(raw[raw["split"] == "test"].assign(view=view) for view in views)], ignore_index=True)


def scalars(config, *, images):
    scores = experiments.load_scores(config, "main")
    plain = scores[(scores["seed"] == 0) & (scores["variant"] == "plain")]
    return pd.concat([plain.assign(variant=name) for name in ("sharpness", "noise energy")])


def test_one_number_is_a_detector_in_a_real_project(tmp_path):
    config = make_project(tmp_path)
    table = experiments.compare_variants(config, experiments.scalar_scores(config, images=6), metrics=("auroc",), views=["raw"])
    found = table.set_index(["variant", "generator"])
    assert set(table["n"]) == {6} and found.loc[("sharpness", "ddim"), "mean"] > 0.9
    assert found.loc[("noise energy", "unseen"), "seeds"] == 1


def test_perturbed_images_are_scored_once_for_the_first_seeds(tmp_path, monkeypatch):
    config = make_project(tmp_path, evaluation={"perturbations": {"jpeg": [40], "noise": [20]}})
    found = experiments.perturbed_scores(config, "main", seeds=1)
    assert set(found["seed"]) == {0} and set(found["variant"]) == {"plain", "anl"}
    test = found[found["split"] == "test"].set_index(["variant", "image_id"])
    raw, *others = (test.loc[test["view"] == view, "logit"].sort_index() for view in ("raw", "jpeg_40", "noise_20"))
    assert all(raw.index.equals(other.index) and (raw != other).mean() > 0.9 for other in others)
    committed = experiment_scores(config, "main").assign(logit=0.0)  # of other weights of the same runs: not to be mixed with these
    write_scores(scores_path(config, "main"), committed, scores_identity(config, "main"))
    monkeypatch.setattr("anl.evaluation.scoring.score", None)  # the second time they are read
    pd.testing.assert_frame_equal(experiments.perturbed_scores(config, "main", seeds=1), found)


def studied(config, name, *, pairs):
    metrics = ("entropy", "effective_support", "deletion minus rising", "extra_parameters", "extra_multiply_adds")
    return pd.DataFrame([{"variant": variant, "generator": "ddim", "view": "raw", "metric": metric, "mean": 0.5, "low": 0.4, "high": 0.6,
                          "seeds": 1, "n": pairs} for variant in experiments.variants_of(config, name) for metric in metrics]
                        ) if name in config.experiments else None


@pytest.mark.parametrize("name, profile", [*((name, "small") for name in NAMES),
                                           *((name, "caltech") for name in ("attention", "budget", "peers", "targets")),
                                           *((name, "paper") for name in ("step_t", "attention", "targets"))])
def test_a_notebook_runs_and_answers(project, page, monkeypatch, name, profile):
    """Profile `small` lacks experiments that `caltech` has, and `paper` has hardly one."""
    shown, glued = page
    config = project(profile)
    Path("claims.yaml").write_text((NOTEBOOKS.parent / "claims.yaml").read_text())
    for committed in COMMITTED.get(name, []):
        shutil.copytree(NOTEBOOKS.parent / "results" / committed / "tables", f"results/{committed}/tables")
    monkeypatch.setattr(experiments, "perturbed_scores", perturbed)
    monkeypatch.setattr(experiments, "attention_study", studied)
    monkeypatch.setattr(experiments, "scalar_scores", scalars)
    monkeypatch.setattr(figures, "DPI", 20)
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "parameters" in cells[1]["metadata"]["tags"] and "profile = None" in code[0] and "save_to = None" in code[0]
    assert not any(cell.get("outputs") for cell in cells)
    space = {}
    for number, source in enumerate([code[0], "save_to = 'tables'", *code[1:]]):
        exec(compile(source, f"{name}, code cell {number}", "exec"), space)  # noqa: S102
    used = set(re.findall(r"\{glue:text\}`(\w+)`", prose))
    assert used <= glued.keys() and not [key for key in used if glued[key].strip() in ("", "nan", "None")]
    assert Path(f"tables/{name}.csv").is_file()
    if name in config.experiments or name in ("cross_generator", "robustness"):
        missing = {key for key in used - {"verdict"} if glued[key] == NOT_MEASURED}
        assert any(metadata for _, metadata in shown) and missing == LACKING.get((name, profile), set())
