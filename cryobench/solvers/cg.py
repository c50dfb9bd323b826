"""`cg`: least squares by conjugate gradients, preconditioned shell by shell, stopped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, Solver, mean_intensity, random_images
from cryobench.errors import ParameterError
from cryobench.numerics.fft import rfftn
from cryobench.numerics.linalg import conjugate_gradients, per_item
from cryobench.numerics.shells import shell_sums, shells
from cryobench.operators.spectral import multiply_spectrum
from cryobench.rng import Rng
from cryobench.spec import Range

_TOLERANCES = 1e-4, 0.1
"""`tol=auto` for exact and for noisy measurements."""
_LEAST = 1e-3
"""Least weight of a shell, relative to the largest."""


@dataclass(frozen=True)
class Cg(Solver):
    """Least squares by preconditioned conjugate gradients from the mean intensity c, stopped early.

        min_z 1/2 ||A (c + z) - y||^2,    x = c + z

    The preconditioner is the inverse of the mean of A^T A over each shell of Fourier space, estimated with one random
    image: for projections of a volume, the number of slices that cross the shell, times their squared CTF. Stops at
    `steps`, or where the gradient A^T (A x - y), in the norm of the preconditioner, is `tol` times that at c. Few steps
    leave the directions that A hardly measures alone, and with them their noise; many approach `pinv`.
    """

    dims = (2, 3)

    steps: Annotated[int, "maximum number of steps"] = 100
    tol: Annotated[
        float | Literal["auto"],
        Range(1e-4, 0.3, log=True, also=("auto",)),
        "stop an image at this norm of the gradient, relative to the first; auto: 1e-4 where y is exact, else 0.1",
    ] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"cg: steps must be at least 1, got {self.steps}")
        if self.tol != "auto" and not 0 <= self.tol < 1:
            raise ParameterError(f"cg: tol must be auto or lie in [0, 1), got {self.tol:g}")

    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        operator, y = problem.operator, problem.y
        c = mean_intensity(operator, y)
        b = operator.A_adjoint(y - c * operator.mean_response)
        weights = 1 / shell_means(operator)
        exact = per_item(problem.sigma == 0, b)
        tol = torch.where(exact, *_TOLERANCES) if self.tol == "auto" else self.tol
        norms = [torch.ones(len(b), dtype=torch.float64)]

        def watch(step: int, norm: torch.Tensor) -> None:
            norms.append(norm.flatten().double().cpu())
            if progress is not None:
                progress(step, self.steps)

        z = conjugate_gradients(
            operator.A_adjoint_A, b, tol=tol, max_steps=self.steps, watch=watch,
            precondition=lambda r: (multiply_spectrum(weights, r),),
        )  # fmt: skip
        curve = torch.stack(norms, dim=1)
        return Reconstruction(per_item(c, z) + z, {"gradient": curve[:, -1]}, {"gradient": curve})


def shell_means(operator: LinearOperator) -> torch.Tensor:
    """The mean of A^T A over each shell of Fourier space, on the half spectrum: float64 [1 or B, 1, *S[:-1], S[-1] // 2
    + 1], positive.

    Estimated as <F r, F A^T A r> / ||F r||^2 over the shell, r a random image (Hutchinson 1990). The corners, shells
    from the Nyquist frequency on, have at least the weight of the weakest shell within: projections hardly measure
    them, and scaled up to the others they would take most of the steps.
    """
    shape, r = operator.image_shape, random_images(operator).double()
    shell = shells(shape, r.device)
    spectra = [rfftn(image.double(), len(shape)) for image in (r, operator.A_adjoint_A(r.to(operator.dtype)))]
    measured, drawn = (shell_sums((spectra[0].conj() * other).real, shell, shape) for other in (spectra[1], spectra[0]))
    means = measured / drawn
    within = torch.arange(means.shape[1], device=r.device) < max(shape) / 2
    least = (_LEAST * means.amax(dim=1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
    means = torch.maximum(means, least)
    weakest = means[:, within].amin(dim=1, keepdim=True)
    return torch.where(within, means, torch.maximum(means, weakest))[:, shell][:, None]
