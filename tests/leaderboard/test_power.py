import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from cryobench.leaderboard.statistics.power import LEVEL, POWER, images_needed, images_to_test, reachable, smallest_p
from cryobench.leaderboard.statistics.signed_rank import signed_rank


def sample(n_images: int, effect: float) -> np.ndarray:
    """Differences [1, images] whose mean over standard deviation is the effect exactly."""
    values = np.random.default_rng(0).normal(size=n_images)
    return ((values - values.mean()) / values.std(ddof=1) + effect)[None, :]


@pytest.mark.parametrize("n_images", range(1, 12))
def test_least_p_is_that_of_differences_of_one_sign(n_images):
    assert signed_rank(np.arange(1.0, n_images + 1)[None, :])[0] == pytest.approx(smallest_p(n_images))


@pytest.mark.parametrize("tests", [1, 3, 10, 45, 190])
def test_images_to_test_are_the_fewest(tests):
    fewest = images_to_test(tests)
    assert reachable(fewest, tests)
    assert not reachable(fewest - 1, tests)


@pytest.mark.parametrize("tests", [1, 15])
@pytest.mark.parametrize("effect", [0.3, 0.5, 0.8, 1.0, 1.25])
def test_the_stated_number_of_images_has_the_stated_power(effect, tests):
    n_images = int(images_needed(sample(10, effect), tests)[0])
    drawn = np.random.default_rng(1).normal(effect, 1, size=(4000, n_images))
    power = np.mean(signed_rank(drawn)[0] <= LEVEL / tests)
    # the standard error is 0.006; the rest is the approximation, and that images come in whole numbers
    assert POWER - 0.02 < power < POWER + 0.05


def test_with_the_fewest_images_the_power_may_be_lower():
    n_images = int(images_needed(sample(10, 1.5), 1)[0])
    assert n_images == images_to_test(1) == 6
    drawn = np.random.default_rng(1).normal(1.5, 1, size=(4000, n_images))
    # all six differences must be positive
    assert np.mean(signed_rank(drawn)[0] <= LEVEL) == pytest.approx(scipy.stats.norm.cdf(1.5) ** 6, abs=0.02)


def test_half_the_difference_requires_four_times_the_images():
    large, small = (images_needed(sample(10, effect), 1)[0] for effect in (0.1, 0.05))
    assert small / large == pytest.approx(4, rel=0.02)


def test_it_depends_on_neither_unit_nor_sign():
    values = np.random.default_rng(3).normal(0.5, size=(1, 9))
    assert images_needed(-1000 * values, 3) == images_needed(values, 3)


def test_never_fewer_than_can_be_tested():
    assert images_needed(np.array([[1.0, 1.0, 1.0]]), 10) == images_to_test(10)


@pytest.mark.parametrize(
    "differences", [[0.0, 0.0], [1.0, -1.0], [1.0], [math.inf, 1.0], [math.inf, -math.inf], [1.0, -1.0 + 1e-9]]
)
def test_differences_without_a_number_of_images(differences):
    assert math.isnan(images_needed(np.array([differences]), 1)[0])


def table_of_the_docs(first_cell: str) -> list[list[str]]:
    """The table of docs/statistics.md that starts with this text: its rows without the line below the header."""
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index(f"| {first_cell} |") :].partition("\n\n")[0].splitlines()
    ]
    return [rows[0], *rows[2:]]


def test_the_docs_state_how_many_images_can_be_tested():
    (_, *n_rows), (_, *fewest) = table_of_the_docs("rows")
    assert [images_to_test(math.comb(int(count), 2)) for count in n_rows] == list(map(int, fewest))


def test_the_docs_state_how_many_images_are_needed():
    (_, *effects), *rows = table_of_the_docs("d")
    for n_rows, *numbers in rows:
        tests = math.comb(int(n_rows.removesuffix(" rows")), 2)
        found = [int(images_needed(sample(10, float(effect)), tests)[0]) for effect in effects]
        assert found == list(map(int, numbers))
