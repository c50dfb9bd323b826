"""The published protocol for denoised micrographs: PSNR and SSIM against the other half and against the input.

Intensities are divided by the 95th percentile of the input half and clipped to [0, 1]. Neither number is an error. Both
halves contain noise: against the other half a perfect answer gains at most 10 log10(2) = 3.01 dB over the input, and
its value depends on the dose per pixel alone. Against the input an answer that changes nothing is best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.core import Case, Column, Measured, Metric, Reconstruction
from cryobench.metrics.fidelity import WINDOW, ssim
from cryobench.metrics.missing import not_measured
from cryobench.metrics.within import mean_inside

SCALING = "p95"


@dataclass(frozen=True)
class P95(Metric):
    """PSNR in dB and SSIM against the other half (`p95_psnr_other`, `p95_ssim_other`) and against the input
    (`p95_psnr_raw`, `p95_ssim_raw`), intensities clipped to [0, 1] between 0 and the 95th percentile of the input."""

    columns = (
        Column("p95_psnr_other", "higher", "dB"),
        Column("p95_ssim_other", "higher"),
        Column("p95_psnr_raw", "none", "dB"),
        Column("p95_ssim_raw", "none"),
    )
    against_truth = False
    uses_other = True

    def measure(self, case: Case, reconstruction: Reconstruction) -> Measured:
        if case.problem.scale.name != SCALING:
            return not_measured(self, case, "the protocol p95 needs --scaling p95; give --protocol p95")
        if min(case.truth.shape[2:]) < WINDOW:
            return not_measured(self, case, f"the window of SSIM is {WINDOW} pixels wide, and the images are smaller")
        values: dict[str, torch.Tensor] = {}
        reasons = {}
        answer = reconstruction.x.double().clamp(0, 1)
        for name, image in (("other", case.other), ("raw", case.truth)):
            columns = [f"p95_psnr_{name}", f"p95_ssim_{name}"]
            if image is None:
                missing = torch.full((len(case.truth),), torch.nan, dtype=torch.float64)
                values |= dict.fromkeys(columns, missing)
                reasons |= dict.fromkeys(columns, "the data have no second image of the specimen")
                continue
            clipped = image.double().clamp(0, 1)
            error = mean_inside(case, (answer - clipped).square())
            values |= {columns[0]: -10 * error.log10(), columns[1]: ssim(case, clipped, answer)}
        return Measured(values, unmeasured=reasons)
