"""Functions for notebooks: load the scores of an experiment, compare its variants in tables, and show these on the page.

A notebook starts with `from anl.report.experiments import *`. If the active profile lacks an experiment, its scores and
tables are None. The display functions then show the committed reference, or state that there are no results.
"""

import base64
import html
import subprocess
from pathlib import Path

import myst_nb
import pandas as pd
from IPython.display import HTML, Markdown, display
from tqdm.auto import tqdm

from anl.config import load_config
from anl.data import REAL, processing
from anl.evaluation.compare import TABLE_COLUMNS, UNSEEN, best_of, compare, measure
from anl.evaluation.tables import disjoint_models, read_experiment, read_scores, scores_key, write_scores
from anl.io import UserError, atomic_file, identity, sha256_of
from anl.report import figures
from anl.report.claims import counted, select, text_of
from anl.report.figures import (
    against_cost,
    by_strength,
    curve,
    forest,
    heatmap,
    image_grid,
    reliability,
    seen_against_unseen,
)
from anl.report.notebooks import PAGE_DPI
from anl.training.experiments import WEIGHTS, run_folder

__all__ = ["UNSEEN", "Markdown", "add_main", "against_cost", "attention_study", "by_method", "by_strength", "choose", "compare_variants",
           "curve", "display", "draw", "forest", "gain_table", "glue", "glue_picture", "glue_row", "heatmap", "image_grid",
           "load_config", "load_reference", "load_scores", "pd", "perturbed_scores", "provenance", "related", "reliability", "rows",
           "save_table", "scalar_scores", "seen_against_unseen", "settings", "show", "show_best", "show_differences", "show_table",
           "variants_of"]

# profile -> profiles whose committed results are its reference (the first one that has the experiment); default: its own
REFERENCES = dict.fromkeys(["smoke", "small"], ("caltech", "wild"))
NOT_MEASURED = "not measured in this profile"


# ---- scores and tables -------------------------------------------------------------------------------------------------
def variants_of(config, name):
    """The variants of an experiment, dict name -> Config; empty if the profile has no such experiment."""
    return config.variants(name) if name in config.experiments else {}


def load_scores(config, name, seeds=None, test_set=None):
    """Per-image scores of an experiment, on another data set if `test_set` names one; missing runs are trained first.

    Returns None, and displays a note, if the profile has no such experiment.
    """
    if name not in config.experiments:
        home = next((other for other in REFERENCES["small"] if name in load_config(profile=other).experiments), "caltech")
        display(Markdown(f"Profile `{config.profile}` has no experiment `{name}`; `anl profile {home} && dvc repro score@{name}` "
                         "runs it. Committed results are shown where there are any."))
        return None
    try:
        if seeds is None:
            return read_experiment(config, name, test_set)
    except UserError:  # missing, or made with another configuration
        pass
    from anl.evaluation.runs import experiment_scores  # not above: most pages need no networks, and no wait for torch

    return experiment_scores(config, name, seeds=seeds, test_set=test_set)


def by_method(table, setting):
    """Variants whose names end with a value of `setting`, as `srm,steps=100` does: {method: {variant: value}}, by value.

    There are always the methods "plain" and "ANL", which is also that of `target=prior`. Others have their own names.
    """
    names = [] if table is None else [name for name in table["variant"].unique() if f"{setting}=" in name]
    values = {name: int(name.rpartition("=")[2]) for name in names}
    groups = {"plain": {}, "ANL": {}}
    for name in sorted(values, key=values.get):
        method = name.rpartition(f",{setting}=")[0]
        groups.setdefault("ANL" if method in ("anl", "target=prior") else method, {})[name] = values[name]
    return groups


def choose(scores, condition):
    """Scores of the variants for whose name the callable `condition` is true; None if there are none."""
    chosen = None if scores is None else scores[scores["variant"].map(condition).astype(bool)]
    return None if chosen is None or chosen.empty else chosen


def add_main(config, scores, *variants):
    """Scores with those of some variants of experiment `main` in front, on the seeds that both have."""
    if scores is None or "main" not in config.experiments:
        return scores
    main = choose(load_scores(config, "main"), lambda name: name in variants)
    if main is None:
        return scores
    seeds = set(main["seed"]) & set(scores["seed"])
    return pd.concat([table[table["seed"].isin(seeds)] for table in (main, scores)], ignore_index=True)


def settings(config):
    """The keyword arguments that `compare` and `measure` share, from the configuration."""
    evaluation = config.evaluation
    return {"seen": config.benchmark.seen, "held_out": config.benchmark.held_out, "disjoint": disjoint_models(config), "replicates": evaluation.bootstrap,
            "seed": config.seed, "target_fpr": evaluation.target_fpr}


def compare_variants(config, scores, baseline=None, **options):
    """`anl.evaluation.compare.compare` with the settings of the configuration; None where there are no scores."""
    defaults = settings(config) | {"views": config.evaluation.views}
    return None if scores is None else compare(scores, baseline, **(defaults | options))


def related(config, scores):
    """Scored families grouped by their relation to the seen ones, as contrasts for `gain_table`.

    Returns {`seen`, `same model`, `shared decoder` or `disjoint`: {name: weight}}; the weights are those of a mean.
    """
    kinds, scored = {}, set() if scores is None else set(scores["generator"])
    networks = {name: {name} if family.model == "published" else family.networks for name, family in config.families.items()}
    for name, family in config.families.items():
        if name not in scored:
            continue
        shared = set().union(*(networks[name] & networks[other] for other in config.benchmark.seen))
        kind = ("seen" if name in config.benchmark.seen else "same model" if family.model in shared
                else "shared decoder" if shared else "disjoint")
        kinds.setdefault(kind, []).append(name)
    return {kind: dict.fromkeys(names, 1 / len(names)) for kind, names in kinds.items()}


def gain_table(config, scores, baseline, contrasts, metric="auroc"):
    """Weighted sums, over generators, of the gains over a baseline, from the same bootstrap draws.

    Parameters
    ----------
    contrasts : dict of str to dict
        Title -> {generator: weight}, such as {"unseen minus seen": {UNSEEN: 1, "ddim": -1}}.

    Returns
    -------
    DataFrame or None
        Rows like those of `compare_variants`, whose column `generator` holds the title. None without scores.
    """
    if scores is None:
        return None
    found, measured = [], measure(scores, metrics=(metric,), views=config.evaluation.views, **settings(config))
    for variant, view in dict.fromkeys((key[0], key[2]) for key in measured.values if key[0] != baseline):
        for title, generators in contrasts.items():
            sides = {(name, generator, view, metric): weight * sign for name, sign in ((variant, 1), (baseline, -1))
                     for generator, weight in generators.items()}
            gain = measured.contrast(sides)
            found.append({"variant": variant, "generator": title, "view": view, "metric": metric, "difference": float(gain.mean),
                          "difference_low": float(gain.low), "difference_high": float(gain.high), "p": float(gain.p_value),
                          "seeds": len(measured.seeds[variant]), "n": max(measured.photographs[key[1:3]][0] for key in sides)})
    return pd.DataFrame(found, columns=TABLE_COLUMNS)


def perturbed_scores(config, name="main", *, seeds):
    """Scores of an experiment in view `raw`, and with its test images under each perturbation, such as view `jpeg_90`.

    seeds: how many of the experiment's seeds at most; the weights of their runs are needed, not only committed scores.
    """
    from anl.evaluation.runs import experiment_scores
    from anl.evaluation.scoring import score, treatment
    from anl.training.device import default_device
    from anl.training.runs import load_run, open_benchmark, train

    chosen = sorted(set.intersection(*(set(variant.seeds) for variant in config.variants(name).values())))[:seeds]
    # not the committed scores: threshold and perturbed images need the same weights
    scores, runs = experiment_scores(config, name, seeds=chosen), train(config, name, seeds=chosen)
    views = [processing.name_of(kind, value) for kind, values in config.evaluation.perturbations.items() for value in values]
    folders = [run_folder(run, config.run.runs) for run in runs]
    benchmark, device = open_benchmark(config), default_device()
    test, mirrored = benchmark.split("test"), config.evaluation.mirrored
    key = identity([views, config.seed, mirrored, test[["image_id", "sha256"]].to_numpy().tolist(),
                    [[run.variant, run.seed, sha256_of(folder / WEIGHTS)] for run, folder in zip(runs, folders)]])
    path = Path(config.run.cache) / "perturbed" / f"{key}.parquet"
    if scores_key(path) != key:
        pixels, tables = benchmark.pixels(test), []
        networks = [load_run(folder, run.config, device) for run, folder in zip(runs, folders)]
        for view in tqdm(views, desc="perturbations", disable=None):
            treated = treatment(test, view, config.seed)(pixels, range(len(test)))
            tables += [test.assign(variant=run.variant, seed=run.seed, view=view,
                                   logit=score(network, treated, device, config.run.batch_size, mirrored=mirrored))
                       for run, network in zip(runs, networks)]
        write_scores(path, pd.concat(tables, ignore_index=True), key)
    return pd.concat([scores[scores["view"] == "raw"], read_scores(path)], ignore_index=True)


def attention_study(config, name, *, pairs):
    """Spread of the maps, deletion and insertion for the variants of an experiment, trained with its first seed.

    Returns a comparison table, or None if the profile has no such experiment. Its rows are those of
    `anl.evaluation.attention_maps.study` on at most `pairs` pairs of a photograph and its regeneration by the seen generator.
    The metrics extra_parameters and extra_multiply_adds are the cost of a variant at inference minus that of the first one.
    """
    if name not in config.experiments:
        return None
    from anl.evaluation import attention_maps
    from anl.evaluation.cost import count
    from anl.training.runs import load_run, open_benchmark, train

    first = next(iter(config.variants(name).values())).seeds[:1]
    models = {run.variant: load_run(run_folder(run, config.run.runs), run.config) for run in train(config, name, seeds=first)}
    seen, benchmark = config.benchmark.seen[0], open_benchmark(config)
    test = benchmark.split("test")
    real, fake = (test.iloc[place] for place in attention_maps.choose_pairs(test, pairs, seen))
    found = attention_maps.study(models, benchmark.pixels(real), benchmark.pixels(fake), real["group"].to_numpy(), device="cpu",
                                 seed=config.seed, replicates=config.evaluation.bootstrap, kind="evidence")
    found["generator"] = found.pop("images").replace("generated", seen)
    counts = {variant: count(network, config.benchmark.size) for variant, network in models.items()}
    base = next(iter(counts.values()))
    extra = pd.DataFrame([{"variant": variant, "generator": seen, "metric": f"extra_{word}", "mean": own[place] - base[place], "n": 1}
                          for variant, own in counts.items() for place, word in enumerate(("parameters", "multiply_adds"))])
    table = pd.concat([found, extra], ignore_index=True).assign(view="raw", seeds=1)
    return table[["variant", "generator", "view", "metric", "mean", "low", "high", "seeds", "n"]]


def scalar_scores(config, *, images):
    """Scores in view `raw` of detectors that see a single number per image: its sharpness, or the energy of the prior's noise.

    Trained on at most `images` real images of the training split and their regenerations by the seen generators, and scored on
    as many test images; the columns are those of `load_scores`.
    """
    from anl.data import crops
    from anl.evaluation import artefacts
    from anl.evaluation.prior_quality import clean_noise
    from anl.training.runs import load_prior, open_benchmark

    benchmark, prior = open_benchmark(config), load_prior(config)
    rows = benchmark.rows[(benchmark.rows["split"] == "test") | benchmark.rows["generator"].isin([REAL, *config.benchmark.seen])]
    rows = crops.use_rows(rows, {split: min(most, images) for split, most in config.benchmark.most.items()}, config.seed)
    pixels = benchmark.pixels(rows)
    energy = clean_noise(prior, pixels, config.method.step).square().mean((1, 2, 3)).log().numpy()
    return artefacts.statistic_scores(rows, {"sharpness": artefacts.sharpness(pixels)[:, None], "noise energy": energy[:, None]})


# ---- tables on disk ----------------------------------------------------------------------------------------------------
def load_reference(config, name, experiment):
    """Rows of an `experiment` in the committed table of the notebook `name`, or None if there are none."""
    for profile in REFERENCES.get(config.profile, [config.profile]):
        path = Path(config.run.results) / profile / "tables" / f"{name}.csv"
        table = rows(pd.read_csv(path) if path.is_file() else None, experiment=experiment)
        if table is not None:
            table = table.drop(columns="experiment")
            table.attrs["profile"] = profile
            return table
    return None


def save_table(save_to, name, table):
    """Write `save_to`/`name`.csv with six significant digits; nothing if `save_to` is None.

    table: DataFrame, or dict experiment -> DataFrame or None, whose tables are concatenated, with a column
    `experiment`. Where nothing was measured, only the column names are written: a pipeline needs the file.
    """
    if save_to is None:
        return
    if isinstance(table, dict):
        parts = [part.assign(experiment=experiment) for experiment, part in table.items() if part is not None]
        table = pd.concat(parts, ignore_index=True) if parts else None
    table = pd.DataFrame(columns=TABLE_COLUMNS) if table is None else table
    with atomic_file(Path(save_to) / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


# ---- on the page -------------------------------------------------------------------------------------------------------
def show(figure, alt):
    """Display a matplotlib figure as PNG; `alt`, its alternative text, says what the reader should see."""
    display({"image/png": base64.b64encode(figures.to_png(figure)).decode(), "text/plain": alt}, raw=True,
            metadata={"image/png": {"alt": alt}})


def draw(function, table, *args, alt, reference=None, **options):
    """`show` a figure of a table with the reference behind it, of the reference alone, or a sentence if both are None.

    function: one of `anl.report.figures`, such as forest or curve; it is called with the table, `args` and `options`.
    """
    if table is None and reference is None:
        display(Markdown("*No results of this experiment are at hand.*"))
    elif table is None:
        try:
            show(function(reference, *args, **options), f"{alt} These are committed results.")
        except UserError:  # the reference has other variants
            display(Markdown("*The committed results hold nothing for this figure.*"))
            return
        display(Markdown(f"*Committed results of profile `{reference.attrs['profile']}`, not those of the active profile.*"))
    else:
        options |= {} if reference is None else {"reference": reference}
        show(function(table, *args, **options), alt)


def rows(table, **where):
    """Rows of a table whose columns have the given values, or one of a list; None if there is no table or no such row."""
    try:
        return None if table is None else select(table, where)
    except UserError:
        return None


def show_table(table, caption, columns=None, digits=3, reference=None):
    """Display a table with a caption and a link to its unrounded CSV; a value and its interval share a column.

    Parameters
    ----------
    table : DataFrame or None
        A generator, view or metric that all rows have in common moves to the caption.
    columns : list of str, optional
        Those to show, in their order.
    reference : DataFrame, optional
        The same rows of a committed table (`load_reference`): folded below the table, or in its place if `table` is None.
        Nothing is displayed if both are None.
    """
    found = [] if table is None else [_html(table, caption, columns, digits)]
    if reference is not None:
        note = f"committed results of profile {reference.attrs['profile']}"
        committed = _html(reference, f"{caption} These are {note}." if table is None else caption, columns, digits)
        if table is None:
            found.append(committed)
        elif committed != found[0]:
            found.append(f"<details><summary>The same: {note}</summary>{committed}</details>")
    if found:
        display({"text/html": "".join(found), "text/plain": caption}, raw=True)


def _html(table, caption, columns, digits):
    """A table as `show_table` displays it, as HTML."""
    common = [name for name in ("generator", "view", "metric") if name in table and columns is None and table[name].nunique() == 1]
    caption = " ".join([caption, *(f"{name.capitalize()}: {table[name].iloc[0]}." for name in common)])
    table = table.drop(columns=common)
    table = (table if columns is None else table[[name for name in columns if name in table]]).dropna(axis="columns", how="all")
    text = table.copy()
    for column in table:
        if ends := _ends(column, table):
            text[column] = [_interval(row, column, digits) for row in table.to_dict("records")]
            text = text.drop(columns=list(ends), errors="ignore")
    data = base64.b64encode(table.to_csv(index=False, float_format="%.6g").encode()).decode()
    link = f'<a download="table.csv" href="data:text/csv;base64,{data}">CSV</a>'
    style = text.reset_index(drop=True).style.hide(axis="index").format(precision=digits, na_rep="", escape="html")
    return style.set_caption(f"{caption} {link}").set_uuid(identity([caption, data])).to_html()


def show_differences(variants):
    """Display the settings in which variants differ, a row per variant; variants: dict name -> Config."""
    if variants:
        flat = pd.concat({name: pd.json_normalize(config.model_dump(exclude={"experiments", "seeds", "run"})).iloc[0].astype(str)
                          for name, config in variants.items()}, axis=1).T
        differs = flat.loc[:, flat.nunique() > 1].rename_axis("variant").reset_index()
        show_table(differs, "Settings that differ between the variants; all others are equal.")


def show_best(table, candidate, *, view, caption, metric="auroc", prefix="", reference=None):
    """Display how a variant compares with all others of a table but `plain`, and glue the answer in words as `answer`.

    table, reference: of `compare_variants` with the candidate as baseline, and its committed counterpart, or None; `prefix`
    is put before the name of the answer, which leads with the committed results.
    """
    texts, tables = [], []
    for part in (table, reference):
        compared = rows(part, metric=metric, view=view, generator=UNSEEN)
        rivals = [] if compared is None else [name for name in compared["variant"].unique() if name not in (candidate, "plain")]
        best = best_of(part, candidate, rivals, metric=metric, view=view) if rivals else None
        texts.append(None if best is None else _in_words(best))
        tables.append(None if best is None else best.table)
    if tables[1] is not None:
        tables[1].attrs["profile"] = reference.attrs["profile"]
    show_table(tables[0], caption, reference=tables[1])
    glue(f"{prefix}answer", _after_committed(*texts, reference))


def _in_words(best):
    """`best (...: better than 3 and worse than 0 of 3 others); compared with the strongest, highpass: 0.101 [0.052, 0.150]`, and its sample."""
    order = best.table.sort_values(["p_holm", "difference"] if best.below else "difference")  # a better rival, if there is one
    closest = order[order["difference"] < 0].iloc[0] if best.below else order.iloc[0]
    words = (f"{best.verdict} (after Holm's correction better than {best.above} and worse than {best.below} of "
             f"{counted(len(best.table), 'other')}); compared with {'' if best.below else 'the strongest, '}{closest['rival']}: "
             f"{_interval(closest, 'difference', 3)}")
    return words, _sample(closest)


def _sample(row, unit="photographs"):
    """`3 seeds x 33 photographs` of a row of a comparison table."""
    return f"{counted(row['seeds'], 'seed')} x {int(row['n']):,} {unit}"


def _after_committed(own, other, reference):
    """Of (text, sample), or None: `text (sample)`; a committed counterpart comes first: `text (caltech, sample; this run: text, sample)`."""
    if other is None or other == own:
        return NOT_MEASURED if own is None else f"{own[0]} ({own[1]})"
    details = f"{reference.attrs['profile']}, {other[1]}"
    return f"{other[0]} ({details})" if own is None else f"{other[0]} ({details}; this run: {own[0]}, {own[1]})"


def glue(name, text):
    """Make a text available to the page's prose as {glue:text}`name`."""
    myst_nb.glue(name, str(text), display=False)


def glue_picture(name, figure, alt):
    """Make a matplotlib figure available to another page as ```{glue:} name``` with the option `:doc:`; `alt` as of `show`."""
    data = base64.b64encode(figures.to_png(figure)).decode()
    myst_nb.glue(name, HTML(f'<img class="gallery" alt="{html.escape(alt)}" width="{figure.get_figwidth() * PAGE_DPI:.0f}" src="data:image/png;base64,{data}">'), display=False)


def glue_row(name, table, column="mean", reference=None, unit="photographs", **where):
    """`glue` the first row that matches `where`, with interval and n, of `unit`; where the reference has one, that row comes first."""
    texts = []
    for part in (table, reference):
        found = rows(part, **where)
        found = None if found is None or pd.isna(found.iloc[0][column]) else found.iloc[0]
        texts.append(None if found is None else (_interval(found, column, 3), _sample(found, unit)))
    glue(name, _after_committed(*texts, reference))


def provenance(config, name=None, command=None):
    """Display in one line where the results come from: profile, commit, configuration, seeds, command; no date."""
    variants = variants_of(config, name) or {"": config}
    found = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    commit = [f"commit `{found.stdout.strip()}`"] if found.returncode == 0 else []
    parts = [f"Profile `{config.profile}`", *commit, f"configuration `{identity([item.identity() for item in variants.values()])}`",
             f"seeds {', '.join(map(str, next(iter(variants.values())).seeds))}", f"command `{command or f'dvc repro notebook@{name}'}`"]
    display(Markdown(f"*{', '.join(parts)}.*"))


def _ends(column, row):
    """Names of the columns that hold the interval of `column` in a row or a table, or None."""
    for low, high in ((f"{column}_low", f"{column}_high"), ("low", "high")):
        if {low, high} <= set(row.keys()) and (low != "low" or column in ("mean", "share", "difference", "value")):
            return low, high
    return None


def _interval(row, column, digits):
    """A value of a row and its interval, as text."""
    low, high = _ends(column, row)
    return text_of({"value": row[column], "low": row[low], "high": row[high]}, digits)
