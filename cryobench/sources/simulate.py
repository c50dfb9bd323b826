"""The source `simulate`: particle images of atomic structures, with clean images, poses and CTF known.

    atoms -> potential V -> projection P = slice of V, rotated and shifted -> signal = CTF * P -> image = signal + noise

The random numbers of a particle depend only on (seed, structure, split, its number), so that particle 17 is the same in
any batch. They come from a counter-based generator (`philox.py`), for all particles at once and on the device.
The CTF acts on the box as a circular convolution, as the operator `ctf` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import torch

from cryobench.core import Source, Stack
from cryobench.errors import ParameterError, shortened
from cryobench.limits import available_memory, check_memory
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.philox import RowDraws
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.projection import Projector, euler_angles, matrices, shift_phase
from cryobench.sources.specimen import BYTES_PER_VOXEL, FILL, Specimen
from cryobench.sources.structures import Atoms, Split, catalogue, names_of, read_structure

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 16
"""Number of images simulated at once when one is read, since its neighbours are likely to be read next."""
_MAX_COUNT = 2**32
"""The random numbers of `philox.RowDraws` repeat beyond this number of images."""
_BYTES_PER_IMAGE = 650
"""Peak memory in bytes of the table of the images, for each, as measured."""
_POSE, _SHIFT, _CTF, _SOLVENT = range(4)
"""The purposes of a particle's random numbers."""
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
        for name, least in (("count", 1), ("size", 8), ("b_factor", 0), ("envelope", 0), ("shift", 0), ("cs", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ParameterError(f"simulate: {name} must be at least {least}, got {getattr(self, name):g}")
        if self.count > _MAX_COUNT:
            raise ParameterError(f"simulate: count must be at most 2^32, got {shortened(str(self.count), 30)}")
        check_memory("simulate", _BYTES_PER_IMAGE * self.count, "give a smaller count")
        check_memory(
            f"simulate with a volume of {shortened(str(self.size), 30)}^3 voxels", BYTES_PER_VOXEL * self.size**3,
            "give a smaller size",
        )  # fmt: skip
        for name in ("snr", "pixel_size", "voltage"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ParameterError(f"simulate: {name} must be positive, got {value:g}")
        if self.empty and self.snr is None:
            raise ParameterError("simulate: empty=true leaves nothing of images without noise; give an snr")
        if not 0 <= self.amplitude_contrast <= 1:
            raise ParameterError(f"simulate: amplitude_contrast must lie in [0, 1], got {self.amplitude_contrast:g}")
        for name in ("defocus", "astigmatism", "phase_shift"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ParameterError(f"simulate: {name} must be finite, got {getattr(self, name)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ParameterError(f"simulate: seed must fit in 64 bits, got {self.seed}")

    def open(self, device: torch.device | str = "cpu") -> SimulatedStack:
        """Read the structures; volumes are computed at first use. Raises `DataError` for invalid structures."""
        return SimulatedStack(self, torch.device(device))

    def open_on(self, device: torch.device | None) -> SimulatedStack:
        """`open`, on the CPU by default."""
        return self.open(device or "cpu")


@dataclass(frozen=True, eq=False)
class SimulatedParticles:
    """Simulated particles and their parameters.

    projection: of the potential, V Å; signal: the projection through the CTF; image: the signal with its noise; each
    float32 [B, H, W]. rot, tilt, psi: RELION's Euler angles, degrees [B]. shift: of the particle (x, y), Å [B, 2].
    ctf: parameters. pixel_size: Å [B]. noise_deviation: standard deviation of the noise [B]. structure: its number [B].
    """

    projection: torch.Tensor
    signal: torch.Tensor
    image: torch.Tensor
    rot: torch.Tensor
    tilt: torch.Tensor
    psi: torch.Tensor
    shift: torch.Tensor
    ctf: CtfParameters
    pixel_size: torch.Tensor
    noise_deviation: torch.Tensor
    structure: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Draws:
    """The random parameters of particles; see `SimulatedParticles`."""

    rot: torch.Tensor
    tilt: torch.Tensor
    psi: torch.Tensor
    shift: torch.Tensor
    ctf: CtfParameters


class _Projected(Specimen):
    """A structure, the circle of its particle in an image, and the random numbers of its images."""

    def __init__(self, atoms: Atoms, recipe: Simulate, device: torch.device):
        super().__init__(atoms, recipe.size, recipe.pixel_size, recipe.b_factor)
        n, self._device = recipe.size, device
        centred = torch.arange(n, device=device) - n // 2
        circle = (centred[:, None] ** 2 + centred**2) <= max(self.radius / self.pixel_size, 1.0) ** 2
        self.circle = circle.flatten().nonzero()[:, 0]
        self.draws = RowDraws(recipe.seed, atoms.name, recipe.split)

    @cached_property
    def projector(self) -> Projector:
        """The potential in volts, ready to be projected."""
        return Projector(torch.from_numpy(self.potential).to(self._device))


class SimulatedStack(Stack):
    """Images of a `Simulate`, computed when they are read. Image i shows structure i modulo their number."""

    def __init__(self, recipe: Simulate, device: torch.device):
        self.recipe, self.device = recipe, device
        atoms = [read_structure(name, chains=recipe.chains, assembly=recipe.assembly)
                 for name in names_of(recipe.structure)]  # fmt: skip
        self._specimens = [_Projected(structure, recipe, device) for structure in atoms]
        self.shape = (recipe.size, recipe.size)
        noise = f"snr {recipe.snr:g}" if recipe.snr else "without noise"
        names = "+".join(structure.name for structure in atoms)
        self.label = f"{'noise alone, as of ' if recipe.empty else ''}simulated {names} {noise}"
        self.through_ctf = recipe.ctf
        self._last: tuple[tuple[int, ...], SimulatedParticles] | None = None

    def __len__(self) -> int:
        return self.recipe.count

    def read(self, index: int) -> np.ndarray:
        """Image `index` with its noise, float32 [H, W], V Å."""
        return self._one(index, "image")

    def clean(self, index: int) -> np.ndarray:
        """Image `index` through the CTF and without noise, float32 [H, W], V Å."""
        return self._one(index, "signal")

    def files(self, images: Sequence[int]) -> list[Path]:
        """The files of the structures; none for packaged ones, whose images are determined by the recipe."""
        return [Path(name).expanduser() for name in names_of(self.recipe.structure) if name not in catalogue()]

    @property
    def white_noise(self) -> bool:
        """Whether the noise is white, or there is none."""
        return self.recipe.snr is None or self.recipe.noise == "white"

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images with their noise, float32 [n, H, W]."""
        return self._block(images).image.cpu().numpy().copy()

    def clean_block(self, images: Sequence[int]) -> np.ndarray:
        """These images without noise, float32 [n, H, W]."""
        return self._block(images).signal.cpu().numpy().copy()

    def tensor_block(self, images: Sequence[int], *, clean: bool = False) -> torch.Tensor:
        """These images, or those without noise, float32 [n, H, W] on the device of the stack."""
        return (self._block(images).signal if clean else self._block(images).image).clone()

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
        drawn = self._by_specimen(range(len(self)), lambda number, rows: self._draw(number, rows.cpu()))
        table = drawn.ctf.to_table()
        for column, angle in (("Rot", drawn.rot), ("Tilt", drawn.tilt), ("Psi", drawn.psi)):
            table[f"rlnAngle{column}"] = angle.numpy()
        # RELION's origin is the shift that centres the particle
        table["rlnOriginXAngst"], table["rlnOriginYAngst"] = -drawn.shift.T.numpy()
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
        recipe, specimen, n = self.recipe, self._specimens[number], self.recipe.size
        drawn, pixel = self._draw(number, rows), specimen.pixel_size
        rotations = matrices(drawn.rot, drawn.tilt, drawn.psi).float()
        # a projection is a sum of voxels along a line; multiplied by their side it is the line integral
        spectra = specimen.projector.slices(rotations) * pixel
        # slices have their origin at pixel 0, images at n // 2
        spectra = spectra * shift_phase(n, drawn.shift / pixel + n // 2)
        projection = signal = irfftn(spectra, self.shape)
        if recipe.ctf:
            signal = irfftn(spectra * transfer(drawn.ctf, self.shape, pixel)[:, 0].float(), self.shape)
        if recipe.invert:
            signal = -signal
        inside = signal.flatten(1)[:, specimen.circle].double()
        deviation = inside.var(dim=1, correction=0).div(recipe.snr or math.inf).sqrt().float()
        if recipe.empty:
            signal = torch.zeros_like(signal)
        image = signal + self._noise(number, rows) * deviation[:, None, None] if recipe.snr else signal
        return SimulatedParticles(
            projection, signal, image, drawn.rot, drawn.tilt, drawn.psi, drawn.shift, drawn.ctf,
            torch.full_like(drawn.rot, pixel), deviation, torch.full_like(rows, number),
        )  # fmt: skip

    def _draw(self, number: int, rows: torch.Tensor) -> _Draws:
        r, draws = self.recipe, self._specimens[number].draws
        rot, tilt, psi = euler_angles(draws.uniform(rows, _POSE, 3))
        shift = r.shift * draws.normal(rows, _SHIFT, 2)
        defocus, astigmatism, angle = microscope().draw(draws.normal(rows, _CTF, 3))
        if r.defocus is not None:
            defocus = torch.full_like(defocus, r.defocus)
        if r.astigmatism is not None:
            astigmatism = torch.full_like(defocus, r.astigmatism)
        constants = {name: torch.full_like(defocus, getattr(r, name))
                     for name in ("voltage", "cs", "amplitude_contrast", "phase_shift")}  # fmt: skip
        ctf = CtfParameters(
            defocus_u=defocus + astigmatism / 2, defocus_v=defocus - astigmatism / 2, angle=angle,
            b_factor=torch.full_like(defocus, r.envelope), **constants,
        )  # fmt: skip
        return _Draws(rot, tilt, psi, shift, ctf)

    def _noise(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Noise of variance one, [B, H, W]."""
        n, specimen = self.recipe.size, self._specimens[number]
        white = specimen.draws.normal(rows, _SOLVENT, n * n, torch.float32).unflatten(1, (n, n))
        if self.recipe.noise == "white":
            return white
        power = microscope().solvent_power(n, specimen.pixel_size).to(self.device)
        return irfftn(power.sqrt().float() * rfftn(white), self.shape)

    def _one(self, index: int, what: Literal["image", "signal"]) -> np.ndarray:
        self.check(index)
        start = index - index % _CHUNK
        block = self._block(range(start, min(start + _CHUNK, len(self))))
        return getattr(block, what)[index - start].cpu().numpy().copy()

    def _block(self, images: Sequence[int]) -> SimulatedParticles:
        """These particles. The last block is kept, so that its noisy and clean images are computed once."""
        numbers, last = tuple(images), self._last
        if last is None or last[0] != numbers:
            self._last = last = numbers, self.particles(numbers)
        return last[1]


@dataclass(frozen=True)
class Microscope:
    """Statistics of real images of two published data sets, fitted by tools/fit_microscope.py.

    defocus_log_mean, defocus_log_deviation: of the mean defocus in Å, log-normal. astigmatism_mean, astigmatism_root:
    of the vector (U - V) (cos 2a, sin 2a) in Å, normal; the root is the lower Cholesky factor of its covariance.
    solvent_excess, solvent_frequency: the power spectrum of ice, 1 + excess exp(-(k / frequency)^2), k in 1/Å.
    """

    defocus_log_mean: float
    defocus_log_deviation: float
    astigmatism_mean: tuple[float, float]
    astigmatism_root: tuple[tuple[float, float], tuple[float, float]]
    solvent_excess: float
    solvent_frequency: float

    def draw(self, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean defocus and U - V in Å, and the angle of U in degrees, from standard normal numbers [B, 3]."""
        defocus = (self.defocus_log_mean + self.defocus_log_deviation * normal[:, 0]).exp()
        root = normal.new_tensor(self.astigmatism_root)
        mean = normal.new_tensor(self.astigmatism_mean)
        x, y = (mean + (root * normal[:, None, 1:]).sum(dim=-1)).unbind(-1)
        return defocus, torch.hypot(x, y), torch.rad2deg(torch.atan2(y, x)) / 2

    def solvent_power(self, n: int, pixel_size: float) -> torch.Tensor:
        """The power spectrum of ice on the half spectrum [n, n // 2 + 1], with mean one over the full spectrum."""
        ky = torch.fft.fftfreq(n, pixel_size, dtype=torch.float64)[:, None]
        k2 = ky**2 + ky[:, 0] ** 2
        power = 1 + self.solvent_excess * (-k2 / self.solvent_frequency**2).exp()
        return (power / power.mean())[:, : n // 2 + 1]


@cache
def microscope() -> Microscope:
    """The packaged fit."""
    values: dict[str, Any] = json.loads(Path(__file__).with_name("microscope.json").read_text(encoding="utf-8"))
    return Microscope(**{field.name: values[field.name] for field in fields(Microscope)})


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
