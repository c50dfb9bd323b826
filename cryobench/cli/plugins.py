"""Commands of plugins, in the entry-point group `cryobench.commands`: listed by name, imported when invoked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cryobench.errors import PluginError
from cryobench.registry import COMMANDS, guarded
from cryobench.text import printable


class PluginGroup(TyperGroup):
    """The built-in commands and, after them, those of plugins. A plugin cannot replace a built-in command."""

    def list_commands(self, ctx: Any) -> list[str]:
        built_in = super().list_commands(ctx)
        return [*built_in, *sorted({point.name for point in entry_points(group=COMMANDS)} - set(built_in))]

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _printable_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _printable_errors():
            return super().invoke(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None:
            points = list(entry_points(group=COMMANDS, name=cmd_name))
            if len(points) > 1:
                owners = " and ".join(sorted(_owner(point) for point in points))
                raise PluginError(f"the command {cmd_name!r} is registered by {owners}; uninstall one of them")
            command = PluginCommand(points[0]) if points else None
        return command


class PluginCommand(TyperCommand):
    """A placeholder for a plugin's command, which is imported when it is invoked."""

    def __init__(self, point: EntryPoint):
        super().__init__(point.name, help=f"A command of {_owner(point)}.")
        self._point = point

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._load().make_context(*args, **kwargs)

    def _load(self) -> Any:
        where = f"the command {self._point.name!r} of {_owner(self._point)}"
        loaded: Any = guarded(f"{where} cannot be imported", self._point.load)
        if isinstance(loaded, typer.Typer):
            return typer.main.get_command(loaded)
        if hasattr(loaded, "make_context"):
            return loaded
        if callable(loaded):
            single = typer.Typer(add_completion=False)
            single.command(self._point.name)(loaded)
            return typer.main.get_command(single)
        raise PluginError(f"{where} must be a function, a Typer app or a click command, got {type(loaded).__name__}")


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Errors of Typer quote arguments, such as names of files that the shell has found."""
    try:
        yield
    except Exception as error:  # Typer's class of errors depends on its version
        message = vars(error).get("message")
        if isinstance(message, str):
            vars(error)["message"] = printable(message)
        raise


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
