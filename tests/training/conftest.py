"""Small runs for tests of training."""

from __future__ import annotations

import pytest
from runs import Run

from cryobench.training import loop
from cryobench.training.objectives.ddpm import Ddpm


@pytest.fixture
def run(blobs, monkeypatch) -> Run:
    """Runs on `blobs`, without samples and with few validation images, which would take longer than the training."""
    monkeypatch.setattr(Ddpm, "validated", 8)
    monkeypatch.setattr(loop.Training, "_draw_samples", lambda self: None)
    return Run(blobs)
