"""Fourier inversion: a map from A^T y and the kernel of A^T A, with the Wiener weights that the half maps imply.

A^T A is a convolution on the D^3 voxels, a Toeplitz matrix T. The circulant matrix next to it in the Frobenius norm (T.
Chan 1988, SIAM J. Sci. Stat. Comput. 9:766) has the first column

    c(d) = sum_s w(d - s D) K(d - s D),  s in {0, 1}^3,      w(d) = prod over the axes of 1 - |d| / D,

and is diagonal in Fourier space. The diagonal C = F c is the density of the slices, weighted by squared CTFs and
averaged by Fejér's kernel over the neighbourhood of each frequency, so that it is not negative: the gridding weight.
The map is

    F X = F(A^T y) / (C + L),      L = <C> / SSNR

with <C> the mean of C over a shell and SSNR the signal-to-noise ratio of the data in it, which follows from the half
maps as in RELION (Scheres 2012, J. Struct. Biol. 180:519): SSNR = FSC / (1 - FSC) for a half, and 2 FSC / (1 - FSC) for
all particles. It is the ratio of the prior's variance to that of the noise, tau^2 <C> / sigma^2, so neither is needed.
The correlation is that of the halves with L = 0, but C at least 1/1000 of <C>.

With `steps`, (T + L) x = A^T y is solved by conjugate gradients with 1 / (C + L) as preconditioner. Where the CTFs of
all particles are 0, T finds in the neighbourhood, as the specimen is no larger than the box, what C cannot: with one
CTF for all, the map of C has no signal at its zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cryobench.maps.fsc import shell_correlation
from cryobench.maps.masks import soft_ball
from cryobench.metrics.rings import SMALL_RINGS, ring_counts, ring_sums
from cryobench.numerics.fft import irfftn, rfftn
from cryobench.numerics.linalg import conjugate_gradients
from cryobench.numerics.shells import shells
from cryobench.numerics.toeplitz import Toeplitz

STEPS = 3
"""Conjugate gradients that come as close to the exact solution as matters (docs/structure.md)."""
_LEAST_WEIGHT = 1e-3
"""Least C of a frequency relative to the mean of its shell in maps without L, as in RELION."""
_LEAST_FSC = 1e-3
"""FSC of shells without signal, and 1 minus that of shells without noise."""
EDGE = 5.0
"""Voxels of the soft edge of the ball within which half maps are compared."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps [D, D, D] of all particles and of the halves.

    full has Wiener weights. half1 and half2 are made alone, each with the weights of its shells, L, which follow from
    the correlation of both; afterwards each shell is multiplied by 1 + L / <C>, so that shells with noise alone are not
    small beside the others, from which a mask would fill them. Their correlation states the resolution. fsc: this
    correlation within the mask, float64 [D // 2].
    """

    full: torch.Tensor
    half1: torch.Tensor
    half2: torch.Tensor
    fsc: torch.Tensor

    @property
    def by_name(self) -> dict[str, torch.Tensor]:
        """The maps as `core.Reconstruction.volumes` has them."""
        return {"full": self.full, "half1": self.half1, "half2": self.half2}


def wiener(
    sums: torch.Tensor,
    kernels: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    steps: int = STEPS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Maps:
    """The maps of two halves. sums: A^T y of each, [2, D, D, D]. kernels: of A^T A, [2, 2 D, 2 D, 2 D].

    mask: [D, D, D], within which the halves are compared; None: `default_mask`. steps: of conjugate gradients.
    """
    D = sums.shape[-1]
    sums, kernels = sums.double().cpu(), kernels.double().cpu()
    mask = default_mask(D) if mask is None else mask.double().cpu()
    densities = [density(kernel) for kernel in kernels]
    first, second = (_inverted(b, C, _least(C)) for b, C in zip(sums, densities, strict=True))
    fsc = shell_correlation(first, second, mask)
    halves = []
    for b, C, kernel in zip(sums, densities, kernels, strict=True):
        prior = prior_weights(C, fsc)
        halves.append(_unweighted(regularised(b, C, prior, kernel, steps), C, prior))
    C = densities[0] + densities[1]
    full = regularised(sums.sum(0), C, prior_weights(C, 2 * fsc / (1 + fsc)), kernels.sum(0) if steps else None, steps)
    half1, half2 = halves
    found = shell_correlation(half1, half2, mask)
    full, half1, half2 = (volume.to(device, dtype) for volume in (full, half1, half2))
    return Maps(full, half1, half2, found)


def default_mask(side: int) -> torch.Tensor:
    """The largest ball with a soft edge that a box of `side` voxels contains."""
    return soft_ball(side, max(side / 2 - EDGE, side / 4), EDGE, dtype=torch.float64)


def particle_mask(side: int, radius: float | None, pixel_size: float | None) -> torch.Tensor:
    """A soft ball of the radius of the particle in Å, at most the largest that the box contains; that one, where the
    radius or the pixel size is unknown."""
    if radius is None or pixel_size is None:
        return default_mask(side)
    return soft_ball(side, min(radius / pixel_size, side / 2 - EDGE), EDGE, dtype=torch.float64)


def density(kernel: torch.Tensor, *, signed: bool = False) -> torch.Tensor:
    """C on the half spectrum, float64 [D, D, D // 2 + 1], of the kernel [2 D, 2 D, 2 D] of A^T A. signed: of a sum in
    which images have weights of either sign."""
    D = len(kernel) // 2
    d = torch.arange(2 * D, dtype=torch.float64)
    w = 1 - torch.minimum(d, 2 * D - d) / D
    folded = (kernel * w[:, None, None] * w[:, None] * w).reshape(2, D, 2, D, 2, D).sum((0, 2, 4))
    found = rfftn(folded, 3).real
    return found if signed else found.clamp_min(0)


def prior_weights(C: torch.Tensor, fsc: torch.Tensor) -> torch.Tensor:
    """L of each shell of a map with the density C, [D, D, D // 2 + 1], whose correlation with an independent map of the
    same quality is `fsc` [D // 2].

    Shells have almost no signal from the one on where the curve falls to 0, and in the corners of Fourier space. The
    mean intensity has the ratio of the first shell.
    """
    D = len(C)
    signal = fsc.clone()
    ended = signal <= 0
    ended[:SMALL_RINGS] &= ended[SMALL_RINGS : SMALL_RINGS + 1]
    if ended.any():
        signal[int(ended.int().argmax()) :] = 0
    signal = signal.clamp(_LEAST_FSC, 1 - _LEAST_FSC)
    of_shell = _means(C) * (1 - signal) / signal
    corner = _means(C)[-1:] / _LEAST_FSC
    return _of_shells(torch.cat([of_shell, corner]), D)


def regularised(
    b: torch.Tensor, C: torch.Tensor, prior: torch.Tensor, kernel: torch.Tensor | None = None, steps: int = 0
) -> torch.Tensor:
    """(T + L)^-1 b, float64 [D, D, D]: with C for T, or by `steps` of conjugate gradients with the kernel of T."""
    if kernel is None or steps == 0:
        return _inverted(b, C, prior)
    shape = tuple(b.shape)
    normal = Toeplitz(kernel, dtype=torch.float64, device=torch.device("cpu"))
    found = conjugate_gradients(
        lambda x: normal(x) + irfftn(prior * rfftn(x, 3), shape), b[None, None], tol=0.0, max_steps=steps,
        precondition=lambda r: (irfftn(rfftn(r, 3) / (C + prior), shape),),
    )  # fmt: skip
    return found[0, 0]


def _inverted(b: torch.Tensor, C: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """F^-1 F b / (C + L), without the corners of Fourier space, which no slice contains."""
    return _multiplied(b, 1 / (C + added))


def _unweighted(x: torch.Tensor, C: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """x with every shell multiplied by 1 + L / <C>."""
    return _multiplied(x, 1 + prior / _of_shells(_means(C), len(C)))


def _multiplied(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """x with its spectrum multiplied by factors, and without corners."""
    D = len(x)
    return irfftn(torch.where(shells((D,) * 3) <= D // 2, rfftn(x, 3) * factors, 0.0), (D,) * 3)


def _least(C: torch.Tensor) -> torch.Tensor:
    """What raises C to a small part of the mean of its shell."""
    return (_LEAST_WEIGHT * _of_shells(_means(C), len(C)) - C).clamp_min(0)


def _of_shells(values: torch.Tensor, D: int) -> torch.Tensor:
    """The number of the shell of each frequency, [D, D, D // 2 + 1], of those from shell 1 on: the first also for the
    mean intensity, and the last for all shells beyond."""
    return torch.cat([values[:1], values])[shells((D,) * 3).clamp_max(len(values))]


def _means(C: torch.Tensor) -> torch.Tensor:
    """The mean of C over each shell, [D // 2]."""
    shape = (len(C),) * 3
    return ring_sums(C[None, None], shape)[0] / ring_counts(shape, C.device)[0]
