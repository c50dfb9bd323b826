"""Speed of the simulator: particles per second at 128 x 128 once the volume is computed, and slices per second.

    uv run python benchmarks/simulate.py [--device cuda] [--count 2048] [--quick]

Slices are compared with torch-fourier-slice, on the same volume and rotations, with the same padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from cryobench.environment import hardware
from cryobench.physics.potential import potential
from cryobench.physics.projection import PADDING, Projector, euler_angles, matrices
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

SIZE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=1024, help="particles for each figure")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a few particles, to test that it runs")
    options = parser.parse_args()
    count = 2 * options.batch if options.quick else options.count
    print(f"{hardware()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")

    stack = Simulate("6zu5", count=count).open(options.device)
    seconds = timed(lambda: stack.particles([0]), options.device)
    print(f"volume, {SIZE}^3, 165175 atoms: {seconds:.2f} s")
    for what, changes in (("white noise", {}), ("solvent noise", {"noise": "solvent"}), ("no noise", {"snr": None})):
        other = Simulate("6zu5", count=count, **changes).open(options.device)
        other._specimens = stack._specimens  # the volume is the same
        other.particles(range(options.batch))
        rates = []
        for _ in range(3):
            seconds = timed(lambda o=other: batches(o.particles, count, options.batch), options.device)
            rates.append(count / seconds)
        print(f"{what:14s} {max(rates):8.0f} particles/s in batches of {options.batch}")

    compare_slices(count, options.batch, options.device)


def compare_slices(count: int, batch: int, device: str) -> None:
    """Print slices per second of our code and of torch-fourier-slice."""
    from torch_fourier_slice import extract_central_slices_rfft_3d

    atoms = read_structure("6zu5")
    volume = torch.from_numpy(potential(atoms, SIZE, 2 * atoms.radius / 0.65 / SIZE, 50.0)).to(device)
    A = matrices(*euler_angles(torch.rand((count, 3), generator=torch.Generator().manual_seed(0)))).float().to(device)
    ours = Projector(volume)
    padded = torch.nn.functional.pad(volume, [(PADDING - 1) * SIZE // 2] * 6)
    theirs = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(padded)), dim=(0, 1))
    transposed = A.transpose(1, 2)

    def their_slices(part: range) -> torch.Tensor:
        return extract_central_slices_rfft_3d(theirs, transposed[part.start : part.stop], fftfreq_max=0.5)

    pairs = []
    for _ in range(3):
        a = timed(lambda: batches(lambda part: ours.slices(A[part.start : part.stop]), count, batch), device)
        b = timed(lambda: batches(their_slices, count, batch), device)
        pairs.append((count / a, count / b, b / a))
    best = max(pairs, key=lambda pair: pair[2])
    low = min(pair[2] for pair in pairs)
    print(f"slices: ours {best[0]:.0f} per second, torch-fourier-slice {best[1]:.0f}; "
          f"{low:.1f} to {best[2]:.1f} times as fast")  # fmt: skip


def batches(work: Callable[[range], object], count: int, batch: int) -> None:
    for start in range(0, count, batch):
        work(range(start, min(start + batch, count)))


def timed(work: Callable[[], object], device: str) -> float:
    """Wall seconds, with the device synchronised before and after."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
