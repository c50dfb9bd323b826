"""`topaz`: denoising by the pretrained networks of Topaz-Denoise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from cryobench.core import Problem, Progress, Reconstruction, Solver, meters
from cryobench.errors import DataError, DependencyError, IncompatibleError, ParameterError
from cryobench.networks import tiles
from cryobench.numerics.linalg import standardised
from cryobench.rng import Rng
from cryobench_topaz.networks import SHIPPED, load


@dataclass(frozen=True)
class Topaz(Solver):
    """x = m + s f((y - m) / s), with m and s the mean and standard deviation of the whole image y and f a pretrained
    network of Topaz-Denoise (Bepler, Kelley, Noble & Berger 2020, Nat. Commun. 11:5208).

    For `identity` only. Large images are evaluated in tiles whose halo covers the receptive field, which gives the
    result of the whole image; `topaz denoise` scales each of its tiles separately. The networks are those that topaz-em
    ships. They were trained on pairs of noisy micrographs of other specimens and are not adapted to the data.
    """

    model: Annotated[
        Literal["unet", "unet-small", "fcnn", "affine", "unet-v0.2.1"], "the network, as in `topaz denoise --model`"
    ] = "unet"
    tile: Annotated[int, "side of a tile without its halo, in pixels"] = 768

    any_size = True

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ParameterError(f"topaz: tile must be a positive number of pixels, got {self.tile}")

    def unsupported(self, problem: Problem) -> str | None:
        if not problem.operator.identity:
            return "topaz removes noise from images; it needs the operator identity"
        try:
            tiles.check_sides(SHIPPED[self.model].config, *problem.operator.image_shape)
            load(self.model, str(problem.y.device))  # now, so that its time is not that of solving
        except (DataError, DependencyError, IncompatibleError) as reason:
            return f"topaz: {reason}"
        return None

    @torch.no_grad()
    def solve(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        network = load(self.model, str(problem.y.device))
        x, mean, deviation = standardised(problem.y)
        with meters.calling(meters.NETWORK, x):
            x = tiles.apply(network, x, tile=self.tile, progress=progress)
        return Reconstruction(x.mul_(deviation).add_(mean))
