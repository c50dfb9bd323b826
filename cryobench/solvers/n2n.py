"""`n2n`: denoising by a network that was trained on pairs of noisy images (Lehtinen et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.networks import tiles
from cryobench.numerics.linalg import standardised
from cryobench.priors.denoiser import Denoiser
from cryobench.rng import Rng
from cryobench.spec import Component


@dataclass(frozen=True)
class N2n(Solver):
    """x = m + s f((y - m) / s), with m and s the mean and standard deviation of the whole image y and f a network.

    f is trained by `cryobench train --objective noise2noise`, on two images of each specimen with independent noise: of
    all f, the mean of the clean image given the noisy one has the lowest expected error against the other image.
    (Lehtinen et al. 2018, Noise2Noise; Bepler et al. 2020, Topaz-Denoise.) For `identity` only. Large images are
    evaluated in tiles whose halo covers the receptive field, which gives the result of the whole image.
    """

    model: Annotated[Denoiser, Component("priors", folder="denoiser"), "the network, such as model=./FOLDER"] = (
        Denoiser()
    )
    tile: Annotated[int | None, "side of a tile without its halo; none: as large as half a GiB allows"] = None

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
        x, mean, deviation = standardised(problem.y)
        with meters.calling(meters.NETWORK, x):
            x = tiles.apply(network, x, tile=self.tile, progress=progress)
        return Reconstruction(x.mul_(deviation).add_(mean))
