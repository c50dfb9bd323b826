"""Processor time and memory of simulated micrographs: `uv run python benchmarks/simulate_movies.py`."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

CASES = (("3mht", 1024), ("6zu5", 1024), ("6zu5", 2048))


def measure(structure: str, size: int) -> None:
    """Print the processor seconds of the potential and of the whole micrograph, and the peak memory above the start."""
    import torch

    from cryobench.sources.simulate_movies import SimulateMovies

    torch.set_num_threads(1)
    SimulateMovies("3mht", count=1, size=32, frames=2).open().read(0)  # imports
    stack = SimulateMovies(structure, count=1, size=size).open()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    side = stack.specimen(0).particles.shape[0]
    specimen = time.process_time() - start
    stack.read(0)
    total = time.process_time() - start
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    print(
        f"{structure:5} {size:5} {specimen:10.2f} {total:10.2f} {added / 2**20:10.0f} {added / side**2:12.0f}",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        print("              specimen, s   total, s        MiB  bytes/pixel of the field")
        for structure, size in CASES:  # each in a process of its own, for the peak of the memory
            subprocess.run([sys.executable, __file__, structure, str(size)], check=True)
