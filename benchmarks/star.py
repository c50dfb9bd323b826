"""Processor time to read a star file, compared with starfile, and to write it.

The file is a particle table of 26 columns, made here. The two readers take turns; the ratio is the median over rounds
of the times of one round.

    uv run python benchmarks/star.py                  # 300,000 rows, 135 MB in the temporary folder
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

from cryobench.io.star_text import NUMBERS, block_text, parse


def particles(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = sorted(NUMBERS)[:20]
    table = pd.DataFrame(rng.uniform(-180, 180, (rows, len(names))).round(6), columns=pd.Index(names))
    micrographs = [f"MotionCorr/job002/Movies/20260101_{i // 100:06d}_fractions.mrc" for i in range(rows)]
    texts = {f"rln{name}Name": micrographs for name in ("Micrograph", "ImageOriginal", "Mic")}
    stacks = [f"{i % 100 + 1:06d}@Extract/job003/20260101_{i // 100:06d}_fractions.mrcs" for i in range(rows)]
    scores = {f"rlnScore{k}": rng.random(rows).round(6).astype(str) for k in range(2)}
    return table.assign(**texts, **scores, rlnImageName=stacks)


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    table = particles(arguments.rows)
    text: list[str] = []
    writing = seconds(lambda: text.append(block_text("particles", table)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "particles.star"
        path.write_text(text[0])
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(seconds(lambda: parse(path.read_bytes().decode())))
            theirs.append(seconds(lambda: starfile.read(path)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"{arguments.rows} rows, {len(text[0]) / 1e6:.0f} MB: written in {writing:.1f} s")
    print(f"read in {statistics.median(ours):.1f} s; starfile {statistics.median(theirs):.1f} s; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
