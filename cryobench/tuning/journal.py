"""The finished trials of a search on disk, in Optuna's journal: presets/NAME.journal, a study for each solver.

A trial is one line, written when it is finished. So whatever ends the process costs the trial under way and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from cryobench.errors import ParameterError, ResultsError, told
from cryobench.files import check_writable_folder, exclusively
from cryobench.plan.presets import preset_file
from cryobench.spec import Field
from cryobench.tuning.space import frozen
from cryobench.tuning.trial import Trial

QUESTION = "question"
"""The attribute of a study that says what was asked."""


class Journal:
    """The trials of one solver in the journal of a preset; `trials` holds those that are finished, in order."""

    def __init__(self, study: optuna.Study, fields: Sequence[Field]):
        self._study, self._fields = study, fields
        self.trials = [Trial(**trial.user_attrs["trial"]) for trial in study.trials]

    def add(self, trial: Trial) -> None:
        """Save a finished trial. Raises `ResultsError` when the disk refuses; those before it are kept."""
        try:
            self._study.add_trial(frozen(trial, self._fields))
        except OSError as error:
            raise ResultsError(f"cannot write the journal: {error.strerror}; finished trials are kept") from error
        self.trials.append(trial)


@contextmanager
def open_journal(
    name: str, folder: Path, solver: str, question: Mapping[str, Any], fields: Sequence[Field], *, higher: bool,
    force: bool,
) -> Iterator[Journal]:  # fmt: skip
    """The journal of a solver in the preset `name`, for the block and this process alone.

    question: all that scores depend on, plain data. fields: what is searched. Trials of another question are refused by
    `ParameterError`, or dropped with `force`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = preset_file(name, folder).with_suffix(".journal")
    check_writable_folder(folder, "presets", "--presets")
    with exclusively(folder / f".{name}-{solver}.lock", wait=False) as alone:
        if not alone:
            raise ParameterError(f"{solver} is being tuned for the preset {name} by another process; wait for it")
        yield Journal(_study(path, solver, question, higher, force), fields)


def _study(path: Path, solver: str, question: Mapping[str, Any], higher: bool, force: bool) -> optuna.Study:
    """The study of a solver, a new one where there is none."""
    lock = _Lock(path.with_name(f".{path.name}.lock"))
    try:
        _mend(path, lock)
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        known = {study.study_name: study.user_attrs for study in optuna.get_all_study_summaries(storage)}
        if solver in known and (force or QUESTION not in known[solver]):  # without one: killed as it was made
            optuna.delete_study(study_name=solver, storage=storage)
        elif solver in known:
            _check_question(path, solver, known[solver][QUESTION], question)
            return optuna.load_study(study_name=solver, storage=storage)
        direction = "maximize" if higher else "minimize"
        study = optuna.create_study(study_name=solver, storage=storage, direction=direction)
        study.set_user_attr(QUESTION, dict(question))
        return study
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is no journal of trials: {told(error)}; take it away to start anew") from error


def _check_question(path: Path, solver: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        raise ParameterError(
            f"{path} holds trials of {solver} with another {changed[0]}; give what they had, another --preset, or "
            "--force to drop them"
        )


class _Lock(JournalFileOpenLock):
    """A lock that ends with the process; Optuna's own keep others waiting for half a minute after a kill."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        self._held = exclusively(self._path)
        return self._held.__enter__()

    def release(self) -> None:
        self._held.__exit__(None, None, None)


def _mend(path: Path, lock: _Lock) -> None:
    """Cut off a last line that a killed process did not finish: the next would be written behind it."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
    finally:
        lock.release()
