"""Suggested settings lie in their ranges and do not repeat; a grid suggests all its points."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryobench.errors import ParameterError
from cryobench.registry import installed
from cryobench.spec import Choice, Range, fields_of
from cryobench.tuning import space
from cryobench.tuning.trial import Trial, Values


@dataclasses.dataclass(frozen=True)
class Knobs:
    gain: Annotated[float | Literal["auto"], Range(1e-2, 100, log=True, also=("auto",))] = "auto"
    share: Annotated[float, Range(0, 1)] = 3.0
    steps: Annotated[int, Range(2, 9)] = 4
    way: Annotated[Literal["a", "b", "c"], Choice(("a", "c"))] = "a"
    box: Annotated[bool, Choice()] = False


FIELDS = fields_of(Knobs)


DEFAULT = {field.name: field.default for field in FIELDS}


def tried(values: Values, score: float | None = None) -> Trial:
    return Trial(values, reason="broken") if score is None else Trial(values, [score])


def allowed(values: Values) -> bool:
    number = values["gain"] == "auto" or 1e-2 <= values["gain"] <= 100
    return (number and 0 <= values["share"] <= 1 and values["steps"] in range(2, 10)
            and values["way"] in ("a", "c") and values["box"] in (True, False))  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(space.STRATEGIES), st.integers(0, 2**40), st.booleans())
def test_settings_are_in_their_ranges_and_tried_once(strategy, seed, higher):
    done = [tried(DEFAULT, 1.0)]
    for k in range(8):
        values = space.suggest(FIELDS, done, strategy, seed, 4, higher)
        assert values is not None
        assert allowed(values)
        assert values not in [trial.values for trial in done]
        assert type(values["steps"]) is int
        assert values == space.suggest(FIELDS, done, strategy, seed, 4, higher)  # depends on the arguments only
        done.append(tried(values, float(k % 3)))


def test_a_default_outside_its_range_is_left_out_and_an_extra_value_is_kept():
    parameters, _ = space.parameters(DEFAULT, FIELDS)
    assert "share" not in parameters
    assert parameters["gain is"] == "auto"
    assert "gain" not in parameters
    numbers, _ = space.parameters(DEFAULT | {"gain": 2.0}, FIELDS)
    assert numbers["gain"] == 2.0
    assert numbers["gain is"] == space.NUMBER


def test_a_grid_ends_after_its_last_point():
    fields = [field for field in FIELDS if field.name in ("gain", "way")]
    done = []
    while (values := space.suggest(fields, done, "grid", 3, 3, True)) is not None:
        done.append(tried(values))
    seen = [tuple(trial.values.values()) for trial in done]
    assert sorted(seen, key=str) == sorted(
        ((gain, way) for gain in ("auto", 1e-2, 1.0, 100) for way in ("a", "c")), key=str
    )


@pytest.mark.parametrize("points", [2, 3, 7])
def test_grid_points_are_evenly_spaced_on_the_scale_of_the_range(points):
    numbers = space.grid_points(Range(0.5, 50, log=True), points, integer=False)
    assert (numbers[0], numbers[-1], len(numbers)) == (0.5, 50, points)
    assert [math.log(b / a) for a, b in pairwise(numbers)] == pytest.approx(
        [math.log(100) / (points - 1)] * (points - 1), rel=1e-3
    )
    evenly = space.grid_points(Range(-1, 2), points, integer=False)
    assert [b - a for a, b in pairwise(evenly)] == pytest.approx([3 / (points - 1)] * (points - 1), rel=1e-3)
    whole = space.grid_points(Range(1, 3), 9, integer=True)
    assert whole == [1, 2, 3]


def test_a_grid_that_is_too_large_is_refused():
    with pytest.raises(ParameterError, match="--grid-points 400"):
        space.suggest(FIELDS, [], "grid", 0, 400, True)


def test_a_small_space_ends_when_every_setting_was_tried():
    fields = [field for field in FIELDS if field.name == "box"]
    done = []
    while (values := space.suggest(fields, done, "random", 0, 2, True)) is not None:
        done.append(tried(values, 0.0))
    assert sorted(trial.values["box"] for trial in done) == [False, True]


NOT_TUNED = {
    "abinitio",
    "consensus",
    "covariance",
    "cryodeco",
    "curve",
    "direct",
    "emdiffuse",
    "exact",
    "fourier_inversion",
    "hypervolume",
    "interpolate",
    "n2n",
    "pinv",
    "regression",
    "tiled",
}
SOLVERS = [name for name in installed().names("solvers") if name not in NOT_TUNED]


@pytest.mark.parametrize("name", SOLVERS)
def test_built_in_solvers_accept_their_ranges_which_contain_the_defaults(name):
    registry = installed()
    fields = [field for field in fields_of(registry.get("solvers", name)) if field.search is not None]
    assert fields
    solver = registry.make("solvers", name)
    default = {field.name: field.default for field in fields}
    for field in fields:
        for value in space.grid_points(field.search, 3, field.is_integer):
            changed = dataclasses.replace(solver, **{field.name: value})
            assert registry.make("solvers", str(registry.spec_of(changed))) == changed
        assert {field.name, f"{field.name} is"} & set(space.parameters(default, fields)[0])
