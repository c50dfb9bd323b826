"""`n2n` beside Topaz-Denoise and BM3D: processor time, memory and quality.

    uv pip install ./plugins/cryobench-topaz ./plugins/cryobench-bm3d
    uv run --no-sync python benchmarks/denoiser_peers.py            # half an hour
    uv run --no-sync python benchmarks/denoiser_peers.py --part cost --side 2048
    uv run --no-sync python benchmarks/denoiser_peers.py --part quality --count 4 --size 512

Cost: a micrograph of white noise, SIDE x SIDE pixels. "Topaz's own" is `topaz.denoise.Denoise.denoise` with tiles of
1024 pixels, the default of `topaz denoise`, and 128 pixels of padding; with its default padding of 500 it takes longer.
Each case runs in a process of its own with one thread. Memory is the highest resident set size of the process minus
that before the image is denoised, which includes imports, image and weights.

Quality: simulated micrographs in two halves of a structure that the packaged network was not trained on; `psnr_clean`
compares with the known truth. Topaz's networks were trained on real micrographs, and the packaged one of `n2n` on
simulations of this kind: the table does not say which method is better on real micrographs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

import cryobench as cb

PATCH, PADDING = 1024, 128
SOLVERS = ("n2n", "wiener", "gaussian", "bm3d", "bm3d:lc", "topaz", "topaz:unet-small", "topaz:affine")


def ours(spec: str, image: torch.Tensor) -> Callable[[], object]:
    """What solves an image [1, 1, H, W] by a solver, with its weights loaded."""
    method = cb.solver(spec)
    small = image[..., :64, :64].contiguous()
    cb.solve(method, cb.operator("identity", shape=(64, 64)), small)
    operator = cb.operator("identity", shape=tuple(image.shape[2:]))
    return lambda: cb.solve(method, operator, image)


def own_topaz(name: str, image: torch.Tensor) -> Callable[[], object]:
    """The same by Topaz's own code, whose reading of weights needs pkg_resources."""
    from cryobench_topaz.networks import SHIPPED, build, weights
    from topaz.denoise import Denoise

    module = build(SHIPPED[name].config)
    module.load_state_dict(weights(name))
    denoise = Denoise(torch.nn.Sequential(module))  # which it accepts by its type
    denoise.denoise(image[0, 0, :64, :64].numpy())
    return lambda: denoise.denoise(image[0, 0].numpy(), patch_size=PATCH, padding=PADDING)


CASES = {
    "n2n": (ours, "n2n"),
    "Topaz's own unet": (own_topaz, "unet"),
    "topaz:unet": (ours, "topaz:unet"),
    "topaz:unet-small": (ours, "topaz:unet-small"),
    "topaz:affine": (ours, "topaz:affine"),
}


def measure(case: str, side: int, out: Connection) -> None:
    """Send the processor seconds and the MiB of memory of a case."""
    torch.set_num_threads(1)
    prepare, name = CASES[case]
    call = prepare(name, torch.randn(1, 1, side, side))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    call()
    seconds = time.process_time() - start
    out.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def cost(side: int, cases: list[str]) -> None:
    print(f"| {side} x {side} pixels | processor, s | memory, MiB |\n|---|--:|--:|", flush=True)
    for case in cases:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(case, side, there))
        process.start()
        there.close()
        seconds, mib = here.recv()
        process.join()
        print(f"| {case} | {seconds:.1f} | {mib:.0f} |", flush=True)


def quality(count: int, size: int) -> None:
    data = f"simulate_movies:6zu5,count={count},size={size}"
    records = cb.run(list(SOLVERS), "identity", protocol="halves", data=data, images=f"0:{count}")
    for record in records:
        if record.status != "ok":
            print(f"{record.solver}: {record.status}, {record.reason}")
    table = records.to_pandas(by="psnr_clean")
    columns = [name for name in ("solver", "psnr_clean", "psnr_other", "seconds_per_image") if name in table]
    print(table[columns].to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "quality"), help="one part; by default both")
    parser.add_argument("--side", type=int, default=4096, help="of the micrograph of white noise, in pixels")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="of the costs")
    parser.add_argument("--count", type=int, default=4, help="simulated micrographs")
    parser.add_argument("--size", type=int, default=512, help="their side in pixels")
    given = parser.parse_args()
    if given.part != "quality":
        cost(given.side, given.cases)
    if given.part != "cost":
        quality(given.count, given.size)
