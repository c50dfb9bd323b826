"""The command line: the only place that prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated

import typer

from cryobench.cli import catalogue, check, compare, data, export, leaderboard, measure, new, run, sweep, train, tune
from cryobench.cli.plugins import PluginGroup
from cryobench.cli.watch import run_watched
from cryobench.errors import CryobenchError, DataWarning, described, reason_of

app = typer.Typer(
    name="cryobench",
    cls=PluginGroup,
    help="Compare inverse-problem solvers on cryo-EM images: any solver, any operator, one honest leaderboard.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from cryobench.environment import version

        typer.echo(f"cryobench {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None: ...


app.command("run")(run.run)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("sweep")(sweep.sweep)
app.command("tune")(tune.tune)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("measure")(measure.measure)
app.command("reconstruct")(measure.reconstruct)
app.command("train")(train.train)
app.add_typer(data.data_app, name="data")
app.command("list")(catalogue.list_components)
app.command("show")(catalogue.show)
app.command("check")(check.check)
app.command("new")(new.new)
app.command("env")(catalogue.env)


def _print_data_warnings() -> None:
    """Print warnings about data files on one line; others as before."""
    others = warnings.showwarning

    def show(message, category, *rest, **named) -> None:
        if issubclass(category, DataWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            others(message, category, *rest, **named)

    warnings.showwarning = show


WATCHED = ("run", "sweep", "tune", "measure", "reconstruct", "check")
"""Commands that call plugins for their results. `train` handles signals itself."""


def command() -> None:
    """The `cryobench` command: `main`, in a watched process if plugins could end it. `--debug` runs in this one."""
    arguments = sys.argv[1:]
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    if name in WATCHED and not {"--debug", "--help", "-h"} & set(arguments):
        run_watched(main)
    else:
        main()


def main() -> None:
    """The `cryobench` command in this process. Exit code 0: success; 1: a run failed; 2: invalid request."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot encode '·' shows '?', not a traceback
    _print_data_warnings()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="cryobench")
    except CryobenchError as error:
        if debug:
            raise
        typer.echo(f"error: {reason_of(error)}", err=True)
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a bug in cryobench: one line that says how to see the traceback
        if debug:
            raise
        typer.echo(
            f"internal error: {described(error)} (use --debug for the traceback; include the output of "
            "`cryobench env` in a bug report)",
            err=True,
        )
        sys.exit(1)


__all__ = ["app", "command", "main"]
