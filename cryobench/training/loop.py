"""The training loop, which is the same for every objective.

The samples of step k depend on (seed, k) only, so a run that was killed and continued ends with the same weights as an
uninterrupted one. Several processes (accelerate) share each batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cryobench.core import Objective, Samples, Stack
from cryobench.core.kinds import check_kind
from cryobench.core.source import size_text
from cryobench.errors import IncompatibleError, ParameterError, TrainingError
from cryobench.registry import Registry, installed
from cryobench.training import checkpoint, export, folder
from cryobench.training.checkpoint import State
from cryobench.training.log import Log
from cryobench.training.preload import Kept, choose_place, place_text, reading
from cryobench.training.processes import Processes
from cryobench.training.settings import AUTO, DEVICE, NONE, Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock


class TrainingObserver:
    """Callbacks of a run, called in the first process. Override any of them."""

    def started(self, step: int, steps: int) -> None:
        """Training starts, or continues after `step` updates."""

    def stepped(self, step: int, loss: float) -> None:
        """`step` updates are done. loss: that of the last update."""

    def validated(self, step: int, loss: float, best: float) -> None:
        """A validation is done. loss: that of the averaged weights. best: the lowest so far."""

    def saved(self, step: int) -> None:
        """The checkpoint and the model of this step are written."""

    def say(self, message: str) -> None:
        """A message for the user."""

    def warn(self, message: str) -> None:
        """A warning for the user."""


def train(
    settings: Settings,
    stacks: Sequence[Stack],
    validation: Sequence[Stack],
    out: Path,
    *,
    device: torch.device,
    observer: TrainingObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
    registry: Registry | None = None,
) -> bool:
    """Train into a folder, or continue there. Returns whether the run is complete, False if `stop` ended it.

    Raises what `Training` and its `run` raise.
    """
    training = Training(settings, stacks, validation, out, device=device, observer=observer, registry=registry)
    return training.run(stop)


class Training:
    """A run that is ready to start or to continue. Its folder is locked until `run` returns.

    out: the folder, which holds the exported model from the first checkpoint on. Files are replaced atomically.
    registry: of the objectives, by default those that are installed.

    Raises `ParameterError` or `IncompatibleError` if images, network and processes do not match, and `ResultsError` if
    the folder holds another run or cannot be written.
    """

    def __init__(self, settings: Settings, stacks: Sequence[Stack], validation: Sequence[Stack], out: Path, *,
                 device: torch.device, observer: TrainingObserver | None = None,
                 registry: Registry | None = None):  # fmt: skip
        self.objective, self.settings = _completed(settings, registry or installed())
        self.out = out
        self.processes = Processes(device)
        self.device = self.processes.device
        self.observer = observer if observer is not None and self.processes.main else TrainingObserver()
        self._part = _share(settings.batch, self.processes)
        self._lock: BaseFileLock | None = None
        self._log: Log | None = None
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.before: Mapping[str, Any] | None = None
        with self.processes.together():
            self.samples, self.validation = self._open(stacks, validation)
        try:
            self._resume()
        except BaseException:
            self._release()
            raise

    @property
    def ended(self) -> str | None:
        """Why the run is complete; None if it is not."""
        s = self.settings
        if self.step >= s.steps:
            return f"all {s.steps} steps are done"
        stale = s.patience and self.step % s.validate_every == 0 and self.step - self.best_step >= s.patience
        return f"the validation loss has not decreased for {s.patience} steps, at step {self.step}" if stale else None

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until the run is complete or `stop` is true in any process. Returns whether the run is complete.

        Raises `TrainingError` if the loss is not finite and `ResultsError` if nothing can be written; the last
        checkpoint is kept in both cases.
        """
        try:
            if self.ended:
                self._finish_writing()
                self.observer.say(f"nothing to do: {self.ended}")
                return True
            with self.processes.together():
                if self.processes.main:
                    self._log = Log(self.out, self.step)
                self._keep()
            self.observer.started(self.step, self.settings.steps)
            stopping = False
            with reading(self._read, self.settings.steps, ahead=self._place == NONE) as self._batches:
                while not (self.ended or stopping):
                    stopping = self._advance(stop)
            if self.ended and self.step < self.settings.steps:
                self.observer.say(f"stopped: {self.ended}")
            return self.ended is not None
        finally:
            self._release()

    def _advance(self, stop: Callable[[], bool]) -> bool:
        """One step, with the validation, checkpoint and samples due after it. Returns whether to stop."""
        s = self.settings
        loss = self._update()
        self.step += 1
        self._record("loss", loss, rate=s.learning_rate(self.step - 1))
        self.observer.stepped(self.step, loss)
        last = self.step == s.steps
        if self.validation is not None and (last or self.step % s.validate_every == 0):
            self._validate(self.validation)
        stopping = self.processes.any(stop())
        if self.ended or stopping or self.step % s.checkpoint_every == 0:
            self._save()
        if last or self.step % s.sample_every == 0:  # slow, so after the checkpoint
            with self.processes.together():
                self._draw_samples()
        return stopping

    def _update(self) -> float:
        """One step of the optimizer; the loss over the whole batch. Raises `TrainingError` if it is not finite."""
        s = self.settings
        batch = self._batch()
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate(self.step)
        accelerator = self.processes.accelerator
        cpu = self.device.type == "cpu"  # on other devices it is accelerate's choice
        with torch.autocast("cpu", torch.bfloat16, enabled=s.bfloat16) if cpu else accelerator.autocast():
            loss = self._losses(self.network, batch).mean()
        accelerator.backward(loss)
        norm: Any = accelerator.clip_grad_norm_(self.network.parameters(), s.clip)
        value = self.processes.mean(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {value:g} and its gradient's norm {norm:g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(list(self.averaged.parameters()), [p.detach() for p in self._own().parameters()],
                             1 - s.decay(self.step))  # fmt: skip
        return value

    def _read(self, step: int) -> Any:
        """This process's share of the batch of a step."""
        return self.samples.batch(step, self.settings.batch, self._part)

    def _batch(self) -> Any:
        """This process's share of the next batch."""
        with self.processes.together():
            return self._batches(self.step)

    def _losses(self, network: Any, batch: Any) -> torch.Tensor:
        """The loss of each sample, [n]."""
        return self.objective.losses(network, batch)

    @torch.no_grad()
    def _validate(self, samples: Samples) -> None:
        """Compute the validation loss of the averaged weights, always on the same samples."""
        losses = []
        for k in range(-(-self.objective.validated // self.settings.batch)):
            with self.processes.together():
                batch = samples.batch(k, self.settings.batch, self._part)
            losses.append(self.processes.gathered(self.objective.validation_losses(self.averaged, batch)))
        loss = float(torch.cat(losses).double().mean())
        if loss < self.best:
            self.best, self.best_step = loss, self.step
        self._record("validation_loss", loss)
        self.observer.validated(self.step, loss, self.best)

    @torch.no_grad()
    def _draw_samples(self) -> None:
        if self.processes.main:
            path = self.out / "samples" / f"step_{self.step:06d}.png"
            self.objective.draw(self.averaged, self.validation or self.samples, path)

    def _save(self) -> None:
        """Write the checkpoint, then the model with the same weights."""
        self._check_weights()
        with self.processes.together():
            if self._log is not None:
                self._log.flush()
                State(
                    self.step, self.settings, self._own().state_dict(), self.averaged.state_dict(),
                    self.optimizer.state_dict(), self.best, self.best_step, self.before,
                ).save(self.out)  # fmt: skip
                self._export()
        self.observer.saved(self.step)

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Raise `TrainingError` unless the loss of the next step is finite, so that every checkpoint is usable."""
        batch = self._batch()
        for what, network in (("weights", self._own()), ("averaged weights", self.averaged)):
            loss = self.processes.mean(self._losses(network, batch).mean())
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of the {what} is {loss:g}")

    def _export(self) -> None:
        card = export.make_card(self.settings, self.objective, self.step, self.samples, self.validation, self.best,
                                self.best_step, self.before)  # fmt: skip
        text = export.markdown(card, self.objective.introduction(card))
        export.write_model(self.out, self.objective.files(self.averaged), card, text)

    def _finish_writing(self) -> None:
        """Write the model if the run was killed between the last checkpoint and the model."""
        with self.processes.together():
            if self.processes.main and export.read_card(self.out).get("steps") != self.step:
                self._export()

    def _diverged(self, what: str) -> TrainingError:
        path = self.out / checkpoint.NAME
        kept = f"the checkpoint in {path} is from an earlier step" if path.exists() else "there is no checkpoint yet"
        return TrainingError(
            f"at step {self.step + 1} {what}; {kept}. Continue with a smaller --lr than {self.settings.lr:g}"
        )

    def _record(self, name: str, value: float, rate: float | None = None) -> None:
        if self._log is not None:
            self._log.add(self.step, name, value, rate)

    def _own(self) -> torch.nn.Module:
        """The network without accelerate's wrapper."""
        return self.processes.accelerator.unwrap_model(self.network)

    def _resume(self) -> None:
        """Lock the folder and load its checkpoint, if any."""
        with self.processes.together():
            if self.processes.main:
                self._lock = folder.claim(self.out, self.objective.weights)
            state = folder.find_state(self.out, self.settings, self.samples.shape, self.objective.weights)
        self._build(state)
        with self.processes.together():
            if self.processes.mean(torch.tensor(float(self.step), device=self.device)) != self.step:
                raise ParameterError(f"the processes do not see the same checkpoint in {self.out}; give a folder that "
                                     "all machines share")  # fmt: skip

    def _release(self) -> None:
        """Close the log and unlock the folder."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()

    def _build(self, state: State | None) -> None:
        """Create the network, its average and the optimizer, from a checkpoint if given."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            network = self.objective.build(self.samples)
        if self.settings.warm_start and state is None:
            self.before = self.objective.initialise(network, self.settings.warm_start, self.samples)
        self.averaged = copy.deepcopy(network).to(self.device).requires_grad_(False).eval()  # pyright: ignore
        fused = True if self.device.type == "cuda" else None  # one kernel instead of hundreds
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.settings.lr, weight_decay=1e-4, fused=fused)
        if state is not None:
            network.load_state_dict(state.network)
            self.averaged.load_state_dict(state.averaged)
            self.step, self.best, self.best_step = state.step, state.best, state.best_step
            self.before = state.before
        if self.device.type == "cuda" and all(p.ndim < 5 for p in network.parameters()):
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network, self.optimizer = self.processes.accelerator.prepare(network, optimizer)
        if state is not None:
            self.optimizer.load_state_dict(state.optimizer)

    def _open(self, stacks: Sequence[Stack], validation: Sequence[Stack]) -> tuple[Samples, Samples | None]:
        """The training and validation samples. Raises if they do not match the network or each other."""
        s, objective = self.settings, self.objective
        self._data = [Kept(objective.examples(stack)) for stack in stacks]
        self._held_out = [Kept(objective.examples(stack)) for stack in validation]
        samples = objective.samples(self._data, seed=s.seed, device=self.device)
        self._place = self._choose_place(samples)
        for each in (*self._data, *self._held_out) if self._place != NONE else ():
            each.keep(self.device if self._place == DEVICE else torch.device("cpu"))
        if not validation:
            return samples, None
        others = objective.samples(self._held_out, seed=s.seed, device=self.device, held_out=True)
        if others.shape != samples.shape:
            raise IncompatibleError(f"training images are {size_text(samples.shape)}, validation images "
                                    f"{size_text(others.shape)}; resample them to one size")  # fmt: skip
        both = _paths(s.data) & _paths(s.validation)
        if both or any(origin in samples.origins for origin in others.origins):
            self.observer.warn("some images are used for both training and validation: the validation loss will not "
                               "show overfitting")  # fmt: skip
        return samples, others

    def _choose_place(self, samples: Samples) -> str:
        """Where the data are kept. Raises `ParameterError` for a stated place that is too small."""
        s = self.settings
        if s.preload == NONE:  # without listing the data
            return NONE
        needed = sum(each.nbytes for each in (*self._data, *self._held_out))
        a_sample = 4 * self._data[0].shape(0)[0] * math.prod(samples.shape)
        place = choose_place(s.preload, needed, s.steps * s.batch * a_sample, self.device)
        self._kept_as = place_text(place, needed)
        return place

    def _keep(self) -> None:
        """Read the data that are kept in memory or on the device."""
        if self.settings.preload == AUTO:
            self.observer.say(self._kept_as)
        for each in (*self._data, *self._held_out):
            each.load()


def _completed(settings: Settings, registry: Registry) -> tuple[Objective, Settings]:
    """The objective of a run, and the settings with all of its parameters. Raises the errors of an invalid spec."""
    objective = registry.make("objectives", settings.objective)
    check_kind("objectives", settings.objective, objective)
    stated = str(registry.spec_of(objective, full=True))
    return objective, replace(settings, objective=stated, networks=objective.weights_digest())


def _share(batch: int, processes: Processes) -> slice:
    """This process's share of a batch."""
    n, index = processes.count, processes.index
    if batch % n:
        raise ParameterError(f"--batch {batch} cannot be divided among {n} processes; give a multiple of {n}")
    return slice(index * batch // n, (index + 1) * batch // n)


def _paths(specs: Sequence[str]) -> set[Path]:
    """Specs as absolute paths, so that different spellings of a file are equal."""
    return {Path(spec).expanduser().resolve() for spec in specs}
