import pytest

from cryobench.errors import ParameterError
from cryobench.workers.executors import ExecutorSpec, parse_executor
from cryobench.workers.job import Limits, parse_limits, parse_shard


@pytest.mark.parametrize(
    ("time", "memory", "limits"),
    [
        (None, None, Limits()),
        ("90", None, Limits(90)),
        ("1.5m", "500M", Limits(90, 500)),
        ("2h", "8G", Limits(7200, 8192)),
        ("30s", None, Limits(30)),
    ],
)
def test_limits_are_parsed(time, memory, limits):
    assert parse_limits(time, memory) == limits
    assert bool(limits) == (time is not None)


@pytest.mark.parametrize("text", ["", "soon", "10x", "-3", "0", "1e3", "m", "10 m"])
def test_invalid_limits_are_refused(text):
    with pytest.raises(ParameterError, match="--time-limit must be like"):
        parse_limits(text, None)
    with pytest.raises(ParameterError, match="--memory-limit must be like"):
        parse_limits(None, text)


def test_shards_are_parsed():
    assert parse_shard("3/16") == (3, 16)
    for text in ("0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2"):
        with pytest.raises(ParameterError, match="--shard must be K/N"):
            parse_shard(text)


def test_executors_are_parsed(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.touch()
    assert parse_executor("local") == ExecutorSpec("local")
    assert parse_executor("processes") == ExecutorSpec("processes")
    assert parse_executor("processes:4") == ExecutorSpec("processes", 4)
    assert parse_executor("dask:2") == ExecutorSpec("dask", 2)
    assert parse_executor("dask://host:8786") == ExecutorSpec("dask", address="tcp://host:8786")
    assert parse_executor(f"slurm:{file}") == ExecutorSpec("slurm", address=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proceses", "did you mean 'processes'"),
        ("local:2", "local takes no value"),
        ("processes:0", "a number of workers"),
        ("processes:", "a number of workers"),
        ("dask:two", "a number of workers"),
        ("slurm", "needs a file"),
        ("slurm:nowhere.yaml", "needs a file"),
    ],
)
def test_invalid_executors_are_refused(text, message):
    with pytest.raises(ParameterError, match=message):
        parse_executor(text)
