import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from anl import analysis, calibration_study, predict
from anl.files import write_json
from tests.test_analysis import study  # noqa: F401  a fixture


@pytest.fixture
def tables(study):  # noqa: F811
    params, groups = study
    return params, groups, *calibration_study.metrics_tables(groups, "base", params)


def test_metrics_agree_with_scikit_learn(tables):
    params, groups, means, differences = tables
    wanted = {"AUROC": [], "NLL": [], "NLL_before": []}
    for folder in groups["better"]:
        table = predict.read_predictions(folder)
        temperature = analysis.calibration_of(table, params).temperature
        both = table[(table["view"] == "matched") & table["generator"].isin(["real", "vae"])]
        wanted["AUROC"].append(roc_auc_score(both["label"], both["logit"]))
        for name, scale in (("NLL", temperature), ("NLL_before", 1)):
            wanted[name].append(log_loss(both["label"], 1 / (1 + np.exp(-both["logit"] / scale))))
    rows = means[(means["method"] == "better") & (means["generator"] == "vae") & (means["view"] == "matched")]
    found = rows.set_index("metric")["mean"]
    for metric, values in wanted.items():
        assert found[metric] == pytest.approx(np.mean(values)), metric
    assert found["NLL_change"] == pytest.approx(found["NLL"] - found["NLL_before"])
    assert set(differences["baseline"]) == {"base"}


def test_tables_to_read(tables):
    params, groups, means, differences = tables
    every = calibration_study.every_metric(means, differences, "unseen", "matched")
    assert every["measure"].tolist() == list(calibration_study.TABLE.values())
    assert not every.isna().any(axis=None)
    table = calibration_study.by_generator(means, "matched")
    real = table[table["generator"] == "real"]
    assert len(real) == 2 and real["real_accuracy"].notna().all()
    assert table.loc[table["generator"] != "real", "real_accuracy"].isna().all()
    temperature = calibration_study.temperature_table(means, params)
    assert len(temperature) == 2 * 2 * 2  # views, methods, seen and unseen
    np.testing.assert_allclose(temperature["NLL"] - temperature["NLL_before"], temperature["NLL_change"], atol=1e-12)
    assert (temperature["NLL_change_low"] <= temperature["NLL_change_high"]).all()
    values = calibration_study.verdict(means, params)
    assert {"real_accuracy_base", "unseen_NLL_change_better", "seen_ECE_base"} <= set(values)
    for folders in groups.values():
        for seed, folder in enumerate(folders):
            write_json(folder / "run.json", {"spec": {"seed": seed}})
    constants = calibration_study.calibrations(groups, params)
    assert constants["seed"].tolist() == [0, 1, 0, 1] and (constants["n"] == 96).all()


def test_reliability_sets_each_family_against_all_reals_and_pools_seeds(study):  # noqa: F811
    params, groups = study
    table = calibration_study.reliability(groups, params)
    sizes = table.groupby(["method", "generators", "temperature"])["n"].sum()
    assert (sizes.xs("seen", level="generators") == 2 * 96).all()  # two seeds, as many reals as generated
    assert (sizes.xs("unseen", level="generators") == 2 * 96 * (len(params.families) - 1)).all()
    for _, part in table.groupby(["method", "generators", "temperature"]):
        assert part["probability"].is_monotonic_increasing
        assert (part["mean"] * part["n"]).sum() == pytest.approx(part["n"].sum() / 2)
    assert table[["low", "high"]].notna().all(axis=None) and (table["low"] <= table["high"]).all()
    assert isinstance(table, pd.DataFrame)
