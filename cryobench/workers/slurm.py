"""SLURM jobs that run dask workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryobench.errors import DependencyError, ExecutorError, described, reason_of
from cryobench.global_state import restored


@contextmanager
def slurm_jobs(file: str) -> Iterator[Any]:
    """The cluster of a YAML file: the options of `dask_jobqueue.SLURMCluster`, and `jobs`, their number. The jobs are
    submitted here and end with the block.

    Raises `ExecutorError` for an invalid file and if a job cannot be submitted.
    """
    import yaml

    try:
        with restored():  # dask_jobqueue.runner replaces the handler of Ctrl-C by one that exits with code 0
            from dask_jobqueue import SLURMCluster
            from dask_jobqueue.slurm import SLURMJob
    except ImportError as error:
        raise DependencyError("--executor slurm needs dask-jobqueue: pip install 'cryobench[slurm]'") from error
    try:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # text that is not UTF-8, and dates that do not exist
        raise ExecutorError(f"{file} cannot be read: {reason_of(error)}") from error
    jobs = options.pop("jobs", None) if isinstance(options, dict) else None
    if not isinstance(jobs, int) or jobs < 1:
        raise ExecutorError(f"{file}: needs `jobs`, a positive integer, and the options of "
                            "dask_jobqueue.SLURMCluster such as cores, memory and walltime")  # fmt: skip

    class Job(SLURMJob):
        async def start(self) -> None:
            try:
                await super().start()
            except Exception:
                self.status = self.status.failed  # dask fails to close a cluster of workers that are "created"
                raise

    try:
        cluster = SLURMCluster(job_cls=Job, **options)  # pyright: ignore[reportArgumentType] - it takes a class
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ExecutorError(f"{file}: {described(error)}") from error
    with cluster:
        try:
            cluster.sync(_submit, cluster, jobs)
        except (OSError, RuntimeError, ValueError) as error:
            raise ExecutorError(f"{file}: the jobs could not be submitted: {described(error)}") from error
        yield cluster


async def _submit(cluster: Any, jobs: int) -> None:
    """Submit the jobs. `SLURMCluster.scale` would only log that one could not be submitted."""
    for _ in range(jobs):
        cluster.worker_spec.update(cluster.new_worker_spec())
    await cluster
