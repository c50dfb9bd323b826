"""Run folders on disk: one folder per cell, written atomically, found by content hash.

runs/2026-11-21-dct-sumpool-16-1f3a9c0b2d4e/
    record.json           the cell, its parameters, environment and status
    metrics.csv           one row per image
    curves.npz            per-image curves, if a metric or the solver provides any
    reconstructions.mrcs  on request, in the units of the data file
    deviation.mrcs        with them, in the same units, if the solver estimates the standard deviation of each pixel
    panel.png             on request: the first images beside the truth, the adjoint and the error
    errors.png            on request: maps of their errors
    frc.png               on request: Fourier ring correlations
    views.npz             on request: small copies of the first images, for the HTML page
    animation.gif         on request, if the solver offers its iterates
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from cryobench.errors import ResultsError, reason_of
from cryobench.files import check_writable_folder, umask
from cryobench.record import Record
from cryobench.results.tables import csv_line

RECORD, METRICS, CURVES = "record.json", "metrics.csv", "curves.npz"
RECONSTRUCTIONS, DEVIATION = "reconstructions.mrcs", "deviation.mrcs"
PANEL, ERRORS, FRC, ANIMATION = "panel.png", "errors.png", "frc.png", "animation.gif"
VIEWS = "views.npz"
_HASH_SHOWN = 12
LISTED_FOR = 5.0
"""Seconds for which a listing of a results folder is cached."""
ATTEMPTS = 5
"""Attempts to move a folder into place while another process writes the same cell."""
_SOLVER = "solver:"
"""Prefix of the columns of metrics.csv that the solver reported."""


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, independent of the order of its keys, as 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Results:
    """A folder of run folders. Other processes may write to it; their cells are found after up to `LISTED_FOR`."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self._by_hash: dict[str, Path] = {}
        self._names: set[str] = set()
        self._listed = -math.inf

    def check_writable(self) -> None:
        """Create the folder if needed. Raises `ResultsError` if it is not writable."""
        check_writable_folder(self.root, "results", "--out")

    def find(self, hash: str) -> Path | None:
        """The folder of the cell with this content hash, or None."""
        if time.monotonic() - self._listed > LISTED_FOR:
            self._list()
        return self._by_hash.get(hash[:_HASH_SHOWN])

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
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.root))
            try:
                self._fill(partial, record, curves or {}, files or {})
                partial.chmod(0o777 & ~umask())
                self._publish(partial, target, self.find(record.hash))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise ResultsError(f"cannot write {target}: {error.strerror}; finished cells are kept") from error
        self._by_hash[record.hash[:_HASH_SHOWN]] = target
        return target

    def _fill(self, folder: Path, record: Record, curves: Mapping[str, Any], files: Mapping[str, Callable]) -> None:
        fields = dataclasses.asdict(record)
        values = fields.pop("values") | {_SOLVER + name: info for name, info in fields.pop("solver_info").items()}
        (folder / RECORD).write_text(json.dumps(_finite(fields), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with (folder / METRICS).open("w", newline="", encoding="utf-8") as file:
            file.write(csv_line(["image", *values]))
            for row in zip(record.images, *values.values(), strict=True) if values else ():
                file.write(csv_line(map(str, row)))  # as text: a NaN is "nan", not an empty field
        if curves:
            import numpy as np

            np.savez_compressed(folder / CURVES, **curves)
        for name, write in files.items():
            write(folder / name)

    def _publish(self, partial: Path, target: Path, previous: Path | None) -> None:
        """Move the finished folder into place. If two processes write the same cell, the later one wins."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._replace(partial, target, previous)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise  # only these errors can be caused by another process that writes the same cell
        return self._replace(partial, target, previous)

    def _replace(self, partial: Path, target: Path, previous: Path | None) -> None:
        """Move the finished folder into place; earlier ones are moved away first, and restored if that fails."""
        earlier = [old for old in {target, previous} if old is not None and old.exists()]
        if not earlier:
            partial.rename(target)
            return
        aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=self.root))
        moved = {aside / old.name: old for old in earlier}
        try:
            for place, old in moved.items():
                old.rename(place)
            partial.rename(target)
        except OSError:
            for place, old in moved.items():
                if place.exists() and not old.exists():
                    place.rename(old)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def read_all(self, report: Callable[[str], None]) -> list[Record]:
        """Every record here, oldest first; other folders are reported and skipped."""
        if not self.root.is_dir():
            raise ResultsError(f"no results folder {self.root}; `cryobench run` makes one")
        folders = [self.root] if (self.root / RECORD).exists() else sorted(self.root.iterdir())
        records = []
        for folder in folders:
            if folder.is_dir() and not folder.name.startswith("."):
                try:
                    records.append(read_record(folder))
                except ResultsError as error:
                    report(f"skipped {folder}: {error}")
        return sorted(records, key=lambda record: record.environment.get("created", ""))

    def _list(self) -> None:
        """Find new run folders."""
        self._listed = time.monotonic()
        names = set(os.listdir(self.root)) if self.root.is_dir() else set()  # noqa: PTH208 - without a Path for each
        for name in sorted(names - self._names):
            if (self.root / name / RECORD).exists():
                self._by_hash[name.rpartition("-")[2]] = self.root / name
        self._names = names


def read_record(folder: Path) -> Record:
    """The record of a run folder. Raises `ResultsError` that names the missing or damaged part."""
    try:
        fields = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        with (folder / METRICS).open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        columns = {name: [float(row[i]) for row in rows] for i, name in enumerate(header) if i > 0}
        info = {name.removeprefix(_SOLVER): columns.pop(name) for name in list(columns) if name.startswith(_SOLVER)}
        record = Record(**fields, values=columns, solver_info=info)
        if record.compression is not None:
            record.compression = float(record.compression)
        _check(record, rows)
        return record
    except FileNotFoundError as error:
        raise ResultsError(f"not a run folder: {Path(error.filename).name} is missing") from error
    except (ValueError, TypeError, IndexError, OSError) as error:
        raise ResultsError(f"damaged run folder: {reason_of(error)}") from error


def _check(record: Record, rows: list[list[str]]) -> None:
    """Raise `ValueError` if a field of a record has the wrong type."""
    if record.status not in ("ok", "skipped", "failed"):
        raise ValueError(f"unknown status {record.status!r}")
    for name in ("hash", "reason", "solver", "operator", "noise", "data"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} is no text")
    for name in ("resolved", "timing", "counters", "problem", "environment"):
        if not isinstance(getattr(record, name), dict):
            raise ValueError(f"{name} is no object")
    if not all(isinstance(number, int | float) for number in (*record.timing.values(), *record.counters.values())):
        raise ValueError("a timing or counter is no number")
    if not (isinstance(record.columns, list) and all(isinstance(column, dict) for column in record.columns)):
        raise ValueError("columns is no list of objects")
    if not (isinstance(record.unavailable, list) and all(isinstance(name, str) for name in record.unavailable)):
        raise ValueError("unavailable is no list of texts")
    if not (isinstance(record.unmeasured, dict) and all(isinstance(why, str) for why in record.unmeasured.values())):
        raise ValueError("unmeasured is no object of texts")
    if not isinstance(record.images, list) or (record.status == "ok" and [row[0] for row in rows] != record.images):
        raise ValueError(f"{METRICS} does not have a row for each image")


def _finite(value: Any) -> Any:
    """JSON has no infinity: a compression of N / 0 becomes the text "inf", which `float` reads back."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _slug(record: Record) -> str:
    text = "-".join([record.solver, record.operator] + ([] if record.noise == "none" else [record.noise]))
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)[:60].strip("-.")
