"""The source `heterogeneous`: simulated particles of many structures in one stack, with the truth of each in the table.

`conformations.py` has the structures, `particle_imaging.py` poses, CTFs and noise. The noise has one level for all
images, so that it tells nothing of the structure: the variance of the signal, within the circle of the farthest atom,
of the first 64 particles over the signal-to-noise ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch

from cryobench.core import Source
from cryobench.errors import DataError, ParameterError, quoted
from cryobench.numerics.philox import RowDraws
from cryobench.physics.potential import Atoms
from cryobench.physics.projection import matrices
from cryobench.sources.conformations import Conformations, Labels, Mixture, Motion, axes_of, hinge_of
from cryobench.sources.particle_imaging import (
    CONFORMATION,
    ParticleStack,
    SimulatedParticles,
    check_settings,
    circle_of,
    drawn,
    imaged,
    table_of,
    unit_noise,
)
from cryobench.sources.specimen import FILL
from cryobench.sources.structures import Split, catalogue, file_of, middle, names_of, read_coordinates

if TYPE_CHECKING:
    import pandas as pd

MOTION, MIXTURE = "motion", "mixture"
_STRUCTURES = {MOTION: "6zu5", MIXTURE: "6zu5+6zu5-large"}
_MOVING = {"3o21": "A", "6zu5": "6zu5-small"}
_REFERENCE = 64
"""Particles whose signal states the level of the noise."""


@dataclass(frozen=True)
class Heterogeneous(Source):
    """Simulated particles of many structures in one stack: a motion, or a mixture, with poses, CTFs and truth known.

    `motion`: the chains `moving` turn about a hinge by `range` degrees in all, about one axis or two; `trueLatent`
    (`trueLatent1` and `trueLatent2`) in the table is the place on the way, from 0 to 1. Latents are uniform, or lie
    about 1/4 and 3/4 (`two-state`), whose number is `trueClass`. `mixture`: particles of several structures, or of
    parts of one in its frame (subunits present or absent); `trueClass` is the number, from 1.

    Particles, poses, CTFs and noise are as in `simulate`, except that the noise has one level for all images. The true
    volume of every particle is known.
    """

    kind: Annotated[Literal["motion", "mixture"], "a domain that moves, or several structures"] = "motion"
    structure: Annotated[
        str | None, "as of `simulate`; several joined by + are a mixture; none: 6zu5, or 6zu5+6zu5-large"
    ] = None
    snr: Annotated[float | None, "signal-to-noise ratio over all images; none for images without noise"] = 0.1
    count: Annotated[int, "number of images"] = 3000
    size: Annotated[int, "side of the images, in pixels"] = 64
    range: Annotated[float, "motion: degrees from one end to the other"] = 60.0
    axes: Annotated[int, "motion: axes about which the domain turns, 1 or 2"] = 1
    distribution: Annotated[Literal["uniform", "two-state"], "motion: of the latents"] = "uniform"
    width: Annotated[float, "two-state: standard deviation of the latents about 1/4 and 3/4"] = 0.05
    moving: Annotated[
        str | None, "motion: its chains, joined by commas, or a packaged part; none: A of 3o21, 6zu5-small of 6zu5"
    ] = None
    hinge: Annotated[str | None, "motion: x y z in Å, coordinates of the file; none: where both parts touch"] = None
    axis: Annotated[str | None, "motion: first axis, x y z; none: perpendicular to the line between the centres"] = None
    parts: Annotated[str | None, 'mixture: chains of each class of one structure, as "A,B;A,B,C"'] = None
    proportions: Annotated[str | None, "of the classes or states, as 7:2:1; none: equal"] = None
    pixel_size: Annotated[float | None, f"Å per pixel; none: the largest particle fills {FILL:g} of the box"] = None
    split: Annotated[Split, "split of the images; the splits are disjoint"] = "test"
    seed: Annotated[int, "seed of structures, poses, CTF and noise"] = 0
    assembly: Annotated[str | None, "biological assembly of a file to build; none: as deposited"] = None
    b_factor: Annotated[float, "B-factor of the atoms, Å^2"] = 50.0
    ctf: Annotated[bool, "apply the CTF; its parameters are known either way"] = True
    defocus: Annotated[float | None, "mean underfocus, Å; none: drawn, as measured on real particles"] = None
    astigmatism: Annotated[float | None, "difference of defocus U - V, Å; none: drawn, as measured"] = None
    voltage: Annotated[float, "kV"] = 300.0
    cs: Annotated[float, "spherical aberration, mm"] = 2.0
    amplitude_contrast: Annotated[float, "fraction of amplitude contrast"] = 0.1
    phase_shift: Annotated[float, "of a phase plate, degrees"] = 0.0
    envelope: Annotated[float, "B-factor of the CTF's envelope, Å^2"] = 50.0
    shift: Annotated[float, "standard deviation of in-plane shifts along x and y, Å"] = 4.0
    noise: Annotated[Literal["white", "solvent"], "white, or with the spectrum of ice fitted to real images"] = "white"
    invert: Annotated[bool, "dark protein, as on the raw micrograph"] = False

    def __post_init__(self) -> None:
        check_settings("heterogeneous", self)
        if not 0 < self.range <= 360:
            raise ParameterError(f"heterogeneous: range must be above 0 and at most 360 degrees, got {self.range:g}")
        if self.axes not in (1, 2):
            raise ParameterError(f"heterogeneous: axes must be 1 or 2, got {self.axes}")
        if not 0 <= self.width <= 0.25:
            raise ParameterError(f"heterogeneous: width must lie in [0, 0.25], got {self.width:g}")
        for name in ("hinge", "axis"):
            _vector(name, getattr(self, name))
        _ratio(self.proportions)
        of_others = {
            MOTION: {"parts": self.parts},
            MIXTURE: {"moving": self.moving, "hinge": self.hinge, "axis": self.axis},
        }
        for name, value in of_others[self.kind].items():
            if value is not None:
                other = MIXTURE if self.kind == MOTION else MOTION
                raise ParameterError(
                    f"heterogeneous: {name} is of a {other}; leave it out, or use heterogeneous:{other}"
                )
        if self.kind == MOTION and self.proportions is not None and self.distribution == "uniform":
            raise ParameterError("heterogeneous: a uniform motion has no proportions; add distribution=two-state")

    def open(self, device: torch.device | str = "cpu") -> HeterogeneousStack:
        """Read the structures; volumes are computed at first use. Raises `DataError` for invalid structures."""
        return HeterogeneousStack(self, torch.device(device))

    def open_on(self, device: torch.device | None) -> HeterogeneousStack:
        """`open`, on the CPU by default."""
        return self.open(device or "cpu")

    @property
    def structures(self) -> str:
        """The structures, or those of the kind where none is given."""
        return self.structure or _STRUCTURES[self.kind]


class HeterogeneousStack(ParticleStack):
    """Images of a `Heterogeneous`, computed when they are read."""

    def __init__(self, recipe: Heterogeneous, device: torch.device):
        super().__init__(recipe, device)
        self.recipe = recipe
        self._conformations = _motion(recipe, device) if recipe.kind == MOTION else _mixture(recipe, device)
        self._circle = circle_of(recipe.size, self._conformations.radius / self._conformations.pixel_size, device)
        self._draws = RowDraws(recipe.seed, "heterogeneous", recipe.kind, recipe.structures, recipe.split)
        noise = f"snr {recipe.snr:g}" if recipe.snr else "without noise"
        self.label = f"{recipe.kind} of {recipe.structures} {noise}"

    def files(self, images: Sequence[int]) -> list[Path]:
        """The files of the structures; none for packaged ones, whose images are determined by the recipe."""
        return [Path(name).expanduser() for name in names_of(self.recipe.structures) if name not in catalogue()]

    def pixel_size(self, index: int) -> float:
        """Å per pixel, the same for all images."""
        self.check(index)
        return self._conformations.pixel_size

    def particle_radius(self, index: int) -> float:
        """Å from the centre to the farthest atom of any particle."""
        self.check(index)
        return self._conformations.radius

    def volume(self, index: int) -> tuple[np.ndarray, float]:
        """The potential that image `index` is a projection of, in volts, and Å per voxel; minus the potential for
        images of inverted contrast."""
        self.check(index)
        found = self._conformations.volume(self._labels_of_all, index)
        return found * np.float32(-1 if self.recipe.invert else 1), self._conformations.pixel_size

    @property
    def table(self) -> pd.DataFrame:
        """CTF, pose and shift in RELION's columns and the truth in `trueClass` and `trueLatent`, a row per image."""
        return self._table

    @cached_property
    def _table(self) -> pd.DataFrame:
        table = table_of(drawn(self.recipe, self._draws, torch.arange(len(self))))
        for name, values in self._labels_of_all.columns().items():
            table[name] = values
        return table

    @property
    def origin(self) -> dict[str, str]:
        """Structures, split and seed."""
        names = ",".join(Path(name).name for name in names_of(self.recipe.structures))
        return {"structure": names, "split": self.recipe.split, "seed": str(self.recipe.seed)}

    def particles(self, indices: Sequence[int]) -> SimulatedParticles:
        """Simulate these images together, on the stack's device. `structure` is the class from 0, 0 without."""
        for index in indices:
            self.check(index)
        rows, recipe = torch.tensor(list(indices), device=self.device), self.recipe
        own, labels, projection, signal = self._signals(rows)
        pixel, image = self._conformations.pixel_size, signal
        if recipe.snr:
            image = signal + self._deviation * unit_noise(recipe, self._draws, rows, pixel)
        classes = torch.zeros_like(rows) if labels.classes is None else labels.classes
        return SimulatedParticles(
            projection, signal, image, own.rot, own.tilt, own.psi, own.shift, own.ctf,
            torch.full_like(own.rot, pixel), torch.full_like(own.rot, self._deviation), classes,
        )  # fmt: skip

    def _signals(self, rows: torch.Tensor):
        """The draws, labels, projections and signals of particles."""
        own, labels = drawn(self.recipe, self._draws, rows), self._labels(rows)
        spectra = self._conformations.slices(matrices(own.rot, own.tilt, own.psi).float(), labels)
        return own, labels, *imaged(self.recipe, spectra, own, self._conformations.pixel_size)

    def _labels(self, rows: torch.Tensor) -> Labels:
        return self._conformations.labels(self._draws.uniform(rows, CONFORMATION, self._conformations.fractions))

    @cached_property
    def _labels_of_all(self) -> Labels:
        return self._labels(torch.arange(len(self)))

    @cached_property
    def _deviation(self) -> float:
        """Standard deviation of the noise; it does not depend on the number of images."""
        if not self.recipe.snr:
            return 0.0
        *_, signal = self._signals(torch.arange(_REFERENCE, device=self.device))
        variance = signal.flatten(1)[:, self._circle].double().var(dim=1, correction=0).mean()
        return math.sqrt(variance.item() / self.recipe.snr)


def _motion(recipe: Heterogeneous, device: torch.device) -> Conformations:
    names = names_of(recipe.structures)
    if len(names) > 1:
        raise DataError(f"heterogeneous: a motion is of one structure, got {len(names)}; use heterogeneous:mixture")
    name = names[0]
    chains = recipe.moving or _MOVING.get(name)
    if chains is None:
        raise DataError(f"heterogeneous: {name} moves in no known way; give moving=, the chains that move")
    whole = read_coordinates(name, assembly=recipe.assembly)
    if chains in catalogue() and file_of(chains) == file_of(name):
        moving = read_coordinates(chains)
    else:
        moving = read_coordinates(name, chains=chains, assembly=recipe.assembly)
    of_domain = {tuple(position) for position in moving.positions.tolist()}
    stays = np.array([tuple(position) not in of_domain for position in whole.positions.tolist()])
    if not stays.any():
        raise DataError(f"heterogeneous: all of {name} moves; give fewer chains as moving")
    centre = middle(whole.positions)
    fixed = Atoms(whole.name, whole.positions[stays] - centre, whole.numbers[stays])
    moving = Atoms(whole.name, moving.positions - centre, moving.numbers)
    hinge, axis = _vector("hinge", recipe.hinge), _vector("axis", recipe.axis)
    axes = axes_of(fixed.positions, moving.positions)
    if axis is not None:
        first = axis / np.sqrt((axis**2).sum())
        line = moving.positions.mean(axis=0) - fixed.positions.mean(axis=0)
        second = np.cross(line, first)
        if (second**2).sum() < 1e-6 * (line**2).sum():
            second = np.cross(axes[0], first)
        axes = np.stack([first, second / np.sqrt((second**2).sum())])
    two_state = recipe.distribution == "two-state"
    return Motion(
        fixed, moving,
        hinge_of(fixed.positions, moving.positions) if hinge is None else hinge - centre,
        axes[: recipe.axes], recipe.range, recipe.width if two_state else None, _shares(recipe.proportions, 2),
        recipe.size, recipe.pixel_size, recipe.b_factor, device,
    )  # fmt: skip


def _mixture(recipe: Heterogeneous, device: torch.device) -> Conformations:
    names = names_of(recipe.structures)
    chains = ["all"] * len(names)
    if recipe.parts is not None:
        if recipe.structure is None or len(names) > 1:
            raise DataError("heterogeneous: parts are of one structure; give it as structure=")
        chains = [part.strip() for part in recipe.parts.split(";")]
        names = names * len(chains)
    if len(names) < 2:
        raise DataError(
            f"heterogeneous: a mixture needs two structures or more, got {names[0]}; join them by +, or give parts="
        )
    atoms = [read_coordinates(name, chains=own, assembly=recipe.assembly)
             for name, own in zip(names, chains, strict=True)]  # fmt: skip
    centres: dict[str, np.ndarray] = {}
    for file in {file_of(name) for name in names}:  # what is of one file stays in its frame
        own = [each for each, name in zip(atoms, names, strict=True) if file_of(name) == file]
        centres[file] = middle(np.concatenate([each.positions for each in own]))
    centred = [
        Atoms(each.name, each.positions - centres[file_of(name)], each.numbers)
        for each, name in zip(atoms, names, strict=True)
    ]
    shares = _shares(recipe.proportions, len(names))
    return Mixture(centred, shares, recipe.size, recipe.pixel_size, recipe.b_factor, device)


def _ratio(text: str | None) -> list[float] | None:
    """The numbers of a ratio such as 7:2:1. Raises `ParameterError` unless all are positive."""
    if text is None:
        return None
    try:
        numbers = [float(number) for number in text.split(":")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ParameterError(f"heterogeneous: proportions must be positive numbers such as 7:2:1, got {quoted(text)}")
    return numbers


def _shares(text: str | None, count: int) -> list[float]:
    """The shares of `count` classes, which add up to 1."""
    numbers = _ratio(text) or [1.0] * count
    if len(numbers) != count:
        raise DataError(f"heterogeneous: {len(numbers)} proportions for {count} classes; give one for each")
    return [number / sum(numbers) for number in numbers]


def _vector(name: str, text: str | None) -> np.ndarray | None:
    """Three numbers, float64 [3]. Raises `ParameterError` for others, and for an axis of length 0."""
    if text is None:
        return None
    try:
        vector = np.array([float(number) for number in text.replace(",", " ").split()])
    except ValueError:
        vector = np.empty(0)
    if vector.shape != (3,) or not np.isfinite(vector).all() or (name == "axis" and not vector.any()):
        raise ParameterError(f'heterogeneous: {name} must be three numbers such as "10 -5 0", got {quoted(text)}')
    return vector
