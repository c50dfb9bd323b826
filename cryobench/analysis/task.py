"""Analyses a saved result into a folder that appears whole or not at all.

OUT/index.html                       a page of the latents, the maps and the traversals, which needs no network
OUT/latents.csv, latents.png         a row per particle: image, cluster, latent, principal components, UMAP; a figure
OUT/analysis.json                    the numbers
OUT/clusters/cluster_N.mrc           the map of the state of cluster N
OUT/clusters/cluster_N.star ...      its particles (`analysis.subsets`)
OUT/pc1_10/vol_000.mrc ...           10 maps along the first principal component
OUT/kept.star ...                    the particles that were kept, with keep or drop
OUT/particles.mrcs                   the images, where they are in no MRC file
OUT/map.mrc, particles.star ...      instead of clusters and traversals where there is one map for all
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment
from cryobench.analysis.latents import (
    METHODS,
    PERCENTILES,
    Clusters,
    Method,
    Principal,
    chosen_clusters,
    clusters_of,
    principal_components,
    umap_of,
)
from cryobench.analysis.page import State, to_page
from cryobench.analysis.subsets import Subsets
from cryobench.errors import ParameterError, PluginError, ResultsError, reason_of
from cryobench.figures.scatter import latents_figure
from cryobench.io.maps import write_map
from cryobench.io.writing import written_folder
from cryobench.registry import Registry, guarded
from cryobench.results.heterogeneity import SavedHeterogeneity

K = 6
"""Clusters by default."""
CLUSTERS, PAGE, FIGURE, TABLE, NUMBERS = "clusters", "index.html", "latents.png", "latents.csv", "analysis.json"
_OURS = re.compile(
    r"index\.html|latents\.(csv|png)|analysis\.json|clusters|pc\d+_\d+|map\.mrc|particles\.mrcs|"
    r"(kept|particles)\.(star|cs|pkl)"
)


@dataclass(frozen=True)
class AnalysisTask:
    """How to analyse a result.

    k: clusters, None for `K`. components: principal components with a traversal, at most d. points: maps along each.
    umap: also the plane of UMAP. keep, drop: numbers of clusters such as "2,5", of which one may be given. particles:
    whether tables of particles are written, for which the images must be there.
    """

    k: int | None = None
    method: Method = "kmeans"
    components: int = 2
    points: int = 10
    umap: bool = False
    seed: int = 0
    keep: str | None = None
    drop: str | None = None
    particles: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ParameterError(f"--method: expected {' or '.join(METHODS)}, got {self.method!r}")
        for name, value, least in (("--k", self.k, 1), ("--components", self.components, 0),
                                   ("--points", self.points, 2)):  # fmt: skip
            if value is not None and value < least:
                raise ParameterError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.seed < 2**32:
            raise ParameterError(f"--seed must be from 0 to 4294967295, got {self.seed}")
        if self.keep is not None and self.drop is not None:
            raise ParameterError("--keep and --drop: give one of them")
        if (self.keep or self.drop) and not self.particles:
            raise ParameterError("--keep and --drop write tables of particles; leave --no-particles out")

    def run(self, saved: SavedHeterogeneity, out: Path, registry: Registry) -> Finished:
        """Analyse a result into the folder `out`, which it replaces. Raises a `CryobenchError` for parameters that do
        not fit the result, and for images that are not there."""
        if saved.about.dimensions == 0:
            self._check_one_map()
        subsets = Subsets.of(saved, registry, out) if self.particles else None
        work = _Work(self, saved, subsets)
        with written_folder(out) as folder:
            finished = work.one_map(folder) if saved.about.dimensions == 0 else work.all(folder)
        return finished

    def _check_one_map(self) -> None:
        given = [name for name, value in (("--k", self.k is not None), ("--keep", self.keep), ("--drop", self.drop),
                                          ("--umap", self.umap)) if value]  # fmt: skip
        if given:
            raise ParameterError(f"{given[0]}: the result has one map for all particles (0 dimensions), and no "
                                 "clusters; leave it out")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Finished:
    """What was written. numbers: those of analysis.json."""

    numbers: dict[str, Any]
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Names and values to print."""


class _Work:
    def __init__(self, task: AnalysisTask, saved: SavedHeterogeneity, subsets: Subsets | None):
        self.task, self.saved, self.subsets = task, saved, subsets
        self.latents = saved.found.latents.double().numpy()
        self.states: list[State] = []

    def one_map(self, folder: Path) -> Finished:
        """The map and the particles of a result without latents."""
        self._map(folder / "map.mrc", self.latents[0], "map")
        if self.subsets is not None:
            self.subsets.write_images(folder)
            self.subsets.write(folder, "particles", np.arange(len(self.saved)))
        numbers = self._about()
        self._finish(folder, numbers, None, None, self.latents[:, :0])
        return Finished(numbers, [("particles", str(len(self.saved))), ("maps", "1")])

    def all(self, folder: Path) -> Finished:
        """Clusters, traversals, tables and the page."""
        task = self.task
        components = min(task.components, self.saved.about.dimensions)
        principal = principal_components(self.latents)
        clusters = clusters_of(self.latents, task.k or K, task.method, task.seed)
        kept = self._kept(clusters)  # before the work
        plane = umap_of(self.latents, task.seed) if task.umap else None
        numbers = self._about() | self._clusters(folder, clusters)
        numbers |= {"components": [self._traversal(folder, principal, number) for number in range(components)]}
        if kept is not None and self.subsets is not None:
            chosen = np.flatnonzero(np.isin(clusters.labels, kept))
            self.subsets.write(folder, "kept", chosen)
            numbers |= {"kept": {"clusters": kept, "particles": len(chosen)}}
        self._finish(folder, numbers, principal, clusters, plane)
        lines = [("particles", str(len(self.saved))),
                 ("clusters", ", ".join(f"{number}: {size}" for number, size in enumerate(clusters.sizes, 1))),
                 ("variance", ", ".join(f"PC{number} {100 * part:.3g}%" for number, part in
                                        enumerate(principal.variance[:max(components, 1)], 1)))]  # fmt: skip
        if clusters.empty:
            lines.append(("empty", f"{clusters.empty} of {task.k or K} clusters have no particles"))
        if "kept" in numbers:
            lines.append(("kept", f"{numbers['kept']['particles']} particles"))
        return Finished(numbers, lines)

    def _kept(self, clusters: Clusters) -> list[int] | None:
        """The clusters whose particles are kept; None if that was not asked for."""
        k, task = len(clusters), self.task
        if task.keep is not None:
            return chosen_clusters(task.keep, k, "--keep")
        if task.drop is None:
            return None
        dropped = chosen_clusters(task.drop, k, "--drop")
        if len(dropped) == k:
            raise ParameterError(f"--drop {task.drop} leaves no particles; drop fewer of the {k} clusters")
        return [number for number in range(1, k + 1) if number not in dropped]

    def _about(self) -> dict[str, Any]:
        about = self.saved.about
        return {
            "solver": about.solver, "source": about.source, "particles": len(self.saved), "side": about.side,
            "pixel_size_angstrom": about.pixel_size, "dimensions": about.dimensions,
            "poses_found": self.saved.found.rotations is not None, "version": environment.version(),
        }  # fmt: skip

    def _clusters(self, folder: Path, clusters: Clusters) -> dict[str, Any]:
        inner = folder / CLUSTERS
        inner.mkdir()
        if self.subsets is not None:
            self.subsets.write_images(folder)
        listed = []
        for number, (particle, size) in enumerate(
            zip(clusters.nearest.tolist(), clusters.sizes.tolist(), strict=True), 1
        ):
            name = f"cluster_{number}"
            self._map(inner / f"{name}.mrc", self.latents[particle], name)
            if self.subsets is not None:
                self.subsets.write(inner, name, np.flatnonzero(clusters.labels == number))
            listed.append({"cluster": number, "particles": size, "image": self.saved.about.images[particle],
                           "latent": self.latents[particle].tolist()})  # fmt: skip
        score = "sum_of_squares" if self.task.method == "kmeans" else "bic"
        return {"method": self.task.method, "k": self.task.k or K, "seed": self.task.seed, "empty": clusters.empty,
                score: clusters.score, "clusters": listed}  # fmt: skip

    def _traversal(self, folder: Path, principal: Principal, component: int) -> dict[str, Any]:
        along, latents = principal.traversal(component, self.task.points)
        name = f"pc{component + 1}_{self.task.points}"
        inner = folder / name
        inner.mkdir()
        for point, latent in enumerate(latents):
            self._map(inner / f"vol_{point:03d}.mrc", latent, f"{name}/{point}")
        return {"folder": name, "variance": float(principal.variance[component]), "percentiles": list(PERCENTILES),
                "coordinates": along.tolist(), "axis": principal.axes[component].tolist()}  # fmt: skip

    def _map(self, path: Path, latent: np.ndarray, name: str) -> None:
        """Write the map of a latent, and keep its central sections for the page."""
        side = self.saved.about.side
        what = f"the map of {self.saved.about.solver} cannot be made"
        given = torch.from_numpy(latent)[None]
        made = guarded(what, lambda: self.saved.found.model.volumes(given))
        if tuple(made.shape) != (1, side, side, side):
            raise PluginError(f"{what}: got shape {list(made.shape)}, expected {[1, side, side, side]}")
        volume = made[0].detach().float().cpu().numpy()
        write_map(path, path, volume, self.saved.about.pixel_size)
        self.states.append(State.of(name, latent, volume))

    def _finish(
        self,
        folder: Path,
        numbers: dict[str, Any],
        principal: Principal | None,
        clusters: Clusters | None,
        plane: np.ndarray | None,
    ) -> None:
        """The table, the figure, the numbers and the page."""
        columns: dict[str, list[Any]] = {"image": self.saved.about.images}
        if clusters is not None:
            columns["cluster"] = clusters.labels.tolist()
        columns |= {f"z{number}": column.tolist() for number, column in enumerate(self.latents.T, 1)}
        if principal is not None:
            columns |= {f"pc{number}": column.tolist() for number, column in enumerate(principal.coordinates.T, 1)}
        if plane is not None:
            columns |= {f"umap{number}": column.tolist() for number, column in enumerate(plane.T, 1)}
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(columns)
            rows.writerows(zip(*columns.values(), strict=True))
        (folder / NUMBERS).write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        views: list[tuple[str, np.ndarray]] = []
        if principal is not None and clusters is not None:
            views.append(("Principal components", principal.coordinates[:, :2]))
            names = ["PC1", "PC2"]
            places = principal.coordinates[:, :2]
            if plane is not None:
                views.append(("UMAP", plane))
                places, names = plane, ["UMAP 1", "UMAP 2"]
            latents_figure(places, clusters.labels, clusters.nearest, names, folder / FIGURE)
        text = to_page(numbers, self.states, views, clusters, self.latents, self.saved.about)
        (folder / PAGE).write_text(text, encoding="utf-8")


def check_out(out: Path, *, force: bool) -> None:
    """Raise `ResultsError` unless `out` does not exist, is empty, or is an analysis and `force`."""
    try:
        if out.exists() and not out.is_dir():
            raise ResultsError(f"{out} is a file; give the path of a folder as --out")
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        parent = out.absolute().parent.is_dir()
    except OSError as error:
        raise ResultsError(f"cannot read {out}: {reason_of(error)}; give another --out") from error
    if not parent:
        raise ResultsError(f"cannot write {out}: the folder {out.parent} does not exist; create it first")
    other = [name for name in found if not _OURS.fullmatch(name) or NUMBERS not in found]
    if other:
        raise ResultsError(f"{out} has other files, such as {other[0]}; give a new folder as --out")
    if found and not force:
        raise ResultsError(f"{out} exists already; give another --out, or --force to replace it")
