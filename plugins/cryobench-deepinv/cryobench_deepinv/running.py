"""Runs deepinv's methods on cryobench problems: image by image, in deepinv's range, with our seeds.

deepinv's methods work on u in [0, 1], our images are x = 2 u - 1 in [-1, 1]. The methods therefore receive

    y' = (y + A 1) / 2 = A u    with half the noise

with A and y divided by ||A||, because their default step sizes and weights are for physics of unit norm. Images are
processed one at a time, because a step size, stopping rule or random draw of theirs can depend on the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, recording
from cryobench.priors.denoising import DenoisingModel
from cryobench.rng import Rng, generator
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.reverse import WithDiffusion
from cryobench.solvers.wiener import noise_power
from cryobench_deepinv.denoisers import Denoiser, as_denoiser
from cryobench_deepinv.physics import OperatorPhysics, as_physics

PURPOSE = "deepinv"
"""The purpose that keys our random numbers, which seed deepinv's method for each image."""


@dataclass(frozen=True)
class ImageTask:
    """The input of deepinv for one image. part: the problem of this image. scale: the divisor of A and y."""

    part: Problem
    scale: float

    @property
    def operator(self) -> LinearOperator:
        """A, not scaled."""
        return self.part.operator

    @property
    def y(self) -> torch.Tensor:
        """The measurements of u, [1, M, h, w], scaled."""
        return (self.part.y + self.operator.mean_response) / (2 * self.scale)

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise of an entry of `y`."""
        return float(noise_power(self.part).sqrt()) / (2 * self.scale)

    @property
    def physics(self) -> OperatorPhysics:
        """A / scale, with its noise."""
        return as_physics(self.operator, self.sigma, scale=self.scale)

    @property
    def start(self) -> torch.Tensor:
        """The `pinv` solution, [1, 1, H, W], in [0, 1]: the initial point of methods that converge slowly in the
        components with small singular values."""
        return (minimum_norm(self.part) + 1) / 2


def task_of(problem: Problem, i: int, norm: float = 1.0) -> ImageTask:
    """The i-th image of a problem, with A and y scaled so that ||A|| is `norm`."""
    one = slice(i, i + 1)
    operator = problem.operator.select(one)
    operator_norm = float(operator.norms.max())
    scale = operator_norm / norm if operator_norm > 0 else 1.0
    return ImageTask(Problem(operator, problem.y[one], problem.noise, problem.sigma[one]), scale)


Restore = Callable[[int, ImageTask, Callable[[], None]], torch.Tensor]
"""restore(i, task, report) -> the i-th image, [1, 1, H, W] in [0, 1]; `report` must be called after each step."""


def one_by_one(
    problem: Problem,
    rng: Rng,
    restore: Restore,
    *,
    steps: int,
    progress: Progress | None,
    norm: float = 1.0,
    number: int = 0,
) -> Reconstruction:
    """Restore every image separately, with the global random state seeded by (seed, image id) and restored after it.

    number: of the draw; each has its own random numbers.
    """
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, steps * problem.batch), steps * problem.batch)

    images = []
    for i in range(problem.batch):
        with seeded(rng, i, problem.y.device, number):
            images.append(2 * restore(i, task_of(problem, i, norm), report).detach() - 1)
        done = steps * (i + 1)
    return Reconstruction(torch.cat(images).to(problem.y.dtype))


@contextmanager
def seeded(rng: Rng, i: int, device: torch.device, number: int = 0) -> Iterator[None]:
    """Seed the global random state of CPU and device from (seed, image id, draw), and restore it at the end."""
    source = generator(rng.seed, rng.image_ids[i], f"{PURPOSE} {number}" if number else PURPOSE)
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.set_state(source.get_state())
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(source.initial_seed())
        yield


@dataclass(frozen=True)
class WithDenoiser(WithDiffusion):
    """A method of deepinv with a denoiser: any diffusion prior, or `deepinv_denoiser:...`."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Number of denoiser evaluations per image."""

    @abstractmethod
    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        """The reconstruction of a task, [1, 1, H, W] in [0, 1]."""

    @property
    def norm(self) -> float:
        """The value to which ||A|| is scaled for the method."""
        return 1.0

    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        return self.draw(problem, self.model(problem, rng), rng, progress)

    @torch.no_grad()
    def draw(
        self, problem: Problem, model: DenoisingModel, rng: Rng, progress: Progress | None, number: int = 0
    ) -> Reconstruction:
        """Result `number` of each image."""

        def restore(i: int, task: ImageTask, report: Callable[[], None]) -> torch.Tensor:
            def callback(x: torch.Tensor, estimate: torch.Tensor) -> None:
                if i == 0:
                    recording.offer(x, estimate)
                report()

            return self.restore(task, as_denoiser(model.select(slice(i, i + 1)), callback=callback))

        steps, norm = self.evaluations, self.norm
        return one_by_one(problem, rng, restore, steps=steps, progress=progress, norm=norm, number=number)
