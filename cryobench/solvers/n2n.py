"""`n2n`: denoising by a network that was trained on pairs of noisy images (Lehtinen et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.networks import tiles
from cryobench.numerics.linalg import standardised
from cryobench.numerics.symmetry import SYMMETRIES, inverse_transformed, transformed
from cryobench.priors.denoiser import Denoiser
from cryobench.rng import Rng
from cryobench.spec import Component


@dataclass(frozen=True)
class N2n(Solver):
    """A network that was trained without clean images, for `identity`.

        x = m + s f((y - m) / s)    with m and s the mean and standard deviation of the whole image y

    f is trained by `cryobench train --objective noise2noise`, on two images of each specimen with independent noise: of
    all f, the mean of the clean image given the noisy one has the lowest expected error against the other image.
    (Lehtinen et al. 2018, Noise2Noise; Bepler et al. 2020, Topaz-Denoise.) For `identity` only. Large images are
    evaluated in tiles whose halo covers the receptive field, which gives the result of the whole image.

    turns: f is the mean over the symmetries T of the square of T^-1 f T, since E[s | y] has these symmetries if s has
    (Timofte, Rothe & Van Gool 2016, CVPR, section 3.6).
    """

    model: Annotated[Denoiser, Component("priors", folder="denoiser"), "the network, such as model=./FOLDER"] = (
        Denoiser()
    )
    tile: Annotated[int | None, "side of a tile without its halo; none: as large as half a GiB allows"] = None
    turns: Annotated[bool, "average the results for the eight turns and flips of the image; eight times as slow"] = (
        False
    )

    any_size = True

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise ParameterError(f"n2n: tile must be a positive number of pixels, got {self.tile}")

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.operator.identity:
            return "n2n removes noise from images; it needs the operator identity"
        try:
            self.model.check(problem.operator.image_shape)
        except IncompatibleError as reason:
            return f"n2n: {reason}"
        return None

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        network = self.model.load(problem.y.device)
        y, mean, deviation = standardised(problem.y)
        kinds = SYMMETRIES if self.turns else 1

        def applied(kind: int) -> torch.Tensor:
            x = transformed(y, kind) if kind else y  # which would copy
            with meters.calling(meters.NETWORK, x):
                x = tiles.apply(network, x, tile=self.tile, progress=_part(progress, kind, kinds))
            return inverse_transformed(x, kind)

        x = applied(0)
        for kind in range(1, kinds):
            x.add_(applied(kind))
        return Reconstruction(x.mul_(deviation / kinds).add_(mean))


def _part(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """The progress of one of several equal parts; of all of them to `progress`."""
    return None if progress is None else lambda done, total: progress(part * total + done, parts * total)
