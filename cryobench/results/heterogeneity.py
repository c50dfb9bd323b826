"""The files of a solved cell of many structures, in its run folder.

    heterogeneity/result.json           solver and source as full specs, which images, pixel size, side, versions
    heterogeneity/arrays.safetensors    latents [N, d]; rotations [N, 3, 3] and shift [N, 2] (Å) where the solver found
                                        them; starts; what the model of maps is made from, as model.NAME
    heterogeneity/particles.star        all columns of the table of the source, a row per particle, with the poses that
                                        were used: those found replace those given

They are enough to make the map of any latent again, without the images and without solving. result.json is written
last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench import environment
from cryobench.core import HeterogeneitySolver
from cryobench.core.heterogeneity import TRUTH, Heterogeneity
from cryobench.errors import (
    CryobenchError,
    PluginError,
    ResultsError,
    SpecError,
    UnknownName,
    reason_of,
    shortened,
)
from cryobench.files import read_bounded
from cryobench.io.star_text import block_text, parse
from cryobench.physics.poses import Poses
from cryobench.registry import Registry, guarded
from cryobench.spec import Spec

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "heterogeneity"
RESULT, ARRAYS, PARTICLES = "result.json", "arrays.safetensors", "particles.star"
VERSION = 1
HOW = "`cryobench run` with a solver that gives each particle a map"
"""What makes such a folder, for messages."""
IMAGE = "cryobenchImage"
"""The column of the number of the image in the source, from 0."""
LARGEST = 2**30
"""Bytes of the largest result.json and particles.star that are read."""
_MODEL = "model."
_PIXELS = ("rlnOriginX", "rlnOriginY")
_BLOCK = "particles"


@dataclass(frozen=True)
class About:
    """What result.json states.

    solver, source: full specs; paths of the source are absolute. images: numbers in the source. pixel_size: Å of the
    images that were solved, None if unknown. side: voxels of a map. dimensions: d. seeks_poses: whether the solver
    found the poses. versions: of cryobench and of the distribution of the solver.
    """

    solver: str
    source: str
    images: list[int]
    pixel_size: float | None
    side: int
    dimensions: int
    seeks_poses: bool
    versions: dict[str, str]


@dataclass(frozen=True, eq=False)
class SavedHeterogeneity:
    """A result that was read. folder: of its files. found: with a model that makes maps. table: particles.star without
    the numbers of the images; no columns where the source states nothing."""

    folder: Path
    about: About
    found: Heterogeneity
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.about.images)


# ------------------------------------------------------------------------------------------------------ writing


def write_heterogeneity(
    folder: Path,
    found: Heterogeneity,
    *,
    solver: str,
    seeks_poses: bool,
    versions: Mapping[str, str],
    source: Spec,
    images: Sequence[int],
    pixel_size: float | None,
    table: pd.DataFrame | None,
) -> None:
    """Write the files to `folder`, which must not exist; its parent is renamed when complete, as a run folder is.

    solver: its full spec. seeks_poses: whether it found the poses. versions: of the distributions that it is made from.
    source: as the run had it. images: their numbers in the source. table: the rows of these images with all columns,
    None without one. Raises `ResultsError` for latents, poses or arrays that do not fit the images.
    """
    from safetensors.torch import save_file

    _check_found(found, len(images))
    about = About(
        solver=solver,
        source=str(_absolute(source)),
        images=[int(number) for number in images],
        pixel_size=pixel_size,
        side=int(found.model.side),
        dimensions=int(found.model.dimensions),
        seeks_poses=seeks_poses,
        versions={"cryobench": environment.version(), **versions},
    )
    arrays = {"latents": found.latents, "starts": torch.tensor(found.starts, dtype=torch.float64)}
    if found.rotations is not None and found.shift is not None:
        arrays |= {"rotations": found.rotations, "shift": found.shift}
    model = guarded(f"the model of maps of {solver} has no arrays", found.model.arrays)
    arrays |= {_MODEL + key: array for key, array in model.items()}
    folder.mkdir()
    # views and tensors that share memory cannot be saved
    save_file({key: array.detach().cpu().clone().contiguous() for key, array in arrays.items()}, folder / ARRAYS)
    stars = block_text(_BLOCK, _with_poses(table, found, len(images), pixel_size).assign(**{IMAGE: about.images}))
    (folder / PARTICLES).write_text(stars, encoding="utf-8")
    (folder / RESULT).write_text(json.dumps({"version": VERSION} | asdict(about), indent=1) + "\n", encoding="utf-8")


def _with_poses(table: pd.DataFrame | None, found: Heterogeneity, count: int, pixel_size: float | None) -> pd.DataFrame:
    """The table with the poses that the solver found in place of those given; as it is where it found none."""
    import pandas as pd

    known = pd.DataFrame(index=range(count)) if table is None else table.reset_index(drop=True)
    if found.rotations is None or found.shift is None:
        return known
    poses = Poses.of_matrices(found.rotations, found.shift).to_table()
    if pixel_size is None:  # the shifts are in pixels
        poses = poses.rename(columns={f"{name}Angst": name for name in _PIXELS})
    known = known.drop(columns=[*_PIXELS, *(f"{name}Angst" for name in _PIXELS)], errors="ignore")
    return known.assign(**{name: poses[name] for name in poses.columns})


def _absolute(source: Spec) -> Spec:
    """The source with absolute paths, so that the result can be analysed from another folder."""

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.exists() else text

    value = None if source.value is None else absolute(source.value)
    params = tuple((key, absolute(text) if key in ("path", "data_root") else text) for key, text in source.params)
    return replace(source, value=value, params=params)


def _check_found(found: Heterogeneity, count: int) -> None:
    """Raise `ResultsError` for what the files cannot hold."""
    expected: dict[str, tuple[torch.Tensor | None, tuple[int, ...]]] = {
        "latents": (found.latents, (count, found.model.dimensions)),
        "rotations": (found.rotations, (count, 3, 3)),
        "shift": (found.shift, (count, 2)),
    }
    for name, (array, shape) in expected.items():
        if array is None:
            continue
        if tuple(array.shape) != shape:
            raise ResultsError(f"{name} of the solver has shape {list(array.shape)}, expected {list(shape)}: a row "
                               "for each image")  # fmt: skip
        if not array.isfinite().all():
            raise ResultsError(f"{name} of the solver has values that are not finite (NaN or infinite)")
    if (found.rotations is None) != (found.shift is None):
        raise ResultsError("the solver gave rotations or a shift alone; expected both, or neither")


# ------------------------------------------------------------------------------------------------------ reading


def read_heterogeneity(folder: Path, registry: Registry) -> SavedHeterogeneity:
    """A saved result. folder: a run folder, or its `heterogeneity/`.

    Raises `ResultsError` for a folder without one, for damaged files, and for a solver that is not installed.
    """
    inner = folder if (folder / RESULT).is_file() else folder / FOLDER
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"no folder {folder}"
        raise ResultsError(f"{what}; give a run folder of {HOW}")
    if not inner.is_dir():
        raise ResultsError(f"{folder} has no {FOLDER}/ with latents and maps; make one by {HOW}")
    about = _read_about(inner)
    model, arrays = _read_arrays(inner)
    solver = _solver(about, inner, registry)
    made = guarded(f"{inner}: the model of maps of {about.solver} cannot be made", lambda: solver.volume_model(model))
    if (made.side, made.dimensions) != (about.side, about.dimensions):
        raise ResultsError(
            f"{inner}: the model of maps has side {made.side} and {made.dimensions} dimensions, and {RESULT} states "
            f"{about.side} and {about.dimensions}; run the cell again with --force"
        )
    starts = tuple(arrays.pop("starts", torch.zeros(0)).tolist())
    lacking = {"latents"} - arrays.keys()
    if lacking or arrays.keys() - {"latents", "rotations", "shift"}:
        raise _damaged(inner / ARRAYS, f"it holds {', '.join(sorted(arrays)) or 'nothing'}")
    found = Heterogeneity(model=made, starts=starts, **arrays)
    try:
        _check_found(found, len(about.images))
    except ResultsError as error:
        raise _damaged(inner / ARRAYS, str(error)) from error
    return SavedHeterogeneity(inner, about, found, _read_table(inner, about))


def _damaged(path: Path, reason: str) -> ResultsError:
    return ResultsError(f"{path} is damaged: {shortened(reason)}; run the cell again with --force")


def _read_about(folder: Path) -> About:
    path = folder / RESULT
    try:
        given: dict[str, Any] = json.loads(read_bounded(path, LARGEST))
        version = given.pop("version")
        if version != VERSION:
            raise ResultsError(f"{path} is of version {version!r}, and this version of cryobench reads {VERSION}; "
                               "run the cell again with --force")  # fmt: skip
        about = About(**{field.name: given[field.name] for field in fields(About)})
    except FileNotFoundError as error:
        raise ResultsError(f"{path} is missing; run the cell again with --force") from error
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, reason_of(error)) from error
    texts = isinstance(about.solver, str) and isinstance(about.source, str)
    counts = isinstance(about.images, list) and all(
        type(number) is int and number >= 0 for number in (*about.images, about.side, about.dimensions)
    )
    size = about.pixel_size
    sized = size is None or (isinstance(size, int | float) and 0 < size < np.inf)
    if not (texts and counts and sized and about.images and about.side > 0 and isinstance(about.versions, dict)):
        raise _damaged(path, "a field has the wrong type or value")
    return about


def _read_arrays(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(of the model, others)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ARRAYS
    if not path.is_file():
        raise ResultsError(f"{path} is missing; run the cell again with --force")
    try:
        arrays = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, reason_of(error)) from error
    model = {key.removeprefix(_MODEL): array for key, array in arrays.items() if key.startswith(_MODEL)}
    return model, {key: array for key, array in arrays.items() if not key.startswith(_MODEL)}


def _solver(about: About, folder: Path, registry: Registry) -> HeterogeneitySolver:
    name = about.solver.partition(":")[0]
    try:
        solver = registry.make("solvers", about.solver)
    except UnknownName as error:
        needed = ", ".join(f"{key} {version}" for key, version in about.versions.items())
        raise ResultsError(
            f"{folder} was made by the solver {name!r}, which is not installed; install it ({needed})"
        ) from error
    except SpecError as error:
        raise _damaged(folder / RESULT, reason_of(error)) from error
    except PluginError:
        raise
    except CryobenchError as error:
        raise ResultsError(f"{folder}: the solver {about.solver} cannot be made: {reason_of(error)}") from error
    if not isinstance(solver, HeterogeneitySolver):
        raise _damaged(folder / RESULT, f"the solver {name!r} gives no map to each particle")
    return solver


def _read_table(folder: Path, about: About) -> pd.DataFrame:
    import pandas as pd

    path = folder / PARTICLES
    if not path.is_file():
        raise ResultsError(f"{path} is missing; run the cell again with --force")
    try:
        table = parse(read_bounded(path, LARGEST).decode())[_BLOCK]
        numbers = table[IMAGE].astype(int).tolist()
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, reason_of(error)) from error
    if numbers != about.images:
        raise _damaged(path, f"it does not have a row for each of the {len(about.images)} images of {RESULT}")
    table = table.drop(columns=IMAGE)
    truth = [column for column in table.columns if column.startswith(TRUTH)]
    return table.assign(**{column: pd.to_numeric(table[column], errors="coerce") for column in truth})
