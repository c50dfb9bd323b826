"""Fuzz the readers of files: only a `CryobenchError` may escape, within ten seconds and two gigabytes.

    uv run --with atheris python tools/fuzz_readers.py --seconds 60

Each reader runs in a process of its own under atheris, which is guided by coverage and starts from small valid files.
An input that fails is kept in the folder --artifacts, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not a dependency: it has wheels for few versions of Python

with atheris.instrument_imports(include=["cryobench", "mrcfile", "yaml"]):
    import mrcfile
    import numpy as np
    import torch
    import yaml  # noqa: F401

    from cryobench.api import run
    from cryobench.core import Imaging
    from cryobench.errors import CryobenchError
    from cryobench.io.movies.defects import read_defects
    from cryobench.io.movies.pair_folder import PairFolder
    from cryobench.io.movies.summing import open_movie
    from cryobench.measuring.measure import Acquisition, measure
    from cryobench.measuring.measurements import load
    from cryobench.measuring.reconstruct import operator_of
    from cryobench.plan.dataset import open_stack
    from cryobench.plan.suite_file import read_suite
    from cryobench.registry import installed
    from cryobench.results.store import METRICS, RECORD, read_record
    from cryobench.sources.stacks import File

SECONDS_PER_INPUT = 10
MEMORY = 2 << 30
"""Bytes that a reader may allocate beyond what the program takes."""


def read_images(path: Path) -> None:
    stack = File(str(path)).open()
    stack.read(0)
    stack.pixel_size(0)


def read_movie(path: Path) -> None:
    movie = open_movie(path)
    for _, _frame in zip(range(4), movie.read(), strict=False):
        pass


def read_record_of_pair(path: Path) -> None:
    """A folder of pairs whose record is the input."""
    (path.parent / "movies.json").write_text('{"version": 1, "movies": ["m.mrc"], "corrections": {}}')
    (path.parent / "m.mrcs").write_bytes(bytes(1024 + 2 * 4 * 4 * 2))
    pairs = PairFolder(path.parent)
    pairs.read(0, (slice(0, 1), slice(0, 1)))
    pairs.pixel_size(0)


def read_measurements(path: Path) -> None:
    measured = load(path)
    operator_of(measured, installed(), dtype=torch.float32, device=torch.device("cpu"))


def read_one_record(path: Path) -> None:
    """A record whose text is the input, then one whose table is."""
    text, (record, metrics) = path.read_bytes(), _record()
    for name, other, content in ((RECORD, METRICS, metrics), (METRICS, RECORD, record)):
        (path.parent / name).write_bytes(text)
        (path.parent / other).write_bytes(content)
        with contextlib.suppress(CryobenchError):
            read_record(path.parent)


def read_spec(path: Path) -> None:
    text = path.read_bytes().decode(errors="replace")
    for kind in ("operators", "noises", "masks", "solvers"):
        with contextlib.suppress(CryobenchError):
            component = installed().make(kind, text)
            if kind == "operators":
                component.check(Imaging((16, 16), (1.0,)))


@cache
def _record() -> tuple[bytes, bytes]:
    """The two files of a valid record."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "a.npy", np.random.default_rng(0).normal(size=(2, 16, 16)))
        run(["pinv"], "sumpool:4", data=str(Path(folder) / "a.npy"), metrics=["psnr"], out=f"{folder}/runs")
        record = next(Path(folder).glob(f"runs/*/{RECORD}"))
        return record.read_bytes(), record.with_name(METRICS).read_bytes()


def seeds_mrc() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mrcs"
        with mrcfile.new(path) as file:
            file.set_data(np.arange(32, dtype=np.float32).reshape(2, 4, 4))
            file.set_image_stack()
        return [path.read_bytes()]


def seeds_packed() -> list[bytes]:
    whole = bytearray(seeds_mrc()[0][:1024] + bytes(2 * 4 * 2))
    whole[12:16] = (101).to_bytes(4, "little")
    return [bytes(whole)]


def seeds_tif() -> list[bytes]:
    import tifffile

    frames = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    gray = {"photometric": "minisblack"}
    return [_saved(lambda file: tifffile.imwrite(file, frames, **gray)),
            _saved(lambda file: tifffile.imwrite(file, frames, compression="lzw", **gray))]  # fmt: skip


def seeds_defects() -> list[bytes]:
    return [b"# x y width height\n1 2 1 1\n0 0 4 1\n", b"CameraSizeX 4\n"]


def seeds_pair() -> list[bytes]:
    values = {"shape": [4, 4], "mode": 6, "offset": 0.0, "factor": 1.0, "gain": None, "replaced": 0, "movie": "m.mrc",
              "frames": 2, "dropped": 0, "dose": None, "pixel_size": 1.0, "rounding": 0.0, "shifts": [[0.0, 1.0]],
              "sha256": ["a", "b"]}  # fmt: skip
    return [json.dumps(values).encode()]


def seeds_gz() -> list[bytes]:
    return [gzip.compress(seed) for seed in seeds_mrc()]


def seeds_star() -> list[bytes]:
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 1.5\n\n"
    columns = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n_rlnDefocusU #3\n"
    rows = columns + "1@a.mrcs 1 1e4\n2@a.mrcs 1 2e4\n"
    return [(optics + rows).encode(), b"data_\nloop_\n_rlnImageName\n1@a.mrcs\n"]


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def seeds_cs() -> list[bytes]:
    rows = np.zeros(
        2, [("blob/path", "S8"), ("blob/idx", "u4"), ("blob/psize_A", "f4"), ("alignments3D/pose", "f4", 3)]
    )
    rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = b"a.mrcs", [0, 1], 1.5
    return [_saved(lambda file: np.save(file, rows))]


def seeds_npy() -> list[bytes]:
    return [_saved(lambda file: np.save(file, np.arange(32, dtype=np.float32).reshape(2, 4, 4)))]


def seeds_pt() -> list[bytes]:
    tensor = torch.arange(32.0).reshape(2, 4, 4)
    return [_saved(lambda file: torch.save(tensor, file)),
            _saved(lambda file: torch.save(tensor, file, _use_new_zipfile_serialization=False))]  # fmt: skip


def seeds_measurements() -> list[bytes]:
    found = [_saved(lambda file: np.savez(file, y=np.ones((1, 2, 2, 2)), masks=np.ones((2, 4, 4))))]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "a.npy", np.random.default_rng(0).normal(size=(2, 8, 8)))
        stack = open_stack(str(Path(folder) / "a.npy"), {}, installed())
        for operator in ("sumpool:4", "fourier:0.5@sumpool:2,count=1"):
            measure(Acquisition(operator), stack, [0, 1], installed()).save(Path(folder) / "y.npz")
            found.append((Path(folder) / "y.npz").read_bytes())
    return found


def seeds_suite() -> list[bytes]:
    grid = "solvers: [pinv]\noperators:\n  - sumpool: {block: [2, 4], count: 3}\nseeds: [0, 1]\n"
    others = (
        "exclude: {solver: p*}\nreferences:\n- {solver: pinv, operator: identity, source: x, values: {psnr: [1, 2]}}\n"
    )
    return [(grid + others).encode()]


def seeds_record() -> list[bytes]:
    return list(_record())


def seeds_spec() -> list[bytes]:
    return [b"sumpool:4,count=3,mask=random_binary,mask.prob=0.3@ctf:15000", b"gaussian:rel=0.1", b'file:"a,b"',
            b"hqs:prior=diffusion,steps=5"]  # fmt: skip


READERS: dict[str, tuple[str, Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "mrc": ("a.mrcs", read_images, seeds_mrc),
    "gz": ("a.mrcs.gz", read_images, seeds_gz),
    "star": ("table.star", read_images, seeds_star),
    "cs": ("table.cs", read_images, seeds_cs),
    "packed": ("m.mrc", read_movie, seeds_packed),
    "tif": ("m.tif", read_movie, seeds_tif),
    "eer": ("m.eer", read_movie, seeds_tif),
    "defects": ("d.txt", lambda path: read_defects(path, (4, 4)).any() and None, seeds_defects),
    "pair": ("m.json", read_record_of_pair, seeds_pair),
    "npy": ("a.npy", read_images, seeds_npy),
    "pt": ("a.pt", read_images, seeds_pt),
    "measurements": ("y.npz", read_measurements, seeds_measurements),
    "suite": ("suite.yaml", lambda path: read_suite(path) and None, seeds_suite),
    "record": ("input", read_one_record, seeds_record),
    "spec": ("spec", read_spec, seeds_spec),
}
"""By name: the name of the file that is read, its reader, and the inputs to start from."""


def fuzz(name: str, seconds: int, artifacts: Path) -> None:
    """Fuzz one reader in this process, which ends with the exit code of libFuzzer."""
    file, read, seeds = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path, corpus = Path(folder) / file, Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            (corpus / str(number)).write_bytes(seed)
        if name in ("star", "cs"):
            (Path(folder) / "a.mrcs").write_bytes(seeds_mrc()[0])

        def one(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except CryobenchError:
                pass
            except BaseException:
                (artifacts / f"{name}-failed").write_bytes(data)
                raise

        for seed in seeds():  # the first call imports modules, which takes seconds
            one(seed)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        arguments = [sys.argv[0], f"-max_total_time={seconds}", f"-timeout={SECONDS_PER_INPUT}", "-rss_limit_mb=0",
                     "-max_len=20000", f"-artifact_prefix={artifacts}/{name}-", str(corpus)]  # fmt: skip
        atheris.Setup(arguments, one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for all chosen readers together")
    parser.add_argument("--reader", choices=READERS, action="append", help="fuzz only this one; may be repeated")
    parser.add_argument("--artifacts", type=Path, default=Path("fuzz"), help="folder of inputs that fail")
    parser.add_argument("--replay", type=Path, help="read one kept input with --reader, and show its traceback")
    given = parser.parse_args()
    names = given.reader or list(READERS)
    given.artifacts.mkdir(parents=True, exist_ok=True)
    if given.replay:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / READERS[names[0]][0]
            path.write_bytes(given.replay.read_bytes())
            READERS[names[0]][1](path)
        return 0
    failed = []
    for name in names:
        with tempfile.NamedTemporaryFile(mode="r", errors="replace") as output:
            child = os.fork()  # libFuzzer ends its process; a fork shares the imported modules
            if child == 0:
                os.dup2(os.open(output.name, os.O_WRONLY | os.O_APPEND), 1)
                os.dup2(1, 2)
                try:
                    fuzz(name, max(1, given.seconds // len(names)), given.artifacts)
                finally:
                    os._exit(99)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            text = output.read()
        done = next((line for line in text.splitlines() if line.startswith("Done ")), "FAILED")
        print(f"{name}: {done}", flush=True)
        if status:
            failed.append(name)
            print(text[-3000:], flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}; the inputs are in {given.artifacts}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
