"""`heterogeneity`: what the answer of a solver for many structures is worth, particle by particle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from cryobench.core import Column, Gathering, Imaging, JointMetric, MeasuredTogether, Reconstruction, Structure
from cryobench.core.heterogeneity import TRUE_CLASS, TRUE_LATENT, Heterogeneity
from cryobench.errors import CryobenchError, ParameterError, reason_of
from cryobench.io.star import origins_in_angstrom
from cryobench.maps.alignment import Alignment, align_poses
from cryobench.maps.fsc import shell_correlation
from cryobench.maps.inversion import particle_mask
from cryobench.maps.latents import agreement, clusters, hit_rate, rank_correlation
from cryobench.physics.poses import ANGLES, Poses

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 8
"""Maps that are made at once."""
_LEAST_OF_CLASS = 20
"""Fewest particles of a class with a frame of its own: a frame would fit the wrong poses of a few."""
_NO_ANSWER = "the solver gives no map for each particle; use one for many structures"
_ONE_MAP = "one map for all particles has no latents"
_NO_TRUTH = "the true maps of the particles are not known"
_NO_CLASSES = "the particles have no true classes, or all the same (trueClass)"
_NO_COORDINATES = "the particles have no true coordinate (trueLatent)"
_NO_LABELS = "the particles have neither true classes nor true coordinates"
_GIVEN = "the poses were given"


@dataclass(frozen=True)
class HeterogeneityMetric(JointMetric):
    """The maps, latents and poses that a solver for many structures finds for the particles, against the true ones.

    `het_fsc`: the Fourier shell correlation of the map of a particle, made from its latent, with its true map, averaged
    over the shells to the Nyquist frequency and over a sample of the particles, evenly spaced. `het_fsc_masked`: the
    same under a ball of the radius of the particle with a soft edge. Where the solver sought the poses, its maps are
    turned and shifted first, and mirrored where that fits better, as its poses are relative to the true ones
    (`maps.alignment`), in a frame of each true class of at least 20 particles that is no state of a motion: separate
    maps have no common frame. `het_ari`, `het_ami`: the adjusted Rand index and mutual information of the true classes
    and as many clusters of the latents by k-means++. `het_rank`: the largest absolute rank correlation of a principal
    component of the latents with the true coordinate; the mean over the coordinates where there are two. `het_hits`: of
    the 10 nearest neighbours of a particle in the latents, the fraction among the 10% nearest in the true coordinates,
    or else of its class. `pose_degrees`, `pose_pixels`: median errors of poses that the solver sought, after the
    alignment.
    """

    columns = (
        Column("het_fsc", "higher"),
        Column("het_fsc_masked", "higher"),
        Column("het_ari", "higher"),
        Column("het_ami", "higher"),
        Column("het_rank", "higher"),
        Column("het_hits", "higher"),
        Column("pose_degrees", "lower", "deg"),
        Column("pose_pixels", "lower", "px"),
    )

    sample: Annotated[int, "particles whose maps are compared"] = 100

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ParameterError(f"heterogeneity: sample must be at least 1, got {self.sample}")

    def gather(self, imaging: Imaging, structure: Structure) -> Gathering:
        return _Answer(self, imaging, structure)


class _Answer(Gathering):
    """The answer of the solver; its images are not needed."""

    def __init__(self, metric: HeterogeneityMetric, imaging: Imaging, structure: Structure):
        self._metric, self._imaging, self._structure = metric, imaging, structure
        self._found: Heterogeneity | None = None
        self._values: dict[str, float] = {}
        self._unmeasured: dict[str, str] = {}
        self._curves: dict[str, torch.Tensor] = {}

    def add(self, images: torch.Tensor, answer: Reconstruction) -> None:
        self._found = answer.heterogeneity or self._found

    def measure(self) -> MeasuredTogether:
        names = [column.name for column in self._metric.columns]
        self._values = dict.fromkeys(names, math.nan)
        if self._found is None:
            return MeasuredTogether(self._values, {}, dict.fromkeys(names, _NO_ANSWER))
        self._measure_latents(self._found)
        alignments, reason = self._alignments(self._found)
        if alignments:
            for name, errors in (("pose_degrees", "angle_errors"), ("pose_pixels", "shift_errors")):
                self._values[name] = torch.cat([getattr(each, errors) for each in alignments]).median().item()
        else:
            self._missing(reason, "pose_degrees", "pose_pixels")
        if not alignments and self._found.rotations is not None:
            self._missing(reason, "het_fsc", "het_fsc_masked")
        else:
            self._measure_maps(self._found, alignments)
        return MeasuredTogether(self._values, self._curves, self._unmeasured)

    def _missing(self, reason: str, *names: str) -> None:
        self._unmeasured.update(dict.fromkeys(names, reason))

    def _measure_maps(self, found: Heterogeneity, alignments: list[Alignment]) -> None:
        n, make = len(found.latents), self._structure.of
        sample = torch.linspace(0, n - 1, min(n, self._metric.sample)).round().long()
        size = self._imaging.pixel_size[0] or 1.0
        mask = particle_mask(self._imaging.shape[0], self._structure.radius, self._imaging.pixel_size[0])
        curves: list[torch.Tensor] = []
        masked: list[torch.Tensor] = []
        for some in sample.split(_AT_ONCE):
            volumes = found.model.volumes(found.latents[some]).double().cpu()
            for place, volume in zip(some.tolist(), volumes, strict=True):
                true = None if make is None else make(place)
                if true is None:
                    self._missing(_NO_TRUTH, "het_fsc", "het_fsc_masked")
                    return
                own = alignments[self._frames[place]].apply(volume) if alignments else volume
                true = true.double() * size
                curves.append(shell_correlation(own, true))
                masked.append(shell_correlation(own, true, mask))
        for name, all_curves in (("het_fsc", torch.stack(curves)), ("het_fsc_masked", torch.stack(masked))):
            self._values[name] = all_curves.mean().item()
            self._curves[name] = all_curves.mean(dim=0)
            self._curves[f"{name}_of_particles"] = all_curves.mean(dim=1)

    def _measure_latents(self, found: Heterogeneity) -> None:
        classes, truth = labels_of(self._imaging.table)
        latents = found.latents.double().cpu().numpy()
        names = ("het_ari", "het_ami", "het_rank", "het_hits")
        if latents.shape[1] == 0:
            self._missing(_ONE_MAP, *names)
            return
        if not np.isfinite(latents).all():
            self._missing("some latents are not finite", *names)
            return
        if classes is None:
            self._missing(_NO_CLASSES, "het_ari", "het_ami")
        else:
            grouped = clusters(latents, len(np.unique(classes)))
            self._values["het_ari"], self._values["het_ami"] = agreement(grouped, classes)
        if truth is None:
            self._missing(_NO_COORDINATES, "het_rank")
        else:
            self._values["het_rank"] = rank_correlation(latents, truth)
        if classes is None and truth is None:
            self._missing(_NO_LABELS, "het_hits")
        elif truth is not None:
            self._values["het_hits"] = hit_rate(latents, truth=truth)
        else:
            self._values["het_hits"] = hit_rate(latents, classes=classes)

    def _alignments(self, found: Heterogeneity) -> tuple[list[Alignment], str]:
        """The frames of poses that the solver sought, one of each of `_frames`, or why there are none."""
        table = self._imaging.table
        if found.rotations is None or found.shift is None:
            return [], _GIVEN
        if table is None or not set(ANGLES) <= set(table.columns):
            return [], "the true poses are not known"
        size = self._imaging.pixel_size[0] or 1.0
        try:
            true = Poses.from_table(origins_in_angstrom(table, None, "the table"), "the table")
            return [
                align_poses(found.rotations[own], true.matrices[own], found.shift[own], true.shift[own], size)
                for own in (torch.from_numpy(self._frames == frame) for frame in range(self._frames.max() + 1))
            ], ""
        except CryobenchError as error:
            return [], reason_of(error)

    @cached_property
    def _frames(self) -> np.ndarray:
        """The number of the frame of each particle, from 0: that of its true class where classes are not states of a
        motion and have enough particles to show wrong poses."""
        classes, truth = labels_of(self._imaging.table)
        if classes is None or truth is not None or np.unique(classes, return_counts=True)[1].min() < _LEAST_OF_CLASS:
            return np.zeros(len(self._imaging.pixel_size), dtype=int)
        return np.unique(classes, return_inverse=True)[1]


def labels_of(table: pd.DataFrame | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The true classes [N], if there are several, and the true coordinates [N, t]; None without."""
    if table is None:
        return None, None
    classes = table[TRUE_CLASS].to_numpy() if TRUE_CLASS in table.columns else None
    if classes is not None and len(np.unique(classes)) < 2:
        classes = None
    names = sorted(name for name in table.columns if str(name).startswith(TRUE_LATENT))
    return classes, table[names].to_numpy(np.float64) if names else None
