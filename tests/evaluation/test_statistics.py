"""Intervals and p-values: against scipy, closed forms and loops; and do they cover what they claim?

An interval that is too narrow calls noise a result, so coverage is simulated and not only the formula tested.
"""

import numpy as np
import pytest
from scipy import stats

from dml.evaluation.statistics import paired_bootstrap, resampled_means, spread, welch


def drawn(rng: np.random.Generator, classes: int, size: int, effect: float) -> tuple:
    """Differences of `classes` x `size` queries with mean 0; `effect`: how alike those of a class are."""
    labels = np.repeat(np.arange(classes), size)
    values = effect * rng.normal(size=classes)[labels] + rng.normal(size=classes * size)
    return values[:, None], labels


def test_over_queries_as_scipy():
    values = np.random.default_rng(0).exponential(size=300) - 0.9
    (ours,) = paired_bootstrap(values[:, None], resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    expected = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=0.005)
    assert ours.mean == pytest.approx(values.mean(), abs=1e-12)


def test_over_classes_as_written_out():
    """Whole classes of unequal sizes are drawn; the mean is over the queries in the draw."""
    rng = np.random.default_rng(0)
    labels = np.array([7, 7, 7, 2, 2, 9, 9, 9, 9, 4])
    values = rng.normal(size=(10, 2))
    classes = np.unique(labels)
    again, expected = np.random.default_rng(3), []
    for _ in range(200):
        chosen = again.integers(0, len(classes), size=len(classes))
        expected.append(np.concatenate([values[labels == classes[c]] for c in chosen]).mean(axis=0))
    found = paired_bootstrap(values, labels, resamples=200, seed=3)
    for column, ours in zip(np.transpose(expected), found, strict=True):
        assert (ours.low, ours.high) == pytest.approx(np.quantile(column, [0.025, 0.975]))
        beyond = min((column <= 0).sum(), (column >= 0).sum())
        assert ours.p_value == pytest.approx(min(1, 2 * (beyond + 1) / 201))


def test_classes_of_one_query_each_are_queries():
    values = np.random.default_rng(0).normal(size=(50, 1))
    assert paired_bootstrap(values, np.arange(50)) == paired_bootstrap(values)


def test_p_value_as_the_z_test():
    """With many queries the bootstrap's p-value is that of the normal distribution."""
    for shift in (0.0, 0.03, 0.05):
        values = np.random.default_rng(1).normal(size=2000)
        values += shift - values.mean()
        z = values.mean() / (values.std() / np.sqrt(2000))
        (found,) = paired_bootstrap(values[:, None], resamples=10_000)
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)


def test_equal_runs_do_not_differ():
    (found,) = paired_bootstrap(np.zeros((40, 1)), np.arange(40) // 4)
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_one_run_better_everywhere():
    """The smallest p-value is that of the number of resamples, never 0."""
    (found,) = paired_bootstrap(np.full((40, 1), 0.1), resamples=999)
    assert found.p_value == pytest.approx(2 / 1000)


def simulated(clustered: bool, effect: float) -> tuple[float, np.ndarray]:
    """Share of intervals that hold the true mean 0, and the p-values, over 300 simulated comparisons."""
    rng, found = np.random.default_rng(5), []
    for number in range(300):
        values, labels = drawn(rng, classes=40, size=3, effect=effect)
        found += paired_bootstrap(values, labels if clustered else None, resamples=300, seed=number)
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    return float(covered), np.array([one.p_value for one in found])


def test_coverage_over_queries():
    """Independent queries: about 95 % of the intervals hold the truth, and p-values are uniform."""
    covered, p_values = simulated(clustered=False, effect=0)
    assert 0.91 < covered < 0.985  # 3 standard deviations of 300 trials
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_coverage_over_classes():
    """Queries of a class are alike: drawing classes still covers, drawing queries does not."""
    covered, p_values = simulated(clustered=True, effect=1)
    assert 0.9 < covered < 0.985  # 40 classes: slightly narrow, as percentile intervals are
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert simulated(clustered=False, effect=1)[0] < 0.85


def test_interval_and_p_value_agree():
    """They are two views of one distribution: p < 0.05 where the interval leaves 0 out."""
    rng = np.random.default_rng(2)
    for number in range(60):
        values = rng.normal(0.1, 1, size=(200, 1))
        (found,) = paired_bootstrap(values, resamples=1000, seed=number)
        if abs(found.p_value - 0.05) > 0.004:  # quantiles lie between resamples
            assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)


def test_seeded():
    values = np.random.default_rng(0).normal(size=(30, 2))
    assert paired_bootstrap(values, resamples=200) == paired_bootstrap(values, resamples=200)
    assert paired_bootstrap(values, resamples=200) != paired_bootstrap(
        values, resamples=200, seed=1
    )


def test_metrics_are_drawn_together():
    """One draw of queries serves all metrics, so that they remain comparable."""
    values = np.random.default_rng(0).normal(size=(30, 1))
    means = resampled_means(np.hstack([values, 2 * values]), None, 50, np.random.default_rng(0))
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])


@pytest.mark.parametrize(
    "values", [np.empty((0, 1)), np.zeros(3), np.array([[np.nan]]), np.array([[np.inf]])]
)
def test_nothing_to_draw_from(values):
    with pytest.raises(ValueError, match="differences"):
        paired_bootstrap(values)


@pytest.mark.parametrize("values", [[0.1, 0.5], [0.52, 0.55, 0.50, 0.61, 0.53], [0.3] * 4])
def test_spread_as_students_t(values):
    found = spread(values)
    mean, sd = np.mean(values), np.std(values, ddof=1)
    assert (found.n, found.mean, found.sd) == (len(values), pytest.approx(mean), pytest.approx(sd))
    reach = stats.t.ppf(0.975, len(values) - 1) * sd / np.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))


def test_one_run_has_no_interval():
    found = spread([0.5])
    assert (found.mean, found.sd, found.low, found.high) == (0.5, None, None, None)


def test_spread_covers():
    """95 % of t-intervals of five seeds hold the true mean; normal intervals would hold 88 %."""
    rng = np.random.default_rng(0)
    found = [spread(rng.normal(0.5, 0.01, size=5)) for _ in range(1000)]
    assert 0.93 < np.mean([f.low <= 0.5 <= f.high for f in found]) < 0.97


def test_two_groups_of_runs_as_scipy():
    """Unequal numbers and spreads, as three runs of ours beside five of another library."""
    first, second = [64.1, 65.3, 66.9], [60.2, 60.4, 60.1, 60.3, 60.9]
    ours = welch(first, second)
    theirs = stats.ttest_ind(first, second, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_runs_that_do_not_vary_differ_for_certain():
    assert welch([2.0, 2.0], [1.0, 1.0]).p_value == 0
    assert welch([1.0, 1.0], [1.0, 1.0]).p_value == 1
    with pytest.raises(ValueError, match="two runs on either side"):
        welch([1.0], [1.0, 2.0])
