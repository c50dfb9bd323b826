"""Fourier shell correlation along each axis of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.rings import crossing, ring_sums
from cryobench.metrics.spectral import HALF, power, spectrum
from cryobench.metrics.within import soft_mask
from cryobench.numerics.fft import half_frequencies

ANGLE = 30.0
"""Half the opening angle of a cone, degrees. In shell r it has about 0.13 x 4 pi r^2 coefficients."""


@dataclass(frozen=True)
class FscAxes(Metric):
    """Fourier shell correlation with the truth in cones around the axes: the resolution along z, y and x.

        FSC(r) = Re sum X T* / sqrt(sum |X|^2 sum |T|^2)

    The sums are over the coefficients of shell r within 30 degrees of an axis (conical FSC: Diebolder, Faas, Koster and
    Koning 2015, Biophys. J. 109:1374). `fsc_z`, `fsc_y` and `fsc_x` are the resolutions in voxels at which it falls
    below 1/2, as for `frc`. `fsc_ratio` is `fsc_z` over the mean of the other two: 1 for equal resolution, more where z
    is worse. A shell without power in either counts as 0.
    """

    dims = (3,)
    columns = (
        *(Column(f"fsc_{axis}", "lower", "px") for axis in "zyx"),
        Column("fsc_ratio", "none"),
    )

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        mask, shape = soft_mask(case), tuple(case.truth.shape[2:])
        (truth, truth_level), (estimate, level) = (spectrum(v.double(), mask) for v in (case.truth, reconstruction.x))
        axes = half_frequencies(shape, case.truth.device)
        squared = axes[0].square() + axes[1].square() + axes[2].square()
        curves, values = {}, {}
        for name, k in zip("zyx", axes, strict=True):
            cone = (k.square() >= math.cos(math.radians(ANGLE)) ** 2 * squared).double()
            both = ring_sums(cone * (estimate * truth.conj()).real, shape)
            count = ring_sums(cone.expand(1, 1, *cone.shape[-3:]), shape)
            powers = [ring_sums(cone * power(v), shape) for v in (estimate, truth)]
            filled = (powers[0] > level.flatten(1) * count) & (powers[1] > truth_level.flatten(1) * count)
            curves[f"fsc_{name}"] = torch.where(filled, both / (powers[0] * powers[1]).sqrt(), 0.0)
            values[f"fsc_{name}"] = 1 / crossing(curves[f"fsc_{name}"], HALF, shape)
        values["fsc_ratio"] = 2 * values["fsc_z"] / (values["fsc_y"] + values["fsc_x"])
        return Measured(values, curves)
