"""The contrast transfer function (CTF) of a thin, weakly scattering object, in RELION's convention.

    CTF(k) = sin(chi(k)) exp(-B |k|^2 / 4)
    chi(k) = pi lambda D(k) |k|^2 - pi/2 Cs lambda^3 |k|^4 + phase shift + asin(amplitude contrast)
    D(k)   = (U + V)/2 + (U - V)/2 cos 2(angle(k) - angle(U))

with k in 1/Å, underfocus U, V >= 0. It is positive at low frequencies: an image CTF * projection shows protein white
on dark, as in particles for RELION; the raw micrograph shows its negative. Angles go from the
x axis (columns) towards the y axis (rows). (Rohou & Grigorieff 2015, J. Struct. Biol. 192:216, eqs 2 to 4.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "defocus_u": "rlnDefocusU",
    "defocus_v": "rlnDefocusV",
    "angle": "rlnDefocusAngle",
    "voltage": "rlnVoltage",
    "cs": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
    "phase_shift": "rlnPhaseShift",
    "b_factor": "rlnCtfBfactor",
}
"""The parameters and their columns in RELION's tables, in the same units."""
_OPTIONAL = ("phase_shift", "b_factor")


@dataclass(frozen=True, eq=False)
class CtfParameters:
    """The CTF of each image, float64 tensors [B].

    defocus_u, defocus_v: Å, positive under focus. angle: of the axis of defocus_u, degrees. voltage: kV. cs: mm.
    amplitude_contrast: fraction. phase_shift: of a phase plate, degrees. b_factor: of the envelope, Å^2.
    """

    defocus_u: torch.Tensor
    defocus_v: torch.Tensor
    angle: torch.Tensor
    voltage: torch.Tensor
    cs: torch.Tensor
    amplitude_contrast: torch.Tensor
    phase_shift: torch.Tensor
    b_factor: torch.Tensor

    def __len__(self) -> int:
        return len(self.defocus_u)

    @staticmethod
    def from_table(table: pd.DataFrame, what: str = "the table") -> CtfParameters:
        """The CTF in a table with RELION's columns, a row per image; phase shift and B-factor are 0 by default.

        Raises `DataError` for missing columns and for invalid values.
        """
        import pandas as pd

        needed = {name: column for name, column in COLUMNS.items() if name not in _OPTIONAL}
        missing = [column for column in needed.values() if column not in table.columns]
        if missing:
            raise DataError(f"{what} lacks {', '.join(missing)}; the CTF needs {', '.join(needed.values())}")
        values = {}
        for name, column in COLUMNS.items():
            given: Any = table[column] if column in table.columns else pd.Series(0.0, index=table.index)
            values[name] = torch.tensor(np.asarray(pd.to_numeric(given, errors="coerce"), dtype=np.float64))
            # text such as 'inf', and empty cells, are not finite
            wrong = ~values[name].isfinite() | ((values[name] <= 0) & (name == "voltage"))
            if name == "amplitude_contrast":
                wrong |= (values[name] < 0) | (values[name] > 1)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise DataError(f"{what}: row {row + 1} has {column} {table[column].iloc[row]}; give a valid number")
        return CtfParameters(**values)

    def to_table(self) -> pd.DataFrame:
        """A row per image, in RELION's columns."""
        import pandas as pd

        return pd.DataFrame({column: getattr(self, name).tolist() for name, column in COLUMNS.items()})

    def select(self, images: slice | torch.Tensor) -> CtfParameters:
        """The CTF of some of the images."""
        return CtfParameters(**{f.name: getattr(self, f.name)[images] for f in dataclasses.fields(self)})

    @staticmethod
    def join(parts: Sequence[CtfParameters]) -> CtfParameters:
        """The CTFs of several sets of images, one after another."""
        names = [f.name for f in dataclasses.fields(CtfParameters)]
        return CtfParameters(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def wavelength(voltage: torch.Tensor) -> torch.Tensor:
    """The relativistic wavelength of electrons in Å, for an accelerating voltage in kV:

        h / sqrt(2 m e V (1 + e V / (2 m c^2)))

    1.96875 pm at 300 kV (CODATA 2018).
    """
    V = voltage.double() * 1e3
    h, m, e, c = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
    return h / (2 * m * e * V * (1 + e * V / (2 * m * c**2))).sqrt() * 1e10


def transfer(parameters: CtfParameters, shape: Sequence[int], pixel_size: float | Sequence[float]) -> torch.Tensor:
    """CTF(k) on the half spectrum of real images [H, W], the layout of `rfft2`: [B, 1, H, W // 2 + 1], float64.

    pixel_size: Å per pixel, of all images or of each.
    """
    H, W = shape
    p = parameters
    pixel = torch.as_tensor(pixel_size, dtype=torch.float64, device=p.voltage.device)
    ky = torch.fft.fftfreq(H, dtype=torch.float64, device=pixel.device)[:, None]
    kx = torch.fft.rfftfreq(W, dtype=torch.float64, device=pixel.device)

    def image(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.reshape(-1, 1, 1)

    wave, twice = wavelength(p.voltage), torch.deg2rad(2 * p.angle)
    quadratic, quartic = torch.pi * wave / pixel**2, torch.pi / 2 * p.cs * 1e7 * wave**3 / pixel**4
    mean, difference = (p.defocus_u + p.defocus_v) / 2, (p.defocus_u - p.defocus_v) / 2
    # D |k|^2 = mean |k|^2 + difference ((kx^2 - ky^2) cos 2a + 2 kx ky sin 2a), written for few passes over [B, H, W]
    constant = torch.deg2rad(p.phase_shift) + p.amplitude_contrast.asin()
    along_x = image(quadratic * (mean + difference * twice.cos())) * kx**2 + image(constant)
    chi = along_x + image(quadratic * (mean - difference * twice.cos())) * ky**2
    chi.addcmul_(image(quadratic * difference * twice.sin()), 2 * kx * ky)
    chi.addcmul_(image(quartic), (kx**2 + ky**2) ** 2, value=-1)
    ctf = chi.sin_()
    if p.b_factor.any():
        # a product of a function of kx and one of ky
        fall = image(p.b_factor / 4 / pixel**2)
        ctf.mul_((-fall * kx**2).exp()).mul_((-fall * ky**2).exp())
    return ctf.unsqueeze(1)
