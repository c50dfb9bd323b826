"""Errors without a truth, from a second image of the same specimen with independent noise.

Image a, which the solver receives, and image b, which it does not, are a = s + n_a and b = s + n_b with the same clean
image s and independent noise of mean 0. For a reconstruction f that depends on a alone, b is independent of the noise
in f and a, so that every product with b has the expectation of the product with s:

    E <f^2 - 2 f b + a b> = E <(f - s)^2>

The usual form, <(f - b)^2> - <(a - b)^2> / 2, needs in addition that a and b are equally noisy. Where both halves were
reconstructed and averaged, f = (f_a + f_b) / 2, the error is (M_a + M_b + 2 C) / 4 with the error M of each and
C = <f_a f_b - f_a b - f_b a + a b>, whose expectation is that of <(f_a - s)(f_b - s)>. Together,

    E <f^2 - 2 (f_a b + f_b a) / 2 + a b> = E <(f - s)^2>

Both images have the affine map of a. All images are centred on the mean of a and b. The estimates are not exact: a
standard error is given with them, and an estimate that is not positive is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar, cast

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.rings import crossing, ring_counts, ring_sums
from cryobench.metrics.spectral import HALF, NO_PIXEL_SIZE, spectrum
from cryobench.metrics.within import inside, mean_inside, soft_mask
from cryobench.numerics.linalg import item_axes

BLOCKS = 8
"""Blocks along the shortest side for the standard error, if each then has at least `BLOCK` pixels a side."""
BLOCK = 8
SCALE_TOLERANCE = 0.1
"""Relative difference in scale up to which two images count as equally scaled."""
_NO_OTHER = "the data have no second image of the specimen with independent noise, as the sources of movies have"
_NOT_POSITIVE = "the estimate is not positive: it is smaller than its standard error, so more pixels are needed"


_Measure = TypeVar("_Measure", bound=Callable[..., Measured])


def _if_usable(measure: _Measure) -> _Measure:
    """The method `measure` of a metric, with NaN and the reason for a case whose other half is not usable."""

    @wraps(measure)
    def checked(metric: Metric, case: Case, reconstruction: Reconstruction) -> Measured:
        reason = unusable(case)
        return measure(metric, case, reconstruction) if reason is None else not_measured(metric, case, reason)

    return cast("_Measure", checked)


@dataclass(frozen=True)
class MseOther(Metric):
    """Mean squared error to the clean image, estimated from the other half; intensities in [0, 1].

    `mse_other_se` is its standard error over blocks of the image, that of a bootstrap of the blocks.
    """

    dims = (2, 3)
    columns = (Column("mse_other", "lower"), Column("mse_other_se", "none"))
    against_truth = False
    uses_other = True

    @_if_usable
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        errors = _unit_error_map(case, reconstruction)
        value, deviation = mean_inside(case, errors), _standard_error(case, errors)
        return _positive({"mse_other": value, "mse_other_se": deviation}, value)


@dataclass(frozen=True)
class PsnrOther(Metric):
    """Peak signal-to-noise ratio to the clean image in dB, from the error of `mse_other`.

        PSNR = 10 log10(1 / MSE)

    It is empty where that is not positive.
    """

    dims = (2, 3)
    columns = (Column("psnr_other", "higher", "dB"),)
    against_truth = False
    uses_other = True

    @_if_usable
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        error = mean_inside(case, _unit_error_map(case, reconstruction))
        return _positive({"psnr_other": -10 * error.log10()}, error)


@dataclass(frozen=True)
class SsnrOther(Metric):
    """Signal-to-noise ratio in dB: the power of the clean image, <a b>, divided by that of the error.

    `ssnr_other` is the ratio over all frequencies, and not the mean over the rings that `ssnr` is: in rings without
    signal the ratio of two estimates is undefined. The curve `ssnr_other` is the ratio ring by ring, NaN where signal
    or error is not positive.
    """

    dims = (2, 3)
    columns = (Column("ssnr_other", "higher", "dB"),)
    against_truth = False
    uses_other = True

    @_if_usable
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        _, a, b = _centred(case, reconstruction)
        signal, error = mean_inside(case, a * b), mean_inside(case, _error_map(case, reconstruction))
        rings = _Rings.of(case, reconstruction)
        residual = rings.estimate_power - 2 * rings.with_clean + rings.clean_power
        curve = 10 * (_if_positive(rings.clean_power) / _if_positive(residual)).log10()
        value = 10 * (_if_positive(signal) / error).log10()
        return _positive({"ssnr_other": value}, torch.minimum(signal, error), {"ssnr_other": curve})


@dataclass(frozen=True)
class FrcOther(Metric):
    """Fourier ring correlation with the clean image, ring by ring.

        FRC(r) = Re <F, B*> / sqrt(<|F|^2> Re <A, B*>)

    `frc_other`, `frc_other_pixels` and `frc_other_area` are read from the curve as `frc`, `frc_pixels` and `frc_area`
    are. Rings in which Re <A, B*> is not positive count as 0 and are NaN in the curve: they have no measurable signal.
    A ring that is empty in the reconstruction counts as 0.
    Unlike the correlation of f with b, which noise in b lowers, it estimates that with the clean image.
    """

    dims = (2, 3)
    columns = (
        Column("frc_other", "lower", "Å"),
        Column("frc_other_pixels", "lower", "px"),
        Column("frc_other_area", "higher"),
    )
    against_truth = False
    uses_other = True

    @_if_usable
    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        rings = _Rings.of(case, reconstruction)
        curve = rings.with_clean / _if_positive(rings.estimate_power * rings.clean_power).sqrt()
        curve = torch.where(rings.estimate_empty, 0.0, curve)
        measurable = rings.clean_power > 0
        filled = torch.where(measurable, curve.nan_to_num(0.0), 0.0)
        half = 1 / crossing(filled, HALF, tuple(case.truth.shape[2:]))
        size = torch.tensor([pixel or math.nan for pixel in case.pixel_size], dtype=torch.float64).to(half.device)
        values = {"frc_other": half * size, "frc_other_pixels": half, "frc_other_area": filled.mean(dim=1)}
        missing = {"frc_other": NO_PIXEL_SIZE} if values["frc_other"].isnan().any() else {}
        return Measured(values, {"frc_other": torch.where(measurable, curve, torch.nan)}, missing)


@dataclass(frozen=True)
class FrcHalves(Metric):
    """Area under the Fourier ring correlation between the two reconstructed halves; a diagnostic that is not ranked.

    What a solver adds to both halves alike, its bias, raises it, so it exceeds the correlation with the clean image.
    """

    dims = (2, 3)
    columns = (Column("frc_halves", "none"),)
    against_truth = False

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if reconstruction.halves is None:
            return not_measured(self, case, "only one half was reconstructed; --halves average reconstructs both")
        mask, shape = soft_mask(case), tuple(case.truth.shape[2:])
        first, second = (spectrum(half.double(), mask)[0] for half in reconstruction.halves)
        power = ring_sums(_product(first, first), shape) * ring_sums(_product(second, second), shape)
        curve = (ring_sums(_product(first, second), shape) / _if_positive(power).sqrt()).nan_to_num(0.0)
        return Measured({"frc_halves": curve.mean(dim=1)}, {"frc_halves": curve})


def unusable(case: Case) -> str | None:
    """The reason why the other half says nothing about the error of this case, or None."""
    if case.other is None:
        return _NO_OTHER
    a, b = (case.problem.scale.to_file(x).flatten(1) for x in (case.truth, case.other))
    means = torch.stack([a.mean(1), b.mean(1)])
    spread = torch.stack([a.std(1), b.std(1)]).amin(0)
    ratio = means[1] / means[0]
    if ((means.abs().amin(0) > spread) & ((ratio - 1).abs() > SCALE_TOLERANCE)).any():
        worst = ratio[(ratio - 1).abs().argmax()]
        return f"the halves are scaled differently: the mean of the other half is {worst:.3g} times that of the first"
    ratio = _signal_ratio(a.reshape(case.truth.shape), b.reshape(case.truth.shape))
    if (ratio.log().abs() > math.log1p(2 * SCALE_TOLERANCE)).any():
        worst = ratio[ratio.log().abs().nan_to_num(0.0).argmax()]
        return (f"the halves are scaled differently: the signal in the other half is {worst:.3g} times that in the "
                "first")  # fmt: skip
    return None


def _signal_ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The ratio of the signal in b to that in a, [B]; NaN where the signal is too weak to tell.

    With white noise of power N_a the signal in a has the power P_a - N_a, and the noise is P_a - Re <A, B*> where there
    is no signal, in the outer rings. The ratio is taken over the rings in which signal dominates in both images.
    """
    shape = tuple(a.shape[2:])
    spectra = [spectrum(image, None)[0] for image in (a, b)]
    counts = ring_counts(shape, a.device)
    cross = ring_sums(_product(*spectra), shape)
    powers = [ring_sums(_product(each, each), shape) for each in spectra]
    outer = torch.arange(counts.shape[1], device=a.device) >= 2 * counts.shape[1] // 3
    signals = []
    for power in powers:
        noise = ((power - cross)[:, outer].sum(1) / counts[:, outer].sum(1)).clamp_min(0)
        signals.append(power - noise[:, None] * counts)
    strong = (cross > HALF * (powers[0] * powers[1]).sqrt()) & (signals[0] > 0) & (signals[1] > 0)
    kept = [torch.where(strong, signal, 0.0).sum(1) for signal in signals]
    enough = torch.where(strong, counts, 0.0).sum(1) >= 1000  # a power from m coefficients varies by sqrt(2 / m)
    return torch.where(enough, (kept[1] / kept[0]).sqrt(), torch.nan)


@dataclass(frozen=True)
class _Rings:
    """Ring sums [B, R]: the power of the reconstruction, of the clean image, and the product of both. estimate_empty:
    which rings of the reconstruction hold only rounding errors."""

    estimate_power: torch.Tensor
    clean_power: torch.Tensor
    with_clean: torch.Tensor
    estimate_empty: torch.Tensor

    @classmethod
    def of(cls, case: Case, reconstruction: Reconstruction) -> _Rings:
        mask, shape = soft_mask(case), tuple(case.truth.shape[2:])
        answers, a, b = _centred(case, reconstruction)
        spectra, levels = zip(*(spectrum(answer, mask) for answer in answers), strict=True)
        first, second = (spectrum(image, mask)[0] for image in (a, b))
        mean = _mean(spectra)
        matched = _mean([_product(f, other) for f, other in zip(spectra, (second, first), strict=False)])
        power, clean, product = (
            ring_sums(values, shape) for values in (_product(mean, mean), _product(first, second), matched)
        )
        rounding = _mean(levels).flatten(1) * ring_counts(shape, power.device)
        return cls(power, clean, product, power <= rounding)


def _centred(case: Case, reconstruction: Reconstruction) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The reconstruction from a, or those from a and from b, then a and b, centred on the mean of a and b; float64."""
    assert case.other is not None
    a, b = case.truth.double(), case.other.double()
    middle = ((a + b) / 2).mean(dim=item_axes(a), keepdim=True)
    answers = reconstruction.halves or (reconstruction.x,)
    return [answer.double() - middle for answer in answers], a - middle, b - middle


def _unit_error_map(case: Case, reconstruction: Reconstruction) -> torch.Tensor:
    """`_error_map` with intensities in [0, 1]."""
    return case.unit_size(case.unit_size(_error_map(case, reconstruction)))


def _error_map(case: Case, reconstruction: Reconstruction) -> torch.Tensor:
    """The estimated squared error pixel by pixel, [B, C, *S]; only means over many pixels are meaningful."""
    answers, a, b = _centred(case, reconstruction)
    return _mean(answers).square() - 2 * _mean([f * other for f, other in zip(answers, (b, a), strict=False)]) + a * b


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(tensors)).mean(dim=0)


def _standard_error(case: Case, values: torch.Tensor) -> torch.Tensor:
    """The standard error of the mean of values [B, C, *S] over the evaluated pixels, [B], from independent blocks.

    With the sums Q_i over the evaluated pixels of block i, their number M_i, and the mean m = sum Q / sum M, it is
    sqrt(n / (n - 1) sum (Q_i - m M_i)^2) / sum M, the limit of a bootstrap of the n blocks.
    """
    shape = values.shape[2:]
    side = max(BLOCK, min(shape) // BLOCKS)
    mask = inside(case).expand(len(values), 1, *shape).double()
    sums, pixels = (_block_sums(x.sum(dim=1), side) for x in (values * mask, mask.expand_as(values)))
    kept = pixels.sum(0) > 0
    sums, pixels = sums[:, kept], pixels[:, kept]
    n = sums.shape[1]
    if n < 2:
        return torch.full((len(values),), torch.nan, dtype=torch.float64, device=values.device)
    mean = sums.sum(1, keepdim=True) / pixels.sum(1, keepdim=True)
    return (n / (n - 1) * (sums - mean * pixels).square().sum(1)).sqrt() / pixels.sum(1)


def _block_sums(values: torch.Tensor, side: int) -> torch.Tensor:
    """Sums over blocks of `side` pixels along every axis, [B, n]; the last along an axis is cut at the edge."""
    for axis in range(1, values.ndim):
        parts = values.split(side, dim=axis)
        values = torch.stack([part.sum(dim=axis) for part in parts], dim=axis)
    return values.flatten(1)


def _positive(
    values: dict[str, torch.Tensor], estimate: torch.Tensor, curves: dict[str, torch.Tensor] | None = None
) -> Measured:
    """The values where an estimate is positive, NaN with the reason elsewhere."""
    valid = estimate > 0
    kept = {name: torch.where(valid, value, torch.nan) for name, value in values.items()}
    return Measured(kept, curves or {}, {} if valid.all() else dict.fromkeys(values, _NOT_POSITIVE))


def _if_positive(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, values, torch.nan)


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Re F G* of two spectra."""
    return first.real * second.real + first.imag * second.imag
