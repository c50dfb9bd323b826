"""The plan of a run: a grid of cells (solver x operator x noise x data x seed), checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cryobench import environment
from cryobench.core import (
    AnyMetric,
    Column,
    Encoder,
    HeterogeneitySolver,
    JointMetric,
    NoiseModel,
    OperatorRecipe,
    Prior,
    Shape,
    Solver,
    Source,
    check_operator,
    unsupported_dims,
)
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import CryobenchError, DataError, IncompatibleError, ParameterError, PluginError, quoted
from cryobench.global_state import restored
from cryobench.io.scaling import MINMAX, NORMALISATIONS
from cryobench.io.tiff import tifffile
from cryobench.io.zarr_files import zarr
from cryobench.limits import check_cells
from cryobench.metrics.within import IMAGE, Within, parse_within
from cryobench.plan.dataset import AVERAGE, FIRST, HALVES, Dataset, load, source_spec
from cryobench.plan.presets import Chosen, check_not_among, check_unseen, choose, presets_folder
from cryobench.plan.protocols import DEFAULT_METRICS, DEFAULT_NOISES, expanded
from cryobench.record import CLEAN, LEADING, TRAILING, plain
from cryobench.registry import Registry, did_you_mean, guarded
from cryobench.results.store import ANIMATION, ERRORS, FRC, MAPS, PANEL, RECONSTRUCTIONS, VIEWS, content_hash
from cryobench.source_code import code_digest
from cryobench.spec import COMPOSED, Spec, fields_of, parse

CEILING = "ceiling"
"""The name of the reference row that the runner computes from the truth; reserved."""
CONSENSUS = "consensus"
"""The floor of tables with a solver that gives each particle a map of its own: one map for all of them."""
CEILING_VERSION = 1
"""Incremented when the computation of the ceiling changes, so that older rows are computed again."""
AUTO = "auto"
AUTO_BATCH = {"cuda": 1024, "cpu": 16}
"""Initial batch size of `--batch auto` by device type: on a CPU larger batches cost memory and save no time."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
AS_FORMATS = ("tif", "ome.tif", "zarr")
"""Values of --save that write reconstructions, one volume or images, in another format, by its suffix."""
SAVES = {
    "reconstructions": RECONSTRUCTIONS,
    **{suffix: f"{Path(RECONSTRUCTIONS).stem}.{suffix}" for suffix in AS_FORMATS},
    "panel": PANEL,
    "errors": ERRORS,
    "frc": FRC,
    "views": VIEWS,
    "maps": MAPS,
    "animation": ANIMATION,
}
"""Values of --save, and the file or folder of each."""
SAVE_SETS = {"figures": ("panel", "errors", "frc", "views", "animation")}
"""Values of --save that stand for several files."""


@dataclass(frozen=True)
class Request:
    """The request of a run, as specs and plain values."""

    solvers: Sequence[str]
    operators: Sequence[str]
    noises: Sequence[str] = DEFAULT_NOISES
    data: Sequence[str] = ("demo",)
    data_options: dict[str, str] = field(default_factory=dict)
    """Further parameters of every data source, such as {"size": "64"}."""
    metrics: Sequence[str] = DEFAULT_METRICS
    within: str = IMAGE
    """The region that metrics evaluate: "image", "circle" or "circle:75" (radius in Å)."""
    images: str | None = None
    scaling: str = MINMAX
    """Map from the intensities of a source to those that operators see: a name of `io.scaling.NORMALISATIONS`."""
    halves: str = FIRST
    """What solvers are given of two halves of each image: one of `plan.dataset.HALVES`."""
    protocol: str | None = None
    """A name of `plan.protocols.PROTOCOLS`, which states noise, scaling and metrics where the request does not."""
    seeds: Sequence[int] = (0,)
    dtype: str = "float32"
    device: str = "cpu"
    batch: int | str = AUTO
    """Images solved at once, or "auto"."""
    floor: bool = True
    ceiling: bool = False
    save: Sequence[str] = ()
    presets: str | None = None
    """Folder of the presets that solvers name, `dct@pixel-c4`; None for the usual one (`presets.presets_folder`)."""


@dataclass(frozen=True)
class Cell:
    """One solver on one operator, noise and data set, with one seed."""

    solver: Solver | None
    """None for the ceiling, which the runner computes from the truth."""
    operator: OperatorRecipe
    noise: NoiseModel
    dataset: Dataset
    seed: int
    labels: dict[str, str]
    resolved: dict[str, Any]
    plugins: dict[str, str]
    """Versions of the distributions that supply the parts."""
    code: dict[str, str]
    """Digests of the code of the components, by module, where the version does not determine it."""
    trained_on: list[dict[str, str]]
    """The origins of the images that the cell's priors were trained on."""
    priors: list[dict[str, Any]]
    """What the priors state about their files."""
    identity: dict[str, Any]
    """Everything that can change the numbers, except the images and the code."""
    key: str
    """Identifies the cell within a plan, and in every process that makes the plan of the same request; equal to `hash`
    where the images are in memory."""
    floor: bool
    within: str
    radii: tuple[float, ...] | None
    """Radii of the evaluated circles in pixels; None for whole images."""
    tuned_on: frozenset[str] = frozenset()
    """Digests of the images that the preset of the solver was tuned on."""
    file_digests: Callable[[], list[str | None]] = field(default=list, repr=False, compare=False)
    """`identity["weights"]`, from the files as they are now."""

    @property
    def ceiling(self) -> bool:
        return self.solver is None

    @property
    def hash(self) -> str:
        """The content hash that names the cell's result. Reads all images where their digest is not known."""
        return content_hash(self._identity | ({"code": self.code} if self.code else {}))

    @property
    def hash_without_code(self) -> str:
        """The same without the code of the components."""
        return content_hash(self._identity)

    @property
    def _identity(self) -> dict[str, Any]:
        return self.identity | {"images": self.dataset.digest}

    def check_files(self) -> None:
        """Raise `DataError` if a file of images, weights or the operator has changed since the cell was planned."""
        self.dataset.check_files()
        if self.file_digests() != self.identity["weights"]:
            raise DataError(
                f"weights of {self.labels['solver']} or a file of {self.labels['operator']} changed while the cell was "
                "run; run again when nothing writes to them"
            )

    def check_unseen(self, part: slice) -> None:
        """Raise `SelectionError` if one of these images, which have been read, was used to tune the preset."""
        if self.tuned_on:
            digests = self.dataset.read_digests(part)
            check_not_among(self.tuned_on, digests, self.dataset.ids[part], self.labels["solver"], self.dataset.label)


@dataclass(frozen=True)
class Plan:
    """The checked plan of a run. `cells` are ordered so that those that share an operator are adjacent."""

    request: Request
    cells: list[Cell]
    metrics: list[AnyMetric]
    device: torch.device
    dtype: torch.dtype
    batch: int
    """Maximum number of images solved at once."""
    git_commit: str | None

    @property
    def save(self) -> set[str]:
        """The files to save, each by its own name."""
        return {name for given in self.request.save for name in SAVE_SETS.get(given, (given,))}

    @property
    def notes(self) -> list[str]:
        """What was assumed about the files of the priors, which of them are used at another size than that of their
        training, and whether halves are independent, for the user."""
        datasets = {id(cell.dataset): cell.dataset for cell in self.cells}.values()
        of_halves = [note for dataset in datasets if (note := dataset.halves_note) is not None]
        used = dict.fromkeys((cell.solver, cell.dataset.shape) for cell in self.cells if cell.solver is not None)
        of_sizes = dict.fromkeys(note for solver, shape in used for note in size_notes(solver, shape))
        return [*prior_notes([solver for solver, _ in used]), *of_sizes, *of_halves]

    @property
    def rankable(self) -> list[str]:
        """The metric columns of this run that have a direction."""
        return [name for name, direction in self.metric_columns.items() if direction != "none"]

    @property
    def metric_columns(self) -> dict[str, str]:
        """The direction of each metric column of this run."""
        clean = any(cell.dataset.has_clean for cell in self.cells)
        return {
            column.name + end: column.direction
            for metric in self.metrics
            for column in metric.columns
            for end in ("", *([CLEAN] if clean and metric.against_truth else []))
        }


Loaded = dict[tuple[str, str | None, str, str], Dataset]
"""Data sets by spec, selection of images, scaling and halves."""


def plan(request: Request, registry: Registry, loaded: Loaded | None = None) -> Plan:
    """Resolve and check a request: every name, value and device, and every image of data that stay in memory. Raises a
    `CryobenchError` before any work.

    loaded: data sets opened before, which are reused; newly opened ones are added.
    """
    with restored(environment=False):  # a plugin that changes the global state when it is imported affects no cell
        return _plan(expanded(request), registry, loaded)


def _plan(request: Request, registry: Registry, loaded: Loaded | None) -> Plan:
    for kind in ("solvers", "operators", "noises", "metrics"):
        if not getattr(request, kind):
            known = ", ".join(registry.names(kind))
            raise ParameterError(f"a run needs at least one --{kind.removesuffix('s')}, got none; there are {known}")
    kinds = (request.solvers, request.operators, request.noises, request.data, request.seeds)
    check_cells("this run", *(len(set(texts)) for texts in kinds))
    for seed in request.seeds:
        if not -(2**63) <= seed < 2**63:
            raise ParameterError(f"--seed must fit in 64 bits, got {seed}")
    dtype = resolve_dtype(request.dtype)
    for name in request.save:
        if name not in (*SAVES, *SAVE_SETS):
            raise ParameterError(f"--save {quoted(name)} is unknown; {did_you_mean(name, (*SAVES, *SAVE_SETS))}")
    if request.scaling not in NORMALISATIONS:
        raise ParameterError(
            f"--scaling {quoted(request.scaling)} is unknown; {did_you_mean(request.scaling, NORMALISATIONS)}"
        )
    if request.halves not in HALVES:
        raise ParameterError(f"--halves {quoted(request.halves)} is unknown; {did_you_mean(request.halves, HALVES)}")
    device = environment.resolve_device(request.device)
    batch = resolve_batch(request.batch, device)

    if any(parse(text).name == CEILING for text in request.solvers):
        raise ParameterError(
            f"--solver {CEILING} is not a solver but a reference computed from the truth; use --ceiling"
        )
    operators = _unique(_make_all(registry, "operators", request.operators))
    requested = _chosen(request.solvers, request, registry)
    floor_of = {operator: _floor(operator, requested) for operator in operators}
    added = set(floor_of.values()) if request.floor else set()
    floors = {text: choose(text, registry, presets_folder(request.presets)) for text in sorted(added)}
    solvers = _chosen([*floors, *request.solvers], request, registry)
    if request.halves == AVERAGE and (together := [each.label for each in solvers if each.solver.joint]):
        raise ParameterError(f"--halves {AVERAGE} does not apply to {together[0]}, which makes halves of its own")
    noises = _unique(_make_all(registry, "noises", request.noises))
    metrics = _unique(_make_all(registry, "metrics", request.metrics))
    _check_columns(metrics)
    joint = [metric for metric in metrics if isinstance(metric, JointMetric)]
    if "maps" in request.save and not joint:
        raise ParameterError("--save maps needs a metric that makes maps; give --metric map")
    within = parse_within(request.within)
    datasets = _loaded(request, registry, {} if loaded is None else loaded)
    _check_formats(request.save, datasets)
    for dataset in datasets:
        priors = _priors([chosen.solver for chosen in solvers if len(dataset.shape) in chosen.solver.dims])
        for component in (*operators, *noises, *metrics, *priors):
            _check_dims(component, dataset, registry)
        for operator in operators:
            guarded(f"operator {operator}", lambda o=operator, d=dataset: check_operator(o, d.imaging))
        for solver in [chosen.solver for chosen in solvers if len(dataset.shape) in chosen.solver.dims]:
            for prior in _priors([solver]):
                shape = solver.solved_shape(dataset.shape)
                guarded(f"prior {prior}", lambda p=prior, s=shape: p.check(s))
            for encoder in [part for part in with_nested(solver) if isinstance(part, Encoder)]:
                guarded(f"encoder {encoder}", lambda e=encoder, d=dataset: e.check(d.shape))
    _check_unseen(solvers, datasets, registry)
    circles = [within.radii(d.shape, d.pixel_size, d.particle_radius, d.label) for d in datasets]

    specs = cache(partial(_specs, registry))
    cells = [
        _cell(
            registry, specs, chosen, operator, noise, dataset, metrics, seed, request.dtype, within, radii,
            floor=chosen is not None and _is_floor(chosen, floor_of[operator], registry),
        )
        for seed in request.seeds
        for dataset, radii in zip(datasets, circles, strict=True)
        for operator in operators
        for noise in noises
        for chosen in [
            *_with_floor(floors.get(floor_of[operator]), requested),
            *([None] if request.ceiling else []),
        ]
    ]  # fmt: skip
    unique = list({cell.key: cell for cell in cells}.values())
    return Plan(request, unique, metrics, device, dtype, batch, environment.git_commit())


def _chosen(texts: Sequence[str], request: Request, registry: Registry) -> list[Chosen]:
    """The solvers of these specs, without duplicates of the same solver and preset."""
    chosen = [choose(text, registry, presets_folder(request.presets)) for text in texts]
    for text, each in zip(texts, chosen, strict=True):
        check_kind("solvers", text, each.solver)
    first: dict[tuple[Solver, str | None], Chosen] = {}
    for each in chosen:
        first.setdefault((each.solver, each.preset), each)
    return list(first.values())


def _with_floor(floor: Chosen | None, solvers: Sequence[Chosen]) -> list[Chosen]:
    """The floor and the solvers, the floor once."""
    if floor is None:
        return list(solvers)
    return [floor, *(each for each in solvers if (each.solver, each.preset) != (floor.solver, floor.preset))]


def _floor(operator: OperatorRecipe, solvers: Sequence[Chosen]) -> str:
    """The floor of the table of an operator: one map for all particles where a solver gives a map to each, else the
    operator's own."""
    many = any(isinstance(chosen.solver, HeterogeneitySolver) for chosen in solvers)
    return CONSENSUS if many else operator.floor


def _is_floor(chosen: Chosen, floor: str, registry: Registry) -> bool:
    """Whether a solver is the floor, which is made only if the solver has its name."""
    named = registry.spec_of(chosen.solver).name == parse(floor).name
    return named and chosen.solver == registry.make("solvers", floor)


def _check_unseen(solvers: Sequence[Chosen], datasets: Sequence[Dataset], registry: Registry) -> None:
    """Raise an error, before any work, if a preset was tuned on some of the images, as far as they are known.

    Images whose digests are not known yet are compared when they are read (`Cell.check_unseen`).
    """
    tuned = [chosen for chosen in solvers if chosen.preset is not None]
    for dataset in datasets:
        digests = dataset.image_digests if tuned and dataset.recall() else None
        for chosen in tuned:
            check_unseen(chosen, dataset.spec, dataset.label, dataset.ids, digests, registry)


def _check_formats(save: Collection[str], datasets: Sequence[Dataset]) -> None:
    """Raise an error if reconstructions cannot be written in the formats that --save names."""
    for name in [name for name in AS_FORMATS if name in save]:
        library = zarr if name == "zarr" else tifffile
        library(Path(SAVES[name]))
        for dataset in datasets:
            if len(dataset.shape) == 3 and len(dataset) > 1:
                raise ParameterError(f"--save {name} holds one volume, and {dataset.label} {len(dataset)}; choose one "
                                     "with --images, or give --save reconstructions")  # fmt: skip


def _loaded(request: Request, registry: Registry, known: Loaded) -> list[Dataset]:
    """The data sets of a request, each once; those that are not known yet are opened."""
    specs = [source_spec(text, request.data_options, registry) for text in dict.fromkeys(request.data)]
    for spec in specs:
        if (key := (str(spec), request.images, request.scaling, request.halves)) not in known:
            known[key] = load(spec, request.images, registry, request.scaling, request.halves)
    return [known[str(spec), request.images, request.scaling, request.halves] for spec in specs]


def resolve_dtype(name: str) -> torch.dtype:
    """float32 or float64 by name. Raises `ParameterError` for another name."""
    if name not in DTYPES:
        raise ParameterError(f"--dtype must be float32 or float64, got {quoted(name)}")
    return DTYPES[name]


def resolve_batch(given: int | str, device: torch.device) -> int:
    """Maximum number of images solved at once: the given number, or the initial one of `auto` on this device.

    Raises `ParameterError` for any other value.
    """
    if given == AUTO:
        return AUTO_BATCH[device.type]
    try:
        number = int(str(given))
    except ValueError:
        number = 0
    if number < 1:
        raise ParameterError(f"--batch must be {AUTO} or a positive number of images, got {given!s:.40}")
    return number


def _make_all(registry: Registry, kind: str, texts: Sequence[str]) -> list[Any]:
    made = [registry.make(kind, text) for text in texts]
    for text, component in zip(texts, made, strict=True):
        check_kind(kind, text, component)
    return made


def _unique(components: list[Any]) -> list[Any]:
    return list(dict.fromkeys(components))


def _check_columns(metrics: Sequence[AnyMetric]) -> None:
    """Raise an error, before any work, for columns that a leaderboard cannot show."""
    seen: set[str] = set()
    for metric in metrics:
        columns = getattr(metric, "columns", None)
        if not (isinstance(columns, tuple) and columns and all(isinstance(column, Column) for column in columns)):
            raise PluginError(
                f"the metric {type(metric).__name__} must state `columns`, a tuple of cryobench.core.Column"
            )
        for column in columns:
            if column.direction not in ("higher", "lower", "none"):
                raise PluginError(f"the metric column {column.name!r} has direction {column.direction!r}; "
                                  "give higher, lower or none")  # fmt: skip
            if column.interval not in ("bootstrap", "binomial"):
                raise PluginError(f"the metric column {column.name!r} has interval {column.interval!r}; "
                                  "give bootstrap or binomial")  # fmt: skip
            if not column.name.isidentifier() or column.name in (*LEADING, *TRAILING):
                raise PluginError(f"the metric column {column.name!r} is not an identifier or is reserved; rename it")
            names = {column.name, column.name + CLEAN} if metric.against_truth else {column.name}
            shown = {name + end for name in names for end in ("", "_lo", "_hi")}
            if seen & shown:
                raise ParameterError(f"two of the requested metrics have a column {column.name!r}; remove one of them")
            seen |= shown


class _Specs(NamedTuple):
    """The specs of a component: as shown; with every parameter; with every parameter except the location of weights."""

    short: str
    full: str
    unlocated: str


def _specs(registry: Registry, component: Any) -> _Specs:
    full = registry.spec_of(component, full=True)
    return _Specs(str(registry.spec_of(component)), str(full), str(_unlocated(full, component)))


class Implementation(NamedTuple):
    """What components compute with: versions of their distributions, digests of their code by module where the version
    does not determine it, and digests of the weights of their priors and encoders."""

    versions: dict[str, str]
    code: dict[str, str]
    weights: list[str | None]


def implementation(registry: Registry, components: Sequence[Any]) -> Implementation:
    """The implementation of registered components, of which `with_nested` lists those among their parameters."""
    distributions = {type(part).__module__: registry.origin_of(type(part)) for part in components}
    origins = sorted(distributions.values(), key=lambda origin: origin.distribution)
    digests = {module: code_digest(module, distributions[module].distribution) for module in sorted(distributions)}
    return Implementation(
        {origin.distribution: origin.version for origin in origins},
        {module: digest for module, digest in digests.items() if digest is not None},
        _own_weights(components),
    )


def _own_weights(components: Sequence[Any]) -> list[str | None]:
    """Digests of the weights of priors and encoders."""
    return [_weights(part) for part in components if isinstance(part, Prior | Encoder)]


def _other_digests(components: Sequence[Any], metrics: Sequence[AnyMetric]) -> list[str]:
    """Digests of the weights of metrics and of the files of operators."""
    recipes = [part for part in components if isinstance(part, OperatorRecipe)]
    return [*filter(None, map(_weights, metrics)), *filter(None, map(_files, recipes))]


def _cell(
    registry: Registry,
    specs: Callable[[Any], _Specs],
    chosen: Chosen | None,
    operator: OperatorRecipe,
    noise: NoiseModel,
    dataset: Dataset,
    metrics: Sequence[AnyMetric],
    seed: int,
    dtype: str,
    within: Within,
    radii: tuple[float, ...] | None,
    *,
    floor: bool,
) -> Cell:
    parts = {} if chosen is None else {"solver": chosen.solver}
    parts |= {"operator": operator, "noise": noise}
    named = {"solver": CEILING} if chosen is None else {}
    resolved: dict[str, Any] = named | {kind: specs(part).full for kind, part in parts.items()}
    if dataset.scaling != MINMAX:
        resolved["scaling"] = dataset.scaling
    if dataset.halves != FIRST:
        resolved["halves"] = dataset.halves
    if chosen is not None and chosen.preset is not None:
        resolved["preset"] = chosen.preset
    resolved["metrics"] = sorted(specs(metric).full for metric in metrics)
    labels = {kind: specs(part).short for kind, part in parts.items()}
    labels["solver"] = CEILING if chosen is None else chosen.label
    components = [inner for part in (*parts.values(), *metrics) for inner in with_nested(part)]
    made_by = implementation(registry, components)
    # everything that can change the numbers and nothing else: no paths, dates, batch sizes, devices or commits
    identity = resolved | {kind: specs(part).unlocated for kind, part in parts.items()}
    identity |= {
        "seed": seed,
        "dtype": dtype,
        "weights": [*made_by.weights, *_other_digests(components, metrics)],
        "versions": made_by.versions,
    }
    if chosen is None:
        identity["ceiling"] = CEILING_VERSION
    if any(isinstance(metric, JointMetric) for metric in metrics) or (chosen is not None and chosen.solver.joint):
        identity["poses"] = dataset.poses_digest
    if radii is not None:
        identity["within"] = [str(within), *radii]
    priors = [part for part in components if isinstance(part, Prior)]
    return Cell(
        solver=None if chosen is None else chosen.solver,
        operator=operator,
        noise=noise,
        dataset=dataset,
        seed=seed,
        labels=plain(labels | {"data": dataset.label}),
        resolved=plain(resolved | {"data": str(dataset.spec)}),
        plugins=made_by.versions,
        code=made_by.code,
        trained_on=plain([origin for prior in priors for origin in _trained_on(prior)]),
        priors=plain([details for details in (_details(prior, dataset.shape, chosen) for prior in priors) if details]),
        identity=identity,
        key=content_hash(identity | {"images": dataset.key} | ({"code": made_by.code} if made_by.code else {})),
        floor=floor,
        within=str(within),
        radii=radii,
        tuned_on=frozenset() if chosen is None else chosen.tuned_on,
        file_digests=lambda: [*_own_weights(components), *_other_digests(components, metrics)],
    )


def _weights(part: Prior | Encoder | AnyMetric) -> str | None:
    where = f"the weights of {type(part).__name__} cannot be identified"
    return plain(guarded(where, part.weights_digest))


def _files(part: OperatorRecipe) -> str:
    return guarded(f"the files of {type(part).__name__} cannot be identified", part.files_digest)


def _details(prior: Prior, shape: Shape, chosen: Chosen | None) -> Mapping[str, Any]:
    """The details of a prior; with the shapes of its training images and of those it is used on where they differ."""
    details = guarded(f"the details of {type(prior).__name__} are not known", lambda: dict(prior.details()))
    if chosen is not None and prior not in own_priors(chosen.solver):
        return details  # an encoder gives it images of the size that it was trained on
    used = shape if chosen is None else chosen.solver.solved_shape(shape)
    trained = _other_shape(prior, used)
    return details if trained is None else details | {"trained_shape": trained, "used_shape": used}


def _other_shape(prior: Prior, shape: Shape) -> Shape | None:
    """The shape of the training images of a prior, None if it is unknown or that of these images."""
    where = f"the shape of the training images of {type(prior).__name__} is not known"
    trained = guarded(where, lambda: prior.trained_shape)
    return None if trained == shape else trained


def _trained_on(prior: Prior) -> list[Mapping[str, str]]:
    return guarded(f"the training images of {type(prior).__name__} are not known", lambda: [*prior.trained_on()])


def _check_dims(component: Any, dataset: Dataset, registry: Registry) -> None:
    """Raise `IncompatibleError` if a component, or one of its parameters, does not support the dimension of the data.

    Of a composed operator only the innermost one is checked: the input of the others is known only when they are
    applied.
    """
    while registry.origin_of(type(component)).name == COMPOSED:
        component = component.inner
    for part in with_nested(component):
        if isinstance(part, Source):
            continue  # its images may have any dimension
        kind = registry.origin_of(type(part)).kind
        name = f"{kind.removesuffix('s')} {registry.spec_of(part)}"
        reason = unsupported_dims(part, dataset.shape, name, f"but {dataset.label} holds")
        if reason is not None:
            others = _names_for(kind, len(dataset.shape), registry)
            use = f"use {' or '.join(filter(None, (', '.join(others[:-1]), others[-1])))}" if others else "leave it out"
            raise IncompatibleError(f"{reason}; {use}")


def _names_for(kind: str, axes: int, registry: Registry) -> list[str]:
    """The registered names of a kind that support images with this number of axes."""
    names = []
    for name in registry.names(kind):
        try:
            dims = registry.get(kind, name).dims  # type: ignore[attr-defined]
        except CryobenchError:
            continue  # a plugin that cannot be imported is not suggested
        if isinstance(dims, tuple) and axes in dims:  # `dims` is a property if it depends on the parameters
            names.append(name)
    return names


def prior_notes(solvers: Sequence[Solver]) -> list[str]:
    """What was assumed about the files of the priors of these solvers, for the user."""
    return list(dict.fromkeys(note for prior in _priors(solvers) for note in prior.notes()))


def size_notes(solver: Solver, shape: Shape) -> list[str]:
    """For each prior of a solver that was trained on images of another shape than those it is used on, a line."""
    if len(shape) not in solver.dims:
        return []
    used, notes = solver.solved_shape(shape), []
    for prior in _priors([solver]):
        trained = _other_shape(prior, used)
        if trained is not None:
            name = getattr(prior, "source", type(prior).__name__)
            notes.append(f"prior {name}: trained on images of {size_text(trained)}, used on {size_text(used)}")
    return notes


def _priors(solvers: Sequence[Solver]) -> list[Prior]:
    """The priors of all solvers, each once."""
    return _unique([part for solver in solvers for part in own_priors(solver)])


def own_priors(component: Any) -> list[Prior]:
    """The priors among a component and its parameters, but for those of encoders, which resample images for them."""
    if isinstance(component, Encoder):
        return []
    own = [component] if isinstance(component, Prior) else []
    parts = [
        getattr(component, parameter.name) for parameter in fields_of(type(component)) if parameter.kind is not None
    ]
    return own + [prior for part in parts if part is not None for prior in own_priors(part)]


def _unlocated(spec: Spec, component: Any) -> Spec:
    """The full spec of a component without the parameters that locate weights of priors and encoders, or its files."""
    after = spec.after
    if after is not None:
        component, after = component.outer, _unlocated(after, component.inner)
    dropped = _locations(component) | _own_locations(component)
    kept = [(key, text) for key, text in spec.params if not any(f"{key}.".startswith(f"{name}.") for name in dropped)]
    return dataclasses.replace(spec, params=tuple(kept), after=after)


def _locations(component: Any) -> set[str]:
    """The dotted names of the parameters that locate the weights of priors and encoders inside a component, or the
    files of its operators; those of a component among them locate them too."""
    found = set()
    for parameter in fields_of(type(component)):
        part = getattr(component, parameter.name)
        if parameter.kind is not None and part is not None:
            found |= {f"{parameter.name}.{name}" for name in _own_locations(part) | _locations(part)}
    return found


def _own_locations(component: Any) -> set[str]:
    return set(component.location_fields) if isinstance(component, Prior | Encoder | OperatorRecipe) else set()


def with_nested(component: Any) -> Iterator[Any]:
    """A component and the registered components among its parameters, at any depth."""
    yield component
    for parameter in fields_of(type(component)):
        value = getattr(component, parameter.name)
        if parameter.kind is not None and value is not None:
            yield from with_nested(value)
