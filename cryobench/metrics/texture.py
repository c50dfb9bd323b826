"""Whether a reconstruction is as rough as the truth: its fine detail, and the jumps between its sections.

Neither is an error: noise of the right power scores as well as the right detail. 1 is right; a blurred result is below,
and draws made section by section are above along z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.missing import not_measured
from cryobench.metrics.rings import ring_frequencies, ring_sums
from cryobench.metrics.spectral import power, spectrum
from cryobench.metrics.within import inside, soft_mask
from cryobench.numerics.linalg import item_axes

FINE = 1 / 4
"""The lowest frequency that counts as fine detail, cycles per pixel: half the Nyquist frequency."""


@dataclass(frozen=True)
class PowerRatio(Metric):
    """The power at frequencies of 1/4 to 1/2 cycles per pixel, over that of the truth. Neither more nor less is better:
    1 is right."""

    dims = (2, 3)
    columns = (Column("power_ratio", "none"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        mask, shape = soft_mask(case), tuple(case.truth.shape[2:])
        fine = ring_frequencies(shape) >= FINE
        powers = []
        for image in (reconstruction.x, case.truth):
            transformed, level = spectrum(image.double(), mask)
            powers.append((ring_sums(power(transformed), shape)[:, fine].sum(dim=1), level.flatten()))
        (estimate, _), (truth, level) = powers
        ratio = torch.where(truth > level, estimate / truth, torch.nan)
        missing = {"power_ratio": "the truth has no power at these frequencies"} if ratio.isnan().any() else {}
        return Measured({"power_ratio": ratio}, unmeasured=missing)


@dataclass(frozen=True)
class SectionRatio(Metric):
    """The root mean square difference between neighbouring sections of a volume (rows of an image), over that of the
    truth. Neither more nor less is better: 1 is right."""

    dims = (2, 3)
    columns = (Column("section_ratio", "none"),)

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        mask = inside(case).expand(-1, -1, *case.truth.shape[2:])
        both = mask[:, :, 1:] & mask[:, :, :-1]
        estimate, truth = (
            torch.where(both, x.double().diff(dim=2).square(), 0.0).sum(dim=item_axes(x))
            for x in (reconstruction.x, case.truth)
        )
        if not (truth > 0).all():
            return not_measured(self, case, "the truth is the same in all sections")
        return Measured({"section_ratio": (estimate / truth).sqrt()})
