"""What simulated particle images have in common: settings, poses, CTFs and noise, drawn for each particle.

    slice of V, rotated and shifted -> projection P -> signal = CTF * P -> image = signal + noise

The random numbers of a particle depend only on (seed, structure, split, its number), so that particle 17 is the same in
any batch. They come from a counter-based generator (`philox.py`), for all particles at once and on the device.
The CTF acts on the box as a circular convolution, as the operator `ctf` does.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from cryobench.core import Stack
from cryobench.errors import ParameterError, shortened
from cryobench.limits import check_memory
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.philox import RowDraws
from cryobench.physics.ctf import CtfParameters, transfer
from cryobench.physics.projection import euler_angles, shift_phase
from cryobench.sources.specimen import BYTES_PER_VOXEL

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 16
"""Number of images simulated at once when one is read, since its neighbours are likely to be read next."""
_MAX_COUNT = 2**32
"""The random numbers of `philox.RowDraws` repeat beyond this number of images."""
_BYTES_PER_IMAGE = 650
"""Peak memory in bytes of the table of the images, for each, as measured."""
_POSE, _SHIFT, _CTF, _SOLVENT, CONFORMATION = range(5)
"""The purposes of a particle's random numbers."""


class Settings(Protocol):
    """The parameters that sources of simulated particles share; `Simulate` describes them."""

    @property
    def snr(self) -> float | None: ...
    @property
    def count(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def pixel_size(self) -> float | None: ...
    @property
    def split(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def b_factor(self) -> float: ...
    @property
    def ctf(self) -> bool: ...
    @property
    def defocus(self) -> float | None: ...
    @property
    def astigmatism(self) -> float | None: ...
    @property
    def voltage(self) -> float: ...
    @property
    def cs(self) -> float: ...
    @property
    def amplitude_contrast(self) -> float: ...
    @property
    def phase_shift(self) -> float: ...
    @property
    def envelope(self) -> float: ...
    @property
    def shift(self) -> float: ...
    @property
    def noise(self) -> Literal["white", "solvent"]: ...
    @property
    def invert(self) -> bool: ...


def check_settings(source: str, settings: Settings) -> None:
    """Raise `ParameterError` for values out of range, and for images beyond the memory."""
    for name, least in (("count", 1), ("size", 8), ("b_factor", 0), ("envelope", 0), ("shift", 0), ("cs", 0)):
        if not least <= getattr(settings, name) < math.inf:
            raise ParameterError(f"{source}: {name} must be at least {least}, got {getattr(settings, name):g}")
    if settings.count > _MAX_COUNT:
        raise ParameterError(f"{source}: count must be at most 2^32, got {shortened(str(settings.count), 30)}")
    check_memory(source, _BYTES_PER_IMAGE * settings.count, "give a smaller count")
    check_memory(
        f"{source} with a volume of {shortened(str(settings.size), 30)}^3 voxels", BYTES_PER_VOXEL * settings.size**3,
        "give a smaller size",
    )  # fmt: skip
    for name in ("snr", "pixel_size", "voltage"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ParameterError(f"{source}: {name} must be positive, got {value:g}")
    if not 0 <= settings.amplitude_contrast <= 1:
        raise ParameterError(f"{source}: amplitude_contrast must lie in [0, 1], got {settings.amplitude_contrast:g}")
    for name in ("defocus", "astigmatism", "phase_shift"):
        if not math.isfinite(getattr(settings, name) or 0):
            raise ParameterError(f"{source}: {name} must be finite, got {getattr(settings, name)}")
    if not -(2**63) <= settings.seed < 2**63:
        raise ParameterError(f"{source}: seed must fit in 64 bits, got {settings.seed}")


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
class Draws:
    """The random parameters of particles; see `SimulatedParticles`."""

    rot: torch.Tensor
    tilt: torch.Tensor
    psi: torch.Tensor
    shift: torch.Tensor
    ctf: CtfParameters


def drawn(settings: Settings, draws: RowDraws, rows: torch.Tensor) -> Draws:
    """The parameters of these particles."""
    r = settings
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
    return Draws(rot, tilt, psi, shift, ctf)


def unit_noise(settings: Settings, draws: RowDraws, rows: torch.Tensor, pixel_size: float) -> torch.Tensor:
    """Noise of variance one, [B, H, W], on the device of rows."""
    n = settings.size
    white = draws.normal(rows, _SOLVENT, n * n, torch.float32).unflatten(1, (n, n))
    if settings.noise == "white":
        return white
    power = microscope().solvent_power(n, pixel_size).to(rows.device)
    return irfftn(power.sqrt().float() * rfftn(white), (n, n))


def imaged(
    settings: Settings, spectra: torch.Tensor, drawn: Draws, pixel_size: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The projections and the signals, [B, H, W] each, V Å, of slices [B, H, W // 2 + 1] of a potential in volts.

    The origin of slices is pixel 0, that of images pixel n // 2.
    """
    n = settings.size
    # a projection is a sum of voxels along a line; multiplied by their side it is the line integral
    spectra = spectra * pixel_size * shift_phase(n, drawn.shift / pixel_size + n // 2)
    projection = signal = irfftn(spectra, (n, n))
    if settings.ctf:
        signal = irfftn(spectra * transfer(drawn.ctf, (n, n), pixel_size)[:, 0].float(), (n, n))
    return projection, -signal if settings.invert else signal


def circle_of(size: int, radius_pixels: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """The flat indices of the pixels within a radius of pixel size // 2."""
    centred = torch.arange(size, device=device) - size // 2
    circle = (centred[:, None] ** 2 + centred**2) <= max(radius_pixels, 1.0) ** 2
    return circle.flatten().nonzero()[:, 0]


def table_of(drawn: Draws) -> pd.DataFrame:
    """CTF, pose and shift, a row per particle, in RELION's columns."""
    table = drawn.ctf.to_table()
    for column, angle in (("Rot", drawn.rot), ("Tilt", drawn.tilt), ("Psi", drawn.psi)):
        table[f"rlnAngle{column}"] = angle.numpy()
    # RELION's origin is the shift that centres the particle
    table["rlnOriginXAngst"], table["rlnOriginYAngst"] = -drawn.shift.T.numpy()
    return table


class ParticleStack(Stack):
    """Simulated images, computed when they are read. The last block is kept."""

    def __init__(self, settings: Settings, device: torch.device):
        self.device, self.shape, self.through_ctf = device, (settings.size, settings.size), settings.ctf
        self._settings = settings
        self._last: tuple[tuple[int, ...], SimulatedParticles] | None = None

    @abstractmethod
    def particles(self, indices: Sequence[int]) -> SimulatedParticles:
        """Simulate these images together, on the stack's device."""

    def __len__(self) -> int:
        return self._settings.count

    def read(self, index: int) -> np.ndarray:
        """Image `index` with its noise, float32 [H, W], V Å."""
        return self._one(index, "image")

    def clean(self, index: int) -> np.ndarray:
        """Image `index` through the CTF and without noise, float32 [H, W], V Å."""
        return self._one(index, "signal")

    @property
    def white_noise(self) -> bool:
        """Whether the noise is white, or there is none."""
        return self._settings.snr is None or self._settings.noise == "white"

    def read_block(self, images: Sequence[int]) -> np.ndarray:
        """These images with their noise, float32 [n, H, W]."""
        return self._block(images).image.cpu().numpy().copy()

    def clean_block(self, images: Sequence[int]) -> np.ndarray:
        """These images without noise, float32 [n, H, W]."""
        return self._block(images).signal.cpu().numpy().copy()

    def tensor_block(self, images: Sequence[int], *, clean: bool = False) -> torch.Tensor:
        """These images, or those without noise, float32 [n, H, W] on the device of the stack."""
        return (self._block(images).signal if clean else self._block(images).image).clone()

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
