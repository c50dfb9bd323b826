"""What a run will do: a grid of cells (solver x operator x noise x data x seed), checked before any work."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryobench import environment, results
from cryobench.core import Column, Imaging, Metric, NoiseModel, OperatorRecipe, Prior, Shape, Solver, Source, Stack
from cryobench.ctf import COLUMNS
from cryobench.errors import DataError, ParameterError, PluginError, SpecError
from cryobench.record import CLEAN, LEADING, TRAILING
from cryobench.registry import Registry, did_you_mean, guarded
from cryobench.sources.scaling import between, minmax
from cryobench.sources.selection import parse_images
from cryobench.sources.simulate import Simulate, SimulatedStack
from cryobench.spec import Spec, fields_of, parse

if TYPE_CHECKING:
    import pandas as pd

FLOOR = "pinv"
CEILING = "ceiling"
"""The name of the reference row that the runner makes of the truth; no solver can have it."""
CEILING_VERSION = 1
"""Goes up when the ceiling is computed in another way, so that rows made before are made again."""
DEFAULT_METRICS = ("mse", "mae", "psnr", "ssim", "l2", "measurement_mse")
AUTO = "auto"
AUTO_BATCH = {"cuda": 1024, "cpu": 16}
"""What `--batch auto` starts with, by kind of device: on a CPU more images at once cost memory and gain nothing."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SAVES = {"reconstructions": results.RECONSTRUCTIONS, "panel": results.PANEL, "animation": results.ANIMATION}
"""What --save takes, and the file each makes."""
_NAME_OF_A_SOURCE = re.compile(r"\w+")
"""A bare word is a registered source even where a folder has its name."""
_BASE_CLASSES = {
    "operators": OperatorRecipe,
    "noises": NoiseModel,
    "solvers": Solver,
    "priors": Prior,
    "metrics": Metric,
    "sources": Source,
}


@dataclass(frozen=True)
class Request:
    """What a run is asked, as specs and plain values."""

    solvers: Sequence[str]
    operators: Sequence[str]
    noises: Sequence[str] = ("none",)
    data: Sequence[str] = ("demo",)
    data_options: dict[str, str] = field(default_factory=dict)
    """Further parameters of every data source, such as {"size": "64"}."""
    metrics: Sequence[str] = DEFAULT_METRICS
    images: str | None = None
    seeds: Sequence[int] = (0,)
    dtype: str = "float32"
    device: str = "cpu"
    batch: int | str = AUTO
    """Images solved at once, or "auto"."""
    floor: bool = True
    ceiling: bool = False
    save: Sequence[str] = ()


@dataclass(frozen=True)
class Dataset:
    """The images of a run, read and scaled to [-1, 1], with what undoes the scaling."""

    label: str
    spec: Spec
    images: torch.Tensor
    """[n, 1, H, W] float32 on the CPU."""
    ids: tuple[str, ...]
    scale: tuple[tuple[float, float], ...]
    pixel_size: tuple[float | None, ...]
    digest: str
    table: pd.DataFrame | None = None
    """What the source knows of the images beside their pixels, a row each, or None."""
    clean: torch.Tensor | None = None
    """The images without their noise, on the scale of `images`; None unless the source knows it for all of them."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What the images are of and how they were made, where they were."""
    white_noise: bool | None = None
    """Whether the noise of the images is white; None where the source does not tell."""

    @property
    def shape(self) -> Shape:
        return (self.images.shape[2], self.images.shape[3])

    @property
    def imaging(self) -> Imaging:
        return Imaging(self.shape, self.pixel_size, self.table)


@dataclass(frozen=True)
class Cell:
    """One solver on one operator, noise and data set, with one seed."""

    solver: Solver | None
    """None for the ceiling, which the runner makes of the truth."""
    operator: OperatorRecipe
    noise: NoiseModel
    dataset: Dataset
    seed: int
    labels: dict[str, str]
    resolved: dict[str, Any]
    plugins: dict[str, str]
    """Versions of the distributions that supply the parts."""
    trained_on: list[dict[str, str]]
    """The origins of the images that the cell's priors were trained on."""
    hash: str
    floor: bool

    @property
    def ceiling(self) -> bool:
        return self.solver is None


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, checked. `cells` are ordered so that those that share an operator are neighbours."""

    request: Request
    cells: list[Cell]
    metrics: list[Metric]
    device: torch.device
    dtype: torch.dtype
    batch: int
    """Images solved at once, at most."""
    git_commit: str | None

    @property
    def rankable(self) -> list[str]:
        """The metric columns of this run that say which way is better."""
        clean = any(cell.dataset.clean is not None for cell in self.cells)
        return [
            column.name + end
            for metric in self.metrics
            for column in metric.columns
            for end in ("", *([CLEAN] if clean and metric.against_truth else []))
            if column.direction != "none"
        ]


def plan(request: Request, registry: Registry) -> Plan:
    """Resolve and check a request: every name, value, image and device. Raises a `CryobenchError` before any work."""
    for kind in ("solvers", "operators", "noises", "metrics"):
        if not getattr(request, kind):
            known = ", ".join(registry.names(kind))
            raise ParameterError(f"a run needs at least one --{kind.removesuffix('s')}, got none; there are {known}")
    for seed in request.seeds:
        if not -(2**63) <= seed < 2**63:
            raise ParameterError(f"--seed must fit in 64 bits, got {seed}")
    dtype = resolve_dtype(request.dtype)
    for name in request.save:
        if name not in SAVES:
            raise ParameterError(f"--save {name!r} is unknown; {did_you_mean(name, SAVES)}")
    device = environment.resolve_device(request.device)
    batch = resolve_batch(request.batch, device)

    if any(parse(text).name == CEILING for text in request.solvers):
        raise ParameterError(f"--solver {CEILING}: it is no solver but a reference made of the truth; add --ceiling")
    solvers = _unique(_make_all(registry, "solvers", request.solvers))
    if request.floor:
        solvers = _unique([registry.make("solvers", FLOOR), *solvers])
    operators = _unique(_make_all(registry, "operators", request.operators))
    noises = _unique(_make_all(registry, "noises", request.noises))
    metrics = _unique(_make_all(registry, "metrics", request.metrics))
    _check_columns(metrics)
    datasets = [_load(_source_spec(text, request.data_options, registry), request.images, registry)
                for text in dict.fromkeys(request.data)]  # fmt: skip
    for dataset in datasets:
        for operator in operators:
            guarded(f"operator {operator}", lambda o=operator, d=dataset: o.check_for(d.imaging))
        for prior in (part for solver in solvers for part in with_nested(solver) if isinstance(part, Prior)):
            guarded(f"prior {prior}", lambda p=prior, d=dataset: p.check(d.shape))

    cells = [
        _cell(registry, solver, operator, noise, dataset, metrics, seed, request.dtype)
        for seed in request.seeds
        for dataset in datasets
        for operator in operators
        for noise in noises
        for solver in [*solvers, *([None] if request.ceiling else [])]
    ]
    unique = list({cell.hash: cell for cell in cells}.values())
    return Plan(request, unique, metrics, device, dtype, batch, environment.git_commit())


def resolve_dtype(name: str) -> torch.dtype:
    """float32 or float64 by name. Raises `ParameterError` for another."""
    if name not in DTYPES:
        raise ParameterError(f"--dtype must be float32 or float64, got {name!r}")
    return DTYPES[name]


def resolve_batch(given: int | str, device: torch.device) -> int:
    """Images solved at once, at most: the number given, or what `auto` starts with on this device.

    Raises `ParameterError` for what is neither.
    """
    if given == AUTO:
        return AUTO_BATCH[device.type]
    try:
        number = int(str(given))
    except ValueError:
        number = 0
    if number < 1:
        raise ParameterError(f"--batch must be {AUTO} or a number of images from 1, got {given!s:.40}")
    return number


def _make_all(registry: Registry, kind: str, texts: Sequence[str]) -> list[Any]:
    made = [registry.make(kind, text) for text in texts]
    for text, component in zip(texts, made, strict=True):
        check_kind(kind, text, component)
    return made


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component is of the class that its kind asks for."""
    wanted = _BASE_CLASSES[kind]
    if not isinstance(component, wanted):
        raise PluginError(
            f"{text!r} is registered under {kind} but its class is no {wanted.__module__}.{wanted.__name__}"
        )


def _unique(components: list[Any]) -> list[Any]:
    return list(dict.fromkeys(components))


def _check_columns(metrics: Sequence[Metric]) -> None:
    """Refuse columns that a leaderboard could not show, before anything is measured."""
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
            if not column.name.isidentifier() or column.name in (*LEADING, *TRAILING):
                raise PluginError(f"the metric column {column.name!r} is no name of its own; rename it")
            names = {column.name, column.name + CLEAN} if metric.against_truth else {column.name}
            shown = {name + end for name in names for end in ("", "_lo", "_hi")}
            if seen & shown:
                raise ParameterError(f"two of the metrics asked for give a column {column.name!r}; leave one out")
            seen |= shown


def _source_spec(text: str, options: dict[str, str], registry: Registry) -> Spec:
    """The source that --data names: an existing path if there is one, else a registered spec."""
    given = tuple(options.items())
    if _exists(text):
        return Spec("file", text, given)
    try:
        spec = parse(text)
    except SpecError:
        spec = None
    if spec is None or spec.name not in registry.names("sources"):
        known = did_you_mean(text, registry.names("sources"))
        raise SpecError(f"--data {text!r} is neither a file here nor a registered source; {known}")
    known_fields = {f.name for f in fields_of(registry.get("sources", spec.name))}
    for key, _ in given:
        if key not in known_fields:
            raise SpecError(f"--{key.replace('_', '-')} does not apply to the data source {spec.name!r}")
    return dataclasses.replace(spec, params=(*spec.params, *given))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists() and (Path(text).is_file() or not _NAME_OF_A_SOURCE.fullmatch(text))
    except OSError:  # no path of this machine: too long, say
        return False


def data_options(
    *, size: int | None = None, as_stack: bool = False, data_root: str | None = None, invert: bool = False
) -> dict[str, str]:
    """Further parameters of data sources, as the command line gives them: those that were asked for."""
    given = {"size": size, "as_stack": as_stack or None, "data_root": data_root, "invert": invert or None}
    return {key: str(value).lower() if value is True else str(value) for key, value in given.items()
            if value is not None}  # fmt: skip


def open_stack(text: str, options: dict[str, str], registry: Registry, device: torch.device | None = None) -> Stack:
    """The stack that --data names: an existing path if there is one, else a registered spec.

    device: where a source that makes its images is to make them.
    """
    return _opened(_source_spec(text, options, registry), registry, device)


def _opened(spec: Spec, registry: Registry, device: torch.device | None = None) -> Stack:
    source = registry.make("sources", spec)
    check_kind("sources", str(spec), source)
    opened = partial(source.open, device) if isinstance(source, Simulate) and device is not None else source.open
    stack = guarded(f"data source {str(spec)!r} cannot be opened", opened)
    if not isinstance(stack, Stack):
        raise PluginError(f"data source {str(spec)!r} must open a cryobench.core.Stack, got {type(stack).__name__}")
    return stack


def _load(spec: Spec, images: str | None, registry: Registry) -> Dataset:
    stack = _opened(spec, registry)
    indices = parse_images(images, len(stack), label=stack.label)
    scaled, scale = [], []
    for index in indices:
        where = f"image {index} of {stack.label}"
        image, low, high = minmax(guarded(f"{where} cannot be read", lambda i=index: stack.read(i)), where)
        if scaled and image.shape != scaled[0].shape:
            raise DataError(
                f"{where} has shape {image.shape}, the ones before it {scaled[0].shape}; use one size a run"
            )
        scaled.append(image)
        scale.append((low, high))
    pixels = torch.from_numpy(np.stack(scaled)).unsqueeze(1)
    pixel_size = tuple(stack.pixel_size(index) for index in indices)
    ids = tuple(str(index) for index in indices)
    table, clean = _table(stack, indices), _clean(stack, indices, scale)
    digest = hashlib.sha256(repr((ids, scale, pixel_size, tuple(pixels.shape))).encode())
    digest.update(pixels.numpy().tobytes())
    digest.update(_ctf_bytes(table))
    if clean is not None:
        digest.update(clean.numpy().tobytes())
    origin = dict(guarded(f"the origin of {stack.label} cannot be told", lambda: stack.origin))
    return Dataset(
        stack.label, spec, pixels, ids, tuple(scale), pixel_size, digest.hexdigest(), table, clean, origin,
        _white_noise(stack),
    )  # fmt: skip


def _white_noise(stack: Stack) -> bool | None:
    """Whether the noise of the images is white (where they have none, it is); None where nobody says."""
    if not isinstance(stack, SimulatedStack):
        return None
    return stack.recipe.snr is None or stack.recipe.noise == "white"


def _table(stack: Stack, indices: Sequence[int]) -> pd.DataFrame | None:
    """The rows of these images in the stack's table."""
    table = guarded(f"the table of {stack.label} cannot be read", lambda: stack.table)
    if table is None:
        return None
    if len(table) != len(stack):
        raise DataError(f"the table of {stack.label} has {len(table)} rows for {len(stack)} images; give one each")
    return stack.rows(indices)


def _clean(stack: Stack, indices: Sequence[int], scale: Sequence[tuple[float, float]]) -> torch.Tensor | None:
    """These images without their noise, scaled as they are, float32 [n, 1, H, W]; None unless all are known."""
    images = []
    for index, (low, high) in zip(indices, scale, strict=True):
        where = f"the clean image {index} of {stack.label}"
        image = guarded(f"{where} cannot be read", lambda i=index: stack.clean(i))
        if image is None:
            return None
        if image.shape != stack.shape or not np.isfinite(image).all():
            raise DataError(f"{where} has shape {image.shape}, wanted finite numbers of shape {stack.shape}")
        images.append(between(low, high).apply(image))
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def _ctf_bytes(table: pd.DataFrame | None) -> bytes:
    """The CTF columns of a table, which can change what an operator does; b"" where it has none."""
    known = [] if table is None else [column for column in COLUMNS.values() if column in table.columns]
    if table is None or not known:
        return b""
    return repr((known, table[known].to_numpy().tolist())).encode()


def _cell(
    registry: Registry,
    solver: Solver | None,
    operator: OperatorRecipe,
    noise: NoiseModel,
    dataset: Dataset,
    metrics: Sequence[Metric],
    seed: int,
    dtype: str,
) -> Cell:
    parts = {} if solver is None else {"solver": solver}
    parts |= {"operator": operator, "noise": noise}
    named = {"solver": CEILING} if solver is None else {}
    resolved: dict[str, Any] = named | {kind: str(registry.spec_of(part, full=True)) for kind, part in parts.items()}
    resolved["metrics"] = sorted(str(registry.spec_of(metric, full=True)) for metric in metrics)
    labels = named | {kind: str(registry.spec_of(part)) for kind, part in parts.items()}
    components = [inner for part in (*parts.values(), *metrics) for inner in with_nested(part)]
    origins = {registry.origin_of(type(component)) for component in components}
    plugins = {origin.distribution: origin.version for origin in sorted(origins, key=lambda o: o.distribution)}
    # what can change the numbers, and nothing else: no paths, dates, batch sizes, devices or commits
    identity = resolved | {kind: _unlocated(registry, part) for kind, part in parts.items()}
    identity |= {
        "seed": seed,
        "dtype": dtype,
        "images": dataset.digest,
        "weights": [part.weights_digest() for part in components if isinstance(part, Prior)],
        "versions": plugins,
    }
    if solver is None:
        identity["ceiling"] = CEILING_VERSION
    return Cell(
        solver=solver,
        operator=operator,
        noise=noise,
        dataset=dataset,
        seed=seed,
        labels=labels | {"data": dataset.label},
        resolved=resolved | {"data": str(dataset.spec)},
        plugins=plugins,
        trained_on=[dict(origin) for part in components if isinstance(part, Prior) for origin in part.trained_on()],
        hash=results.content_hash(identity),
        floor=resolved["solver"] == FLOOR,
    )


def _unlocated(registry: Registry, component: Any) -> str:
    """The whole spec of a component, but for the parameters that say where the weights of its priors lie."""
    spec = registry.spec_of(component, full=True)
    dropped = {
        f"{field.name}.{name}"
        for field in fields_of(type(component))
        if isinstance(prior := getattr(component, field.name), Prior)
        for name in prior.located_by
    }
    return str(dataclasses.replace(spec, params=tuple((key, text) for key, text in spec.params if key not in dropped)))


def with_nested(component: Any) -> Iterator[Any]:
    """A component and the registered components among its parameters, at any depth."""
    yield component
    for parameter in fields_of(type(component)):
        value = getattr(component, parameter.name)
        if parameter.kind is not None and value is not None:
            yield from with_nested(value)
