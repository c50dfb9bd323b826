"""The ceiling: the best reconstruction of a noisy image from exact measurements, computed from the truth.

    ceiling = clean + A^+ A (noisy - clean)

The measured image is the sum of a clean image and noise. Exact measurements determine the component A^+ A noise; if
the noise is white (and Gaussian), the rest is independent of it and unpredictable. The ceiling is therefore the mean of
the measured image given the measurements and the clean image: even someone who knew the clean image could not achieve a
lower expected squared error. It bounds only the PSNR to the measured image, not that to the clean image.
"""

from __future__ import annotations

import torch

from cryobench.core import Case, Reconstruction
from cryobench.errors import Unsupported
from cryobench.operators.noise import NoNoise
from cryobench.plan.grid import Cell
from cryobench.runner.checks import batches


def ceiling(cell: Cell, case: Case, batch: int) -> Reconstruction:
    """The ceiling of the images of a case, [B, 1, H, W]. Raises `Unsupported` where it is not a bound."""
    truth, clean, operator = case.truth, _clean(cell, case), case.problem.operator
    parts = [
        clean[part] + operator.select(part).A_dagger_A(truth[part] - clean[part]) for part in batches(len(truth), batch)
    ]
    return Reconstruction(torch.cat(parts))


def _clean(cell: Cell, case: Case) -> torch.Tensor:
    """The clean images. Raises `Unsupported` where the ceiling computed from them is not a bound."""
    if type(cell.noise) is not NoNoise:
        raise Unsupported("the ceiling is defined only for exact measurements; use noise none")
    if case.clean is None:
        raise Unsupported("the clean images are not known; use simulated images")
    if cell.dataset.white_noise is False:
        raise Unsupported("the ceiling is defined only for images with white noise, and this noise is not white")
    return case.clean
