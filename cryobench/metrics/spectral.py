"""Agreement with the truth by rings of Fourier space (shells for volumes), in the units of the field.

Every curve has an entry for each ring of `rings.py`: entry i for ring i + 1, at `ring_frequencies(shape)[i]`. The mean
over the evaluated pixels is subtracted from both images. With a circle, both are multiplied by the same soft mask
(`within.soft_mask`). A ring is empty if its coefficients are no larger than the rounding errors of float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction, Shape
from cryobench.metrics.rings import crossing, ring_counts, ring_sums
from cryobench.metrics.within import soft_mask
from cryobench.numerics.fft import rfftn
from cryobench.numerics.linalg import item_axes

HALF, SEVENTH = 1 / 2, 1 / 7
ROUNDING = 1e-6
"""RMS of a ring's coefficients relative to that of the image up to which the ring is empty: 8 times the spacing of
float32, more than the rounding errors of storing and transforming an image."""
NO_PIXEL_SIZE = "the pixel size is not known; frc_pixels gives the same in pixels"
_NO_SIGNAL = "the truth is constant where it is measured"


@dataclass(frozen=True)
class Frc(Metric):
    """Fourier ring correlation with the truth, over each ring r.

        FRC(r) = Re sum X T* / sqrt(sum |X|^2 sum |T|^2)

    (Saxton and Baumeister 1982, J. Microsc. 127:127.) For volumes, ring r is a shell and this is the Fourier shell
    correlation (Harauz and van Heel 1986, Optik 73:146). An empty ring counts as 0.

    `frc`: the resolution in Å at which the curve first falls below 1/2, interpolated linearly between rings. 1/2 is the
    threshold against a reference without error. `frc_seventh`: the same for 1/7, the corresponding threshold between
    two half maps (Rosenthal and Henderson 2003, J. Mol. Biol. 333:721), which is too optimistic here. Both range from
    2 pixels (the curve never falls below the threshold) to the side of the box (it starts below; `rings.crossing`).
    `frc_pixels`: `frc` in pixels. `frc_area`: the mean of the curve over the rings, that is the area under it; 1 for
    the truth. The contrast does not matter: FRC(c X) = FRC(X) for c > 0.
    """

    dims = (2, 3)
    columns = (
        Column("frc", "lower", "Å"),
        Column("frc_seventh", "lower", "Å"),
        Column("frc_pixels", "lower", "px"),
        Column("frc_area", "higher"),
    )

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        rings = _rings_of(case, reconstruction)
        curve = rings.correlation
        half, seventh = (1 / crossing(curve, threshold, rings.shape) for threshold in (HALF, SEVENTH))
        pixel_size = torch.tensor([size or math.nan for size in case.pixel_size], dtype=torch.float64).to(half.device)
        values = {
            "frc": half * pixel_size,
            "frc_seventh": seventh * pixel_size,
            "frc_pixels": half,
            "frc_area": curve.mean(dim=1),
        }
        return Measured(values, {"frc": curve}, _if_missing(values, NO_PIXEL_SIZE))


@dataclass(frozen=True)
class Ssnr(Metric):
    """Spectral signal-to-noise ratio in dB: the power of the truth divided by that of the error in each ring r.

        SSNR(r) = sum |T|^2 / sum |X - T|^2

    (After Unser, Trus and Steven 1987, Ultramicroscopy 23:39.)

    `ssnr` is the generalised mean over the rings with f(s) = s / (1 + s): the SSNR whose f is the mean of f over the
    rings. Neither rings without error nor rings without any agreement dominate it. It is 0 dB for an empty image and
    infinite for an exact one. Rings in which both truth and error are empty are excluded, and NaN in the curve `ssnr`.
    """

    dims = (2, 3)
    columns = (Column("ssnr", "higher", "dB"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        rings = _rings_of(case, reconstruction)
        error = rings.sums(power(rings.estimate - rings.truth))
        nothing = rings.truth_empty & rings.is_empty(error, rings.truth_level)
        signal = torch.where(nothing, torch.nan, rings.truth_power)
        # the mean of f, and 1 minus it
        share, rest = ((part / (signal + error)).nanmean(dim=1) for part in (signal, error))
        values = {"ssnr": 10 * (share / rest).log10()}
        return Measured(values, {"ssnr": 10 * (signal / error).log10()}, _if_missing(values, _NO_SIGNAL))


@dataclass(frozen=True)
class Phase(Metric):
    """Mean phase error in degrees: the mean of |arg(X T*)| over each ring, weighted by the truth's amplitude |T|.

    After the phase residual of Frank, Verschoor and Boublik 1981 (Science 214:1353), with the mean instead of the root
    mean square and weights that do not depend on the solver. It is 0 for the truth and 90 for unrelated phases; an
    empty coefficient of the reconstruction counts as 90. `phase` is the unweighted mean of the curve `phase` over the
    rings. Rings that are empty in the truth are excluded, and NaN in the curve.
    """

    dims = (2, 3)
    columns = (Column("phase", "lower", "deg"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        rings = _rings_of(case, reconstruction)
        error = (rings.estimate * rings.truth.conj()).angle().abs().rad2deg()
        error = torch.where(power(rings.estimate) <= rings.estimate_level, 90.0, error)
        weight = rings.truth.abs()
        curve = torch.where(rings.truth_empty, torch.nan, rings.sums(weight * error) / rings.sums(weight))
        values = {"phase": curve.nanmean(dim=1)}
        return Measured(values, {"phase": curve}, _if_missing(values, _NO_SIGNAL))


@dataclass(frozen=True)
class _Rings:
    """Half spectra of truth and estimate, complex128 in the layout of `rfftn`, and the power of a coefficient up to
    which it is a rounding error (`..._level`), [B, 1, ..., 1]."""

    truth: torch.Tensor
    estimate: torch.Tensor
    truth_level: torch.Tensor
    estimate_level: torch.Tensor
    shape: Shape

    @classmethod
    def of(cls, truth: torch.Tensor, estimate: torch.Tensor, mask: torch.Tensor | None) -> _Rings:
        (first, first_level), (second, second_level) = (spectrum(x.double(), mask) for x in (truth, estimate))
        return cls(first, second, first_level, second_level, tuple(truth.shape[2:]))

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        return ring_sums(values, self.shape)

    @property
    def correlation(self) -> torch.Tensor:
        """Re sum X T* / sqrt(sum |X|^2 sum |T|^2) over each ring; 0 where one of the two is empty. [B, R]."""
        filled = ~(self.truth_empty | self.estimate_empty)
        scale = (self.truth_power * self.estimate_power).sqrt()
        return torch.where(filled, self.sums((self.estimate * self.truth.conj()).real) / scale, 0.0)

    @cached_property
    def truth_power(self) -> torch.Tensor:
        return self.sums(power(self.truth))

    @cached_property
    def estimate_power(self) -> torch.Tensor:
        return self.sums(power(self.estimate))

    @cached_property
    def truth_empty(self) -> torch.Tensor:
        return self.is_empty(self.truth_power, self.truth_level)

    @cached_property
    def estimate_empty(self) -> torch.Tensor:
        return self.is_empty(self.estimate_power, self.estimate_level)

    def is_empty(self, power: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Which rings, of this power [B, R], contain only rounding errors."""
        return power <= level.flatten(1) * ring_counts(self.shape, power.device)


def _rings_of(case: Case, reconstruction: Reconstruction) -> _Rings:
    return _Rings.of(case.truth, reconstruction.x, soft_mask(case))


def correlation(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The curve of `Frc` between images [B, 1, *S] under a mask that broadcasts to them, float64 [B, R]."""
    return _Rings.of(first, second, mask).correlation


def spectrum(image: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The half spectrum of an image minus its mean under the mask, and the power of the rounding error of a
    coefficient."""
    weight = torch.ones_like(image) if mask is None else mask
    axes = item_axes(image)
    level = ROUNDING**2 * (weight * image).square().mean(dim=axes, keepdim=True)
    mean = (weight * image).sum(dim=axes, keepdim=True) / weight.sum(dim=axes, keepdim=True)
    return rfftn(weight * (image - mean), image.ndim - 2, norm="ortho"), level


def _if_missing(values: dict[str, torch.Tensor], reason: str) -> dict[str, str]:
    """The reason, for the columns with a NaN."""
    return {name: reason for name, column in values.items() if column.isnan().any()}


def power(spectrum: torch.Tensor) -> torch.Tensor:
    """|F|^2 of each coefficient."""
    return spectrum.real.square() + spectrum.imag.square()
