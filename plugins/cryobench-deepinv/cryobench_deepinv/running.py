"""How a method of deepinv is run on a problem of cryobench: image by image, in deepinv's range, by our seeds.

deepinv's methods work on u in [0, 1], ours are x = 2 u - 1 in [-1, 1]; so what they are given is

    y' = (y + A 1) / 2 = A u    with noise of half the deviation

and A and y are divided by ||A||: their default step sizes and weights are for physics of unit norm. Images go one at a
time, because a step, a stop or a draw of theirs can depend on the batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cryobench.core import LinearOperator, Problem, Progress, Reconstruction, recording
from cryobench.rng import Rng, generator
from cryobench.solvers.pinv import least_norm
from cryobench.solvers.reverse import WithDiffusion
from cryobench.solvers.wiener import noise_power
from cryobench_deepinv.denoisers import Denoiser, as_denoiser
from cryobench_deepinv.physics import OperatorPhysics, as_physics

PURPOSE = "deepinv"
"""What our random numbers are drawn for: the seed of a method of deepinv, for each image."""


@dataclass(frozen=True)
class ImageTask:
    """One image as given to deepinv. part: the problem of this image alone. scale: what A and y are divided by."""

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
        """The deviation of an entry's noise in `y`."""
        return float(noise_power(self.part).sqrt()) / (2 * self.scale)

    @property
    def physics(self) -> OperatorPhysics:
        """A / scale, with its noise."""
        return as_physics(self.operator, self.sigma, scale=self.scale)

    @property
    def start(self) -> torch.Tensor:
        """What `pinv` answers, [1, 1, H, W], in [0, 1]: where those begin that take long to fill in what A shrinks."""
        return (least_norm(self.part) + 1) / 2


def task_of(problem: Problem, i: int, norm: float = 1.0) -> ImageTask:
    """The i-th image of a problem, with A and y scaled so that ||A|| is `norm`."""
    one = slice(i, i + 1)
    operator = problem.operator.select(one)
    length = float(operator.norms.max())
    scale = length / norm if length > 0 else 1.0
    return ImageTask(Problem(operator, problem.y[one], problem.noise, problem.sigma[one]), scale)


Restore = Callable[[int, ImageTask, Callable[[], None]], torch.Tensor]
"""restore(i, task, report) -> the i-th image, [1, 1, H, W] in [0, 1]; `report` must be called after each step."""


def one_by_one(
    problem: Problem, rng: Rng, restore: Restore, *, steps: int, progress: Progress | None, norm: float = 1.0
) -> Reconstruction:
    """Every image restored on its own, with the global random state seeded by (seed, image id) and then put back."""
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, steps * problem.batch), steps * problem.batch)

    images = []
    for i in range(problem.batch):
        with seeded(rng, i, problem.y.device):
            images.append(2 * restore(i, task_of(problem, i, norm), report).detach() - 1)
        done = steps * (i + 1)
    return Reconstruction(torch.cat(images).to(problem.y.dtype))


@contextmanager
def seeded(rng: Rng, i: int, device: torch.device) -> Iterator[None]:
    """The global random state of the CPU, and of the device, follows from (seed, image id) inside, and is put back."""
    source = generator(rng.seed, rng.image_ids[i], PURPOSE)
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
        """How often the denoiser is asked, for each image."""

    @abstractmethod
    def restore(self, task: ImageTask, denoiser: Denoiser) -> torch.Tensor:
        """The image of a task, [1, 1, H, W] in [0, 1]."""

    @property
    def norm(self) -> float:
        """||A|| as the method is to see it."""
        return 1.0

    @torch.no_grad()
    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)

        def restore(i: int, task: ImageTask, report: Callable[[], None]) -> torch.Tensor:
            def after(x: torch.Tensor, estimate: torch.Tensor) -> None:
                if i == 0:
                    recording.offer(x, estimate)
                report()

            return self.restore(task, as_denoiser(model.select(slice(i, i + 1)), after=after))

        return one_by_one(problem, rng, restore, steps=self.evaluations, progress=progress, norm=self.norm)
