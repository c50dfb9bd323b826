"""Recipes of a diffusion prior at equal time: uv run python benchmarks/prior_recipes.py

Trains a network by each recipe for the same processor time on the same simulated particles, 128 x 128, and denoises
clean particles of structures that are in no training set with sigma 0.1, 0.3 and 1 (PSNR in dB, range 2). A recipe is a
network, what it predicts, the weights of the loss, the noise levels, the averaging of its weights and the decay of the
learning rate; each differs from `small`, the recipe of the prior `embedded`, in one of them. --structures N takes the
first N of the training structures: quality against the number of folds. Results are added to results.csv in --out, and
the images are kept there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from cryobench.core import Stack
from cryobench.io.scaling import minmax
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import names_of
from cryobench.training.objectives.architectures import ARCHITECTURES, Architecture
from cryobench.training.objectives.ddpm import ALPHAS, timesteps

SIDE = 128
SIGMAS = (0.1, 0.3, 1.0)
SNRS = (0.5, 2.0, 8.0, None)
"""Of the training images, in equal parts; the network sees the clean image on the scale of the noisy one."""
SHARP = {"b_factor": 10.0, "envelope": 10.0}
"""As much detail per pixel as a large particle, which has large pixels."""
SHOWN = 96
"""Images that are denoised at the end."""
CLIPPED_SNR = 5.0
"""Of the weights of Min-SNR."""


@dataclass(frozen=True)
class Recipe:
    """network: called with x [B, 1, H, W] and t [B]. prediction: of the
    noise, of the clean image, or of v. weighting: of the loss; with "snr" the squared error of the clean image has
    the weight min(signal-to-noise ratio, 5) (Hang et al. 2023, Min-SNR). levels: see `ddpm`. decay: of the
    learning rate, by a cosine or not at all."""

    network: Callable[[], nn.Module]
    prediction: Literal["v", "epsilon", "clean"] = "v"
    weighting: Literal["none", "snr"] = "none"
    levels: Literal["mixed", "uniform"] = "mixed"
    ema: float = 0.999
    decay: bool = True


def unet(architecture: Architecture) -> Callable[[], nn.Module]:
    """A network of diffusers."""
    return lambda: Unshuffled(architecture.build((SIDE, SIDE)), architecture.unshuffle)


class Unshuffled(nn.Module):
    """A network of images [B, 1, H, W] from one of their pixels unshuffled by u, [B, u^2, H / u, W / u]."""

    def __init__(self, network: nn.Module, factor: int):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = self.network(functional.pixel_unshuffle(x, self.factor), t)
        output = output if isinstance(output, torch.Tensor) else output.sample  # of diffusers
        return functional.pixel_shuffle(output, self.factor)


class Convolutions(nn.Module):
    """Residual blocks at one resolution, each scaled and shifted by an embedding of the noise level.

    planes: of x. width: channels of a block. blocks: their number, with the dilations 1, 2, 4, 1, 2, 4, ...
    """

    def __init__(self, planes: int, width: int, blocks: int):
        super().__init__()
        self.first, self.last = nn.Conv2d(planes, width, 3, padding=1), nn.Conv2d(width, planes, 3, padding=1)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        dilations = [2 ** (block % 3) for block in range(blocks)]
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in dilations)
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in dilations)
        self.wide = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.narrow = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in dilations)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level, h = self.level(embedded(t)), self.first(x)
        for norm, film, wide, narrow in zip(self.norms, self.films, self.wide, self.narrow, strict=True):
            scale, shift = film(level)[:, :, None, None].chunk(2, dim=1)
            h = h + narrow(functional.silu(wide(functional.silu(norm(h) * (1 + scale) + shift))))
        return self.last(h)


class Transformer(nn.Module):
    """A transformer of the pixels of an unshuffled image, with learned positions; the noise level is one more token.

    planes: of x. side: of x. width, layers: of the transformer.
    """

    def __init__(self, planes: int, side: int, width: int, layers: int):
        super().__init__()
        self.first, self.last = nn.Linear(planes, width), nn.Linear(width, planes)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        layer = nn.TransformerEncoderLayer(width, width // 32, 4 * width, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True)  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        tokens = self.first(x.flatten(2).transpose(1, 2)) + self.positions
        tokens = self.layers(torch.cat([self.level(embedded(t))[:, None], tokens], dim=1))[:, 1:]
        return self.last(tokens).transpose(1, 2).reshape(x.shape)


def embedded(t: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of the noise levels [B], [B, 64]."""
    angles = t.float()[:, None] * torch.exp(-math.log(1e4) * torch.arange(32, device=t.device) / 32)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


SMALL = ARCHITECTURES["small"]
RECIPES = {
    "small": Recipe(unet(SMALL)),
    "medium": Recipe(unet(ARCHITECTURES["medium"])),
    "wide": Recipe(unet(dataclasses.replace(SMALL, channels=(96, 160)))),
    "half": Recipe(unet(dataclasses.replace(SMALL, channels=(32, 64, 128, 128), unshuffle=2))),
    "convolutions": Recipe(lambda: Unshuffled(Convolutions(16, 96, 9), 4)),
    "transformer": Recipe(lambda: Unshuffled(Transformer(64, SIDE // 8, 192, 8), 8)),
    "epsilon": Recipe(unet(SMALL), prediction="epsilon"),
    "clean": Recipe(unet(SMALL), prediction="clean"),
    "snr": Recipe(unet(SMALL), weighting="snr"),
    "uniform": Recipe(unet(SMALL), levels="uniform"),
    "no-average": Recipe(unet(SMALL), ema=0.0),
    "no-decay": Recipe(unet(SMALL), decay=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="can be repeated; default: all")
    parser.add_argument("--structures", type=int, help="only so many of the training structures; default: all")
    parser.add_argument("--seconds", type=float, default=480, help="of training for each recipe; default: 480")
    parser.add_argument("--images", type=int, default=4000, help="training images; default: 4000")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/prior-recipes"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(given.device)
    structures = [*names_of("train"), *names_of("folds")][: given.structures]
    x0 = kept(given.out / f"train-{len(structures)}-{given.images}.npy", structures, given.images).to(device)
    unseen = clean(particles([*names_of("folds-val"), *names_of("val")], SHOWN, snr=None, split="val")).to(device)
    for name in given.recipe or RECIPES:
        torch.manual_seed(0)
        network, steps = trained(RECIPES[name], x0, given.seconds, given.batch, given.lr)
        weights = sum(p.numel() for p in network.parameters())
        row = {"recipe": name, "structures": len(structures), "weights": weights, "steps": steps,
               "seconds": given.seconds} | denoised(RECIPES[name], network, unseen)  # fmt: skip
        print(pd.DataFrame([row]).to_string(index=False), flush=True)
        table = given.out / "results.csv"
        pd.DataFrame([row]).to_csv(table, mode="a", header=not table.exists(), index=False, float_format="%.5g")


def kept(path: Path, structures: list[str], images: int) -> torch.Tensor:
    """The training images, read from a file of an earlier run if there is one."""
    if not path.exists():
        start = time.perf_counter()
        count, parts = max(1, images // (2 * len(SNRS) * len(structures))), []
        for structure in structures:  # one after the other: a potential has up to 300 MB
            stacks = [
                particles([structure], count, snr=snr, split="train", **options)
                for options in ({}, SHARP)
                for snr in SNRS
            ]  # all open: they share the potentials
            parts += [clean(stack) for stack in stacks]
        np.save(path, torch.cat(parts).numpy())
        print(
            f"{sum(map(len, parts))} images of {len(structures)} structures in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return torch.from_numpy(np.load(path))


def particles(structures: list[str], count: int, **options: Any) -> Stack:
    """Simulated particles of several structures."""
    return Simulate("+".join(structures), seed=7, count=count, **options).open()


def clean(stack: Stack) -> torch.Tensor:
    """Clean particles on the scale of the noisy ones, whose extremes are -1 and 1; [count, 1, H, W]."""
    truth = stack.clean_block(range(len(stack)))
    assert truth is not None
    noisy = stack.read_block(range(len(stack)))
    scaled = [minmax(image, "").apply(particle) for image, particle in zip(noisy, truth, strict=True)]
    return torch.from_numpy(np.stack(scaled).astype(np.float32))[:, None]


def trained(recipe: Recipe, x0: torch.Tensor, seconds: float, batch: int, lr: float) -> tuple[nn.Module, int]:
    """The network with averaged weights, and the number of steps. Time is that of the process; on CUDA wall time."""
    clock = time.perf_counter if x0.is_cuda else time.process_time
    network = recipe.network().to(x0.device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    random, steps, start = np.random.default_rng(0), 0, clock()
    alphas = ALPHAS.to(x0.device)
    while (part := (clock() - start) / seconds) < 1:
        rate = 0.5 * (1 + math.cos(math.pi * part)) if recipe.decay else 1.0
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (steps + 1) / 50) * rate
        images = turned(x0[torch.from_numpy(random.integers(len(x0), size=batch)).to(x0.device)], random)
        t = timesteps(torch.rand(batch, device=x0.device), ALPHAS, recipe.levels)
        loss = losses(recipe, network, images, t, alphas).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        steps += 1
        weight = min(recipe.ema, steps / (steps + 9))  # few steps: a short average
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - weight)
        if x0.is_cuda and steps % 50 == 0:
            torch.cuda.synchronize()
    return average.eval(), steps


def turned(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """The batch, turned by a multiple of 90 degrees and flipped at random."""
    images = torch.rot90(images, int(random.integers(4)), (2, 3))
    return images.flip(3) if random.integers(2) else images


def losses(recipe: Recipe, network: nn.Module, x0: torch.Tensor, t: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The weighted loss of each image, [B]."""
    a = alphas[t].float()[:, None, None, None]
    noise = torch.randn_like(x0)
    x = a.sqrt() * x0 + (1 - a).sqrt() * noise
    target = {"v": a.sqrt() * noise - (1 - a).sqrt() * x0, "epsilon": noise, "clean": x0}[recipe.prediction]
    error = (network(x, t) - target).square().mean((1, 2, 3))
    if recipe.weighting == "none":
        return error
    snr = (a / (1 - a)).flatten()
    per_clean = {"v": snr + 1, "epsilon": snr, "clean": torch.ones_like(snr)}[recipe.prediction]
    return error * snr.clamp_max(CLIPPED_SNR) / per_clean  # the loss of v is (snr + 1) times that of the clean image


@torch.no_grad()
def denoised(recipe: Recipe, network: nn.Module, truth: torch.Tensor) -> dict[str, float]:
    """PSNR of the denoised images, the mean over images, for each noise level."""
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(truth.device)
    found = {}
    for sigma in SIGMAS:
        a = 1 / (1 + sigma**2)
        t = (ALPHAS - a).abs().argmin().expand(len(truth)).to(truth.device)
        x = math.sqrt(a) * (truth + sigma * noise)
        batches = zip(x.split(16), t.split(16), strict=True)
        output = torch.cat([network(*batch) for batch in batches])
        if recipe.prediction == "v":
            output = math.sqrt(a) * x - math.sqrt(1 - a) * output
        elif recipe.prediction == "epsilon":
            output = (x - math.sqrt(1 - a) * output) / math.sqrt(a)
        error = (output - truth).square().mean((1, 2, 3))
        found[f"psnr at {sigma:g}"] = float((10 * torch.log10(4 / error)).mean())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
