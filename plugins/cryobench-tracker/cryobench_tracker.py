"""Stores every run and every record in one SQLite file, using the lifecycle hooks of cryobench."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from cryobench.hooks import hookimpl
from cryobench.record import Record

VARIABLE, DEFAULT = "CRYOBENCH_TRACKER", "cryobench.sqlite"
BUSY_TIMEOUT = 30.0
"""Seconds to wait for other runs that are writing to the file."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY, started, finished, cells, options)",
    "CREATE TABLE IF NOT EXISTS records (run INTEGER REFERENCES runs, hash)",
)


class Tracker:
    """The hooks. After an error, which is reported once, nothing more of that run is stored."""

    def __init__(self) -> None:
        self._current = threading.local()  # a process may have runs in several threads

    @hookimpl
    def cryobench_run_started(self, cells: int, options: dict[str, Any]) -> None:
        self._current.run = None
        row = {"started": _now(), "cells": cells, "options": json.dumps(options, default=str)}
        with _database() as database:
            for table in TABLES:
                database.execute(table)
            run = _insert(database, "runs", row)
        self._current.run = run

    @hookimpl
    def cryobench_record_added(self, record: Record) -> None:
        self._write(lambda database, run: _insert(database, "records", {"run": run, **row_of(record)}))

    @hookimpl
    def cryobench_run_finished(self, records: list[Record]) -> None:
        finish = "UPDATE runs SET finished = ? WHERE run = ?"
        self._write(lambda database, run: database.execute(finish, (_now(), run)))

    def _write(self, write: Callable[[sqlite3.Connection, int], object]) -> None:
        """Call `write(database, run)` for the current run, unless an earlier write of it failed."""
        run = getattr(self._current, "run", None)
        if run is None:
            return
        self._current.run = None  # restored if the write succeeds
        with _database() as database:
            write(database, run)
        self._current.run = run


tracker = Tracker()


def row_of(record: Record) -> dict[str, Any]:
    """A record as columns: its specs, its costs, and for each metric the mean over its images as mean_NAME.

    A mean is NaN, which SQLite stores as NULL, if an image has no value: as in the leaderboards, excluding images would
    favour solvers that fail on them.
    """
    row = {name: getattr(record, name) for name in ("hash", "status", "reason", "solver", "operator", "noise", "data")}
    row |= {"seed": record.seed, "images": len(record.images), "compression": record.compression}
    row |= {"seconds_per_image": record.timing.get("seconds_per_image"), "peak_memory_mib": record.peak_memory_mib}
    row |= {name: record.counters.get(name) for name in ("nfe", "operator_calls")}
    row |= {"made": record.environment.get("created"), "device": record.environment.get("device")}
    if record.status == "ok":
        row |= {f"mean_{name}": fmean(values) for name, values in record.values.items()}
    return row


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """The database in one exclusive transaction, rolled back on an error."""
    path = Path(os.environ.get(VARIABLE) or DEFAULT).expanduser()
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)) as database, database:
            database.execute("BEGIN IMMEDIATE")
            yield database
    except sqlite3.Error as error:
        raise RuntimeError(f"{error}: this run is not stored in {path}; set ${VARIABLE} to another file") from error


def _insert(database: sqlite3.Connection, table: str, row: dict[str, Any]) -> int:
    """Add a row and any missing columns; returns the number of the row."""
    known = {column[1] for column in database.execute(f"PRAGMA table_info({table})")}
    for name in row:
        if name not in known:
            database.execute(f"ALTER TABLE {table} ADD COLUMN {_quoted(name)}")
    names, places = ", ".join(map(_quoted, row)), ", ".join("?" * len(row))
    return database.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(row.values())).lastrowid or 0


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
