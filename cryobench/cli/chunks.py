"""Commands whose work is done in chunks: where the chunks run, and running them with their progress shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryobench.measuring.chunks import Task, Where
    from cryobench.measuring.tasks import Work


def where_of(
    executor: str, device: str, threads: int | None, shard: str | None, time_limit: str | None, memory_limit: str | None
) -> Where:
    """Where chunks run, from the options. Raises `ParameterError` for invalid ones."""
    from cryobench.measuring.chunks import Where
    from cryobench.workers.executors import check_reachable, parse_executor
    from cryobench.workers.job import parse_limits, parse_shard

    spec = parse_executor(executor)
    check_reachable(spec)
    limits = parse_limits(time_limit, memory_limit)
    return Where(spec, device, threads, limits, None if shard is None else parse_shard(shard))


def run_task(task: Task, work: Work, where: Where, *, live: bool, quiet: bool) -> bool:
    """Do the chunks of a task, showing the progress. Returns whether all are done; ends the program if interrupted."""
    from cryobench.cli.live import watching_chunks
    from cryobench.cli.running import stopping
    from cryobench.measuring.chunks import run_chunks

    def kept() -> str:
        return (
            f"{work.finished} of {work.images} {work.what} are finished and kept; the same command continues from there"
        )

    with stopping(kept), watching_chunks(work.parts, work.what, live=live, quiet=quiet) as observer:
        run_chunks(task, work, where, observer)
    return not work.todo()


def refuse_existing(force: bool, *paths: Path, folders: bool = False) -> None:
    """Raise `ResultsError` for files that exist, unless `force`, or that cannot be written. folders: they may be
    folders, which are replaced."""
    from cryobench.errors import ResultsError
    from cryobench.files import check_writable_file

    for path in paths:
        if not (folders and path.is_dir()):
            check_writable_file(path)
        if path.exists() and not force:
            raise ResultsError(f"{path} exists already; give another --out, or --force to replace it")
