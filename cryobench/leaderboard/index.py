"""The cells of a results folder, cached in one Parquet file beside the run folders.

Only folders that are new, or whose files changed, are read. The index contains nothing that is not in the run folders:
it may be deleted, and is rebuilt if it is damaged or of another version. It is replaced atomically: if two processes
write it at the same time, the later one wins, and folders that only the other one read are read again the next time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import compress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryobench.environment import version
from cryobench.errors import ResultsError, reason_of
from cryobench.files import whole_file
from cryobench.leaderboard.cells import DERIVED, NESTED, PLAIN, cells
from cryobench.record import Record
from cryobench.results.store import METRICS, RECORD, no_folder, read_record

INDEX = ".cryobench-index.parquet"
LAYOUT = "1"
"""Increased whenever the content of columns of `cells` changes and their names do not."""

FOLDER, STAMP, DAMAGE = "folder", "stamp", "damage"
"""Columns added to the cells: the run folder, its `_stamp`, and the reason why it could not be read, else ''."""

CHUNK = 2000
"""Number of run folders read at once."""

LONG = 5000
"""Number of run folders above which indexing is reported, because it takes a while."""

Report = Callable[[str], None]


def read_cells(roots: Sequence[Path], report: Report) -> pa.Table:
    """The cells of results folders, or of single run folders, with the path of each as `FOLDER`; oldest first in each.

    If several cells have the same hash, or differ only in the code of their components, the last is used. Folders that
    are not run folders are reported and skipped.
    Raises `ResultsError` for a folder that does not exist.
    """
    found = [cells([])]
    for root in roots:
        if not root.is_dir():
            raise no_folder(root)
        single = (root / RECORD).exists()
        base = root.parent if single else root
        table = _read(base, {root.name: ""}) if single else _read_indexed(root, report)
        paths = [os.fsencode(base) + b"/" + name for name in table[FOLDER].to_pylist()]
        table = table.set_column(table.column_names.index(FOLDER), FOLDER, pa.array(paths, pa.binary()))
        table = table.sort_by([("created", "ascending"), (FOLDER, "ascending")])
        for damaged in table.filter(pc.field(DAMAGE) != "").select([FOLDER, DAMAGE]).to_pylist():
            report(f"skipped {os.fsdecode(damaged[FOLDER])}: {damaged[DAMAGE]}")
        found.append(table.filter(pc.field(DAMAGE) == "").drop_columns([STAMP, DAMAGE]))
    table = _joined(found)
    repeated = table["hash"].to_pandas().duplicated(keep="last")
    without_code = table["hash_without_code"].to_pandas()
    repeated |= without_code.duplicated(keep="last") & without_code.notna()
    return table.filter(pa.array(~repeated.to_numpy())) if repeated.any() else table


def run_folder_finder(table: pa.Table) -> Callable[[str], Path | None]:
    """A function that returns the run folder of a cell that `read_cells` found, by its hash."""
    paths = cache(lambda: dict(zip(table["hash"].to_pylist(), table[FOLDER].to_pylist(), strict=True)))

    def find(hash: str) -> Path | None:
        path = paths().get(hash)
        return None if path is None else Path(os.fsdecode(path))

    return find


def _read_indexed(root: Path, report: Report) -> pa.Table:
    """The cells of a results folder, read from its index where that is valid. Updates the index if possible."""
    with os.scandir(root) as entries:
        folders = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    stamps = {name: _stamp(f"{root}/{name}") for name in folders}
    kept = _load(root / INDEX)
    n_known = kept.num_rows
    names = list(map(os.fsdecode, kept[FOLDER].to_pylist()))
    unchanged = [stamps.get(name) == stamp for name, stamp in zip(names, kept[STAMP].to_pylist(), strict=True)]
    kept = kept.filter(pa.array(unchanged, pa.bool_()))
    known = set(compress(names, unchanged))
    unread = {name: stamp for name, stamp in stamps.items() if stamp and name not in known}
    if len(unread) >= LONG:
        report(f"indexing {len(unread)} run folders of {root}; later calls use the index")
    todo = list(unread.items())
    tables = [kept, *(_read(root, dict(todo[start : start + CHUNK])) for start in range(0, len(todo), CHUNK))]
    table = _joined(tables)
    if unread or kept.num_rows < n_known:
        try:
            _save(table, root / INDEX)
        except OSError as error:  # the cells are valid without an index
            if len(unread) >= LONG:
                report(f"the index of {root} cannot be written: {error.strerror}")
    return _joined([table, _read(root, {name: stamp for name, stamp in stamps.items() if not stamp})])


def _stamp(folder: str) -> str:
    """Modification time and size of the files of a run folder; '' if one is missing."""
    try:
        files = [os.stat(f"{folder}/{name}") for name in (RECORD, METRICS)]  # noqa: PTH116 - twice as fast as a Path
    except OSError:
        return ""
    return " ".join(f"{file.st_mtime_ns} {file.st_size}" for file in files)


def _read(root: Path, stamps: dict[str, str]) -> pa.Table:
    """The cells of run folders of `root`, given by name and stamp. An unreadable folder has a `DAMAGE` and no cell."""
    records, damages = {}, {}
    for name in stamps:
        try:
            records[name] = read_record(root / name)
        except ResultsError as error:
            damages[name] = str(error)
    table, invalid = _cells(records)
    damages |= invalid
    names = [*(name for name in records if name not in damages), *damages]
    table = _joined([table, pa.table({"hash": pa.nulls(len(damages), pa.string())})])
    for column, values, kind in (
        (FOLDER, map(os.fsencode, names), pa.binary()),  # bytes: not all names are valid text
        (STAMP, (stamps[name] for name in names), pa.string()),
        (DAMAGE, (damages.get(name, "") for name in names), pa.string()),
    ):
        table = table.append_column(column, pa.array(list(values), kind))
    return table


def _cells(records: dict[str, Record]) -> tuple[pa.Table, dict[str, str]]:
    """The cells of records by folder name, and the reasons why records are invalid."""
    try:
        return cells(list(records.values())), {}
    except (pa.ArrowException, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if len(records) == 1:
            return cells([]), {name: f"damaged run folder: {reason_of(error)}" for name in records}
    parts = [_cells({name: record}) for name, record in records.items()]
    return _joined([table for table, _ in parts]), {name: reason for _, part in parts for name, reason in part.items()}


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows; columns that are missing in a table are null."""
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries()


def _identity() -> dict[bytes, bytes]:
    return {b"cryobench": " ".join([LAYOUT, version(), *PLAIN, *NESTED, *DERIVED]).encode()}


def _load(path: Path) -> pa.Table:
    """The table of an index; empty if the index is missing, damaged, not readable or of another version."""
    with suppress(OSError, pa.ArrowException), pq.ParquetFile(path) as file:
        if _identity().items() <= (file.schema_arrow.metadata or {}).items():
            return file.read()
    return _read(path.parent, {})


def _save(table: pa.Table, path: Path) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table.replace_schema_metadata(_identity()), temporary, compression="zstd")
