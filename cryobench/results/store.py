"""Run folders on disk: one folder per cell, written atomically, found by content hash.

runs/2026-11-21-dct-sumpool-16-1f3a9c0b2d4e/
    record.json           the cell, its parameters, environment and status
    metrics.csv           one row per image
    curves.npz            per-image curves, if a metric or the solver provides any
    reconstructions.mrcs  on request, in the units of the data file
    deviation.mrcs        with the reconstructions: the standard deviation of each pixel, if the solver estimates it
    panel.png             on request: the first images with the truth, the adjoint and the error
    errors.png            on request: maps of their errors
    frc.png               on request: Fourier ring correlations
    views.npz             on request: small copies of the first images, for the HTML page
    maps/                 on request: the map that the images give and its halves, if a metric makes them
    animation.gif         on request, if the solver offers its iterates
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Any

from cryobench.errors import ResultsError, reason_of, shortened
from cryobench.files import EARLIER, check_writable_folder, read_bounded, remove_leftovers, whole_folder
from cryobench.record import Record
from cryobench.results.tables import as_cell, csv_line, from_cell

RECORD, METRICS, CURVES = "record.json", "metrics.csv", "curves.npz"
RECONSTRUCTIONS, DEVIATION = "reconstructions.mrcs", "deviation.mrcs"
PANEL, ERRORS, FRC, ANIMATION = "panel.png", "errors.png", "frc.png", "animation.gif"
VIEWS, MAPS = "views.npz", "maps"
_HASH_SHOWN = 12
_DATE = len("2026-11-21-")
LISTED_FOR = 5.0
"""Seconds for which a listing of a results folder is cached."""
LARGEST = 2**30
"""Bytes of the largest record.json and metrics.csv that are read."""
_SOLVER = "solver:"
"""Prefix of the columns of metrics.csv that the solver reported."""


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, independent of the order of its keys, as 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def no_folder(path: Path) -> ResultsError:
    """The error for a path that is no results folder."""
    if path.exists():
        return ResultsError(f"{path} is a file; give a results folder")
    return ResultsError(f"no results folder {path}; `cryobench run` creates one")


class Results:
    """A folder of run folders. Other processes may write to it; their cells are found after up to `LISTED_FOR`."""

    def __init__(self, root: Path | str):
        self.given = Path(root)
        """The folder as it was given, for messages."""
        self.root = self.given.absolute()  # a plugin may change the working directory
        self._by_hash: dict[str, Path] = {}
        self._names: set[str] = set()
        self._unread: dict[str, list[str]] = {}
        """Names of run folders by slug, whose records `_read_like` has not read."""
        self._without_code: dict[str, set[str]] = {}
        """Hashes of the cells, by their hash without code, of the records that `_read_like` has read."""
        self._similar: set[str] = set()
        """What `_without_pixels` gives for these records."""
        self._listed = -math.inf

    def check_writable(self) -> None:
        """Create the folder if needed and remove what killed processes left. Raises `ResultsError` if it is not
        writable."""
        check_writable_folder(self.root, "results", "--out")
        remove_leftovers(self.root)

    def find(self, hash: str) -> Path | None:
        """The folder of the cell with this content hash, or None."""
        if time.monotonic() - self._listed > LISTED_FOR:
            self._list()
        return self._by_hash.get(hash[:_HASH_SHOWN])

    def has_other_code(self, record: Record) -> bool:
        """Whether a cell is stored that differs from this one in the code of its components alone."""
        self._read_like(record)
        return bool(self._without_code.get(record.environment["hash_without_code"], set()) - {record.hash})

    def has_similar(self, record: Record) -> bool:
        """Whether a cell is stored that may be this one: it can differ in the pixels of its images and in the code."""
        self._read_like(record)
        return _without_pixels(record) in self._similar

    def _read_like(self, record: Record) -> None:
        """Read the records of the solver, operator and noise of this one that were not read yet."""
        self.find(record.hash)
        for name in self._unread.pop(_slug(record), ()):
            try:
                stored = read_record(self.root / name)
            except ResultsError:
                continue  # damaged; it says nothing of what it was made with
            self._without_code.setdefault(stored.environment.get("hash_without_code", ""), set()).add(stored.hash)
            self._similar.add(_without_pixels(stored))

    def write(
        self,
        record: Record,
        *,
        curves: Mapping[str, Any] | None = None,
        files: Mapping[str, Callable[[Path], None]] | None = None,
    ) -> Path:
        """Save a cell, replacing an earlier one of the same content. `files`: writers of further files, by name.

        Raises `ResultsError` if writing fails; an earlier result is then kept.
        """
        target = self.root / f"{date.today()}-{_slug(record)}-{record.hash[:_HASH_SHOWN]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with whole_folder(target, self.find(record.hash)) as folder:
                self._fill(folder, record, curves or {}, files or {})
        except OSError as error:
            raise ResultsError(
                f"cannot write {self.given / target.name}: {error.strerror}; finished cells are kept"
            ) from error
        self._by_hash[record.hash[:_HASH_SHOWN]] = target
        return target

    def _fill(self, folder: Path, record: Record, curves: Mapping[str, Any], files: Mapping[str, Callable]) -> None:
        fields = dataclasses.asdict(record)
        if not record.together:
            del fields["together"]
        values = fields.pop("values") | {_SOLVER + name: info for name, info in fields.pop("solver_info").items()}
        (folder / RECORD).write_text(json.dumps(_finite(fields), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with (folder / METRICS).open("w", newline="", encoding="utf-8") as file:
            file.write(csv_line(["image", *values]))
            for row in zip(record.images, *values.values(), strict=True) if values or record.together else ():
                file.write(csv_line(map(str, row)))  # as text: a NaN is "nan", not an empty field
        if curves:
            import numpy as np

            np.savez_compressed(folder / CURVES, **curves)
        for name, write in files.items():
            write(folder / name)

    def read_all(self, report: Callable[[str], None]) -> list[Record]:
        """Every record here, oldest first; other folders are reported and skipped.

        Of records that differ only in the code of their components, the newest is returned.
        """
        if not self.root.is_dir():
            raise no_folder(self.given)
        folders = (
            [self.root]
            if (self.root / RECORD).exists()
            else sorted(self.root.iterdir(), key=lambda folder: _order(folder.name))
        )
        records = []
        for folder in folders:
            if folder.is_dir() and not folder.name.startswith("."):
                try:
                    records.append(read_record(folder))
                except ResultsError as error:
                    report(f"skipped {self.given / folder.relative_to(self.root)}: {error}")
        newest: dict[str, Record] = {}
        for record in sorted(records, key=lambda record: record.environment.get("created", "")):
            cell = record.environment.get("hash_without_code", record.hash)
            newest.pop(cell, None)
            newest[cell] = record
        return list(newest.values())

    def _list(self) -> None:
        """Find new run folders."""
        self._listed = time.monotonic()
        names = set(os.listdir(self.root)) if self.root.is_dir() else set()  # noqa: PTH208 - without a Path for each
        for name in sorted(names - self._names, key=_order):
            if (self.root / name / RECORD).exists():
                label, _, hash = name.partition(EARLIER)[0].rpartition("-")
                self._by_hash[hash] = self.root / name
                self._unread.setdefault(label[_DATE:], []).append(name)
        self._names = names


def _order(name: str) -> tuple[bool, str]:
    """Key that sorts run folders by date, those that are being replaced first."""
    return EARLIER not in name, name


def read_record(folder: Path) -> Record:
    """The record of a run folder. Raises `ResultsError` that names the missing or damaged part."""
    try:
        data = read_bounded(folder / RECORD, LARGEST)
        fields = json.loads(data)
        if rb"\ud" in data.lower():
            json.dumps(fields, ensure_ascii=False).encode()  # raises for lone surrogates, which tables cannot hold
        text = read_bounded(folder / METRICS, LARGEST).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        header = [from_cell(name) for name in header]
        if len(set(header)) < len(header):
            raise ValueError(f"{METRICS} has two columns of one name")
        columns = {name: [float(row[i]) for row in rows] for i, name in enumerate(header) if i > 0}
        info = {name.removeprefix(_SOLVER): columns.pop(name) for name in list(columns) if name.startswith(_SOLVER)}
        record = Record(**fields, values=columns, solver_info=info)
        if record.compression is not None:
            record.compression = float(record.compression)
        record.together = {name: float(value) for name, value in record.together.items()}
        _check(record, rows)
        return record
    except FileNotFoundError as error:
        raise ResultsError(f"not a run folder: {Path(error.filename).name} is missing") from error
    except RecursionError as error:
        raise ResultsError(f"damaged run folder: {RECORD} is nested too deeply") from error
    except (ValueError, TypeError, IndexError, OverflowError, csv.Error, OSError) as error:
        raise ResultsError(f"damaged run folder: {shortened(reason_of(error))}") from error


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("hash", "status", "reason", "solver", "operator", "noise", "data"), (str,)),
    **dict.fromkeys(("floor", "ceiling"), (bool,)),
    "seed": (int,),
    "peak_memory_mib": (int, float, NoneType),
    **dict.fromkeys(("images", "columns", "unavailable"), (list,)),
    **dict.fromkeys(("resolved", "timing", "counters", "problem", "environment", "unmeasured", "together"), (dict,)),
}
_TEXTS_IN = {
    "problem": ("data_digest", "within"),
    "environment": ("created", "hash_without_code", "device", "dtype", "version"),
}
"""Entries of fields of a record that are texts where they are present."""


def _check(record: Record, rows: list[list[str]]) -> None:
    """Raise `ValueError` if a field of a record has the wrong type or value."""
    for name, types in _TYPES.items():
        value = getattr(record, name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{name} is {type(value).__name__}, expected {' or '.join(t.__name__ for t in types)}")
    if record.status not in ("ok", "skipped", "failed"):
        raise ValueError(f"unknown status {record.status!r}")
    if not -(2**63) <= record.seed < 2**63:
        raise ValueError("seed does not fit in 64 bits")
    for name, keys in _TEXTS_IN.items():
        for key in keys:
            if not isinstance(getattr(record, name).get(key, ""), str):
                raise ValueError(f"{name}.{key} is not a string")
    for number in (*record.timing.values(), *record.counters.values(), record.peak_memory_mib or 0):
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= float(number) < math.inf:
            raise ValueError("a time, a count or the memory is not a non-negative number")
    if not all(isinstance(number, float) for number in record.together.values()):
        raise ValueError("together has a value that is not a number")
    if not all(isinstance(text, str) for text in (*record.images, *record.unavailable, *record.unmeasured.values())):
        raise ValueError("an entry of images, unavailable or unmeasured is not a string")
    for column in record.columns:
        if not isinstance(column, dict) or not all(
            isinstance(text, str) for text in (column.get("name"), *column.values())
        ):
            raise ValueError("columns is not a list of objects of strings with a name")
    images = [row[0] for row in rows]
    if record.status == "ok" and images not in (record.images, [as_cell(image) for image in record.images]):
        raise ValueError(f"{METRICS} does not have a row for each image")


def _finite(value: Any) -> Any:
    """JSON has no infinity: a compression of N / 0 becomes the text "inf", which `float` reads back."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _without_pixels(record: Record) -> str:
    """A digest of what a record states of its cell, but for the location and the pixels of its images."""
    resolved = {name: value for name, value in record.resolved.items() if name != "data"}
    return content_hash({"resolved": resolved, "data": record.data, "seed": record.seed, "images": record.images})


def _slug(record: Record) -> str:
    text = "-".join([record.solver, record.operator] + ([] if record.noise == "none" else [record.noise]))
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)[:60].strip("-.")
