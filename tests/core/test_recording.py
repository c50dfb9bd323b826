"""A recording keeps the first and the last offered pair, and a bounded number in between."""

from __future__ import annotations

import pytest
import torch

from cryobench.core import recording


def offered(count: int, most: int, images: int = 1) -> recording.Recording:
    x = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    with recording.recording(images, most) as kept:
        for number in range(1, count + 1):
            x.fill_(number)  # in place, as a solver may
            recording.offer(x, -x)
    return kept


@pytest.mark.parametrize("most", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 64, 65, 66, 1000])
def test_first_and_last_are_kept_and_the_rest_is_even(count, most):
    kept = offered(count, most)
    assert len(kept.frames) == len(kept.steps) <= most + 1
    assert [(x[0, 0, 0].item(), estimate[0, 0, 0].item()) for x, estimate in kept.frames] == [
        (step, -step) for step in kept.steps
    ]
    if count:
        assert (kept.steps[0], kept.steps[-1]) == (1, count)
    apart = {after - before for before, after in zip(kept.steps[:-1], kept.steps[1:-1], strict=False)}
    assert len(apart) <= 1
    if count <= most:
        assert kept.steps == list(range(1, count + 1))


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_first_images_as_float32(images):
    for x, estimate in offered(4, 8, images).frames:
        assert x.shape == estimate.shape == (min(images, 3), 2, 2)
        assert x.dtype == estimate.dtype == torch.float32


def test_outside_a_recording_nothing_is_kept_and_an_error_ends_one():
    kept = offered(2, 8)
    recording.offer(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert kept.steps == [1, 2]
    with pytest.raises(MemoryError), recording.recording() as cut:  # noqa: PT012
        recording.offer(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        raise MemoryError
    recording.offer(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert cut.steps == [1]
