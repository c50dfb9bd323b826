"""The source `simulate_movies`: micrographs of many particles in ice, recorded as movies, in two halves.

    contrast C = MTF * (-2 sigma_e CTF * (V_particles + V_ice))           (physics/micrograph.py)
    frame t    ~ Poisson(s n (1 + C moved by the drift of frame t))       (physics/detector.py)
    n = dose * pixel size^2 * DQE,  s the sensitivity of each pixel
    half       = G * sum of its frames,  G the gain reference, 1 / s without error

The specimen stands still within each group of `ratio` + 1 frames and moves between groups, so that both halves have the
same expected value n_half (1 + mean of C moved), n_half the sum of n over the frames of the first half. It is `clean`.

The random numbers of a micrograph depend only on (seed, structure, split, its number), those of a frame also on its
number, and those of the detector only on the seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch

from cryobench.core import Source, Stack
from cryobench.core.operator import Window
from cryobench.core.pairs import Pairs
from cryobench.errors import DataError, ParameterError, shortened
from cryobench.limits import check_memory
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.philox import RowDraws, pixel_fractions
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.detector import log_normal, mtf, poisson
from cryobench.physics.micrograph import ice_amplitude, interaction_constant, projected_potential
from cryobench.physics.projection import euler_angles, matrices
from cryobench.rng import digest
from cryobench.sources.particle_imaging import microscope
from cryobench.sources.structures import Atoms, Split, names_of, read_structure

if TYPE_CHECKING:
    import pandas as pd

Truth = Literal["ice", "particles"]

HOT_COUNTS = 20.0
"""Counts of a hot pixel in a frame over the mean of the others, added to those of the electrons (an assumption)."""
_MARGIN = 100.0
"""Å by which the simulated field is wider than micrograph and particle, about twice the distance by which 2 µm of
defocus moves the spectrum at 1/10 Å."""
_LARGEST_FILL = 0.45
"""Above it random positions without overlap take long to find; none exist above 0.547, where discs jam."""
_MAX_COUNTS = 20000
"""Largest mean counts of a pixel in a frame, so that 16 bits hold them where the contrast is high."""
_MAX_COUNT = 2**32
"""The random numbers of `philox` repeat beyond this number of micrographs, or of frames."""
_BYTES_PER_PIXEL = 130
"""Peak memory in bytes when a micrograph is simulated, for each pixel of the field, as measured."""
_BYTES_PER_ATOM = 40
"""The same for each atom of all particles together."""
_KEPT_BYTES = 2**28
"""Memory of the halves and clean images that a stack keeps."""
_DEFOCUS, _ASTIGMATISM, _PLACE, _POSE, _ICE, _DRIFT = range(6)
"""The purposes of a micrograph's random numbers."""
_SENSITIVITY, _GAIN_ERROR, _HOT = range(3)
"""The purposes of the detector's random numbers."""


@dataclass(frozen=True)
class SimulateMovies(Source):
    """Simulated movies of many particles in ice: two halves with independent noise, and the truth.

    An image is the sum of the frames of the first half, in counts (electrons detected per pixel); the other half is on
    the same scale. The clean image is its expected value, in counts: with `truth=ice` of particles in rough ice, which
    is what a denoiser should find; with `truth=particles` of the particles alone. Protein is dark. The sources of the
    defaults are in docs/simulated_movies.md.
    """

    structure: Annotated[
        str, "packaged name, mmCIF or PDB file, several joined by + (micrographs take turns), or train, val or test"
    ] = "6zu5"
    count: Annotated[int, "number of micrographs"] = 8
    size: Annotated[int, "side of the micrographs, in pixels"] = 1024
    pixel_size: Annotated[float, "Å per pixel"] = 2.4
    frames: Annotated[int, "number of frames, a multiple of ratio + 1"] = 40
    dose: Annotated[float, "electrons per Å^2 and frame"] = 1.25
    ratio: Annotated[int, "frames of the first half for each of the second, which is multiplied by it"] = 1
    truth: Annotated[Truth, "what clean images show: particles in rough ice, or particles alone"] = "ice"
    fill: Annotated[float, "part of the area in the circles of the particles' farthest atoms"] = 0.25
    overlap: Annotated[bool, "let these circles overlap"] = False
    split: Annotated[Split, "split of the micrographs; the splits are disjoint"] = "test"
    seed: Annotated[int, "seed of all random numbers"] = 0
    defocus_low: Annotated[float, "least mean underfocus, Å"] = 10000.0
    defocus_high: Annotated[float, "greatest mean underfocus, Å"] = 22000.0
    astigmatism: Annotated[float | None, "difference of defocus U - V, Å; none: drawn, as measured"] = None
    voltage: Annotated[float, "kV"] = 300.0
    cs: Annotated[float, "spherical aberration, mm"] = 2.7
    amplitude_contrast: Annotated[float, "fraction of amplitude contrast"] = 0.1
    phase_shift: Annotated[float, "of a phase plate, degrees"] = 0.0
    envelope: Annotated[float, "B-factor of the CTF's envelope, Å^2"] = 50.0
    b_factor: Annotated[float, "B-factor of the atoms, Å^2"] = 50.0
    ice: Annotated[float, "roughness of the ice: standard deviation of its thickness, Å"] = 4.0
    drift: Annotated[float, "distance that the specimen moves, Å"] = 6.0
    drift_frames: Annotated[float, "frames in which the remaining distance falls by a factor e"] = 5.0
    mtf: Annotated[float, "modulation transfer function at the Nyquist frequency"] = 0.6
    dqe: Annotated[float, "detective quantum efficiency at zero frequency: part of the electrons counted"] = 0.85
    gain: Annotated[float, "relative standard deviation of the sensitivities of the pixels"] = 0.05
    gain_error: Annotated[float, "relative standard deviation of the error of the gain reference"] = 0.0
    hot: Annotated[float, f"part of the pixels that are hot: {HOT_COUNTS:g} times the mean counts are added"] = 0.0
    chains: Annotated[str, "chains of the structure, joined by commas, or all"] = "all"
    assembly: Annotated[str | None, "biological assembly of a file to build; none: as deposited"] = None

    def __post_init__(self) -> None:
        least = {"count": 1, "size": 16, "frames": 2, "ratio": 1} | dict.fromkeys(
            ("fill", "b_factor", "envelope", "cs", "ice", "drift", "gain", "gain_error"), 0
        )
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise self._wrong(f"{name} must be at least {bound}, got {getattr(self, name):g}")
        for name in ("pixel_size", "dose", "voltage", "drift_frames", "mtf", "dqe"):
            if not 0 < getattr(self, name) < math.inf:
                raise self._wrong(f"{name} must be positive, got {getattr(self, name):g}")
        for name in ("mtf", "dqe", "amplitude_contrast", "hot"):
            if not 0 <= getattr(self, name) <= 1:
                raise self._wrong(f"{name} must be at most 1 and not negative, got {getattr(self, name):g}")
        for name in ("defocus_low", "defocus_high", "astigmatism", "phase_shift"):
            if not math.isfinite(getattr(self, name) or 0):
                raise self._wrong(f"{name} must be finite, got {getattr(self, name)}")
        for name in ("count", "frames"):
            if getattr(self, name) >= _MAX_COUNT:
                raise self._wrong(f"{name} must be less than 2^32, got {shortened(str(getattr(self, name)), 30)}")
        if self.defocus_low > self.defocus_high:
            raise self._wrong(
                f"defocus_low {self.defocus_low:g} is above defocus_high {self.defocus_high:g}; swap them"
            )
        if self.frames % (self.ratio + 1):
            raise self._wrong(f"frames must be a multiple of ratio + 1 = {self.ratio + 1}, got {self.frames}")
        if not self.overlap and self.fill > _LARGEST_FILL:
            raise self._wrong(
                f"fill must be at most {_LARGEST_FILL} where particles do not overlap, got {self.fill:g}; give less, "
                "or overlap=true"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise self._wrong(f"seed must fit in 64 bits, got {self.seed}")
        check_memory(f"simulate_movies with {shortened(str(self.size), 30)}^2 pixels", _BYTES_PER_PIXEL * self.size**2,
                     "give a smaller size")  # fmt: skip
        most = self.counts * (1 + HOT_COUNTS if self.hot else 1)
        if most > _MAX_COUNTS:
            raise self._wrong(f"{most:g} counts of a pixel in a frame may not fit in 16 bits; give less dose a frame")

    @staticmethod
    def _wrong(what: str) -> ParameterError:
        return ParameterError(f"simulate_movies: {what}")

    @property
    def counts(self) -> float:
        """n, the mean counts of a pixel in a frame: dose * pixel size^2 * DQE."""
        return self.dose * self.pixel_size**2 * self.dqe

    @property
    def groups(self) -> int:
        """Groups of frames within which the specimen stands still; each has `ratio` frames of the first half and one of
        the second."""
        return self.frames // (self.ratio + 1)

    def open(self) -> SimulatedMicrographs:
        """Read the structures. Raises `DataError` for invalid structures."""
        return SimulatedMicrographs(self)


@dataclass(frozen=True, eq=False)
class Specimen:
    """The expected contrast of a micrograph, through CTF and MTF, and its parameters.

    with_ice, particles: half spectra of the field, complex64 [N, N // 2 + 1]; particles in ice, and particles alone.
    drift: (x, y) of the specimen in each group of frames, pixels [groups, 2]. rot, tilt, psi: RELION's Euler angles of
    the particles, degrees [n]. positions: (x, y) of their centres when the specimen has come to rest, pixels from the
    micrograph's first [n, 2], also outside it.
    """

    with_ice: np.ndarray
    particles: np.ndarray
    drift: np.ndarray
    rot: torch.Tensor
    tilt: torch.Tensor
    psi: torch.Tensor
    positions: torch.Tensor


class _Kind:
    """The micrographs of one structure. The field is wider than a micrograph, so that the micrograph is not periodic.

    side: of the field, pixels. before: pixels of it before those of the micrograph. number: of particles in the field.
    response: -2 sigma_e MTF, [side, side // 2 + 1].
    """

    def __init__(self, atoms: Atoms, recipe: SimulateMovies):
        from scipy.fft import next_fast_len

        pixel = recipe.pixel_size
        self.atoms, self.draws = atoms, RowDraws(recipe.seed, atoms.name, recipe.split)
        self.key = digest(recipe.seed, atoms.name, recipe.split, "frames")
        least = recipe.size + math.ceil((2 * atoms.radius + _MARGIN) / pixel)
        self.side = int(next_fast_len(least, real=True) or least)
        self.before = (self.side - recipe.size) // 2
        self.shape = (self.side, self.side)
        self.response = -2 * interaction_constant(recipe.voltage) * mtf(self.shape, recipe.mtf)
        self.number = round(recipe.fill * (self.side * pixel) ** 2 / (math.pi * max(atoms.radius, pixel) ** 2))
        needed = _BYTES_PER_PIXEL * self.side**2 + _BYTES_PER_ATOM * self.number * len(atoms.numbers)
        what = f"a micrograph of {self.number} particles of {atoms.name}"
        check_memory(what, needed, "give a smaller size or less fill", DataError)


class SimulatedMicrographs(Stack):
    """Micrographs of a `SimulateMovies`, computed when they are read and then kept in memory, the last 256 MiB of them.

    Micrograph i shows structure i modulo their number.
    """

    def __init__(self, recipe: SimulateMovies):
        self.recipe = recipe
        atoms = [read_structure(name, chains=recipe.chains, assembly=recipe.assembly)
                 for name in names_of(recipe.structure)]  # fmt: skip
        self._kinds = [_Kind(each, recipe) for each in atoms]
        self.shape = (recipe.size, recipe.size)
        self.label = f"simulated movies of {'+'.join(each.name for each in atoms)}"
        low, high = recipe.defocus_low, recipe.defocus_high
        if (low, high) != (SimulateMovies.defocus_low, SimulateMovies.defocus_high):
            self.label += f" at {low / 1e4:g} to {high / 1e4:g} µm"
        kept = max(1, _KEPT_BYTES // (3 * 4 * recipe.size**2))
        self._micrograph = lru_cache(kept)(self._computed)
        self.specimen = lru_cache(1)(self._specimen)

    def __reduce__(self) -> tuple[type[SimulatedMicrographs], tuple[SimulateMovies]]:
        return SimulatedMicrographs, (self.recipe,)

    def __len__(self) -> int:
        return self.recipe.count

    def name(self, index: int) -> str:
        """The name of micrograph `index`, `micrograph_00000`."""
        return f"micrograph_{index:05d}"

    def read(self, index: int) -> np.ndarray:
        """The first half of micrograph `index`, float32 [H, W], counts."""
        return self.halves(index)[0].copy()

    def other(self, index: int) -> np.ndarray:
        """The second half of micrograph `index`, float32 [H, W], counts on the scale of the first."""
        return self.halves(index)[1].copy()

    def clean(self, index: int) -> np.ndarray:
        """The expected first half of micrograph `index`, of what `truth` names, float32 [H, W], counts."""
        self.check(index)
        return self._micrograph(index)[2].copy()

    def halves(self, index: int) -> np.ndarray:
        """Both halves of micrograph `index`, corrected by the gain reference, float32 [2, H, W], not to be changed."""
        self.check(index)
        return self._micrograph(index)[:2]

    def _computed(self, index: int) -> np.ndarray:
        """Both halves and the clean image, float32 [3, H, W]."""
        r = self.recipe
        sums = np.zeros((2, *self.shape), np.uint32)
        for t, frame in enumerate(self.frames(index)):
            sums[self._half(t)] += frame
        # the second half has fewer frames; on the scale of the first
        made = np.stack([self.gain * sums[0], r.ratio * self.gain * sums[1], self.expected(index, r.truth)])
        made = made.astype(np.float32)
        made.flags.writeable = False
        return made

    def _half(self, frame: int) -> int:
        """0 or 1, the half of a frame: the last of each group is the second half's."""
        return int(frame % (self.recipe.ratio + 1) == self.recipe.ratio)

    def expected(self, index: int, truth: Truth) -> np.ndarray:
        """The expected first half of micrograph `index`, float32 [H, W], counts; truth: of what."""
        self.check(index)
        specimen, r = self.specimen(index), self.recipe
        contrast = specimen.with_ice if truth == "ice" else specimen.particles
        phase = np.zeros(contrast.shape, np.complex64)
        for at in specimen.drift:
            phase += _phase(self._kind(index).side, at) / r.groups
        # the first half has `ratio` frames of each group
        return np.float32(r.ratio * r.groups * r.counts) * (1 + self._image(index, contrast * phase))

    def frames(self, index: int) -> Iterator[np.ndarray]:
        """The raw frames of micrograph `index`, without gain correction, uint16 [H, W] each.

        Raises `DataError` if the contrast falls below -1, where the weak-phase approximation fails.
        """
        self.check(index)
        r, kind, specimen = self.recipe, self._kind(index), self.specimen(index)
        for group, at in enumerate(specimen.drift):
            image = self._image(index, specimen.with_ice * _phase(kind.side, at))
            if image.min() < -1:
                raise DataError(
                    f"the contrast of micrograph {index} of {self.label} falls to {image.min():.3g}, below -1; the "
                    "specimen is too thick for the weak-phase approximation: give less fill, or overlap=false"
                )
            mean = self._sensitivity * (r.counts * (1 + image.astype(np.float64))) + self._extra
            for frame in range(group * (r.ratio + 1), (group + 1) * (r.ratio + 1)):
                yield poisson(mean, pixel_fractions(kind.key, index, frame, self.shape))

    @cached_property
    def gain(self) -> np.ndarray:
        """The gain reference, float32 [H, W], by which raw frames are multiplied: (1 + error) / sensitivity."""
        error = log_normal(self._detector(_GAIN_ERROR), self.recipe.gain_error)
        return (error / self._sensitivity).astype(np.float32)

    @cached_property
    def hot(self) -> np.ndarray:
        """Which pixels of the detector are hot, bool [H, W]."""
        uniform = self._detector_draws.uniform(torch.zeros(1), _HOT, math.prod(self.shape))
        return (uniform < self.recipe.hot).reshape(self.shape).numpy()

    @cached_property
    def _sensitivity(self) -> np.ndarray:
        return log_normal(self._detector(_SENSITIVITY), self.recipe.gain)

    @cached_property
    def _extra(self) -> np.ndarray:
        """Mean counts in a frame that are not of electrons, float64 [H, W]."""
        return HOT_COUNTS * self.recipe.counts * self.hot

    @property
    def _detector_draws(self) -> RowDraws:
        return RowDraws(self.recipe.seed, "detector")

    def _detector(self, purpose: int) -> np.ndarray:
        """Standard normal numbers, a pixel each, [H, W]."""
        normal = self._detector_draws.normal(torch.zeros(1), purpose, math.prod(self.shape))
        return normal.reshape(self.shape).numpy()

    def _kind(self, index: int) -> _Kind:
        return self._kinds[index % len(self._kinds)]

    def _image(self, index: int, spectrum: np.ndarray) -> np.ndarray:
        """The micrograph's part of a field, float32 [H, W]."""
        kind = self._kind(index)
        part = slice(kind.before, kind.before + self.recipe.size)
        return irfftn(torch.from_numpy(spectrum), kind.shape)[part, part].numpy()

    def _specimen(self, index: int) -> Specimen:
        self.check(index)
        r, kind, row = self.recipe, self._kind(index), torch.tensor([index])
        positions = self._places(kind, row)
        rot, tilt, psi = euler_angles(kind.draws.uniform(row, _POSE, 3 * len(positions)).reshape(-1, 3))
        potential = projected_potential(
            kind.atoms, matrices(rot, tilt, psi), positions, kind.shape, r.pixel_size, r.b_factor
        )
        white = kind.draws.normal(row, _ICE, kind.side**2, torch.float32).reshape(kind.shape)
        ice = rfftn(white) * ice_amplitude(kind.shape, r.pixel_size, r.ice, microscope().solvent_frequency)
        response = (kind.response * transfer(self.ctf(index), kind.shape, r.pixel_size)[0, 0]).float()
        angle = 2 * torch.pi * kind.draws.uniform(row, _DRIFT, 1)[0]
        # the way that remains at the first frame of each group
        remaining = r.drift * torch.exp(-(r.ratio + 1) * torch.arange(r.groups).double() / r.drift_frames)
        return Specimen(
            with_ice=(response * (potential + ice)).numpy(),
            particles=(response * potential).numpy(),
            drift=(remaining[:, None] / r.pixel_size * torch.cat([angle.cos(), angle.sin()])).numpy(),
            rot=rot, tilt=tilt, psi=psi,
            positions=positions / r.pixel_size - kind.before,
        )  # fmt: skip

    def _places(self, kind: _Kind, row: torch.Tensor) -> torch.Tensor:
        """(x, y) of the particles in the field, Å [n, 2]: drawn one by one, without those that overlap earlier ones."""
        side, number = kind.side * self.recipe.pixel_size, kind.number
        if self.recipe.overlap:
            return side * kind.draws.uniform(row, _PLACE, 2 * number).reshape(-1, 2)
        drawn = 4 * number
        while True:
            candidates = side * kind.draws.uniform(row, _PLACE, 2 * drawn).reshape(-1, 2).numpy()
            kept = apart(candidates, 2 * kind.atoms.radius, side, number)
            if len(kept) == number:
                return torch.from_numpy(kept)
            drawn *= 2

    def ctf(self, index: int) -> CtfParameters:
        """The CTF of micrograph `index`."""
        return _ctf(self.recipe, self._kind(index).draws, torch.tensor([index]))

    def particles(self, index: int) -> pd.DataFrame:
        """The particles whose centres lie in micrograph `index`, a row each, in RELION's columns.

        rlnCoordinateX and Y: pixels, 0 the centre of the first pixel, of the specimen at rest.
        """
        import pandas as pd

        specimen = self.specimen(index)
        x, y = specimen.positions.numpy().T
        table = pd.DataFrame({
            "rlnMicrographName": self.name(index), "rlnCoordinateX": x, "rlnCoordinateY": y,
            "rlnAngleRot": specimen.rot.numpy(), "rlnAngleTilt": specimen.tilt.numpy(),
            "rlnAnglePsi": specimen.psi.numpy(),
        })  # fmt: skip
        inside = (np.minimum(x, y) > -0.5) & (np.maximum(x, y) < self.recipe.size - 0.5)
        table = table[inside].reset_index(drop=True)
        return table.assign(**{str(column): self.table[column].iloc[index] for column in self.table.columns})

    @property
    def table(self) -> pd.DataFrame:
        """The CTF and the number of the structure (as class), a row per micrograph, in RELION's columns."""
        return self._table

    @cached_property
    def _table(self) -> pd.DataFrame:
        import pandas as pd

        tables = []
        for number, kind in enumerate(self._kinds):
            rows = torch.arange(number, len(self), len(self._kinds))
            table = _ctf(self.recipe, kind.draws, rows).to_table().set_index(rows.numpy())
            tables.append(table.assign(rlnClassNumber=number + 1))
        return pd.concat(tables).sort_index()

    def pixel_size(self, index: int) -> float:
        """Å per pixel."""
        self.check(index)
        return self.recipe.pixel_size

    @property
    def white_noise(self) -> bool:
        """Whether images and clean images differ by white noise alone: rough ice is not white."""
        return self.recipe.truth == "ice" or self.recipe.ice == 0

    @property
    def pairs(self) -> SimulatedPairs:
        """Both halves of every micrograph."""
        return SimulatedPairs(self)

    @property
    def origin(self) -> dict[str, str]:
        """Structures, split and seed."""
        names = ",".join(kind.atoms.name for kind in self._kinds)
        return {"structure": names, "split": self.recipe.split, "seed": str(self.recipe.seed)}

    def digest(self, index: int) -> int:
        """A 64-bit hash of what determines the counts of micrograph `index`: atoms, parameters and its number."""
        atoms = self._kind(index).atoms
        left_out = {"structure", "chains", "assembly", "count", "truth"}
        parameters = [(field.name, getattr(self.recipe, field.name)) for field in dataclasses.fields(self.recipe)
                      if field.name not in left_out]  # fmt: skip
        content = digest(atoms.name, atoms.positions.tobytes(), atoms.numbers.tobytes())
        return digest(content, parameters, index)


class SimulatedPairs(Pairs):
    """The halves of simulated micrographs, the first half first."""

    def __init__(self, stack: SimulatedMicrographs):
        self._stack, self.label = stack, stack.label

    def __len__(self) -> int:
        return len(self._stack)

    def name(self, index: int) -> str:
        """The name of micrograph `index`."""
        return self._stack.name(index)

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of a micrograph."""
        self._stack.check(index)
        return self._stack.recipe.size, self._stack.recipe.size

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        """Both halves of a window of micrograph `index`, counts, float32 [2, h, w]; all of it by default."""
        halves = self._stack.halves(index)
        return (halves if window is None else halves[(slice(None), *window)]).copy()

    def digests(self, index: int) -> tuple[str, str]:
        """The digest of each half, of what determines it; micrographs are not simulated for it."""
        whole = self._stack.digest(index)
        return f"{digest(whole, 0):016x}", f"{digest(whole, 1):016x}"

    def pixel_size(self, index: int) -> float:
        """Å per pixel."""
        return self._stack.pixel_size(index)


def _ctf(recipe: SimulateMovies, draws: RowDraws, rows: torch.Tensor) -> CtfParameters:
    """The CTF of micrographs: the defocus uniform between its limits, the astigmatism as of real particles."""
    fraction = draws.uniform(rows, _DEFOCUS, 1)[:, 0]
    defocus = recipe.defocus_low + (recipe.defocus_high - recipe.defocus_low) * fraction
    _, astigmatism, angle = microscope().draw(draws.normal(rows, _ASTIGMATISM, 3))
    if recipe.astigmatism is not None:
        astigmatism = torch.full_like(defocus, recipe.astigmatism)
    constants = {name: torch.full_like(defocus, getattr(recipe, name))
                 for name in ("voltage", "cs", "amplitude_contrast", "phase_shift")}  # fmt: skip
    return CtfParameters(
        defocus_u=defocus + astigmatism / 2, defocus_v=defocus - astigmatism / 2, angle=angle,
        b_factor=torch.full_like(defocus, recipe.envelope), **constants,
    )  # fmt: skip


def _phase(side: int, at: np.ndarray) -> np.ndarray:
    """exp(-2 pi i k . at), which moves an image by at = (x, y) pixels, complex64 [side, side // 2 + 1].

    In NumPy, since the rounding of torch's products of complex numbers depends on the number of threads.
    """
    along_x, along_y = (np.exp(-2j * np.pi * np.fft.fftfreq(side) * shift).astype(np.complex64) for shift in at)
    return along_y[:, None] * along_x[: side // 2 + 1]


def apart(candidates: np.ndarray, distance: float, side: float, number: int) -> np.ndarray:
    """The first `number` candidates (x, y) at least `distance` from all kept before them, in a periodic square of this
    side: random sequential adsorption. [n, 2], fewer if the candidates do not suffice."""
    kept = np.empty((number, 2))
    n = 0
    for candidate in candidates:
        if n == number:
            break
        between = kept[:n] - candidate
        between -= side * np.round(between / side)
        if not (np.square(between).sum(axis=1) < distance**2).any():
            kept[n] = candidate
            n += 1
    return kept[:n]
