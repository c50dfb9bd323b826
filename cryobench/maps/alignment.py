"""The frame of a map that was found without poses, relative to that of the truth: rotation, hand and shift.

Poses are known up to a rotation and a shift of the map, and its hand. If the found map w and the true map v are

    v(r) = w(h Q^T (r - t)),      h = 1, or -1 for the other hand (an inversion through the origin),

the true image of a particle with the pose A and the place s is also that of w with the pose and the place

    A' = A Q            (h = 1),
    A' = D A Q          (h = -1),  D = diag(-1, -1, 1),
    s' = s + [A t]_xy,

because the slice of w(-r) at A is that of w at D A: both in-plane axes change their sign, so that the third keeps it.
Each particle thus states a Q. Many are wrong, so that the one is taken whose angles to those of all others, cut off at
20 degrees, have the least mean, and then the mean rotation (chordal: the orthogonal matrix next to the mean matrix) of
those within three times the median angle of those within 20 degrees. t is solved for by least squares over the
particles whose shifts fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cryobench.errors import ParameterError
from cryobench.maps.rotations import of_quaternions
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.nufft import SINGLE, Points

_CUT = 20.0
"""Degrees beyond which a pose is wrong."""
_CANDIDATES, _VOTERS = 500, 2000
"""Most particles whose rotation is tried, and by whose rotations it is judged."""
_ROUNDS, _TINY = 5, 1e-6
"""Rounds of a fit that leaves out what is beyond 3 times the median error, and an error in degrees or voxels that is
none."""
_TOLERANCE = 1e-6
"""Relative error of a map that is turned."""
_COARSE_SIDE, _ROTATIONS = 12, 4608
"""Side in voxels of the maps that are compared at all rotations, and their number."""
_REFINED, _FINISHED = 6, 4
"""Rotations of each hand that are refined with these maps, and of both that are refined with all frequencies."""
_CORNER_ANGLE = 0.1
"""Radians of the first steps of a refinement, whose first shifts are a voxel."""


@dataclass(frozen=True, eq=False)
class Frame:
    """What takes a found map into the frame of the true one.

    rotation: Q, float64 [3, 3], of vectors (x, y, z). mirrored: whether the hand is the other one. shift: t, voxels
    (x, y, z), float64 [3].
    """

    rotation: torch.Tensor
    mirrored: bool
    shift: torch.Tensor

    def apply(self, volume: torch.Tensor) -> torch.Tensor:
        """A found map [D, D, D], or several [m, D, D, D], in the true frame, float64 on the CPU.

        By non-uniform Fourier transforms, with a relative error of 1e-6 for maps that are 0 outside of the box.
        Frequencies at and above D / 2 cycles per box are set to 0. What leaves the box comes in at the other side.
        """
        volumes = volume[None] if volume.ndim == 3 else volume
        found = torch.stack([self._applied(each.double().cpu()) for each in volumes])
        return found[0] if volume.ndim == 3 else found

    def _applied(self, volume: torch.Tensor) -> torch.Tensor:
        D = len(volume)
        points, phase, inside = self._plan(D)
        spectrum = torch.zeros(phase.shape, dtype=torch.complex128)
        spectrum[inside] = torch.from_numpy(points.to(volume.numpy()))
        return torch.fft.fftshift(irfftn(spectrum * phase, (D,) * 3))

    def _plan(self, D: int) -> tuple[Points, torch.Tensor, torch.Tensor]:
        """The transform at the turned frequencies within the ball, the phases of the shift, and the ball."""
        if D not in self._plans:
            k, inside = _frequencies(D), _ball(D)
            turned = k[inside] @ self.rotation.double() * (-1 if self.mirrored else 1)  # h Q^T k, as rows
            points = Points((2 * math.pi * turned).flip(-1).numpy(), D, _TOLERANCE)
            phase = -2 * math.pi * (k @ self.shift.double())
            self._plans[D] = points, torch.polar(torch.ones_like(phase), phase), inside
        return self._plans[D]

    @cached_property
    def _plans(self) -> dict[int, tuple[Points, torch.Tensor, torch.Tensor]]:
        return {}


@dataclass(frozen=True, eq=False)
class Alignment(Frame):
    """The frame of found poses, and what is wrong with each pose in it: degrees [N], and pixels [N]."""

    angle_errors: torch.Tensor
    shift_errors: torch.Tensor


def align_poses(
    found: torch.Tensor,
    true: torch.Tensor,
    found_shift: torch.Tensor,
    true_shift: torch.Tensor,
    pixel_size: float,
) -> Alignment:
    """The frame in which found poses are nearest to the true ones, both hands tried.

    found, true: the matrices A of `physics.projection`, [N, 3, 3]. found_shift, true_shift: of the particles (x, y),
    Å, [N, 2]. pixel_size: Å. Works where up to about two thirds of the poses are wrong. Raises `ParameterError` for
    shapes that differ, no particles, and poses that are not finite.
    """
    found, true = found.double().cpu(), true.double().cpu()
    offset = (found_shift.double().cpu() - true_shift.double().cpu()) / pixel_size
    n = len(found)
    if n == 0 or found.shape != (n, 3, 3) or true.shape != found.shape or offset.shape != (n, 2):
        shapes = f"{list(found.shape)}, {list(true.shape)} and {list(offset.shape)}"
        raise ParameterError(f"expected poses [N, 3, 3] and shifts [N, 2] of the same particles, got {shapes}")
    if not (found.isfinite().all() and true.isfinite().all() and offset.isfinite().all()):
        raise ParameterError("the poses to align have values that are not finite")
    D = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    best: tuple[float, torch.Tensor, torch.Tensor, bool] | None = None
    for mirrored in (False, True):
        relative = true.mT @ (D @ found if mirrored else found)
        rotation = _consensus(relative)
        errors = _angles(relative, rotation[None])[:, 0]
        cost = errors.clamp_max(_CUT).mean().item()
        if best is None or cost < best[0]:
            best = cost, rotation, errors, mirrored
    assert best is not None
    _, rotation, errors, mirrored = best
    shift = _shift(true[:, :2], offset, errors)
    off = (offset - (true[:, :2] @ shift)).square().sum(-1).sqrt()
    return Alignment(rotation, mirrored, shift, errors, off)


def _consensus(relative: torch.Tensor) -> torch.Tensor:
    """The rotation [3, 3] that most of the rotations [N, 3, 3] are near."""
    n = len(relative)
    some, voters = relative[_spaced(n, _CANDIDATES)], relative[_spaced(n, _VOTERS)]
    cost = _angles(voters, some).clamp_max(_CUT).mean(dim=0)
    rotation = some[cost.argmin()]
    for _ in range(_ROUNDS):
        errors = _angles(relative, rotation[None])[:, 0]
        good = errors[errors < _CUT]  # not empty: the rotation is near the particle that states it
        near = errors <= 3 * good.median() + _TINY
        rotation = _orthogonal(relative[near].mean(dim=0))
    return rotation


def _spaced(n: int, most: int) -> torch.Tensor:
    """At most `most` of n numbers, evenly spaced."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


def _angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees between rotations [n, 3, 3] and [m, 3, 3], [n, m]; exact for small angles as well."""
    # |R - S|^2 = 8 sin^2(angle / 2), without the loss of digits of the arc cosine of the trace
    distance = torch.cdist(a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return torch.rad2deg(2 * torch.asin((distance / math.sqrt(8)).clamp(max=1)))


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The rotation next to a matrix [3, 3]."""
    u, _, v = torch.linalg.svd(matrix)
    signs = torch.ones(3, dtype=matrix.dtype)
    signs[2] = torch.det(u @ v).sign()
    return u @ torch.diag(signs) @ v


def _shift(rows: torch.Tensor, offset: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """t [3] of offsets [N, 2] = rows [N, 2, 3] t of most particles: those with good rotations, and then those whose
    offsets fit within three times the median."""
    kept = errors <= errors.median().clamp(min=1e-6).clamp(max=_CUT)
    if not kept.any():
        kept = torch.ones_like(kept)
    chosen, t = kept, torch.zeros(3, dtype=torch.float64)
    for _ in range(_ROUNDS):
        t = torch.linalg.pinv(rows[chosen].flatten(0, 1)) @ offset[chosen].flatten()
        off = (offset - rows @ t).square().sum(-1)
        chosen = kept & (off <= 9 * off[kept].median() + _TINY**2)
    return t


def align_volumes(found: torch.Tensor, true: torch.Tensor, *, shells: int | None = None) -> Frame:
    """The frame in which a found map [D, D, D] correlates best with the true one, both hands tried.

    Cubes of 12 voxels a side that hold the low frequencies are correlated at 4608 rotations (super-Fibonacci spirals,
    Alexa 2022, CVPR) with all shifts, by a Fourier transform. The best of each hand are refined in rotation and shift
    by the simplex of Nelder and Mead, and then the best of both over the frequencies up to `shells` cycles per box;
    None: 1/4 of the side, at least 6. Raises `ParameterError` for shapes that are not equal cubes.
    """
    if found.ndim != 3 or found.shape != true.shape or len(set(found.shape)) != 1:
        raise ParameterError(f"expected two cubes of the same side, got {list(found.shape)} and {list(true.shape)}")
    found, true = found.double().cpu(), true.double().cpu()
    side = len(true)
    first, last = (_Refinement(found, true, min(n, side // 2 - 1))
                   for n in (_COARSE_SIDE // 2, max(6, side // 4) if shells is None else shells))  # fmt: skip
    refined = [first.refined(frame, 250) for hand in (False, True) for frame in _coarse(found, true, hand)]
    refined.sort(key=lambda pair: -pair[0])
    finished = [last.refined(frame, 300) for _, frame in refined[:_FINISHED]]
    return max(finished, key=lambda pair: pair[0])[1]


def _coarse(found: torch.Tensor, true: torch.Tensor, mirrored: bool) -> list[Frame]:
    """The frames of a hand that correlate best, of those on the grid of rotations."""
    D, n = len(true), min(_COARSE_SIDE, len(true))
    ball = _ball(n)
    ball[0, 0, 0] = False
    k, small = _frequencies(n)[ball], _low(found, n).numpy()
    target = torch.where(ball, rfftn(torch.fft.ifftshift(_low(true, n)), 3), 0)
    found_frames: list[tuple[float, Frame]] = []
    for some in super_fibonacci(_ROTATIONS).split(512):
        turned = (k @ some) * (-1 if mirrored else 1)
        values = Points((2 * math.pi * turned.flatten(0, 1)).flip(-1).numpy(), n, SINGLE).to(small)
        spectra = torch.zeros((len(some), *ball.shape), dtype=torch.complex128)
        spectra[:, ball] = torch.from_numpy(values).reshape(len(some), -1).to(spectra)
        best, place = irfftn(target * spectra.conj(), (n,) * 3).flatten(1).max(dim=1)
        scores = best / spectra.abs().square().sum((1, 2, 3)).sqrt().clamp_min(1e-300)
        indices = np.stack(np.unravel_index(place.numpy(), (n,) * 3), axis=1)[:, ::-1]
        shifts = torch.from_numpy(((indices + n // 2) % n - n // 2) * (D / n))
        found_frames += [
            (float(score), Frame(rotation, mirrored, shift))
            for rotation, score, shift in zip(some, scores, shifts, strict=True)
        ]
    found_frames.sort(key=lambda pair: -pair[0])
    return [frame for _, frame in found_frames[:_REFINED]]


class _Refinement:
    """The correlation of two maps over the frequencies up to `shells` cycles per box, as a function of the frame."""

    def __init__(self, found: torch.Tensor, true: torch.Tensor, shells: int):
        n = min(2 * shells + 2, len(true))  # of cubes that hold these frequencies
        self._voxel = len(true) / n
        k = _frequencies(n)
        length = k.square().sum(-1).sqrt() * n
        inside = (length > 0) & (length <= shells)
        self._k, self._side = k[inside], n
        spectrum = rfftn(torch.fft.ifftshift(_low(true, n)), 3)[inside]
        self._target = (spectrum / spectrum.abs().square().sum().sqrt()).numpy()
        self._found = _low(found, n).numpy()

    def score(self, frame: Frame) -> float:
        """The correlation, at most 1."""
        turned = self._k @ frame.rotation * (-1 if frame.mirrored else 1)
        values = Points((2 * math.pi * turned).flip(-1).numpy(), self._side, SINGLE).to(self._found)
        phase = np.exp(-2j * math.pi * (self._k @ (frame.shift / self._voxel)).numpy())
        size = math.sqrt((np.abs(values) ** 2).sum()) or 1.0
        return float(np.vdot(self._target, values * phase).real) / size

    def refined(self, start: Frame, evaluations: int) -> tuple[float, Frame]:
        """The best frame near the given one, and its correlation."""
        from scipy.optimize import minimize
        from scipy.spatial.transform import Rotation

        def frame(x: np.ndarray) -> Frame:
            turn = torch.from_numpy(Rotation.from_rotvec(x[:3] * _CORNER_ANGLE).as_matrix())
            shift = start.shift + self._voxel * torch.from_numpy(x[3:].copy())
            return Frame(turn @ start.rotation, start.mirrored, shift)

        options = {"initial_simplex": np.concatenate([np.zeros((1, 6)), np.eye(6)]), "xatol": 1e-4, "fatol": 1e-8,
                   "maxfev": evaluations}  # fmt: skip
        found = minimize(lambda x: -self.score(frame(x)), np.zeros(6), method="Nelder-Mead", options=options)
        return -found.fun, frame(found.x)


def super_fibonacci(count: int) -> torch.Tensor:
    """`count` rotations evenly spread over SO(3), float64 [count, 3, 3] (Alexa 2022)."""
    first, second = math.sqrt(2), 1.533751168755204288118041
    s = torch.arange(count, dtype=torch.float64) + 0.5
    inner, outer = (s / count).sqrt(), (1 - s / count).sqrt()
    a, b = 2 * math.pi * s / first, 2 * math.pi * s / second
    x, y, z, w = inner * a.sin(), inner * a.cos(), outer * b.sin(), outer * b.cos()
    return of_quaternions(w, x, y, z)


def _frequencies(n: int) -> torch.Tensor:
    """(x, y, z) in cycles per voxel of the half spectrum of a cube, float64 [n, n, n // 2 + 1, 3]."""
    axis = torch.fft.fftfreq(n, dtype=torch.float64)
    half = torch.arange(n // 2 + 1, dtype=torch.float64) / n
    return torch.stack(torch.meshgrid(axis, axis, half, indexing="ij")[::-1], dim=-1)


def _ball(n: int) -> torch.Tensor:
    """The frequencies below n / 2 cycles per box, on the half spectrum."""
    return _frequencies(n).square().sum(-1) < 0.25 * (1 - 1e-9)


def _low(volume: torch.Tensor, n: int) -> torch.Tensor:
    """The low frequencies of a cube on n voxels a side; the centre stays the centre, voxel n // 2."""
    D = len(volume)
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume)))
    before = D // 2 - n // 2
    part = slice(before, before + n)
    spectrum = torch.fft.ifftshift(spectrum[part, part, part])
    return torch.fft.fftshift(torch.fft.ifftn(spectrum).real) * (n / D) ** 3
