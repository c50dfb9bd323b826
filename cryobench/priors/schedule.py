"""Noise schedules, as configurations of diffusers' schedulers: read from a model or stated in a spec.

Supported are schedules x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps with a_t the products of 1 - beta. This module imports
neither torch nor diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cryobench.errors import DataError, ParameterError, shortened

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""The predictions of a network, in diffusers' terms: eps, x_0 or v."""
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""The parameters of a scheduler that determine its noise levels; the others, except `prediction_type`, determine how
to sample."""
STATED = "schedule=, such as linear:1000 or squaredcos_cap_v2:1000, and predicts=, epsilon, sample or v_prediction"
_DDPM = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
         "prediction_type": "epsilon"}  # fmt: skip
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS = (
    {f"{name}Scheduler": {} for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "LMSDiscrete",
        "PNDM", "RePaint", "SASolver", "UniPCMultistep")}
    | {f"{name}Scheduler": _LATENT for name in ("HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")}
    | {f"{name}Scheduler": _LATENT | {"beta_schedule": "scaled_linear"} for name in ("LCM", "TCD")}
)  # fmt: skip
"""The defaults of diffusers' schedulers that differ from those of `DDPMScheduler`, by class."""
_NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def stated_schedule(text: str) -> dict[str, Any]:
    """The configuration of the schedule NAME:STEPS or NAME:STEPS:START:END.

    NAME: linear, scaled_linear, squaredcos_cap_v2 or sigmoid, as in diffusers. START, END: the first and the last beta,
    by default 1e-4 and 0.02; squaredcos_cap_v2 has none. Raises `ParameterError` for any other text.
    """
    name, *numbers = text.split(":")
    with_betas = name != "squaredcos_cap_v2"
    try:
        steps = int(numbers[0])
        start, end = map(float, numbers[1:]) if numbers[1:] else (_DDPM["beta_start"], _DDPM["beta_end"])
    except (IndexError, ValueError):
        steps, start, end = 0, math.nan, math.nan
    if name not in _NAMES or not 0 < steps <= 10**6 or not 0 < start <= end < 1 or (numbers[1:] and not with_betas):
        raise ParameterError(
            f"diffusion: expected schedule=NAME:STEPS or NAME:STEPS:START:END, NAME one of {', '.join(_NAMES)}, START "
            f"and END the first and last beta in (0, 1), not for squaredcos_cap_v2; got {shortened(text)!r}"
        )
    own = {"num_train_timesteps": steps, "beta_schedule": name}
    return own | ({"beta_start": start, "beta_end": end} if with_betas else {})


def completed(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with the values that it lacks: the defaults of its class, if those are not the ones
    of `DDPMScheduler`, and then the stated ones. config: empty for a network alone.

    Raises `DataError` for a stated value that contradicts the configuration.
    """
    name = config.get("_class_name")
    found = {**_DEFAULTS.get(name or "", {}), **config}
    if name is not None and _without_betas(found):
        return found  # a schedule of another kind, which no stated value makes usable
    known = {**(_DDPM if name in _DEFAULTS else {}), **found}
    for key, value in stated.items():
        if known.get(key, value) != value:
            raise DataError(f"has a scheduler with {key} {known[key]!r}, but {value!r} is stated; leave out schedule= "
                            "and predicts=, or correct the scheduler")  # fmt: skip
    found |= {key: value for key, value in stated.items() if key not in known}
    return found


def lacks(config: Mapping[str, Any]) -> list[str]:
    """The names of the values that a scheduler's configuration must state and does not, and that its class lacks."""
    needed = ["prediction_type"]
    if config.get("trained_betas") is None:
        needed += ["num_train_timesteps", "beta_schedule"]
        if config.get("beta_schedule") != "squaredcos_cap_v2":
            needed += ["beta_start", "beta_end"]
    known = _DDPM if config.get("_class_name") in _DEFAULTS else {}
    return [name for name in needed if config.get(name, known.get(name)) is None]


def unusable_schedule(config: Mapping[str, Any]) -> str | None:
    """The reason why a scheduler with this configuration is not supported, or None."""
    name = config.get("_class_name")
    missing = lacks(config)
    if name is not None and _without_betas(config):
        return f"has a {name}, which is not defined by betas; expected the scheduler of a DDPM, such as DDPMScheduler"
    if missing:
        return f"has a noise schedule without {', '.join(missing)}; give {STATED}, as in its training"
    for key, plain in (("snr_shift_scale", 1.0), ("timestep_type", "discrete")):
        if config.get(key, plain) not in (None, plain):
            return f"has a {name} with {key} {config[key]!r}; expected {plain!r}"
    predicts = prediction(config)
    if predicts not in PREDICTIONS or config.get("use_flow_sigmas"):
        return f"has a scheduler with the prediction type {predicts!r}; expected one of {', '.join(PREDICTIONS)}"
    return None


def _without_betas(config: Mapping[str, Any]) -> bool:
    return {"beta_schedule", "beta_start"} <= {*lacks(config)}


def prediction(config: Mapping[str, Any]) -> str:
    """What the network of a usable configuration predicts."""
    return config.get("prediction_type", _DDPM["prediction_type"])


def betas(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a usable configuration that determine its noise levels."""
    values = {**_DDPM, **config}
    return {name: values[name] for name in BETAS if values.get(name) is not None}
