"""Lifecycle events for plugins that observe a run (loggers, notifiers), based on pluggy. Components are in `registry`.

A plugin registers a module or object under the entry-point group `cryobench.hooks` and implements any of the
functions of `Events`, each marked with `@hookimpl`:

    from cryobench.hooks import hookimpl

    @hookimpl
    def cryobench_record_added(record): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from cryobench.errors import described
from cryobench.global_state import restored

if TYPE_CHECKING:
    from cryobench.record import Record

GROUP = "cryobench.hooks"
hookspec = pluggy.HookspecMarker("cryobench")
hookimpl = pluggy.HookimplMarker("cryobench")


class Events:
    """The events of a run, in the order in which they happen."""

    @hookspec
    def cryobench_run_started(self, cells: int, options: dict[str, Any]) -> None:
        """A run of `cells` cells starts. options: the request, as plain values."""

    @hookspec
    def cryobench_record_added(self, record: Record) -> None:
        """A cell is finished (or was reused), and its record saved."""

    @hookspec
    def cryobench_run_finished(self, records: list[Record]) -> None:
        """Every cell of the run is finished."""


class Hooks:
    """The hook plugins of a run. Exceptions of a plugin are reported and do not stop the run or other plugins."""

    def __init__(self, report: Callable[[str], None]):
        self._report = report
        self._manager = pluggy.PluginManager("cryobench")
        self._manager.add_hookspecs(Events)

    def load(self, points: Iterable[EntryPoint]) -> Hooks:
        """Import and register the plugins of these entry points; failures are reported."""
        for point in points:
            owner = point.dist.name if point.dist else "an unknown distribution"
            try:
                with restored(environment=False):
                    self.register(point.load(), f"{point.name} of {owner}")
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken plugin must not stop a run
                self._report(f"hook plugin {point.name!r} of {owner} cannot be loaded: {described(error)}")
        return self

    def load_installed(self) -> Hooks:
        """Import and register the hook plugins of this environment."""
        return self.load(entry_points(group=GROUP))

    def register(self, plugin: object, name: str) -> Hooks:
        """Add a plugin object directly."""
        hash(plugin)  # pluggy keeps plugins in sets, and would fail only at the first event
        self._manager.register(plugin, name=name)
        return self

    def call(self, event: str, **arguments: Any) -> None:
        """Call every plugin for an event, separately, so that a failure does not affect the others."""
        plugins = self._manager.get_plugins()
        for name, plugin in self._manager.list_name_plugin():
            others = [other for other in plugins if other is not plugin]
            try:
                with restored(environment=False):
                    self._manager.subset_hook_caller(event, others)(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken plugin must not stop a run
                self._report(f"hook plugin {name!r} failed in {event}: {described(error)}")
