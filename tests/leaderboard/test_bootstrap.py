import math

import numpy as np
import pytest
import scipy.stats

from cryobench.errors import ParameterError
from cryobench.leaderboard.statistics import bootstrap
from cryobench.leaderboard.statistics.bootstrap import bootstrap_interval, bootstrap_intervals, interval_ends, mean


@pytest.mark.parametrize("n_images", [2, 5, 40, 300])
def test_agrees_with_scipy(n_images):
    values = np.random.default_rng(n_images).gamma(2.0, size=n_images)
    ours = bootstrap_interval(values.tolist(), resamples=50_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=50_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # the ends of two independent drawings differ by about 1% of the spread of the mean
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05 * values.std() / math.sqrt(n_images))


def test_coverage_of_normal_data():
    samples = np.random.default_rng(7).normal(3.0, 2.0, size=(2000, 50))
    intervals = bootstrap_intervals(samples.tolist(), resamples=1000)
    covered = np.mean([lo <= 3.0 <= hi for lo, hi in intervals])  # type: ignore[operator]
    assert 0.92 < covered < 0.96  # nominal 0.95, expected 0.94, standard error 0.005


def test_level_sets_the_width():
    values = np.random.default_rng(0).normal(size=30).tolist()
    (lo_50, hi_50), (lo_99, hi_99) = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert lo_99 < lo_50 < np.mean(values) < hi_50 < hi_99  # type: ignore[operator]


def test_deterministic_and_seeded():
    values = np.random.default_rng(0).normal(size=30).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_an_interval_does_not_depend_on_other_series_or_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    values, other, shorter = rng.normal(size=30).tolist(), rng.normal(size=30).tolist(), [1.0, 2.0]
    alone = bootstrap_interval(values)
    assert bootstrap_intervals([shorter, other, values])[2] == alone
    monkeypatch.setattr(bootstrap, "CHUNK", 1000)
    assert bootstrap_interval(values) == pytest.approx(alone, rel=1e-12)


def test_many_series_at_once_are_as_one_by_one(monkeypatch):
    data = np.random.default_rng(1).normal(size=(150, 9))
    data[[3, 80], 2] = math.inf, math.nan
    monkeypatch.setattr(bootstrap, "CHUNK", 70_000)  # series and resamples both in several parts
    lo, hi = interval_ends(data, resamples=1000)
    assert np.isnan([lo[3], hi[3], lo[80], hi[80]]).all()
    alone = [bootstrap_interval(row.tolist(), resamples=1000) for row in data]
    assert [(lo[row], hi[row]) for row in range(150) if row not in (3, 80)] == [
        ends for row, ends in enumerate(alone) if row not in (3, 80)
    ]


def test_one_image_has_no_interval():
    assert np.isnan(interval_ends(np.ones((3, 1)))).all()


@pytest.mark.parametrize("spread", [1e-40, 1e-9, 1e40])
def test_very_large_and_small_units(spread):
    """Sums are computed in float32, whose largest number is 3e38."""
    values = np.random.default_rng(0).normal(size=20)
    ends = bootstrap_interval(values.tolist())
    assert bootstrap_interval((spread * values).tolist()) == pytest.approx([spread * end for end in ends], rel=1e-5)


def test_shift_and_scale():
    values = np.random.default_rng(0).normal(size=20)
    lo, hi = bootstrap_interval(values.tolist())
    assert bootstrap_interval((1e6 + 2 * values).tolist()) == pytest.approx((1e6 + 2 * lo, 1e6 + 2 * hi), rel=1e-12)


@pytest.mark.parametrize(
    "values", [[], [1.0], [1.0, None, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf], [math.inf, math.inf]]
)
def test_no_interval(values):
    assert bootstrap_interval(values) == (None, None)


def test_equal_values_have_no_spread():
    assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)


def test_mean():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([0.1] * 3) == 0.1
    assert mean([]) is None
    assert mean([1.0, None]) is None
    assert mean([1.0, math.nan]) is None
    assert mean([1.0, math.inf]) == math.inf
    assert mean([math.inf, -math.inf]) is None
    assert mean([math.inf, math.nan]) is None


@pytest.mark.parametrize("wrong", [{"level": 0.0}, {"level": 1.0}, {"level": 95}, {"resamples": 0}])
def test_invalid_parameters_are_refused(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        bootstrap_interval([1.0, 2.0], **wrong)
