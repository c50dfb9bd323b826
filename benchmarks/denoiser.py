"""Processor time and memory of the denoising networks: python benchmarks/denoiser.py [SIDE]

For each preset: a training step on 8 patches of 256 x 256 pixels, and a micrograph of SIDE x SIDE (4096) in tiles.
One thread, processor time. Memory is the highest resident set size during the micrograph minus that before it, in a
process of its own. Weights are random: they do not change the time.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from cryobench.networks import tiles
from cryobench.networks.unet import PRESETS, UNet


def measure_step(name: str, out: Connection) -> None:
    """Send the processor seconds of a training step."""
    torch.set_num_threads(1)
    network = UNet(PRESETS[name])
    optimizer = torch.optim.AdamW(network.parameters())
    a, b = torch.randn(2, 8, 1, 256, 256)
    seconds = []
    for _ in range(2):  # the first allocates
        start = time.process_time()
        (network(a) - b).square().mean().backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    out.send(min(seconds))


def measure_micrograph(name: str, side: int, out: Connection) -> None:
    """Send the processor seconds and the MiB of memory of a micrograph."""
    torch.set_num_threads(1)
    network, image = UNet(PRESETS[name]).eval(), torch.randn(1, 1, side, side)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tiles.apply(network, image)
    seconds = time.process_time() - start
    out.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def alone(call: Callable[..., None], *arguments: object) -> Any:
    """What `call` sends, from a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=call, args=(*arguments, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


if __name__ == "__main__":
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    for name in PRESETS:
        step = alone(measure_step, name)
        seconds, mib = alone(measure_micrograph, name, side)
        print(f"{name}: {step:.2f} s a step; {side} x {side} in {seconds:.1f} s, {mib:.0f} MiB", flush=True)
