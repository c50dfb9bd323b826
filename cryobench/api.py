"""The Python API, which runs the same code as the command line.

import cryobench as cb

records = cb.run(solvers=["pinv", "dct"], operators="sumpool:16", data="particles.star")
records.to_pandas()                                  # the leaderboard

A = cb.operator("sumpool:16", shape=(128, 128), seed=0)
x = cb.solve("dct", A, y)                            # measurements in, images out, without the truth
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cryobench import runner
from cryobench.core import (
    Imaging,
    LinearOperator,
    NoiseModel,
    OperatorRecipe,
    Problem,
    Shape,
    Solver,
    build_operator,
)
from cryobench.core.kinds import check_kind
from cryobench.core.meters import CountingOperator
from cryobench.environment import resolve_device
from cryobench.errors import IncompatibleError, ParameterError, SpecError, Unsupported
from cryobench.hooks import Hooks
from cryobench.numerics.linalg import per_item
from cryobench.plan import grid
from cryobench.plan.presets import choose, presets_folder
from cryobench.record import Record
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.runner import solving

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from cryobench.leaderboard.render.chart import Chart


class Records(list[Record]):
    """The records of a run. A notebook displays them as the leaderboard."""

    def to_pandas(self, by: str | None = None) -> pd.DataFrame:
        """The leaderboard, one row per cell, best first by the metric `by`: psnr, or the first metric, if not given."""
        from cryobench.leaderboard.table import leaderboard

        return leaderboard(self, by=by)

    def plot(self, by: str | None = None) -> Chart:
        """The leaderboard as a Matplotlib figure: means with intervals, and quality against seconds with the Pareto
        front, of each comparison. `records.plot().savefig("board.png")` saves it; a notebook shows it."""
        from cryobench.leaderboard.render.chart import chart

        return chart(self.to_pandas(by))

    def _repr_html_(self) -> str:
        from cryobench.leaderboard.render import to_html

        return to_html(self.to_pandas())


def run(
    solvers: str | Sequence[str],
    operators: str | Sequence[str],
    *,
    noises: str | Sequence[str] = "none",
    data: str | Path | Sequence[str | Path] = "demo",
    metrics: str | Sequence[str] = grid.DEFAULT_METRICS,
    within: str = "image",
    images: str | None = None,
    scaling: str = "minmax",
    halves: str = "first",
    protocol: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    batch: int | Literal["auto"] = "auto",
    floor: bool = True,
    ceiling: bool = False,
    out: str | Path | None = None,
    save: Sequence[str] = (),
    force: bool = False,
    data_options: dict[str, str] | None = None,
    presets: str | None = None,
) -> Records:
    """Run every solver on every operator, noise and data set, and the floor of each operator unless `floor=False`.

    All components are given as specs ("sumpool:16,count=50"). images: a selection such as "0:8" or "3,7", by default
    the first four. scaling: how the intensities of each image are scaled before it is measured, "minmax" (to [-1, 1]),
    "none", "meanstd", "p95" or "relion". halves: what solvers are given of two halves of each image, "first" or
    "average" (each, and the results are averaged). protocol: "halves" or "p95", see `plan.protocols`. within: region of
    the metrics, "image", "circle" (of the particle if the source states its radius, else the largest in the image) or
    "circle:75" with a radius in Å. batch: number of images solved at once, halved when memory runs out; "auto" starts
    with all images, at most 1024, on CUDA and with 16 on a CPU. ceiling: add the reference row `ceiling`, which no
    solver can be expected to exceed in PSNR to the measured image; it needs simulated images with white noise and exact
    measurements.
    out: results folder, whose finished cells are reused; None keeps the results in memory. save: further files to save
    there: "reconstructions", the same as "tif", "ome.tif" or "zarr", "maps" (of the metric "map"), "figures", or single
    figures, "panel", "errors", "frc", "views" and "animation".
    presets: folder of the presets of solvers such as "dct@pixel-c4", by default $CRYOBENCH_PRESETS or "presets".
    Raises a `CryobenchError` before any work for an invalid request; failed cells are returned as failed records.
    """
    if save and out is None:
        raise ParameterError(f"save={list(save)} needs a results folder: give out='runs'")
    request = grid.Request(
        solvers=_texts(solvers),
        operators=_texts(operators),
        noises=_texts(noises),
        data=_texts(data),
        data_options=data_options or {},
        metrics=_texts(metrics),
        within=within,
        images=images,
        scaling=scaling,
        halves=halves,
        protocol=protocol,
        seeds=(seed,),
        dtype=dtype,
        device=device,
        batch=batch,
        floor=floor,
        ceiling=ceiling,
        save=tuple(save),
        presets=presets,
    )
    plan = grid.plan(request, installed())
    for text in plan.notes:
        warnings.warn(text, stacklevel=2)
    store = None
    if out is not None:
        store = Results(out)
        store.check_writable()
    hooks = Hooks(lambda message: warnings.warn(message, stacklevel=2)).load_installed()
    return Records(runner.run(plan, hooks, store=store, force=force))


def operator(
    spec: str,
    *,
    shape: Shape,
    seed: int = 0,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    pixel_size: float | None = None,
    table: pd.DataFrame | None = None,
) -> LinearOperator:
    """The live operator of a spec for images of `shape` (H, W): `cb.operator("sumpool:16", shape=(128, 128)).A(x)`.

    pixel_size: in Å, for operators that depend on it (`ctf`). table: one row per image in RELION's columns, for
    operators that differ between images; the operator then applies to these images, in this order.
    """
    recipe = installed().make("operators", spec)
    if not isinstance(recipe, OperatorRecipe):
        raise SpecError(f"{spec!r} is not an operator")
    imaging = Imaging(tuple(shape), (pixel_size,) * (1 if table is None else len(table)), table)
    if isinstance(dtype, str):
        dtype = grid.resolve_dtype(dtype)
    return build_operator(recipe, imaging, seed=seed, dtype=dtype, device=resolve_device(device))


def solver(spec: str) -> Solver:
    """The solver of a spec, a frozen dataclass of its hyper-parameters; "dct@pixel-c4" uses those of the preset."""
    made = choose(spec, installed(), presets_folder()).solver
    check_kind("solvers", spec, made)
    return made


def solve(
    method: str | Solver,
    measured_by: str | LinearOperator,
    y: torch.Tensor | np.ndarray,
    *,
    shape: Shape | None = None,
    noise: str = "none",
    sigma: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Reconstruct images [B, C, *S] from measurements y [B, M, *s].

    measured_by: a live operator, or a spec together with `shape` (H, W) and the `seed` of its masks. sigma: standard
    deviation of the noise in y, if known. The result has the dtype and the device of the operator.
    Raises `IncompatibleError` for a y of another shape or a problem that the solver does not support, and `PluginError`
    for a result that breaks the contract.
    """
    if isinstance(measured_by, str):
        if shape is None:
            raise ParameterError(f"solve: the operator spec {measured_by!r} needs the image size, as shape=(H, W)")
        measured_by = operator(measured_by, shape=shape, seed=seed)
    if isinstance(method, str):
        method = solver(method)
    y = torch.as_tensor(y).to(measured_by.device, measured_by.dtype)
    expected = measured_by.measurement_shape
    if tuple(y.shape[1:]) != tuple(expected):
        raise IncompatibleError(f"y has shape {list(y.shape)}, expected [B, {', '.join(map(str, expected))}]")
    if measured_by.images not in (None, len(y)):
        raise IncompatibleError(
            f"y has {len(y)} images, but the operator was built for {measured_by.images}; use operator.select(images)"
        )
    model: NoiseModel = installed().make("noises", noise)
    problem = Problem(CountingOperator(measured_by), y, model, per_item(y.new_full((len(y),), sigma), y))
    try:
        return solving.solve(method, problem, [str(i) for i in range(len(y))], seed=seed, batch=len(y)).reconstruction.x
    except Unsupported as reason:
        raise IncompatibleError(f"the solver does not support this problem: {reason}") from reason


def _texts(given: Any) -> tuple[str, ...]:
    return tuple(map(str, [given] if isinstance(given, str | Path) else given))
