"""The optional files that are saved with a record (`--save`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cryobench.core import Case, Reconstruction, Scale
from cryobench.core.recording import Recording
from cryobench.metrics.rings import ring_frequencies
from cryobench.metrics.spectral import Frc
from cryobench.plan.grid import SAVES, Cell
from cryobench.results.store import DEVIATION
from cryobench.runner.measured_problem import AT_ONCE
from cryobench.runner.scoring import score

Writer = Callable[[Path], None]


def writers(
    save: Iterable[str],
    cell: Cell,
    case: Case,
    reconstruction: Reconstruction,
    iterates: Recording | None,
    curves: Mapping[str, np.ndarray],
) -> tuple[dict[str, Writer], list[str]]:
    """A writer for each file, by its name; and the names in `save` that the solver does not provide."""
    scale = cell.dataset.scale
    pixel_size = cell.dataset.pixel_size[0] or 0.0
    known: Mapping[str, Writer] = {
        "reconstructions": partial(_write_stack, images=reconstruction.x, scale=scale, pixel_size=pixel_size),
        "panel": partial(_write_panel, cell=cell, case=case, reconstruction=reconstruction),
        "errors": partial(_write_errors, cell=cell, case=case, reconstruction=reconstruction),
        "frc": partial(_write_frc, cell=cell, case=case, reconstruction=reconstruction, curves=curves),
        "views": partial(_write_views, cell=cell, case=case, reconstruction=reconstruction),
    }
    if iterates is not None and iterates.frames:
        known |= {"animation": partial(_write_animation, iterates=iterates)}
    files = {SAVES[name]: known[name] for name in save if name in known}
    if "reconstructions" in save and reconstruction.deviation is not None:
        # a standard deviation is scaled by the factor only; the offset does not apply
        factor = dataclasses.replace(scale, offset=torch.zeros_like(scale.offset))
        files[DEVIATION] = partial(_write_stack, images=reconstruction.deviation, scale=factor, pixel_size=pixel_size)
    return files, sorted(set(save) - set(known))


def _write_stack(path: Path, *, images: torch.Tensor, scale: Scale, pixel_size: float) -> None:
    """Images [B, 1, *S] in the units of the data file, as an MRC image stack or an MRC2014 volume stack.

    pixel_size: Å, 0 if unknown.
    """
    import mrcfile

    data = scale.to_file(images)[:, 0].float().numpy()
    with mrcfile.new(path, data=data) as file:  # data with four axes become a volume stack
        if data.ndim == 3:
            file.set_image_stack()
        file.voxel_size = pixel_size


def _write_panel(path: Path, *, cell: Cell, case: Case, reconstruction: Reconstruction) -> None:
    from cryobench import figures

    figures.panel(
        _pixels(case.truth),
        _pixels(case.problem.operator.A_adjoint(case.problem.y)),
        _pixels(reconstruction.x),
        titles=_titles(cell),
        pixel_size=cell.dataset.pixel_size,
        path=path,
    )


def _write_errors(path: Path, *, cell: Cell, case: Case, reconstruction: Reconstruction) -> None:
    from cryobench import figures

    figures.error_maps(
        _pixels(case.truth),
        _pixels(reconstruction.x),
        titles=_titles(cell),
        clean=None if case.clean is None else _pixels(case.clean),
        deviation=None if reconstruction.deviation is None else _pixels(reconstruction.deviation),
        pixel_size=cell.dataset.pixel_size,
        path=path,
    )


def _write_frc(
    path: Path, *, cell: Cell, case: Case, reconstruction: Reconstruction, curves: Mapping[str, np.ndarray]
) -> None:
    """curves: of the metrics. The correlations are computed only if they are not among them."""
    from cryobench import figures

    found = curves if "frc" in curves else score([Frc()], case, reconstruction, batch=AT_ONCE).curves
    figures.ring_correlations(
        found["frc"],
        ring_frequencies(cell.dataset.shape).numpy(),
        pixel_size=case.pixel_size,
        shells=len(cell.dataset.shape) == 3,
        path=path,
    )


def _write_views(path: Path, *, cell: Cell, case: Case, reconstruction: Reconstruction) -> None:
    from cryobench import figures

    figures.write_views(
        _pixels(case.truth),
        _pixels(reconstruction.x),
        images=cell.dataset.ids,
        pixel_size=cell.dataset.pixel_size,
        path=path,
    )


def _write_animation(path: Path, *, iterates: Recording) -> None:
    from cryobench import figures

    pairs = [(_pixels(x[:1, None])[0], _pixels(estimate[:1, None])[0]) for x, estimate in iterates.frames]
    figures.animation(pairs, steps=iterates.steps, path=path)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Images [B, 1, H, W] as [B, H, W]; for volumes [B, 1, D, H, W], the central section z = D // 2."""
    planes = images[:, 0] if images.ndim == 4 else images[:, 0, images.shape[2] // 2]
    return planes.cpu().numpy()


def _titles(cell: Cell) -> list[str]:
    shape = cell.dataset.shape
    noun, section = ("image", "") if len(shape) == 2 else ("volume", f", z = {shape[0] // 2}")
    return [f"{noun} {number}{section}" for number in cell.dataset.ids]
