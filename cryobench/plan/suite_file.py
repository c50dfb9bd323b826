"""Parses suite files (YAML). Errors name the line."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from cryobench.errors import ParameterError, SuiteError, reason_of, shortened
from cryobench.limits import check_cells
from cryobench.plan.yaml_text import compose
from cryobench.registry import did_you_mean
from cryobench.spec import Spec


@dataclass(frozen=True)
class LocatedSpec:
    """A spec of the file and its line."""

    text: str
    line: int


@dataclass(frozen=True)
class Grid:
    """A grid of cells: every solver on every operator, noise and data set, with every seed.

    optional: reason to report if its data or weights are not on this machine; '' if they are required. needs:
    distributions that provide its components; the grid is skipped if one is not installed.
    """

    line: int
    solvers: tuple[LocatedSpec, ...] = ()
    operators: tuple[LocatedSpec, ...] = ()
    noises: tuple[LocatedSpec, ...] = (LocatedSpec("none", 0),)
    data: tuple[LocatedSpec, ...] = (LocatedSpec("demo", 0),)
    metrics: tuple[LocatedSpec, ...] = ()
    images: str | None = None
    size: str | None = None
    scaling: str = "minmax"
    halves: str = "first"
    protocol: str | None = None
    seeds: tuple[int, ...] = (0,)
    within: str = "image"
    ceiling: bool = False
    optional: str = ""
    needs: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """The number of cells, without floor and ceiling and before rules exclude some."""
        return math.prod(map(len, (self.solvers, self.operators, self.noises, self.data, self.seeds)))


@dataclass(frozen=True)
class Rule:
    """Excludes cells that match every pattern, by `fnmatch` on specs as shown in the leaderboard."""

    solver: str = "*"
    operator: str = "*"
    noise: str = "*"
    data: str = "*"


@dataclass(frozen=True)
class Reference:
    """Published results for a cell.

    data: an `fnmatch` pattern of data sets. values: means over images by metric column, as (minimum, maximum); both are
    equal for a single number. source: the publication.
    """

    line: int
    solver: str
    operator: str
    values: Mapping[str, tuple[float, float]]
    source: str
    noise: str = "none"
    data: str = "*"


@dataclass(frozen=True)
class SuiteFile:
    """A parsed suite: grids, exclude rules and published results. pooled: whether its leaderboard pools data sets
    of the same label (`leaderboard.pooled`)."""

    path: Path
    title: str
    about: str
    grids: tuple[Grid, ...]
    excluded: tuple[Rule, ...]
    references: tuple[Reference, ...]
    pooled: bool = False


def read_suite(path: Path) -> SuiteFile:
    """Read a suite. Raises `SuiteError`, which names the line, for an invalid file."""
    try:
        root = compose(path)
    except OSError as error:
        raise SuiteError(f"cannot read the suite {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise SuiteError(
            f"{path}{where}: invalid YAML: {shortened(getattr(error, 'problem', None) or reason_of(error))}"
        ) from error
    if root is None:
        raise SuiteError(f"the suite {path} is empty; expected solvers and operators")
    return _Reader(path).suite(root)


class _Reader:
    """Converts YAML nodes into the parts of a suite; `fail` reports the line."""

    def __init__(self, path: Path):
        self._path = path
        self._grid: dict[str, Callable[[yaml.Node], Any]] = {
            "solvers": self.specs, "operators": self.specs, "noises": self.specs, "data": self.paths_or_specs,
            "metrics": self.specs, "images": self.text, "size": self.text, "scaling": self.text, "halves": self.text,
            "protocol": self.text, "seeds": self.numbers,
            "within": self.text, "ceiling": self.truth, "optional": self.text, "needs": self.texts,
        }  # fmt: skip

    def suite(self, root: yaml.Node) -> SuiteFile:
        parts = self.mapping(root, ["title", "about", "pooled", *self._grid, "include", "exclude", "references"])
        base = self.grid(Grid(line=1), {key: parts[key] for key in parts if key in self._grid})
        included = [
            self.grid(dataclasses.replace(base, line=_line(node)), self.mapping(node, self._grid))
            for node in self.items(parts.get("include"))
        ]
        grids = [grid for grid in (base, *included) if grid.solvers and grid.operators]
        if not grids:
            self.fail(root, "expected solvers and operators, here or under include; there is nothing to run")
        self.check_cells(root, sum(grid.cells for grid in grids))
        return SuiteFile(
            self._path,
            self.text(parts["title"]) if "title" in parts else self._path.stem,
            self.text(parts["about"]) if "about" in parts else "",
            tuple(grids),
            tuple(self.rule(node) for node in self.items(parts.get("exclude"))),
            tuple(self.reference(node) for node in self.items(parts.get("references"))),
            self.truth(parts["pooled"]) if "pooled" in parts else False,
        )

    def grid(self, base: Grid, parts: Mapping[str, yaml.Node]) -> Grid:
        return dataclasses.replace(base, **{key: self._grid[key](node) for key, node in parts.items()})

    def rule(self, node: yaml.Node) -> Rule:
        parts = self.mapping(node, [field.name for field in dataclasses.fields(Rule)])
        if not parts:
            self.fail(node, "an exclude rule without a pattern would exclude everything")
        return Rule(**{key: self.text(value) for key, value in parts.items()})

    def reference(self, node: yaml.Node) -> Reference:
        parts = self.mapping(node, ["solver", "operator", "data", "noise", "source", "values"])
        for key in ("solver", "operator", "source", "values"):
            if key not in parts:
                self.fail(node, f"a reference needs {key}")
        texts = {key: self.text(value) for key, value in parts.items() if key != "values"}
        values = {key: self.range(value) for key, value in self.mapping(parts["values"]).items()}
        return Reference(_line(node), values=values, **texts)

    # --- types of YAML values

    def mapping(self, node: yaml.Node, known: Collection[str] | None = None) -> dict[str, yaml.Node]:
        """Value nodes by key. Keys must be unique, and among `known` if given."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"expected keys and values, got {_shown(node)}")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self.text(key_node)
            if known is not None and key not in known:
                self.fail(key_node, f"unknown key {shortened(key)!r}; {did_you_mean(key, known)}")
            if key in found:
                self.fail(key_node, f"{shortened(key)} is given twice")
            found[key] = value
        return found

    def items(self, node: yaml.Node | None) -> Sequence[yaml.Node]:
        """The items of a list; a single value counts as a list of one, None as an empty list."""
        if node is None:
            return []
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                self.fail(node, "this list is empty; add an item or remove the key")
            return node.value
        return [node]

    def text(self, node: yaml.Node) -> str:
        """A string or number as written."""
        if not isinstance(node, yaml.ScalarNode) or node.value == "":
            self.fail(node, f"expected one value, got {_shown(node)}")
        return node.value.strip()

    def texts(self, node: yaml.Node) -> tuple[str, ...]:
        return tuple(self.text(item) for item in self.items(node))

    def truth(self, node: yaml.Node) -> bool:
        if self.text(node) not in ("true", "false"):
            self.fail(node, f"expected true or false, got {_shown(node)}")
        return self.text(node) == "true"

    def number(self, node: yaml.Node) -> float:
        try:
            return float(self.text(node))
        except ValueError:
            self.fail(node, f"expected a number, got {_shown(node)}")

    def range(self, node: yaml.Node) -> tuple[float, float]:
        """A number, or [minimum, maximum]."""
        found = [self.number(item) for item in self.items(node)]
        if len(found) > 2 or not found[0] <= found[-1]:
            self.fail(node, f"expected a number or [minimum, maximum], got {shortened(str(found))}")
        return found[0], found[-1]

    def numbers(self, node: yaml.Node) -> tuple[int, ...]:
        return tuple(self.integer(item) for item in self.items(node))

    def integer(self, node: yaml.Node) -> int:
        try:
            return int(self.text(node))
        except ValueError:  # also a number such as 1e3
            number = self.number(node)
            if not number.is_integer():
                self.fail(node, f"expected an integer, got {_shown(node)}")
            return int(number)

    def paths_or_specs(self, node: yaml.Node) -> tuple[LocatedSpec, ...]:
        """Specs or paths, with ~ and $VARIABLE expanded."""
        return tuple(
            LocatedSpec(os.path.expanduser(os.path.expandvars(spec.text)), spec.line)  # noqa: PTH111
            for spec in self.specs(node)
        )

    def specs(self, node: yaml.Node) -> tuple[LocatedSpec, ...]:
        """Specs as strings, or as `name: {field: value or list, ...}`, which gives every combination."""
        found: list[LocatedSpec] = []
        for item in self.items(node):
            if isinstance(item, yaml.MappingNode):
                for name, fields in self.mapping(item).items():
                    found += [LocatedSpec(spec, _line(fields)) for spec in self.combinations(name, fields)]
            else:
                found.append(LocatedSpec(self.text(item), _line(item)))
        return tuple(found)

    def combinations(self, name: str, node: yaml.Node) -> list[str]:
        fields = self.mapping(node)
        choices = [[(key, self.text(item)) for item in self.items(value)] for key, value in fields.items()]
        self.check_cells(node, *map(len, choices))
        return [str(Spec(name, None, params)) for params in itertools.product(*choices)]

    def check_cells(self, node: yaml.Node, *factors: int) -> None:
        try:
            check_cells("this suite", *factors)
        except ParameterError as error:
            self.fail(node, str(error))

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise SuiteError(f"{self._path}, line {_line(node)}: {message}")


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(shortened(node.value))
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys and values"
