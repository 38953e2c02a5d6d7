"""Draws are clusters, intervals combine photographs and seeds, and nominal 95 % intervals cover about 95 %."""

import numpy as np
import pytest
from scipy import stats

from anl.evaluation import bootstrap


def test_a_draw_keeps_groups_whole_and_depends_on_names_and_seed_alone():
    group = np.array(["b", "a", "c", "a", "b"])
    draws = bootstrap.draw_groups(group, 50, 7)
    assert draws.names.tolist() == ["a", "b", "c"] and (draws.counts.sum(0) == 3).all()
    again = bootstrap.draw_groups(np.array(["c", "b", "a"]), 50, 7)
    assert np.array_equal(draws.counts, again.counts)
    assert not np.array_equal(draws.counts, bootstrap.draw_groups(group, 50, 8).counts)


def test_classes_of_unpaired_benchmarks_keep_their_size_and_small_strata_join_the_largest():
    group = np.arange(75)
    kind = np.repeat(["real", "ddim", "rare"], [40, 30, 5])
    draws = bootstrap.draw_groups(group, 20, 0, kind)
    names = draws.names.astype(int)
    assert (draws.counts[(names >= 40) & (names < 70)].sum(0) == 30).all()
    assert (draws.counts[(names < 40) | (names >= 70)].sum(0) == 45).all()
    assert len(np.unique(draws.stratum)) == 2


def test_without_variance_over_photographs_it_is_a_t_interval_over_seeds():
    values = np.array([0.61, 0.66, 0.58, 0.70])
    found = bootstrap.interval(values, np.repeat(values[:, None], 100, axis=1), 33)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_photographs_shared_by_seeds_are_not_averaged_away_and_interaction_is_not_counted_twice():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal(50000), rng.standard_normal((4, 50000))
    values = np.array([0.1, -0.1, 0.1, -0.1]) * 2
    found = bootstrap.interval(values, 3 * shared + own, 10**6)
    assert found.over_photographs == pytest.approx(9, rel=0.03)
    assert found.over_seeds == pytest.approx(1 / 4, rel=0.03)  # S^2 = 0.053 is below D = 1
    values *= 20
    assert bootstrap.interval(values, 3 * shared + own, 10**6).over_seeds == pytest.approx(values.var(ddof=1) / 4)


def test_the_p_value_inverts_the_interval():
    rng = np.random.default_rng(1)
    values, replicates = 0.3 + rng.standard_normal(5) / 5, rng.standard_normal((5, 500)) / 10
    found = bootstrap.interval(values, replicates, 33)
    edge = bootstrap.interval(values, replicates, 33, level=1 - float(found.p_value))
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_equal_replicates_and_nan_have_plain_answers():
    same = bootstrap.interval([0.0, 0.0], np.zeros((2, 10)), 33)
    assert (same.low, same.high, same.p_value) == (0, 0, 1)
    missing = bootstrap.interval([np.nan], np.full((1, 10), np.nan), 33)
    assert np.isnan([missing.mean, missing.low, missing.p_value]).all()
    replicates = np.array([[0.1, np.nan, 0.3, 0.2], [0.2, np.nan, 0.2, 0.4]])
    kept = bootstrap.interval([0.2, 0.2], replicates[:, [0, 2, 3]], 33)
    assert bootstrap.interval([0.2, 0.2], replicates, 33) == kept


def simulated_auroc(sets, seeds, photographs, patches, rng, *, photograph, seed, interaction, shift=1.0, replicates=300):
    """AUROC (sets, seeds) of simulated detectors, its replicates (sets, seeds, R), and the expectation over both.

    Logits are a sum of normal effects: of the photograph, of the photograph's response to being regenerated, of the
    seed, of seed and photograph together, and of the patch (standard deviation 1).
    """
    total = photographs * patches
    counts = bootstrap.draw_groups(np.arange(photographs), replicates, int(rng.integers(2**31))).counts
    values, drawn = np.empty((sets, seeds)), np.empty((sets, seeds, replicates), np.float32)
    for index in range(sets):
        place = photograph * rng.standard_normal((1, photographs, 1))
        noise = interaction * rng.standard_normal((2, seeds, photographs, 1))
        real = place + noise[0] + rng.standard_normal((seeds, photographs, patches))
        fake = (place + photograph * rng.standard_normal((1, photographs, 1)) + noise[1] + shift
                + seed * rng.standard_normal((seeds, 1, 1)) + rng.standard_normal((seeds, photographs, patches)))
        for run in range(seeds):
            order = np.argsort(real[run].ravel())
            below = np.zeros((total + 1, photographs), np.float32)
            below[np.arange(1, total + 1), order // patches] = 1
            position = np.searchsorted(real[run].ravel()[order], fake[run].ravel())
            # wins of a photograph's generated patches over another photograph's real ones, (photographs, photographs)
            wins = np.cumsum(below, 0)[position].reshape(photographs, patches, photographs).sum(1)
            values[index, run] = wins.sum() / total**2
            drawn[index, run] = ((wins.T @ counts) * counts).sum(0) / total**2
    spread = 2 * (interaction**2 + 1) + seed**2 + photograph**2
    across, within = stats.norm.cdf(shift / np.sqrt(spread + 2 * photograph**2)), stats.norm.cdf(shift / np.sqrt(spread))
    return values, drawn, across + (within - across) / photographs


@pytest.mark.parametrize(("seeds", "photographs", "patches", "sets"), [(3, 33, 4, 1000), (10, 33, 4, 600), (5, 200, 1, 500)])
def test_nominal_intervals_cover_93_to_97_percent(seeds, photographs, patches, sets):
    """Effects as in measured results: the seeds' variance is ten times the photographs'."""
    rng = np.random.default_rng(seeds * 1000 + photographs)
    effects = {"photograph": 0.3, "seed": 0.25, "interaction": 0.3}
    values, drawn, expected = simulated_auroc(sets, seeds, photographs, patches, rng, **effects)
    found = bootstrap.interval(values, drawn, photographs)
    share = ((found.low <= expected) & (expected <= found.high)).mean()
    assert 0.93 <= share <= 0.97, share


def in_normal_model(sets, seeds, photographs, *, photograph, seed, interaction, rng):
    """Coverage where the effects on the metric itself are normal, so that thousands of experiments cost nothing.

    The bootstrap's two variances are drawn from their chi-squared distributions.
    """
    mean = np.sqrt(photograph + (seed + interaction) / seeds) * rng.standard_normal(sets)
    sample = (seed + interaction) * rng.chisquare(seeds - 1, sets) / (seeds - 1)
    freedom = photographs - 1
    average = (photograph + interaction / seeds) * rng.chisquare(freedom, sets) / freedom
    between = interaction * rng.chisquare(freedom * (seeds - 1), sets) / (freedom * (seeds - 1))
    # values and replicates that have exactly these moments
    pattern = np.linspace(-1, 1, seeds)
    values = mean[:, None] + np.sqrt(sample)[:, None] * pattern / pattern.std(ddof=1)
    basis = np.linalg.qr(np.column_stack([np.ones(seeds + 2), rng.standard_normal((seeds + 2, seeds + 1))]))[0][:, 1:]
    contrasts = np.linalg.qr(np.column_stack([np.ones(seeds), np.eye(seeds)[:, 1:]]))[0][:, 1:]
    scale = np.sqrt((photographs - 1) / photographs * (seeds + 1))
    replicates = scale * (np.sqrt(average)[:, None, None] * basis[:, 0]
                          + np.sqrt(between)[:, None, None] * (contrasts @ basis[:, 1:seeds].T))
    found = bootstrap.interval(values, replicates, photographs)
    return ((found.low <= 0) & (0 <= found.high)).mean()


@pytest.mark.parametrize("photographs", [33, 200, 1000])
@pytest.mark.parametrize(("seeds", "highest"), [(3, 0.98), (5, 0.976), (10, 0.971)])
def test_coverage_holds_whichever_part_of_the_variance_dominates(seeds, highest, photographs):
    rng = np.random.default_rng(0)
    shares = [in_normal_model(8000, seeds, photographs, photograph=c, seed=a, interaction=d, rng=rng)
              for c in (0.02, 0.25, 1, 4) for d in (0.1, 0.5, 1) for a in (0, 0.1, 0.5, 1, 4, 16)]
    assert 0.925 <= min(shares) and max(shares) <= highest, (min(shares), max(shares))
    assert 0.945 <= np.mean(shares) <= 0.965
