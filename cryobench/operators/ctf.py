"""`ctf`: the contrast transfer function of the microscope multiplies the spectrum, A = F^-1 diag(CTF) F.

One row of a spectrum represents both ky = 1/2 and -1/2 cycles/pixel, and one column both kx = 1/2 and -1/2. An
astigmatic CTF has two values there; their mean is used, which keeps A real and self-adjoint.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch

from cryobench.core import Imaging, OperatorRecipe, Shape
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.operators.spectral import SpectralOperator
from cryobench.physics.ctf import COLUMNS, CtfParameters, transfer

if TYPE_CHECKING:
    import pandas as pd

_STATED = ("astigmatism", "angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
"""The parameters that require `defocus`: they describe one CTF for all images."""


@dataclass(frozen=True)
class Ctf(OperatorRecipe):
    """The contrast transfer function, with one CTF for all images or each image's own.

        y = F^-1 CTF F x
        CTF(k) = sin(chi(k)) exp(-B |k|^2 / 4)
        chi(k) = pi lambda D(k) |k|^2 - pi/2 C_s lambda^3 |k|^4 + phase shift + asin(amplitude contrast)

    D: the defocus in the direction of k. In RELION's convention (`cryobench.physics.ctf`): positive at low frequencies,
    underfocus positive.
    """

    defocus: Annotated[float | None, "mean of U and V, Å, for all images; none: each image's own CTF"] = None
    astigmatism: Annotated[float, "U - V, Å"] = 0.0
    angle: Annotated[float, "of the axis of U, degrees"] = 0.0
    voltage: Annotated[float, "kV"] = 300.0
    cs: Annotated[float, "spherical aberration, mm"] = 2.7
    amplitude_contrast: Annotated[float, "fraction, in [0, 1]"] = 0.1
    phase_shift: Annotated[float, "of a phase plate, degrees"] = 0.0
    b_factor: Annotated[float | None, "of the envelope exp(-B k^2 / 4), Å^2; none: the image's own, or 0"] = None
    pixel_size: Annotated[float | None, "Å; none: the image's own"] = None
    phase_flipped: Annotated[bool, "use |CTF|, for phase-flipped images"] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ParameterError(f"ctf: {field.name} must be a finite number, got {value:g}")
            if self.defocus is None and field.name in _STATED and value != field.default:
                raise ParameterError(
                    f"ctf: {field.name}={value:g} requires a defocus; give one, as ctf:15000, or "
                    f"omit {field.name} to use each image's own CTF"
                )
        if self.voltage <= 0:
            raise ParameterError(f"ctf: voltage must be positive, in kV, got {self.voltage:g}")
        if not 0 <= self.amplitude_contrast <= 1:
            raise ParameterError(f"ctf: amplitude_contrast must lie in [0, 1], got {self.amplitude_contrast:g}")
        if self.b_factor is not None and self.b_factor < 0:
            raise ParameterError(f"ctf: b_factor must be zero or positive, in Å^2, got {self.b_factor:g}")
        if self.pixel_size is not None and self.pixel_size <= 0:
            raise ParameterError(f"ctf: pixel_size must be positive, in Å, got {self.pixel_size:g}")

    def check(self, imaging: Imaging) -> tuple[int, ...]:
        self._pixel_sizes(imaging)
        self._parameters(imaging)
        return (1, *imaging.shape)

    def build(
        self, imaging: Imaging, drawn: Mapping[str, torch.Tensor], *, dtype: torch.dtype, device: torch.device
    ) -> SpectralOperator:
        """One CTF for all images if `defocus` is given and they share a pixel size, else one per image."""
        sizes, parameters = self._pixel_sizes(imaging), self._parameters(imaging)
        shared = self.defocus is not None and len(set(sizes)) == 1
        half = aliased(parameters, imaging.shape, sizes[0] if shared else sizes)
        return SpectralOperator(
            half.abs() if self.phase_flipped else half,
            imaging.shape,
            images=None if shared else len(half),
            dtype=dtype,
            device=device,
        )

    def _pixel_sizes(self, imaging: Imaging) -> tuple[float, ...]:
        """Å per pixel, one number or one per image."""
        if self.pixel_size is not None:
            return (self.pixel_size,)
        known = tuple(size for size in imaging.pixel_size if size is not None)
        if not known or len(known) < len(imaging.pixel_size):
            raise IncompatibleError(
                "ctf requires the pixel size, which the images do not state; give ctf:...,pixel_size=Å"
            )
        return known

    def _parameters(self, imaging: Imaging) -> CtfParameters:
        """The given CTF, [1], or each image's own, [B]. Raises `DataError` for a table with an incomplete CTF."""
        if self.defocus is None:
            parameters = _own(imaging.table)
        else:
            stated = {name: getattr(self, name) for name in _STATED if name != "astigmatism"}
            stated["defocus_u"] = self.defocus + self.astigmatism / 2
            stated["defocus_v"] = self.defocus - self.astigmatism / 2
            stated["b_factor"] = 0.0
            parameters = CtfParameters(**{k: torch.tensor([v], dtype=torch.float64) for k, v in stated.items()})
        if self.b_factor is None:
            return parameters
        return dataclasses.replace(parameters, b_factor=torch.full_like(parameters.b_factor, self.b_factor))


def _own(table: pd.DataFrame | None) -> CtfParameters:
    if table is None or not set(COLUMNS.values()) & set(table.columns):
        raise IncompatibleError("ctf: the images have no CTF; give one, as ctf:15000 (defocus in Å), "
                                "or a .star file with rlnDefocusU")  # fmt: skip
    return CtfParameters.from_table(table, "the table of the images")


def aliased(parameters: CtfParameters, shape: Shape, pixel_size: float | tuple[float, ...]) -> torch.Tensor:
    """The CTF on the half spectrum, the mean of its two values at +1/2 and -1/2 cycles/pixel: [B, 1, H, W // 2 + 1].

    The CTF at (-kx, ky), equal to that at (kx, -ky), is the CTF at (kx, ky) with the angle of astigmatism negated.
    """
    H, W = shape
    half = transfer(parameters, shape, pixel_size)
    mirrored = transfer(dataclasses.replace(parameters, angle=-parameters.angle), shape, pixel_size)
    nyquist = torch.zeros(half.shape[-2:], dtype=torch.bool)
    if H % 2 == 0:
        nyquist[H // 2] = True
    if W % 2 == 0:
        nyquist[:, W // 2] = True
    return torch.where(nyquist, (half + mirrored) / 2, half)
