"""`dmplug`: optimises the seed of a three-step deterministic diffusion so that its image fits the measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from cryobench.core import Problem, Progress, Reconstruction, recording
from cryobench.errors import ParameterError
from cryobench.numerics.linalg import item_axes, total
from cryobench.priors.denoising import DenoisingModel
from cryobench.rng import Rng
from cryobench.solvers.reverse import Draws, WithDiffusion, levels, noise_in, renoised
from cryobench.spec import Range


@dataclass(frozen=True)
class DmPlug(WithDiffusion):
    """DMPlug (Wang et al. 2024, "DMPlug: A Plug-in Method for Solving Inverse Problems with Diffusion Models"):

        argmin_z mean (A R(z) - y)^2

    R(z): DDIM without fresh noise from the seed z, x0 clamped to [-1, 1]. The optimiser is Adam (0.9, 0.999) from
    z ~ N(0, I), with at most `steps` steps of `ddim_steps` network evaluations and their gradient each. With three DDIM
    steps the levels are those of the published code, 666, 333 and 0 of 1000.

    It stops by ES-WMV (Wang et al. 2021, "Early Stopping for Deep Image Prior", algorithm 1, whose window and patience
    are the defaults): with VAR the variance of the last `window` images R(z), summed over pixels, the result is the
    image at the minimum of VAR, and an image stops after `patience` steps without a lower VAR. With noisy y the
    iteration fits first the image and then the noise, and VAR has its minimum in between. With exact y there is no
    noise to fit: VAR decreases with the step lengths of Adam, so the rule stops when these no longer decrease, or
    never, and its result is about as good as the last iterate. `patience` = `steps` disables the rule.

    Every image has its own Adam state, VAR and stopping time; stopped images are no longer computed.

    info: `iterations`, the `loss` of the result, whether it `stopped` by the rule. curves: `loss` of every step, NaN
    after an image has stopped.
    """

    steps: Annotated[int, Range(200, 5000, log=True), "maximum number of steps of Adam"] = 5000
    lr: Annotated[float, Range(1e-3, 0.1, log=True), "learning rate"] = 1e-2
    window: Annotated[int, "number of iterates over which the variance is taken"] = 100
    patience: Annotated[int, "steps without a lower variance after which an image stops"] = 1000
    ddim_steps: Annotated[int, "network evaluations from the seed to the image"] = 3

    def __post_init__(self) -> None:
        for name, minimum in (("steps", 1), ("window", 2), ("patience", 1), ("ddim_steps", 1)):
            if getattr(self, name) < minimum:
                raise ParameterError(f"dmplug: {name} must be at least {minimum}, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ParameterError(f"dmplug: lr must be positive, got {self.lr:g}")

    def solve_in_range(self, problem: Problem, *, rng: Rng, progress: Progress | None = None) -> Reconstruction:
        model = self.model(problem, rng)
        B, device, dtype = problem.batch, problem.y.device, problem.y.dtype
        active = torch.arange(B, device=device)
        seed = Seed(Draws(problem, rng).x_T(), self.lr)
        stopping = EarlyStopping(min(self.window, self.steps + 1), self.patience)
        operator, y = problem.operator, problem.y
        result = torch.zeros(problem.image_batch_shape, dtype=dtype, device=device)
        iterates = result.clone()
        loss_of_result, curve = torch.zeros(B, dtype=dtype, device=device), []
        iterations = torch.full((B,), self.steps, device=device)
        stopped = torch.zeros(B, dtype=torch.bool, device=device)
        for i in range(self.steps):
            with torch.enable_grad():
                z = seed.z.detach().requires_grad_()
                image = generated(model, z, self.ddim_steps)
            x = image.detach()
            residual = operator.A(x) - y
            loss = residual.square().mean(dim=item_axes(residual))
            curve.append(torch.full((B,), math.nan, dtype=dtype, device=device).index_copy(0, active, loss))
            gradient = operator.A_adjoint(residual) * (2 / residual[0].numel())

            better, done = stopping.update(x)
            result[active[better]], loss_of_result[active[better]] = x[better], loss[better]
            iterates[active] = x
            recording.offer(iterates, iterates)
            if progress is not None:
                progress(i + 1, self.steps)
            if done.any():
                iterations[active[done]], stopped[active[done]] = i + 1, True
                if done.all():
                    break
            keep = ~done
            seed.descend(torch.autograd.grad(image, z, gradient)[0])
            if done.any():
                active, y, operator = active[keep], y[keep], operator.select(keep)
                model = model.select(keep)
                seed.take(keep)
                stopping.take(keep)
        info = {"iterations": iterations, "loss": loss_of_result, "stopped": stopped}
        return Reconstruction(result, info, {"loss": torch.stack(curve, dim=1)})


def generated(model: DenoisingModel, z: torch.Tensor, steps: int) -> torch.Tensor:
    """R(z): DDIM (Song, Meng & Ermon 2021, eq. 12) from x_T = z [B, 1, H, W]. Differentiable."""
    x = z
    for _, t, then in levels(model, steps):
        x0 = model.predict(x, t).x0.clamp(-1, 1)
        x = renoised(x0, noise_in(model, x, x0, t), None, model.alpha(then), 0.0)
    return x


class Seed:
    """z [B, 1, H, W] and the state of Adam (Kingma & Ba 2015, algorithm 1), independent for each image."""

    def __init__(self, z: torch.Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.z, self.m, self.v, self.k = z, torch.zeros_like(z), torch.zeros_like(z), 0
        self._lr, self._betas, self._eps = lr, betas, eps

    def descend(self, gradient: torch.Tensor) -> None:
        first, second = self._betas
        self.k += 1
        self.m = first * self.m + (1 - first) * gradient
        self.v = second * self.v + (1 - second) * gradient.square()
        m, v = self.m / (1 - first**self.k), self.v / (1 - second**self.k)
        self.z = self.z - self._lr * m / (v.sqrt() + self._eps)

    def take(self, images: torch.Tensor) -> None:
        """Keep only the state of some of the images."""
        self.z, self.m, self.v = self.z[images], self.m[images], self.v[images]


class EarlyStopping:
    """ES-WMV per image: minimum of the variance over the last `window` iterates, and number of steps since."""

    def __init__(self, window: int, patience: int):
        self._window, self._patience = window, patience
        self._last = self._minimum = self._waited = torch.empty(0)
        self._seen = 0

    def update(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For the next iterates [B, 1, H, W]: whether each is the best so far, and whether its image stops, bool [B].

        Until the first window is full the latest iterate is the best.
        """
        if self._seen == 0:
            self._last = x.new_empty((len(x), self._window, *x.shape[1:]))
            self._minimum = x.new_full((len(x),), math.inf)
            self._waited = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._last[:, self._seen % self._window] = x
        self._seen += 1
        if self._seen < self._window:
            return torch.ones_like(self._waited, dtype=torch.bool), torch.zeros_like(self._waited, dtype=torch.bool)
        variance = total(self._last.var(dim=1, correction=0)).flatten()
        better = variance < self._minimum
        self._minimum = torch.where(better, variance, self._minimum)
        self._waited = torch.where(better, 0, self._waited + 1)
        return better, self._waited >= self._patience

    def take(self, images: torch.Tensor) -> None:
        """Keep only the state of some of the images."""
        self._last, self._minimum, self._waited = self._last[images], self._minimum[images], self._waited[images]
