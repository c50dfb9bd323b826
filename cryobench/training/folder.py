"""The folder of a training run. It belongs to one run and is used by one process at a time.

OUT/checkpoint.pt                      the state that the run continues from
OUT/loss.csv, samples/, tensorboard/   its progress
OUT/cryobench.json, ...                its result, a model and its card; see `export`
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cryobench.core import Shape
from cryobench.core.source import size_text
from cryobench.errors import ResultsError
from cryobench.files import acquire_lock
from cryobench.priors.model_folder import CARD
from cryobench.training import checkpoint, export
from cryobench.training.checkpoint import State
from cryobench.training.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock


def claim(out: Path, weights: str) -> BaseFileLock:
    """Create the folder if needed and lock it for this run; the lock ends when it is released or the process ends.

    weights: the path of the model's weights in it. Raises `ResultsError` when the folder is not writable or another
    process trains into it.
    """
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ResultsError(f"cannot train into {out}: {error.strerror} ({error.filename}); choose another folder "
                           "as --out") from error  # fmt: skip
    busy = f"another process trains into {out}; wait for it, or give another --out"
    lock = acquire_lock(out / ".lock", busy=busy).lock
    name = Path(weights).name
    for partial in (*out.glob(f".{checkpoint.NAME}-*"), *out.glob(f".{name}-*"), *out.glob(f"*/.{name}-*")):
        partial.unlink()  # left by a run that was killed while writing
    return lock


def find_state(out: Path, settings: Settings, shape: Shape, weights: str) -> State | None:
    """The state from which a run with these settings, on images of this shape, continues; None for a new run.

    Raises `ResultsError` if the folder holds another run or a model.
    """
    state = State.load(out)
    if state is None:
        if (out / CARD).exists() or (out / Path(weights).parts[0]).exists():
            raise ResultsError(f"{out} holds a model but no {checkpoint.NAME} to continue from; give another --out, "
                               "or remove the model")  # fmt: skip
        return None
    different = state.settings.differences(settings)
    if different:
        was = "; ".join(f"{name} was {getattr(state.settings, name)}, is {getattr(settings, name)}"
                        for name in different)  # fmt: skip
        raise ResultsError(f"{out} holds another training run ({was}); give the same values, or another --out")
    if state.step > settings.steps:
        raise ResultsError(f"{out} already holds a run of {state.step} steps, but --steps is {settings.steps}; give "
                           f"--steps {state.step} or more, or another --out")  # fmt: skip
    before = export.read_card(out).get("image_shape", list(shape))
    if list(before) != list(shape):
        raise ResultsError(f"the run in {out} was on images of {size_text(before)}, got {size_text(shape)}; give the "
                           "same images, or another --out")  # fmt: skip
    return state
