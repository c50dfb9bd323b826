import numpy as np
import pytest
import scipy.stats

from cryobench.leaderboard.statistics.distributions import chi_squared_tail, normal_tail, studentized_range_quantile


def test_the_normal_tail_is_scipys():
    z = np.array([-9.0, -1.0, 0.0, 0.3, 5.0, 30.0, np.inf])
    assert normal_tail(z) == pytest.approx(scipy.stats.norm.sf(z), rel=1e-12, abs=0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 10, 99])
def test_the_chi_squared_tail_is_scipys(degrees):
    for x in (0.0, 1e-3, 1.0, 5.0, 30.0, 200.0, 1500.0):
        assert chi_squared_tail(x, degrees) == pytest.approx(scipy.stats.chi2.sf(x, degrees), rel=1e-10, abs=1e-300)


@pytest.mark.parametrize("groups", [2, 3, 10, 50])
@pytest.mark.parametrize("p", [0.5, 0.95, 0.99])
def test_the_studentized_range_is_scipys(groups, p):
    assert studentized_range_quantile(p, groups) == pytest.approx(
        scipy.stats.studentized_range.ppf(p, groups, np.inf), abs=1e-6
    )
