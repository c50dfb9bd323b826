"""What a run will do: a grid of cells (solver x operator x noise x data), resolved and checked before any work."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryobench import environment, results
from cryobench.core import Metric, NoiseModel, OperatorRecipe, Prior, Shape, Solver, Source
from cryobench.errors import ParameterError, PluginError, SpecError
from cryobench.registry import Registry, did_you_mean
from cryobench.sources.scaling import minmax
from cryobench.sources.selection import parse_images
from cryobench.spec import Spec, fields_of, parse

FLOOR = "pinv"
DEFAULT_METRICS = ("mse", "mae", "psnr", "ssim", "l2", "measurement_mse")
DEFAULT_BATCH = 16
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SAVES = {"reconstructions": results.RECONSTRUCTIONS, "panel": results.PANEL}
"""What --save takes, and the file each makes."""
_BASE_CLASSES = {
    "operators": OperatorRecipe,
    "noises": NoiseModel,
    "solvers": Solver,
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
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = DEFAULT_BATCH
    floor: bool = True
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

    @property
    def shape(self) -> Shape:
        return (self.images.shape[2], self.images.shape[3])


@dataclass(frozen=True)
class Cell:
    """One solver on one operator, noise and data set."""

    solver: Solver
    operator: OperatorRecipe
    noise: NoiseModel
    dataset: Dataset
    labels: dict[str, str]
    resolved: dict[str, Any]
    hash: str
    floor: bool


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, checked. `cells` are ordered so that those that share an operator are neighbours."""

    request: Request
    cells: list[Cell]
    metrics: list[Metric]
    device: torch.device
    dtype: torch.dtype
    plugin_versions: dict[str, str]
    git_commit: str | None


def plan(request: Request, registry: Registry) -> Plan:
    """Resolve and check a request: every name, value, image and device. Raises a `CryobenchError` before any work."""
    for kind in ("solvers", "operators", "noises", "metrics"):
        if not getattr(request, kind):
            known = ", ".join(registry.names(kind))
            raise ParameterError(f"a run needs at least one --{kind.removesuffix('s')}, got none; there are {known}")
    if request.batch < 1:
        raise ParameterError(f"--batch must be at least 1 image, got {request.batch}")
    dtype = resolve_dtype(request.dtype)
    for name in request.save:
        if name not in SAVES:
            raise ParameterError(f"--save {name!r} is unknown; {did_you_mean(name, SAVES)}")
    device = environment.resolve_device(request.device)

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
            operator.check(dataset.shape)

    versions = _plugin_versions(registry, [*solvers, *operators, *noises, *metrics])
    common = {
        "seed": request.seed,
        "dtype": request.dtype,
        "metrics": [str(registry.spec_of(metric, full=True)) for metric in metrics],
        "versions": versions,
    }
    cells = [
        _cell(registry, solver, operator, noise, dataset, common)
        for dataset in datasets
        for operator in operators
        for noise in noises
        for solver in solvers
    ]
    return Plan(request, cells, metrics, device, dtype, versions, environment.git_commit())


def resolve_dtype(name: str) -> torch.dtype:
    """float32 or float64 by name. Raises `ParameterError` for another."""
    if name not in DTYPES:
        raise ParameterError(f"--dtype must be float32 or float64, got {name!r}")
    return DTYPES[name]


def _make_all(registry: Registry, kind: str, texts: Sequence[str]) -> list[Any]:
    made = [registry.make(kind, text) for text in texts]
    for text, component in zip(texts, made, strict=True):
        check_kind(kind, text, component)
    return made


def check_kind(kind: str, text: str, component: Any) -> None:
    """Raise `PluginError` unless a component is of the class that its kind asks for."""
    wanted = _BASE_CLASSES[kind]
    if not isinstance(component, wanted):
        raise PluginError(f"{text!r} is registered under {kind} but its class is no cryobench.core.{wanted.__name__}")


def _unique(components: list[Any]) -> list[Any]:
    return list(dict.fromkeys(components))


def _check_columns(metrics: Sequence[Metric]) -> None:
    seen: set[str] = set()
    for metric in metrics:
        for column in metric.columns:
            if column.name in seen:
                raise ParameterError(f"two of the metrics asked for give a column {column.name!r}; leave one out")
            seen.add(column.name)


def _source_spec(text: str, options: dict[str, str], registry: Registry) -> Spec:
    """The source that --data names: an existing path if there is one, else a registered spec."""
    given = tuple(options.items())
    if Path(text).exists():
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


def _load(spec: Spec, images: str | None, registry: Registry) -> Dataset:
    source = registry.make("sources", spec)
    check_kind("sources", str(spec), source)
    stack = source.open()
    indices = parse_images(images, len(stack), label=stack.label)
    scaled, scale = [], []
    for index in indices:
        image, low, high = minmax(stack.read(index), f"image {index} of {stack.label}")
        scaled.append(image)
        scale.append((low, high))
    pixels = torch.from_numpy(np.stack(scaled)).unsqueeze(1)
    pixel_size = tuple(stack.pixel_size(index) for index in indices)
    ids = tuple(str(index) for index in indices)
    digest = hashlib.sha256(repr((ids, scale, pixel_size, tuple(pixels.shape))).encode())
    digest.update(pixels.numpy().tobytes())
    return Dataset(stack.label, spec, pixels, ids, tuple(scale), pixel_size, digest.hexdigest())


def _cell(
    registry: Registry,
    solver: Solver,
    operator: OperatorRecipe,
    noise: NoiseModel,
    dataset: Dataset,
    common: dict[str, Any],
) -> Cell:
    parts = {"solver": solver, "operator": operator, "noise": noise}
    resolved = {kind: str(registry.spec_of(part, full=True)) for kind, part in parts.items()}
    labels = {kind: str(registry.spec_of(part)) for kind, part in parts.items()}
    weights = {name: prior.weights_digest() for name, prior in _priors(solver)}
    # what can change the numbers, and nothing else: no paths, dates, batch sizes, devices or commits
    identity = resolved | common | {"images": dataset.digest, "weights": weights}
    return Cell(
        solver=solver,
        operator=operator,
        noise=noise,
        dataset=dataset,
        labels=labels | {"data": dataset.label},
        resolved=resolved | {"data": str(dataset.spec), "metrics": common["metrics"]},
        hash=results.content_hash(identity),
        floor=resolved["solver"] == FLOOR,
    )


def _priors(component: Any) -> Iterator[tuple[str, Prior]]:
    for parameter in fields_of(type(component)):
        value = getattr(component, parameter.name)
        if isinstance(value, Prior):
            yield parameter.name, value


def _plugin_versions(registry: Registry, components: Sequence[Any]) -> dict[str, str]:
    origins = [registry.origin_of(type(component)) for component in components]
    return {origin.distribution: origin.version for origin in sorted(origins, key=lambda o: o.distribution)}
