"""The optional files that are saved with a record (`--save`).

Reconstructions go to disk chunk by chunk; of figures, only what they show is kept: the first images, and curves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench.core import Case, Heterogeneity, HeterogeneitySolver, Reconstruction, Scale
from cryobench.core.recording import Recording
from cryobench.errors import ResultsError
from cryobench.figures.style import ROWS
from cryobench.files import hidden_folder
from cryobench.io.conversion import convert
from cryobench.io.maps import write_map
from cryobench.io.writing import StackWriter
from cryobench.metrics.rings import ring_frequencies
from cryobench.metrics.spectral import Frc
from cryobench.plan.grid import AS_FORMATS, SAVES, Cell
from cryobench.results.heterogeneity import FOLDER as HETEROGENEITY
from cryobench.results.heterogeneity import write_heterogeneity
from cryobench.results.store import DEVIATION, RECONSTRUCTIONS, Results
from cryobench.runner.measured_problem import AT_ONCE
from cryobench.runner.scoring import score
from cryobench.runner.solving import part_of
from cryobench.sources.stacks import File
from cryobench.sources.volume import Volume

Writer = Callable[[Path], None]
_OF_FIRST_IMAGES = {"panel", "errors", "views"}
_OF_STACKS = {"reconstructions", *AS_FORMATS}


class FilesToSave:
    """What is needed for the files of a cell, collected chunk by chunk in a `with` block.

    save: names in `SAVES`. folder: for the stacks, which are written at once; None if none is saved.
    """

    def __init__(self, save: Collection[str], cell: Cell, folder: Path | None):
        self._save, self._cell, self._folder = save, cell, folder
        self._open = ExitStack()
        self._stacks: dict[Path, StackWriter] = {}
        self._first: list[dict[str, np.ndarray]] = []
        self._kept = 0
        self._deviation = True
        """Whether every image has a deviation so far."""
        self._frc: list[np.ndarray] = []
        self._many: Heterogeneity | None = None

    def __enter__(self) -> FilesToSave:
        return self

    def __exit__(self, *raised: Any) -> None:
        with _writing(RECONSTRUCTIONS):
            self._open.__exit__(*raised)

    def add(self, case: Case, reconstruction: Reconstruction, curves: Mapping[str, np.ndarray]) -> None:
        """Add the next images. curves: of the metrics for them. Raises `ResultsError` if they cannot be written."""
        self._deviation &= reconstruction.deviation is not None
        self._many = reconstruction.heterogeneity
        if self._folder is not None:
            scale = case.problem.scale
            self._write(self._folder / RECONSTRUCTIONS, reconstruction.x, scale)
            if self._deviation and reconstruction.deviation is not None:
                # a standard deviation is scaled by the factor only; the offset does not apply
                factor = dataclasses.replace(scale, offset=torch.zeros_like(scale.offset))
                self._write(self._folder / DEVIATION, reconstruction.deviation, factor)
        if _OF_FIRST_IMAGES & set(self._save) and self._kept < ROWS:
            self._keep(case, reconstruction)
        if "frc" in self._save and "frc" not in curves:
            self._frc.append(score([Frc()], case, reconstruction, batch=AT_ONCE).curves["frc"])

    def _write(self, file: Path, images: torch.Tensor, scale: Scale) -> None:
        """Images [B, 1, *S] in the units of the data file."""
        with _writing(file.name):
            if file not in self._stacks:
                data = self._cell.dataset
                depth = data.shape[0] if len(data.shape) == 3 else None
                writer = StackWriter(file, Path(file.name), data.pixel_size[0], depth=depth)
                self._stacks[file] = self._open.enter_context(writer)
            self._stacks[file].add(scale.to_file(images)[:, 0].float().numpy())

    def _keep(self, case: Case, reconstruction: Reconstruction) -> None:
        left = ROWS - self._kept
        images = {"truth": case.truth, "reconstruction": reconstruction.x, "clean": case.clean,
                  "deviation": reconstruction.deviation}  # fmt: skip
        if "panel" in self._save:
            first = part_of(case.problem, slice(0, left))
            images["adjoint"] = first.operator.A_adjoint(first.y)
        self._first.append({name: _pixels(own[:left]) for name, own in images.items() if own is not None})
        self._kept += len(case.truth[:left])

    def writers(
        self, iterates: Recording | None, curves: Mapping[str, np.ndarray], volumes: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Writer], list[str]]:
        """After the block: a writer for each file, by its name; and the names in `save` that the solver does not
        provide. curves: of the metrics for all images. volumes: that metrics of all images together made."""
        stacks = [file for file in self._stacks if self._deviation or file.name != DEVIATION]
        files: dict[str, Writer] = {
            f"{file.stem}.{suffix}": partial(_convert, file, volumes=len(self._cell.dataset.shape) == 3)
            for suffix in AS_FORMATS if suffix in self._save for file in stacks
        }  # fmt: skip
        if "reconstructions" in self._save:
            files |= {file.name: partial(_move, file) for file in stacks}  # after they were read
        known: dict[str, Writer] = {
            "panel": self._write_panel, "errors": self._write_errors,
            "views": self._write_views, "frc": partial(self._write_frc, curves),
        }  # fmt: skip
        if volumes:
            known |= {"maps": partial(_write_maps, volumes=volumes, pixel_size=self._cell.dataset.pixel_size[0])}
        if iterates is not None and iterates.frames:
            known |= {"animation": partial(_write_animation, iterates=iterates)}
        files |= {SAVES[name]: known[name] for name in self._save if name in known}
        if self._many is not None and isinstance(self._cell.solver, HeterogeneitySolver):
            files[HETEROGENEITY] = self._write_many
        return files, sorted(set(self._save) - {*_OF_STACKS, *known})

    def _of_first(self, name: str) -> np.ndarray:
        """Of the first images, [n, H, W]."""
        return np.concatenate([part[name] for part in self._first])

    def _where_known(self, name: str) -> np.ndarray | None:
        """The same; None unless it is known of all of them."""
        return self._of_first(name) if all(name in part for part in self._first) else None

    def _write_panel(self, path: Path) -> None:
        from cryobench import figures

        arrays = (self._of_first(name) for name in ("truth", "adjoint", "reconstruction"))
        figures.panel(*arrays, titles=self._titles, pixel_size=self._sizes, path=path)

    def _write_errors(self, path: Path) -> None:
        from cryobench import figures

        figures.error_maps(
            self._of_first("truth"),
            self._of_first("reconstruction"),
            titles=self._titles,
            clean=self._where_known("clean"),
            deviation=self._where_known("deviation") if self._deviation else None,
            pixel_size=self._sizes,
            path=path,
        )

    def _write_views(self, path: Path) -> None:
        from cryobench import figures

        figures.write_views(
            self._of_first("truth"), self._of_first("reconstruction"), images=self._cell.dataset.ids[: self._kept],
            pixel_size=self._sizes, path=path,
        )  # fmt: skip

    def _write_many(self, path: Path) -> None:
        """The latents, poses and maps of a solver of heterogeneity, which are always saved."""
        cell, data = self._cell, self._cell.dataset
        assert isinstance(cell.solver, HeterogeneitySolver)
        assert self._many is not None
        write_heterogeneity(
            path, self._many, solver=cell.resolved["solver"], seeks_poses=cell.solver.seeks_poses,
            versions=cell.plugins, source=data.spec, images=[int(image) for image in data.ids],
            pixel_size=data.pixel_size[0], table=data.table,
        )  # fmt: skip

    def _write_frc(self, curves: Mapping[str, np.ndarray], path: Path) -> None:
        """The correlations are computed only if they are not among the curves of the metrics."""
        from cryobench import figures

        data = self._cell.dataset
        figures.ring_correlations(
            curves["frc"] if "frc" in curves else np.concatenate(self._frc),
            ring_frequencies(data.shape).numpy(),
            pixel_size=data.pixel_size,
            shells=len(data.shape) == 3,
            path=path,
        )

    @property
    def _sizes(self) -> tuple[float | None, ...]:
        return self._cell.dataset.pixel_size[: self._kept]

    @property
    def _titles(self) -> list[str]:
        shape = self._cell.dataset.shape
        noun, section = ("image", "") if len(shape) == 2 else ("volume", f", z = {shape[0] // 2}")
        return [f"{noun} {number}{section}" for number in self._cell.dataset.ids[: self._kept]]


@contextmanager
def folder_for(save: Collection[str], store: Results | None) -> Iterator[Path | None]:
    """A hidden folder in the results folder for the stacks of a cell, None if none is saved. It is deleted at the end.

    Raises `ResultsError` if it cannot be made.
    """
    if store is None or not _OF_STACKS & set(save):
        yield None
        return
    with ExitStack() as stack:
        with _writing(RECONSTRUCTIONS):
            store.root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(hidden_folder(store.root))
        yield folder


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(f"cannot write {name}: {error.strerror}; finished cells are kept") from error


def _move(file: Path, path: Path) -> None:
    file.replace(path)


def _convert(file: Path, path: Path, *, volumes: bool) -> None:
    """Write a stack of images, or of one volume, in another format."""
    source = Volume((str(file),)) if volumes else File(str(file))
    convert(source.open(), path)


def _write_maps(path: Path, *, volumes: Mapping[str, torch.Tensor], pixel_size: float | None) -> None:
    """A folder with an MRC map for each volume."""
    path.mkdir()
    for name, volume in volumes.items():
        file = path / f"{name}.mrc"
        write_map(file, file, volume.float().cpu().numpy(), pixel_size)


def _write_animation(path: Path, *, iterates: Recording) -> None:
    from cryobench import figures

    pairs = [(_pixels(x[:1, None])[0], _pixels(estimate[:1, None])[0]) for x, estimate in iterates.frames]
    figures.animation(pairs, steps=iterates.steps, path=path)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Images [B, 1, H, W] as [B, H, W]; for volumes [B, 1, D, H, W], the central section z = D // 2."""
    planes = images[:, 0] if images.ndim == 4 else images[:, 0, images.shape[2] // 2]
    return planes.cpu().numpy()
