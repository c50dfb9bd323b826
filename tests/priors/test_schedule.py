"""The defaults of diffusers' schedulers, without importing them."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from cryobench.priors.schedule import betas, completed, lacks, prediction

NAMES = [name for name in dir(diffusers) if name.endswith("Scheduler")]
WANTED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


def defaults(name: str) -> dict[str, object]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: parameters[key].default for key in WANTED if key in parameters}


@pytest.mark.parametrize("name", [name for name in NAMES if not lacks({"_class_name": name})])
def test_the_defaults_of_a_known_scheduler_are_those_of_diffusers(name):
    config = completed({"_class_name": name}, {})
    found = betas(config) | {"prediction_type": prediction(config)}
    assert found.items() >= defaults(name).items()


@pytest.mark.parametrize("name", [name for name in NAMES if lacks({"_class_name": name})])
def test_other_schedulers_have_no_betas_or_change_them(name):
    assert "beta_start" not in defaults(name) or name.startswith("CogVideoX")
