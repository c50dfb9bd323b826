"""Time a step of `cryosense`, compared with a plain implementation and with the network alone.

    uv run python benchmarks/cryosense.py

The plain implementation follows the public CryoSENSE code, batched: diffusers' network and `DDPMScheduler.step`, and
the data term by multiplication with masks, pooling and autograd. Both use the same network and number of steps (tests
compare their results on recorded runs). "rest" is our step without the network, timed with a network that returns
zeros: it includes the gradient of the data term and the noise of the step.

Times are medians over repeats within one process, alternating between the methods; compare ratios, not seconds.
"""

from __future__ import annotations

import argparse
import statistics
import unittest.mock

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from gradient import plain_gradient, seconds

from cryobench.core import Problem
from cryobench.operators.masks import RandomBinary
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPoolOperator
from cryobench.priors.diffusion import Diffusion, DiffusionModel
from cryobench.rng import Rng
from cryobench.solvers.cryosense import CryoSense, zeta_of
from cryobench.solvers.reverse import Draws

CASES = ((2, 4), (16, 64), (32, 256), (32, 1024))


def plain(problem: Problem, model: DiffusionModel, masks: torch.Tensor, block: int, draws: Draws, steps: int):
    """CryoSENSE as published, with the gradient normalised per image: [B, 1, H, W]."""
    scheduler = DDPMScheduler(num_train_timesteps=model.T, prediction_type=model.prediction)
    scheduler.set_timesteps(steps)
    x, zeta = draws.x_T(), zeta_of(block)
    v = torch.zeros_like(x)
    for i, t in enumerate(scheduler.timesteps.tolist()):
        rise = i / max(steps - 1, 1)
        beta_i, zeta_i = 0.1 + 0.8 * rise, 1e-2 + (zeta - 1e-2) * rise
        with torch.no_grad():
            stepped = scheduler.step(model.network(x, t), t, x, return_dict=True)
            mean, x0 = stepped.prev_sample, stepped.pred_original_sample
        z = (x0 - beta_i * v).clamp(-1, 1)
        g = plain_gradient(z, problem.y, masks, block) * 2 / problem.y[0].numel()
        g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + 1e-8)
        v = beta_i * v + zeta_i * g
        x = (mean - v).clamp(-1, 1)
    return x


def network_only(problem: Problem, model: DiffusionModel, steps: int) -> torch.Tensor:
    """Evaluate only the network, `steps` times."""
    x = torch.zeros(problem.image_batch_shape, device=problem.y.device)
    with torch.no_grad():
        for t in range(steps):
            model.network(x, t)
    return x


def without_network(model: DiffusionModel):
    """A context in which the network returns zeros at no cost."""
    return unittest.mock.patch.object(model, "network", lambda x, t: torch.zeros_like(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="embedded")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    prior = Diffusion(given.prior, precision="float32")
    model = prior.load(device)
    side = model.image_shape[0]
    rng = Rng(0, [str(i) for i in range(given.images)])
    truth = torch.rand((given.images, 1, side, side), generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {given.images} images")
    print("|  K |    M | plain, s/step | ours | ours / plain | network | rest | rest / network |")
    print("|---:|-----:|--------------:|-----:|-------------:|--------:|-----:|---------------:|")
    for block, count in CASES:
        masks = RandomBinary().draw(count, (side, side), 0).to(device)
        operator = SumPoolOperator(masks, block, dtype=torch.float32, device=device)
        problem = Problem(operator, operator.A(truth.to(device)), NoNoise(), torch.zeros(given.images, 1, 1, 1))
        solver = CryoSense(prior=prior, steps=given.steps)
        methods = (
            lambda: plain(problem, model, masks, block, Draws(problem, rng), given.steps),  # noqa: B023
            lambda: solver.sample(problem, model, Draws(problem, rng), lambda *_: None),  # noqa: B023
            lambda: network_only(problem, model, given.steps),  # noqa: B023
        )
        for method in methods:  # warm-up
            method()
        rounds = [[seconds(method, device) / given.steps for method in methods] for _ in range(given.repeats)]
        with without_network(model):
            rest = statistics.median(seconds(methods[1], device) / given.steps for _ in range(4 * given.repeats))
        theirs, ours, network = (statistics.median(r[k] for r in rounds) for k in range(3))
        print(
            f"| {block:2d} | {count:4d} | {theirs:.4f} | {ours:.4f} | {ours / theirs:.2f} | {network:.4f} "
            f"| {rest:.4f} | {rest / network:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
