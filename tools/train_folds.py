"""Trains the prior `folds`, on the packaged structures of many folds, on a GPU.

    uv run python tools/train_folds.py --out FOLDER --seconds 400 --device cuda

All images are simulated first, on the device, and stay there; batches are taken from them. The network trains for about
`--seconds`, with the learning rate decaying to 0 at the end: its speed is measured on a few steps first. The structures
of the split `test` are not used. Recipes are compared by benchmarks/prior_recipes.py, and the quality of the result is
measured by benchmarks/prior_quality.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cryobench.core import Stack
from cryobench.plan.dataset import open_stack
from cryobench.registry import installed
from cryobench.sources.structures import names_of, read_structure
from cryobench.training.loop import TrainingObserver, train
from cryobench.training.settings import Settings

NETWORK = "medium"
WARMUP = 300
"""Steps, at most."""
SHARP = "b_factor=10,envelope=10"
"""As much detail per pixel as a large particle, which has large pixels."""
VALIDATION = ("snr=2", f"snr=2,{SHARP}", f"snr=none,{SHARP}", "snr=0.5")
BLOCK = 1024
"""Images simulated at once."""


def recipes(first: int | None) -> list[tuple[str, float]]:
    """Specs of the training images without their number, and the fraction of the images that each has.

    first: of the structures, the first three of which are those of the split `train`; None for all.
    """
    every = [*names_of("train"), *names_of("folds")][:first]
    diameters = {name: 2 * read_structure(name).radius for name in every}
    compact = "+".join(name for name in every if diameters[name] < 200)
    long = "+".join(name for name in every if 110 < diameters[name] < 290)
    large = "+".join(name for name in every if diameters[name] > 110)
    everything = "+".join(every)
    return [
        (f"simulate:{everything},snr=2", 0.18),
        (f"simulate:{everything},snr=2,{SHARP}", 0.18),
        (f"simulate:{everything},snr=none,{SHARP}", 0.14),
        (f"simulate:{everything},snr=8", 0.12),
        (f"simulate:{large},snr=0.5,{SHARP}", 0.1),
        (f"simulate:{compact},snr=2,{SHARP},pixel_size=2.2", 0.1),
        (f"simulate:{long},snr=2,b_factor=30,envelope=30,pixel_size=3.2", 0.1),
        (f"simulate:{large},snr=0.1,{SHARP}", 0.08),
    ]


class Held(Stack):
    """The images of a stack, simulated once and kept on a device with those without noise, [n, 2, H, W] float32."""

    def __init__(self, stack: Stack):
        self.label, self.shape = stack.label, stack.shape
        self._origin = stack.origin
        blocks = []
        for start in range(0, len(stack), BLOCK):
            block = range(start, min(start + BLOCK, len(stack)))
            blocks.append(torch.stack([stack.tensor_block(block), stack.tensor_block(block, clean=True)], dim=1))  # pyright: ignore
        self.images = torch.cat(blocks)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return self.images[index, 0].cpu().numpy()

    def clean(self, index: int) -> np.ndarray:
        return self.images[index, 1].cpu().numpy()

    def tensor_block(self, images: Sequence[int], *, clean: bool = False) -> torch.Tensor:
        return self.images[torch.as_tensor(images, device=self.images.device), int(clean)]

    @property
    def origin(self) -> dict[str, str]:
        return dict(self._origin or {})


class Report(TrainingObserver):
    """Prints the progress, and measures the time of a step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._times: list[float] = []

    def stepped(self, step: int, loss: float) -> None:
        self._times.append(time.perf_counter())
        self.losses.append(loss)
        if step % 500 == 0:
            print(f"step {step}: loss {np.mean(self.losses[-500:]):.5f}, {1000 * self.seconds_per_step:.1f} ms a step",
                  flush=True)  # fmt: skip

    def validated(self, step: int, loss: float, best: float) -> None:
        print(f"step {step}: validation loss {loss:.5f}", flush=True)

    @property
    def seconds_per_step(self) -> float:
        """Without the first ten, which allocate."""
        times = self._times[min(10, len(self._times) - 1) :]
        return (times[-1] - times[0]) / max(1, len(times) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--structures", type=int, help="only so many of the training structures; default: all")
    parser.add_argument("--seconds", type=float, default=50, help="of training")
    parser.add_argument("--images", type=int, default=100_000, help="training images in all")
    parser.add_argument("--validation-images", type=int, default=256, help="of each kind")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    start = time.perf_counter()
    specs = [
        f"{recipe},count={max(1, round(fraction * given.images))},split=train"
        for recipe, fraction in recipes(given.structures)
    ]
    opened = [open_stack(spec, {}, installed(), device) for spec in specs]  # those of a structure share its potential
    stacks = [held(stack) for stack in opened]
    del opened
    unseen, count = "+".join([*names_of("folds-val"), *names_of("val")]), given.validation_images
    others = [f"simulate:{unseen},{each},count={count},split=val" for each in VALIDATION]
    validation = [held(open_stack(spec, {}, installed(), device)) for spec in others]
    settings = Settings(
        data=tuple(specs), validation=tuple(others), objective=f"ddpm:{NETWORK},target=clean,levels=mixed",
        batch=given.batch, lr=given.lr, ema=given.ema, warmup=WARMUP, validate_every=1000, sample_every=10**9,
        checkpoint_every=given.checkpoint_every, preload="device",
    )  # fmt: skip
    print(f"{sum(map(len, stacks))} images in {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    rate = speed(settings, stacks, device)
    steps = max(20, int((given.seconds - (time.perf_counter() - start)) / rate))
    print(f"{1000 * rate:.1f} ms a step, {steps} steps", flush=True)
    settings = dataclasses.replace(settings, steps=steps, warmup=min(WARMUP, steps // 10))
    train(settings, stacks, validation, given.out, device=device, observer=Report())


def held(stack: Stack) -> Held:
    """The images of a stack, simulated on its device."""
    start = time.perf_counter()
    found = Held(stack)
    print(f"{len(stack)} images in {time.perf_counter() - start:.1f} s", flush=True)
    return found


def speed(settings: Settings, stacks: Sequence[Stack], device: torch.device) -> float:
    """Seconds a step takes."""
    report, steps = Report(), 60 if device.type == "cuda" else 13
    with tempfile.TemporaryDirectory() as folder:
        train(settings, stacks, [], Path(folder) / "run", device=device, observer=report,
              stop=lambda: len(report.losses) >= steps)  # fmt: skip
        return report.seconds_per_step


if __name__ == "__main__":
    main()
