"""A sweep on worker processes contains what one process cannot: plugins that end it."""

from __future__ import annotations

import hostile_solver as hostile
import pytest
from sweeping import Listener, numbers, swept

from cryobench.results.store import Results
from cryobench.sweep import driver

pytestmark = pytest.mark.slow

DEADLY = ("exit_0", "segfault", "killed")  # a new worker takes seconds
WAYS = (*DEADLY, *hostile.FAILING, *hostile.LEAVING_TRACES, "thread", "surrogate_name")


def test_every_honest_row_is_there_and_unchanged(install_plugin, blobs, tmp_path, monkeypatch):
    hostile.install(install_plugin, tmp_path, monkeypatch)
    monkeypatch.setattr(driver, "DEATHS", 1)
    monkeypatch.setattr("cryobench.workers.guard.FINISH_SECONDS", 1.0)
    given = {"data": [str(blobs)], "metrics": ["psnr", "frc"]}
    expected = numbers(swept(tmp_path / "alone", solvers=[f"honest:{n}" for n in range(len(WAYS))], **given))
    assert len(WAYS) > 45
    assert {status for status, *_ in expected.values()} == {"ok"}
    listener = Listener()
    records = swept(tmp_path / "out", "processes:2", listener=listener, solvers=hostile.interleaved(WAYS), **given)
    assert {hash: got for hash, got in numbers(records).items() if hash in expected} == expected
    reasons = {record.solver: (record.status, record.reason) for record in records}
    for way in DEADLY:
        assert reasons[f"hostile:{way}"] == ("failed", "1 workers died while running it: out of memory, or a crash")
    for way, reason in hostile.FAILING.items():
        assert reasons[f"hostile:{way}"][0] == "failed"
        assert reasons[f"hostile:{way}"][1].startswith(reason)
    assert numbers(Results(tmp_path / "out").read_all(pytest.fail)) == numbers(records)
