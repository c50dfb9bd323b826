"""Grids on the rotations SO(3), and angles between rotations.

A rotation is a matrix A of `physics.projection`, A = Rz(psi) Ry(tilt) Rz(rot). Its third row is the direction of view,
(sin tilt cos rot, sin tilt sin rot, cos tilt). The grid of order n has the 12 4^n pixels of HEALPix (Gorski et al.
2005, ApJ 622:759), which have equal areas, as directions, and 6 2^n rotations in the plane for each: 72, 576, 4608,
... rotations, 8 times as many with each order, about 60 / 2^n degrees apart (Yershova, Jain, LaValle & Mitchell 2010,
Int. J. Robotics Research 29:801).

The centres of pixels are those of squares in the plane of the HEALPix projection (Calabretta & Roukema 2007, MNRAS
381:865, with H = 4 and K = 3): 12 squares of diagonal pi/2 stand on their corners in three rows. In that plane,

    |Y| <= pi/4:  z = 8 Y / (3 pi),                 rot = X
    else:         z = sign(Y) (1 - s^2 / 3),        rot = Xc + (X - Xc) / s,      s = 2 - 4 |Y| / pi

with Xc the X of the pole's triangle that the point is in. Pixels are numbered as in the nested scheme: those of pixel p
at the next order are 4 p to 4 p + 3.

A rotation is refined by a cube around it in the tangent space: with q the spacing of its grid, the 8 rotations
exp(w) A with w = (+-q/4, +-q/4, +-q/4), of a grid of spacing q/2, also near the poles of the Euler angles.
"""

from __future__ import annotations

import math

import torch

from cryobench.errors import ParameterError
from cryobench.physics.projection import matrices

MOST = 6
"""The largest order of a grid: 18,874,368 rotations."""


def directions(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """rot and tilt of the centres of the 12 4^n pixels of HEALPix, in degrees, float64 [12 4^n] each, nested."""
    side = 2**order
    pixel = torch.arange(12 * 4**order)
    face, within = pixel // 4**order, pixel % 4**order
    x, y = torch.zeros_like(within), torch.zeros_like(within)
    for bit in range(order):
        x |= ((within >> 2 * bit) & 1) << bit
        y |= ((within >> 2 * bit + 1) & 1) << bit
    u, v = (x.double() + 0.5) / side, (y.double() + 0.5) / side
    row, column = (face // 4).double(), (face % 4).double()
    quarter = math.pi / 4
    X = quarter * (2 * column + (row != 1)) + (u - v) * quarter
    Y = quarter * (1 - row) + (u + v - 1) * quarter
    polar = Y.abs() > quarter
    s = torch.where(polar, 2 - Y.abs() / quarter, 1.0)
    z = torch.where(polar, Y.sign() * (1 - s**2 / 3), Y / quarter * (2 / 3))
    Xc = quarter * (2 * column + 1)
    rot = torch.where(polar, Xc + (X - Xc) / s, X)
    return torch.rad2deg(rot) % 360, torch.rad2deg(torch.arccos(z))


def spacing(order: int) -> float:
    """Degrees between neighbours of the grid of an order."""
    return 60 / 2**order


def grid(order: int) -> torch.Tensor:
    """The 72 8^n rotations of an order, float64 [72 8^n, 3, 3]; those of one direction follow one another.

    Raises `ParameterError` for an order below 0 or above `MOST`.
    """
    if not 0 <= order <= MOST:
        raise ParameterError(f"a grid of rotations has order 0 to {MOST}, got {order}")
    rot, tilt = directions(order)
    count = 6 * 2**order
    psi = (torch.arange(count, dtype=torch.float64) + 0.5) * (360 / count)
    # psi - rot: no seam at the pole of tilt 0, where the plane turns with rot + psi
    rot, tilt, psi = rot.repeat_interleave(count), tilt.repeat_interleave(count), psi.repeat(len(rot))
    return matrices(rot, tilt, psi - rot)


def children(rotations: torch.Tensor, degrees: float) -> torch.Tensor:
    """The 8 rotations that refine each rotation of a grid, [..., 3, 3] -> [..., 8, 3, 3].

    degrees: the spacing of the grid. That of the children is half of it.
    """
    quarter = math.radians(degrees) / 4
    corners = torch.cartesian_prod(*[torch.tensor([-quarter, quarter], dtype=torch.float64)] * 3)
    return of_vectors(corners).to(rotations) @ rotations[..., None, :, :]


def of_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """exp(w): the rotation by |w| radians about w, [..., 3] -> [..., 3, 3]; differentiable."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def angle_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Degrees of the rotation from one to the other, [..., 3, 3] each -> [...], float64.

    |A - B|_F = 2 sqrt(2) sin(angle / 2), which is accurate for small angles too.
    """
    chord = torch.linalg.matrix_norm(first.double() - second.double())
    return torch.rad2deg(2 * torch.asin((chord / math.sqrt(8)).clamp(max=1.0)))


def random_rotations(count: int, generator: torch.Generator) -> torch.Tensor:
    """Rotations uniform on SO(3), float64 [count, 3, 3]: those of normalised Gaussian quaternions."""
    quaternions = torch.randn((count, 4), generator=generator, dtype=torch.float64)
    return of_quaternions(*torch.nn.functional.normalize(quaternions, dim=1).unbind(1))


def of_quaternions(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The rotations of unit quaternions w + x i + y j + z k, [N] each -> [N, 3, 3]."""
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
