"""The ceiling: the best reconstruction of a noisy image from exact measurements, computed from the truth.

    ceiling = clean + A^+ A (noisy - clean)

The measured image is the sum of a clean image and noise. Exact measurements determine the component A^+ A noise; if
the noise is white (and Gaussian), the rest is independent of it and unpredictable. The ceiling is therefore the mean of
the measured image given the measurements and the clean image: even someone who knew the clean image could not achieve a
lower expected squared error. It bounds only the PSNR to the measured image, not that to the clean image.

Of many structures in one stack, where the metric `heterogeneity` is computed, the ceiling also has the maps that the
images give with their true poses and true labels (`maps.true_labels`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from cryobench.core import AnyMetric, Case, Reconstruction
from cryobench.errors import Unsupported
from cryobench.maps.heterogeneity import HeterogeneityMetric
from cryobench.maps.particle_images import particle_images
from cryobench.maps.true_labels import has_labels, true_label_maps
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


def needs_all(cell: Cell, metrics: Sequence[AnyMetric]) -> bool:
    """Whether the ceiling of a cell is of all its images together, because it has the maps of many structures."""
    return any(isinstance(metric, HeterogeneityMetric) for metric in metrics) and has_labels(cell.dataset.imaging)


def ceiling_with_maps(cell: Cell, case: Case, batch: int) -> Reconstruction:
    """The ceiling of all images of a cell, with the maps of their true labels."""
    imaging = cell.dataset.imaging
    found = particle_images(dataclasses.replace(case.problem, imaging=imaging), "the ceiling")
    radii = [radius for radius in cell.dataset.particle_radius if radius is not None]
    make, size = cell.dataset.structure().of, found.pixel_size

    def true(place: int) -> torch.Tensor | None:
        volume = None if make is None else make(place)
        return None if volume is None else volume * size

    maps = true_label_maps(found.images, found.particles, imaging, radius=max(radii, default=None), true=true)
    return dataclasses.replace(ceiling(cell, case, batch), heterogeneity=maps)


def _clean(cell: Cell, case: Case) -> torch.Tensor:
    """The clean images. Raises `Unsupported` where the ceiling computed from them is not a bound."""
    if type(cell.noise) is not NoNoise:
        raise Unsupported("the ceiling is defined only for exact measurements; use noise none")
    if case.clean is None:
        raise Unsupported("the clean images are not known; use simulated images")
    if cell.dataset.white_noise is False:
        raise Unsupported("the ceiling is defined only for images with white noise, and this noise is not white")
    return case.clean
