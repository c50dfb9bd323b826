"""The search space of a solver, from its annotated ranges, and the search strategies."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cryobench.errors import ParameterError
from cryobench.rng import digest
from cryobench.spec import Choice, Field, Range
from cryobench.tuning.trial import Trial, Values

STRATEGIES = ("tpe", "random", "grid")
STARTUP = 6
"""Random trials before the tree-structured Parzen estimator starts."""
DIGITS = 4
"""Significant digits of a drawn number, so that settings are readable."""
DRAWS = 50
"""Maximum number of draws for a setting that was not tried yet."""
MOST_POINTS = 100_000
"""Maximum size of a grid."""
NUMBER = "a number"
"""The choice of a number in a range that also has other values."""


def parameters(values: Values, fields: Sequence[Field]) -> tuple[Values, dict[str, BaseDistribution]]:
    """A setting as Optuna parameters and distributions. A default outside its range is left out."""
    found: Values = {}
    for field in fields:
        value, search = values[field.name], field.search
        if isinstance(search, Choice):
            found |= {field.name: value} if value in search.options else {}
        elif isinstance(search, Range) and value in search.also:
            found[_kind(field)] = value
        elif isinstance(search, Range) and isinstance(value, int | float) and search.low <= value <= search.high:
            found |= {field.name: value} | ({_kind(field): NUMBER} if search.also else {})
    known = {name: each for field in fields for name, each in _distributions(field).items()}
    return found, {name: known[name] for name in found}


def frozen(trial: Trial, fields: Sequence[Field]) -> FrozenTrial:
    """A finished trial as an Optuna trial."""
    found, distributions = parameters(trial.values, fields)
    state = TrialState.FAIL if trial.failed else TrialState.PRUNED if trial.pruned else TrialState.COMPLETE
    means = {} if trial.failed else {step: fmean(trial.scores[: step + 1]) for step in range(len(trial.scores))}
    return create_trial(state=state, value=trial.score, params=found, distributions=distributions,
                        intermediate_values=means)  # fmt: skip


def suggest(
    fields: Sequence[Field], done: Sequence[Trial], strategy: str, seed: int, points: int, higher: bool
) -> Values | None:
    """The next setting, different from all tried ones; None if the grid is finished or no new setting is drawn.

    It depends on the arguments only, so a stopped search continues as an uninterrupted one. seed: of the search.
    points: of the grid, per field. higher: whether higher scores are better.
    """
    if strategy == "grid":
        return _on_grid(fields, done, seed, points)
    own = digest("trial", seed, len(done)) % 2**32
    sampler = (
        optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP)
        if strategy == "tpe"
        else optuna.samplers.RandomSampler(seed=own)
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)
    study.add_trials([frozen(trial, fields) for trial in done])
    tried = [trial.values for trial in done]
    drawn = (_drawn(study.ask(), fields) for _ in range(DRAWS))
    return next((values for values in drawn if values not in tried), None)


def grid_points(search: Range | Choice, points: int, integer: bool) -> list[Any]:
    """The grid values of a field: evenly spaced over its range with both ends, or all its options."""
    if isinstance(search, Choice):
        return list(search.options)
    scale, back = (math.log, math.exp) if search.log else (float, float)
    low, high = scale(search.low), scale(search.high)
    inner = [back(low + (high - low) * k / (points - 1)) for k in range(1, points - 1)]
    numbers = [search.low, *(_rounded(number, integer) for number in inner), search.high]
    return list(dict.fromkeys([*search.also, *numbers]))


def _on_grid(fields: Sequence[Field], done: Sequence[Trial], seed: int, points: int) -> Values | None:
    """The next grid point. The order is shuffled by the seed, so that a small budget covers the whole range."""
    axes = [grid_points(cast(Range | Choice, field.search), points, field.is_integer) for field in fields]
    size = math.prod(map(len, axes))
    if size > MOST_POINTS:
        raise ParameterError(
            f"--grid-points {points} makes a grid of {size} settings; give fewer, or --strategy random"
        )
    settings = [dict(zip([field.name for field in fields], point, strict=True)) for point in itertools.product(*axes)]
    random.Random(digest("grid", seed)).shuffle(settings)
    tried = [trial.values for trial in done]
    return next((values for values in settings if values not in tried), None)


def _drawn(trial: optuna.Trial, fields: Sequence[Field]) -> Values:
    values: Values = {}
    for field in fields:
        kind, numbers = (_distributions(field).get(name) for name in (_kind(field), field.name))
        if isinstance(kind, CategoricalDistribution):
            values[field.name] = trial.suggest_categorical(_kind(field), kind.choices)
            if values[field.name] != NUMBER:
                continue
        if isinstance(numbers, CategoricalDistribution):
            values[field.name] = trial.suggest_categorical(field.name, numbers.choices)
        elif isinstance(numbers, IntDistribution):
            values[field.name] = trial.suggest_int(field.name, numbers.low, numbers.high, log=numbers.log)
        elif isinstance(numbers, FloatDistribution):
            number = trial.suggest_float(field.name, numbers.low, numbers.high, log=numbers.log)
            values[field.name] = min(max(_rounded(number, integer=False), numbers.low), numbers.high)
    return values


def _distributions(field: Field) -> Mapping[str, BaseDistribution]:
    """Optuna's distributions of a field: its number or option, and the choice between them if it has both."""
    search = field.search
    if isinstance(search, Choice):
        return {field.name: CategoricalDistribution(search.options)}
    assert search is not None
    if field.is_integer:
        numbers: BaseDistribution = IntDistribution(int(search.low), int(search.high), log=search.log)
    else:
        numbers = FloatDistribution(search.low, search.high, log=search.log)
    kinds = {_kind(field): CategoricalDistribution((NUMBER, *search.also))} if search.also else {}
    return {**kinds, field.name: numbers}


def _kind(field: Field) -> str:
    return f"{field.name} is"


def _rounded(number: float, integer: bool) -> float:
    return round(number) if integer else float(f"{number:.{DIGITS}g}")
