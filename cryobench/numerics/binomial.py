"""Intervals of a proportion."""

from __future__ import annotations


def binomial_interval(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a probability given `successes` in independent trials (Clopper & Pearson 1934, "The use of
    confidence or fiducial limits illustrated in the case of the binomial").

    It contains the true probability with at least this level. Successes may be fractions, for randomised ranks. Raises
    `ValueError` for successes outside 0 to `trials`.
    """
    from scipy.special import betaincinv

    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes:g} successes in {trials} trials; expected 0 to the number of trials, 1 or more")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high
