"""The command line: the only place that prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from cryobench.cli import (
    analyse,
    catalogue,
    check,
    compare,
    data,
    denoise,
    export,
    isotropic,
    leaderboard,
    measure,
    movies,
    new,
    postprocess,
    run,
    sections,
    structure,
    sweep,
    train,
    tune,
)
from cryobench.cli.output import note
from cryobench.cli.plugins import PluginGroup
from cryobench.cli.sections import sectioned
from cryobench.cli.watch import run_watched
from cryobench.errors import CryobenchError, DataWarning, described, reason_of
from cryobench.text import printable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of writing: no space, a quota or limit, a failing or read-only disk."""

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


app.command("run", cls=sectioned(sections.RUN))(run.run)
app.command("leaderboard")(leaderboard.leaderboard)
app.command("sweep", cls=sectioned(sections.SWEEP))(sweep.sweep)
app.command("tune", cls=sectioned(sections.TUNE))(tune.tune)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("measure")(measure.measure)
app.command("reconstruct")(measure.reconstruct)
app.command("denoise")(denoise.denoise)
app.command("isotropic")(isotropic.isotropic)
app.command("structure")(structure.structure)
app.command("postprocess")(postprocess.postprocess)
app.command("analyse")(analyse.analyse)
app.command("train", cls=sectioned(sections.TRAIN))(train.train)
app.add_typer(data.data_app, name="data")
app.add_typer(movies.movies_app, name="movies")
app.command("list")(catalogue.list_components)
app.command("show")(catalogue.show)
app.command("check")(check.check)
app.command("new")(new.new)
app.command("env")(catalogue.env)


WATCHED = ("run", "sweep", "tune", "measure", "reconstruct", "denoise", "isotropic", "structure", "analyse",
           "check")  # fmt: skip
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
    """The `cryobench` command in this process. Exit code 0: success; 1: a run failed; 2: invalid request, or output
    that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot encode '·' shows '?', not a traceback
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _printable_warnings():
            try:
                app(args=arguments, prog_name="cryobench")
            finally:
                sys.stdout.flush()
    except CryobenchError as error:
        if debug:
            raise
        note(f"error: {reason_of(error)}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        _discard_stdout()
        sys.exit(1)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL:
            _discard_stdout()
            if debug:
                raise
            note(
                f"error: cannot write {error.filename or 'the output'}: {error.strerror}; free space or write elsewhere"
            )
            sys.exit(2)
        if debug:
            raise
        # a bug in cryobench: one line that says how to see the traceback
        note(
            f"internal error: {described(error)} (use --debug for the traceback; include the output of "
            "`cryobench env` in a bug report)"
        )
        sys.exit(1)


def _discard_stdout() -> None:
    """Discard what stdout has buffered and cannot write; otherwise Python would try again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _printable_warnings() -> Iterator[None]:
    """Python's warnings are printed without terminal codes, those about data files on one line."""
    formatwarning, showwarning = warnings.formatwarning, warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any) -> None:
        if issubclass(category, DataWarning):
            note(f"warning: {message}")
        else:
            showwarning(message, category, *args)

    warnings.formatwarning = lambda *args, **options: printable(formatwarning(*args, **options))
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.formatwarning, warnings.showwarning = formatwarning, showwarning


__all__ = ["app", "command", "main"]
