"""Checks of what plugins return, and the division of images into batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from cryobench.core import Heterogeneity, LinearOperator, Noisy, Problem, Reconstruction, VolumeModel
from cryobench.errors import PluginError, valid_text
from cryobench.numerics.linalg import all_finite

DEVIATION = "deviation"
"""Name of the per-image number recorded for a solver's deviation: its root mean square over the pixels."""


def checked_measurements(noisy: Any, operator: LinearOperator, batch: int) -> Noisy:
    """The measurements, checked. Raises `PluginError` if they break the contract."""
    if not isinstance(noisy, Noisy):
        raise PluginError(f"the noise model returned a {type(noisy).__name__}, not a cryobench.core.Noisy")
    for name, tensor, expected in (
        ("y", noisy.y, (batch, *operator.measurement_shape)),
        ("sigma", noisy.sigma, (batch, *[1] * len(operator.measurement_shape))),
    ):
        if tuple(tensor.shape) != tuple(expected):
            raise PluginError(
                f"operator and noise gave {name} of shape {list(tensor.shape)}, expected {list(expected)}"
            )
        if tensor.dtype != operator.dtype or tensor.device != operator.device:
            raise PluginError(f"operator and noise gave {name} as {tensor.dtype} on {tensor.device}, "
                              f"expected {operator.dtype} on {operator.device}")  # fmt: skip
        if not all_finite(tensor):
            raise PluginError(f"operator and noise gave values of {name} that are not finite")
    return noisy


def checked_reconstruction(answer: Any, problem: Problem) -> Reconstruction:
    """The result of a solver, checked. Raises `PluginError` if it breaks the contract."""
    if not isinstance(answer, Reconstruction):
        raise PluginError(f"the solver returned a {type(answer).__name__}, not a Reconstruction")
    if not isinstance(answer.x, torch.Tensor):
        raise PluginError(f"the solver returned a {type(answer.x).__name__} as its image, not a tensor")
    x = answer.x.detach()
    if tuple(x.shape) != problem.image_batch_shape:
        raise PluginError(f"the solver returned shape {list(x.shape)}, expected {list(problem.image_batch_shape)}")
    if x.dtype != problem.y.dtype:
        raise PluginError(f"the solver returned {x.dtype}, expected {problem.y.dtype}")
    if x.device != problem.y.device:
        raise PluginError(f"the solver returned an image on {x.device}, expected {problem.y.device}")
    if not all_finite(x):
        raise PluginError("the solver returned values that are not finite (NaN or infinity)")
    info = {valid_text(name): torch.as_tensor(values).detach().flatten() for name, values in answer.info.items()}
    for name, values in info.items():
        if not name.isprintable():
            raise PluginError(f"the name of the solver's info {name!r} has characters that are not printable")
        if values.numel() != problem.batch:
            raise PluginError(f"the solver's info {name!r} has {values.numel()} values for {problem.batch} images")
    curves = {valid_text(name): torch.as_tensor(values).detach() for name, values in answer.curves.items()}
    for name, values in curves.items():
        if values.ndim != 2 or len(values) != problem.batch or not values.is_floating_point():
            got = f"{list(values.shape)} {values.dtype}"
            raise PluginError(f"the solver's curve {name!r} is {got}, expected floats [{problem.batch}, steps]")
    deviation = _checked_deviation(answer.deviation, x)
    if deviation is not None and DEVIATION in info:
        raise PluginError(
            f"the solver returned a deviation and an info {DEVIATION!r}, which is reserved; rename the info"
        )
    samples = answer.samples
    if samples is not None and (type(samples) is not int or samples < 2 or deviation is None):
        raise PluginError(
            f"the solver's number of samples is {samples!r}, expected 2 or more with a deviation, or None"
        )
    volumes = {valid_text(name): _checked_volume(name, volume) for name, volume in answer.volumes.items()}
    many = _checked_heterogeneity(answer.heterogeneity, problem)
    draws = _checked_draws(answer.draws, x)
    return Reconstruction(x, info, curves, deviation, samples=samples, volumes=volumes, heterogeneity=many, draws=draws)


def _checked_heterogeneity(many: Any, problem: Problem) -> Heterogeneity | None:
    """The latents, the model and the poses of a solver of heterogeneity, checked, on the CPU."""
    if many is None:
        return None
    if not isinstance(many, Heterogeneity):
        raise PluginError(f"the solver's heterogeneity is a {type(many).__name__}, not a cryobench.core.Heterogeneity")
    n, side, model = problem.batch, problem.operator.image_shape[-1], many.model
    if not isinstance(model, VolumeModel) or model.side != side:
        got = f"of {model.side} voxels" if isinstance(model, VolumeModel) else f"a {type(model).__name__}"
        raise PluginError(f"the solver's model of volumes is {got}, expected a VolumeModel of {side} voxels a side")
    known = {"latents": (many.latents, (n, model.dimensions)), "rotations": (many.rotations, (n, 3, 3)),
             "shift": (many.shift, (n, 2))}  # fmt: skip
    found: dict[str, torch.Tensor | None] = {}
    for name, (values, expected) in known.items():
        if values is None and name != "latents":
            found[name] = None
        elif not isinstance(values, torch.Tensor) or tuple(values.shape) != expected or not values.isfinite().all():
            got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise PluginError(f"the solver's {name} are {got}, expected finite numbers {list(expected)}")
        else:
            found[name] = values.detach().double().cpu()
    return dataclasses.replace(many, **found)


def _checked_volume(name: str, volume: Any) -> torch.Tensor:
    """A map of a joint solver, checked."""
    if not isinstance(volume, torch.Tensor) or volume.ndim != 3 or not all_finite(volume):
        got = list(volume.shape) if isinstance(volume, torch.Tensor) else type(volume).__name__
        raise PluginError(f"the solver's volume {name!r} is {got}, expected a tensor [D, D, D] of finite values")
    return volume.detach()


def _checked_draws(draws: Any, x: torch.Tensor) -> torch.Tensor | None:
    """The draws of a sampler, checked."""
    if draws is None:
        return None
    fits = isinstance(draws, torch.Tensor) and draws.ndim == x.ndim + 1
    if not fits or draws.shape[:1] + draws.shape[2:] != x.shape or not draws.shape[1] or not all_finite(draws):
        got = list(draws.shape) if isinstance(draws, torch.Tensor) else type(draws).__name__
        raise PluginError(f"the solver's draws are {got}, expected finite numbers [B, K, {str(list(x.shape[1:]))[1:]}")
    return draws.detach().to(x)


def _checked_deviation(deviation: Any, x: torch.Tensor) -> torch.Tensor | None:
    """The standard deviation of every pixel, checked."""
    if deviation is None:
        return None
    if not isinstance(deviation, torch.Tensor) or deviation.shape != x.shape:
        got = list(deviation.shape) if isinstance(deviation, torch.Tensor) else type(deviation).__name__
        raise PluginError(f"the solver's deviation is {got}, expected a tensor {list(x.shape)}")
    deviation = deviation.detach().to(x)
    if not ((deviation >= 0) & deviation.isfinite()).all():
        raise PluginError("the solver's deviation has values that are negative or not finite")
    return deviation


def batches(n: int, batch: int) -> list[slice]:
    """0 to n - 1 in slices of at most `batch`."""
    return [slice(start, min(start + batch, n)) for start in range(0, n, batch)]
