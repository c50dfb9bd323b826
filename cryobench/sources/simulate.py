"""The source `simulate`: particle images of atomic structures, with clean images, poses and CTF known.

    atoms -> potential V -> projection P = slice of V, rotated and shifted -> signal = CTF * P -> image = signal + noise

`particle_imaging.py` has what follows the slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import torch

from cryobench.core import Source
from cryobench.errors import ParameterError
from cryobench.limits import available_memory
from cryobench.numerics.philox import RowDraws
from cryobench.physics.projection import Projector, matrices
from cryobench.sources.particle_imaging import (
    ParticleStack,
    SimulatedParticles,
    check_settings,
    circle_of,
    drawn,
    imaged,
    table_of,
    unit_noise,
)
from cryobench.sources.specimen import BYTES_PER_VOXEL, FILL, Specimen
from cryobench.sources.structures import Atoms, Split, catalogue, names_of, read_structure

if TYPE_CHECKING:
    import pandas as pd

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Simulate(Source):
    """Images simulated from atomic structures, with clean images, poses and CTF known.

    The signal-to-noise ratio is the variance of the CTF-modulated signal, within the circle whose radius is that of the
    farthest atom, over the variance of the noise. Protein is white where the CTF is positive, as in particles for
    RELION; `invert=true` makes it dark, as on the micrograph. Water molecules are omitted.
    """

    structure: Annotated[
        str,
        "packaged name, mmCIF or PDB file, several joined by + (images take turns), or a split of the packaged ones: "
        "train, val or test; folds or folds-val: more, for training",
    ] = "6zu5"
    snr: Annotated[float | None, "signal-to-noise ratio; none for images without noise"] = 0.1
    count: Annotated[int, "number of images"] = 256
    size: Annotated[int, "side of the images, in pixels"] = 128
    pixel_size: Annotated[float | None, f"Å per pixel; none: the particle fills {FILL:g} of the box"] = None
    split: Annotated[Split, "split of the images; the splits are disjoint"] = "test"
    seed: Annotated[int, "seed of poses, CTF and noise"] = 0
    chains: Annotated[str, "chains of the structure, joined by commas, or all"] = "all"
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
    empty: Annotated[bool, "the noise of the images without the particles, as a control"] = False

    def __post_init__(self) -> None:
        check_settings("simulate", self)
        if self.empty and self.snr is None:
            raise ParameterError("simulate: empty=true leaves nothing of images without noise; give an snr")

    def open(self, device: torch.device | str = "cpu") -> SimulatedStack:
        """Read the structures; volumes are computed at first use. Raises `DataError` for invalid structures."""
        return SimulatedStack(self, torch.device(device))

    def open_on(self, device: torch.device | None) -> SimulatedStack:
        """`open`, on the CPU by default."""
        return self.open(device or "cpu")


class _Projected(Specimen):
    """A structure, the circle of its particle in an image, and the random numbers of its images."""

    def __init__(self, atoms: Atoms, recipe: Simulate, device: torch.device):
        super().__init__(atoms, recipe.size, recipe.pixel_size, recipe.b_factor)
        self._device = device
        self.circle = circle_of(recipe.size, self.radius / self.pixel_size, device)
        self.draws = RowDraws(recipe.seed, atoms.name, recipe.split)

    @cached_property
    def projector(self) -> Projector:
        """The potential in volts, ready to be projected."""
        return Projector(torch.from_numpy(self.potential).to(self._device))


class SimulatedStack(ParticleStack):
    """Images of a `Simulate`, computed when they are read. Image i shows structure i modulo their number."""

    def __init__(self, recipe: Simulate, device: torch.device):
        super().__init__(recipe, device)
        self.recipe = recipe
        atoms = [read_structure(name, chains=recipe.chains, assembly=recipe.assembly)
                 for name in names_of(recipe.structure)]  # fmt: skip
        self._specimens = [_Projected(structure, recipe, device) for structure in atoms]
        noise = f"snr {recipe.snr:g}" if recipe.snr else "without noise"
        names = "+".join(structure.name for structure in atoms)
        self.label = f"{'noise alone, as of ' if recipe.empty else ''}simulated {names} {noise}"

    def files(self, images: Sequence[int]) -> list[Path]:
        """The files of the structures; none for packaged ones, whose images are determined by the recipe."""
        return [Path(name).expanduser() for name in names_of(self.recipe.structure) if name not in catalogue()]

    def pixel_size(self, index: int) -> float:
        """Å per pixel of image `index`."""
        self.check(index)
        return self._specimens[index % len(self._specimens)].pixel_size

    def particle_radius(self, index: int) -> float:
        """Å from the centre of the structure to its farthest atom; the particle may be shifted in image `index`."""
        self.check(index)
        return self._specimens[index % len(self._specimens)].radius

    def volume(self, index: int) -> tuple[np.ndarray, float]:
        """The potential that image `index` is a projection of, in volts, and Å per voxel; minus the potential for
        images of inverted contrast."""
        self.check(index)
        specimen = self._specimens[index % len(self._specimens)]
        return specimen.potential * np.float32(-1 if self.recipe.invert else 1), specimen.pixel_size

    @property
    def table(self) -> pd.DataFrame:
        """CTF, pose, shift and the number of the structure (as class), a row per image, in RELION's columns."""
        return self._table

    @cached_property
    def _table(self) -> pd.DataFrame:
        found = self._by_specimen(
            range(len(self)), lambda number, rows: drawn(self.recipe, self._specimens[number].draws, rows.cpu())
        )
        table = table_of(found)
        table["rlnClassNumber"] = np.arange(len(self)) % len(self._specimens) + 1
        return table

    @property
    def origin(self) -> dict[str, str]:
        """Structures, split and seed."""
        names = ",".join(specimen.name for specimen in self._specimens)
        return {"structure": names, "split": self.recipe.split, "seed": str(self.recipe.seed)}

    def particles(self, indices: Sequence[int]) -> SimulatedParticles:
        """Simulate these images together, on the stack's device."""
        for index in indices:
            self.check(index)
        self._compute_potentials({index % len(self._specimens) for index in indices})
        return self._by_specimen(indices, self._of_one_specimen)

    def _compute_potentials(self, numbers: set[int]) -> None:
        """Compute the missing potentials of these structures, several at once: each takes a thread half a second."""
        missing = [specimen for number in sorted(numbers) if not (specimen := self._specimens[number]).has_potential]
        threads = min(len(missing), torch.get_num_threads(), self._potentials_in_memory)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda specimen: specimen.potential, missing))

    @property
    def _potentials_in_memory(self) -> int:
        """The number of potentials that a quarter of the free memory suffices to compute at once."""
        return int(available_memory() / 4 / (BYTES_PER_VOXEL * self.recipe.size**3))

    def _by_specimen(self, indices: Sequence[int], make: Callable[[int, torch.Tensor], _Made]) -> _Made:
        """The results of `make(structure number, indices [n])` of each structure, in the order of `indices`."""
        rows = torch.tensor(list(indices), device=self.device)
        of = rows % len(self._specimens)
        chosen = [(of == number).nonzero()[:, 0] for number in range(len(self._specimens))]
        parts = [make(number, rows[places]) for number, places in enumerate(chosen) if len(places)]
        return _joined(parts, torch.cat(chosen).argsort())

    def _of_one_specimen(self, number: int, rows: torch.Tensor) -> SimulatedParticles:
        recipe, specimen = self.recipe, self._specimens[number]
        own, pixel = drawn(recipe, specimen.draws, rows), specimen.pixel_size
        rotations = matrices(own.rot, own.tilt, own.psi).float()
        projection, signal = imaged(recipe, specimen.projector.slices(rotations), own, pixel)
        inside = signal.flatten(1)[:, specimen.circle].double()
        deviation = inside.var(dim=1, correction=0).div(recipe.snr or math.inf).sqrt().float()
        if recipe.empty:
            signal = torch.zeros_like(signal)
        image = signal
        if recipe.snr:
            image = signal + unit_noise(recipe, specimen.draws, rows, pixel) * deviation[:, None, None]
        return SimulatedParticles(
            projection, signal, image, own.rot, own.tilt, own.psi, own.shift, own.ctf,
            torch.full_like(own.rot, pixel), deviation, torch.full_like(rows, number),
        )  # fmt: skip


def _joined(parts: Sequence[_Made], order: torch.Tensor) -> _Made:
    """Dataclasses of tensors [n, ...], or of such dataclasses, concatenated and then put in this order."""
    if len(parts) == 1:
        return parts[0]

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], torch.Tensor):
            return torch.cat(list(values))[order.to(values[0].device)]
        return _joined(values, order)

    made: Any = type(parts[0])
    return made(**{field.name: joined([getattr(part, field.name) for part in parts]) for field in fields(made)})
