"""Hook plugins are called for each event, and their failures do not affect the run or each other."""

from __future__ import annotations

from importlib.metadata import EntryPoint

from cryobench.hooks import GROUP, Hooks, hookimpl


class Watcher:
    def __init__(self):
        self.seen = []

    @hookimpl
    def cryobench_run_started(self, cells, options):
        self.seen.append(("started", cells))

    @hookimpl
    def cryobench_record_added(self, record):
        self.seen.append(record)


class Broken:
    @hookimpl
    def cryobench_record_added(self, record):
        raise RuntimeError("disk\nfull")


def test_every_hook_plugin_is_called_even_if_one_raises():
    reports, first, last = [], Watcher(), Watcher()
    hooks = Hooks(reports.append).register(first, "first").register(Broken(), "broken").register(last, "last")
    hooks.call("cryobench_run_started", cells=3, options={})
    hooks.call("cryobench_record_added", record="r")
    hooks.call("cryobench_run_finished", records=["r"])
    assert first.seen == last.seen == [("started", 3), "r"]
    assert reports == ["hook plugin 'broken' failed in cryobench_record_added: RuntimeError: disk full"]


def test_a_plugin_that_cannot_be_imported_is_reported():
    reports = []
    hooks = Hooks(reports.append).load([EntryPoint("gone", "no_such_module", GROUP)])
    hooks.call("cryobench_run_finished", records=[])
    assert len(reports) == 1
    assert "ModuleNotFoundError" in reports[0]
