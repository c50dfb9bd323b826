"""Point groups of rotations, with the axes of RELION (`symmetries.cpp`).

Cn: n-fold about z. Dn: also twofold about x. T: threefold about z, twofold about (0, sqrt(2/3), sqrt(1/3)). O: fourfold
about z, threefold about (1, 1, 1). I, which is I2: twofold about the coordinate axes, fivefold in the plane of x and z.
I1: the same with its fivefold axis at (0.85, 0, -0.53). I3, I4: fivefold about z or near it, twofold at (-0.53, 0,
0.85) or (0.53, 0, 0.85).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from cryobench.errors import ParameterError

_GOLDEN = (1 + 5**0.5) / 2
_LONG, _SHORT = _GOLDEN / (1 + _GOLDEN**2) ** 0.5, 1 / (1 + _GOLDEN**2) ** 0.5
"""0.8507 and 0.5257: the coordinates of the corners of an icosahedron with twofold coordinate axes."""
_LARGEST = 60
"""Greatest n of Cn and Dn."""
_OTHERS: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0.0, 0.0, 1.0)), (2, (0.0, 2**0.5, 1.0))),
    "O": ((4, (0.0, 0.0, 1.0)), (3, (1.0, 1.0, 1.0))),
    "I": ((2, (0.0, 0.0, 1.0)), (5, (_SHORT, 0.0, _LONG))),
    "I1": ((2, (1.0, 0.0, 0.0)), (5, (_LONG, 0.0, -_SHORT))),
    "I3": ((2, (-_SHORT, 0.0, _LONG)), (5, (0.0, 0.0, 1.0))),
    "I4": ((2, (_SHORT, 0.0, _LONG)), (5, (2.0, 0.0, 1.0))),
}
_OTHERS["I2"] = _OTHERS["I"]


def rotations(group: str) -> torch.Tensor:
    """The rotations of a point group such as C1, D7, T, O or I, the identity first, float64 [G, 3, 3] as they act on
    (x, y, z). Raises `ParameterError` for an unknown name."""
    name = group.strip().upper()
    match = re.fullmatch(r"([CD])([1-9]\d{0,2})", name)
    if match is not None and int(match[2]) <= _LARGEST:
        z = (int(match[2]), (0.0, 0.0, 1.0))
        return _closed([z] if match[1] == "C" else [z, (2, (1.0, 0.0, 0.0))])
    if name not in _OTHERS:
        raise ParameterError(f"unknown symmetry {group!r}; give C1 to C{_LARGEST}, D1 to D{_LARGEST}, T, O, or I (I1 "
                             "to I4)")  # fmt: skip
    return _closed(_OTHERS[name])


def _closed(axes: Sequence[tuple[int, tuple[float, float, float]]]) -> torch.Tensor:
    """All products of rotations by 1/n of a turn about axes, given as (n, axis)."""
    generators = [_turn(n, axis) for n, axis in axes if n > 1]
    found = [torch.eye(3, dtype=torch.float64)]
    for element in found:  # grows
        for generator in generators:
            product = generator @ element
            if all((product - other).abs().max() > 1e-6 for other in found):
                found.append(product)
    return torch.stack(found)


def _turn(n: int, axis: tuple[float, float, float]) -> torch.Tensor:
    """The rotation by 1/n of a turn about an axis (Rodrigues)."""
    angle = torch.tensor(2 * torch.pi / n, dtype=torch.float64)
    x, y, z = (torch.tensor(axis, dtype=torch.float64) / torch.tensor(axis, dtype=torch.float64).norm()).tolist()
    K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + angle.sin() * K + (1 - angle.cos()) * K @ K
