"""Denoises whole micrographs, each into a file of its own."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import Imaging, Problem, Scale, Solver, Stack, unsupported_dims
from cryobench.core.kinds import check_kind
from cryobench.errors import (
    DataError,
    IncompatibleError,
    ParameterError,
    ResultsError,
    Unsupported,
    described,
    quoted,
    reason_of,
)
from cryobench.files import discard, remove_leftovers, whole_file
from cryobench.io.conversion import OneImage, convert
from cryobench.io.writing import write_mrcs
from cryobench.measuring.tasks import Report, Work
from cryobench.numerics.linalg import standardised
from cryobench.numerics.noise import difference_deviation
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian
from cryobench.plan.dataset import open_stack
from cryobench.plan.grid import implementation, prior_notes, resolve_dtype, with_nested
from cryobench.plan.presets import choose, presets_folder
from cryobench.registry import did_you_mean, guarded, installed
from cryobench.runner.solving import check_supported, isolated, prepare, solve_parts
from cryobench.solvers.tiled import Tiled

MANIFEST = "denoise.json"
TOGETHER, AVERAGE = "together", "average"
MRC, ZARR = "mrc", "zarr"
SUFFIXES = (MRC, "tif", "ome.tif", ZARR, "npy")
"""Suffixes of the files that micrographs are written to, and so their formats."""


@dataclass(frozen=True)
class DenoiseTask:
    """Denoise micrographs into the folder `out`. micrographs: files or specs of sources. solver: spec or preset.

    halves: of a micrograph in two halves, `together` denoises their mean, `average` each, and averages the results.
    sigma: standard deviation of the noise in the units of the file, or None to estimate it. format: one of `SUFFIXES`.
    """

    micrographs: tuple[str, ...]
    solver: str
    out: str
    halves: str = TOGETHER
    sigma: float | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    presets: str | None = None
    format: str = MRC

    def open(self) -> Denoising:
        """Open the micrographs by their headers. Raises a `CryobenchError` before one is denoised."""
        return Denoising(self)


@dataclass(frozen=True)
class Micrograph:
    """A micrograph: its two halves [2, H, W], or the image alone [1, H, W]. pixel_size: Å, None if unknown."""

    name: str
    pixel_size: float | None
    in_halves: bool
    read: Callable[[], np.ndarray]


class Denoising(Work):
    """Denoises micrographs, one a chunk. A micrograph is done when its file exists, which appears complete."""

    def __init__(self, task: DenoiseTask):
        if task.halves not in (TOGETHER, AVERAGE):
            raise ParameterError(f"--halves must be {TOGETHER} or {AVERAGE}, got {task.halves!r}")
        if task.sigma is not None and not 0 <= task.sigma < float("inf"):
            raise ParameterError(f"--sigma must be zero or positive, got {task.sigma:g}")
        if task.format not in SUFFIXES:
            raise ParameterError(f"--format {quoted(task.format)} is unknown; {did_you_mean(task.format, SUFFIXES)}")
        registry = installed()
        method = choose(task.solver, registry, presets_folder(task.presets)).solver
        check_kind("solvers", task.solver, method)
        reason = unsupported_dims(method, (1, 1), f"the solver {task.solver}")
        if reason is not None:
            raise IncompatibleError(f"{reason}; choose another solver")
        self.solver: Solver = method if method.any_size else Tiled(method)
        self._task, self._out = task, Path(task.out)
        self._dtype, self._device = resolve_dtype(task.dtype), environment.resolve_device(task.device)
        self._micrographs = [each for text in task.micrographs for each in _micrographs(open_stack(text, {}, registry))]
        self.parts = [slice(i, i + 1) for i in range(len(self._micrographs))]
        _check_names(self._micrographs)
        if task.halves == AVERAGE and not all(each.in_halves for each in self._micrographs):
            raise ParameterError(f"--halves {AVERAGE} needs micrographs in two halves; leave it out")
        self._isolated_prepare()
        made_by = implementation(registry, list(with_nested(self.solver)))
        self._job: dict[str, Any] = {
            "solver": str(registry.spec_of(self.solver, full=True)),
            "halves": task.halves,
            "sigma": task.sigma,
            "seed": task.seed,
            "device": self._device.type,
            "dtype": task.dtype,
            **made_by._asdict(),
        }

    def _isolated_prepare(self) -> None:
        with isolated(self._task.seed):
            guarded("the solver cannot be prepared", lambda: prepare(self.solver, self._device))

    def notes(self) -> Sequence[str]:
        """What was assumed of the priors of the solver, and how it is applied, for the user."""
        tiled = isinstance(self.solver, Tiled)
        spec = installed().spec_of(self.solver)
        return [*prior_notes([self.solver]), *([f"large micrographs are denoised in windows: {spec}"] if tiled else [])]

    def start(self, *, force: bool = False) -> None:
        """Create the folder, or continue it. force: denoise all micrographs again.

        Raises `ResultsError` for results of another solver or setting, and where the folder cannot be written.
        """
        path = self._out / MANIFEST
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            if force:
                path.unlink(missing_ok=True)
                for file in map(self._path, self._micrographs):
                    if file.is_dir():  # a Zarr
                        discard(file)
                    else:
                        file.unlink(missing_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or described(error)
            raise ResultsError(f"cannot denoise into {self._out} ({reason}); give another --out") from error
        job = json.loads(json.dumps(self._job))
        if found is None:
            taken = next((self._path(each) for each in self._micrographs if self._path(each).exists()), None)
            if taken is not None:
                raise ResultsError(f"{taken} exists already, and is not of this command; give another --out, or "
                                   "--force to replace it")  # fmt: skip
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        elif found != job:
            different = ", ".join(name for name in job if found.get(name) != job[name])
            raise ResultsError(f"{self._out} holds micrographs that were denoised otherwise (another {different}); "
                               "give another --out, or --force to replace them")  # fmt: skip

    def todo(self) -> list[int]:
        return [i for i, each in enumerate(self._micrographs) if not self._path(each).exists()]

    def run(self, chunk: int, report: Report) -> None:
        each = self._micrographs[chunk]
        halves = guarded(f"{each.name} cannot be read", each.read)
        if each.in_halves and self._task.halves == AVERAGE:
            result = 0.5 * self._denoised(each, halves[0], _half_noise(halves[0], halves[1]),
                                          lambda done: report(done / 2))  # fmt: skip
            result += 0.5 * self._denoised(each, halves[1], _half_noise(halves[1], halves[0]),
                                           lambda done: report(0.5 + done / 2))  # fmt: skip
        elif each.in_halves:
            noise = float((halves[0] - halves[1]).std(dtype=np.float64)) / 2
            result = self._denoised(each, halves.mean(axis=0), noise, report)
        else:
            result = self._denoised(each, halves[0], difference_deviation(halves[0]), report)
        if self._task.format == MRC:
            write_mrcs(self._path(each), result[None], each.pixel_size)
        else:
            convert(OneImage(each.name, result, each.pixel_size), self._path(each))

    def finish(self) -> list[Path]:
        """The files. Removes what killed processes have left of them."""
        for each in self._micrographs:
            for partial in self._out.glob(f".{glob.escape(self._path(each).name)}-*"):
                partial.unlink(missing_ok=True)
        if self._task.format == ZARR:
            remove_leftovers(self._out)
        return list(map(self._path, self._micrographs))

    def _denoised(self, each: Micrograph, image: np.ndarray, noise: float, report: Report) -> np.ndarray:
        """An image of a micrograph without its noise, of estimated standard deviation `noise`, float32 [H, W].

        The problem is y = x with the image on the scale on which it has mean 0 and standard deviation 1.
        """
        y, mean, deviation = standardised(torch.from_numpy(image)[None, None].to(self._device, self._dtype))
        if not (deviation.isfinite().all() and (deviation > 0).all()):
            raise DataError(f"{each.name} is constant or not finite; leave it out")
        operator = Identity().build(Imaging(image.shape, (each.pixel_size,)), {}, dtype=y.dtype, device=y.device)
        sigma = (noise if self._task.sigma is None else self._task.sigma) / deviation
        scale = Scale(mean.flatten().double().cpu(), deviation.flatten().double().cpu(), None, "meanstd")
        problem = Problem(operator, y, Gaussian(sigma=float(sigma)), sigma, scale)
        try:
            with isolated(self._task.seed):
                guarded("the solver failed", lambda: check_supported(self.solver, problem))
        except Unsupported as reason:
            raise IncompatibleError(f"{each.name}: {reason_of(reason)}") from reason
        answers = solve_parts(self.solver, problem, [each.name], seed=self._task.seed, batch=1, progress=report)
        x = guarded("the solver failed", lambda: next(answers)).x
        return (x[0, 0] * deviation[0, 0] + mean[0, 0]).float().cpu().numpy()

    def _path(self, each: Micrograph) -> Path:
        return self._out / f"{each.name}.{self._task.format}"


def _micrographs(stack: Stack) -> Iterator[Micrograph]:
    """The micrographs of a stack: its pairs if it has them, else its images. Raises `DataError` for volumes."""
    pairs = stack.pairs
    if pairs is not None:
        for i in range(len(pairs)):
            yield Micrograph(pairs.name(i), pairs.pixel_size(i), True, lambda i=i: pairs.read(i))
        return
    if len(stack.shape) != 2:
        raise DataError(f"{stack.label} holds volumes; micrographs are 2-D images: give other files")
    name = Path(stack.label).name.partition(".")[0]
    for i in range(len(stack)):
        own = name if len(stack) == 1 else f"{name}_{i + 1:06d}"
        yield Micrograph(own, stack.pixel_size(i), False, lambda i=i: stack.read(i)[None])


def _check_names(micrographs: Sequence[Micrograph]) -> None:
    """Raise `ParameterError` if two results would have the same name."""
    names: set[str] = set()
    for each in micrographs:
        if each.name in names:
            raise ParameterError(f"two micrographs have the name {each.name}; denoise them into different folders")
        names.add(each.name)


def _half_noise(half: np.ndarray, other: np.ndarray) -> float:
    """The standard deviation of the noise of a half, sqrt(<a^2 - a b>) for centred halves, 0 if that is negative."""
    a, b = half - half.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
    return max(float(np.mean(a * (a - b), dtype=np.float64)), 0.0) ** 0.5
