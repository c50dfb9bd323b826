"""The Python API: runs, and reconstruction without the truth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from optics import ctf_table

import cryobench as cb
from cryobench.errors import CryobenchError, IncompatibleError, ParameterError, UnknownName


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, cryobench; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_run_returns_records_with_a_table(blobs):
    records = cb.run(solvers="dct", operators="sumpool:4", data=blobs)
    frame = records.to_pandas()
    assert list(frame["solver"]) == ["dct", "pinv"]
    assert list(frame["rank"]) == [1, 2]
    assert "<table" in records._repr_html_()


def test_reconstruction_from_measurements_alone(blobs):
    images = np.load(blobs)[:3]
    x = torch.from_numpy(2 * (images - images.min()) / np.ptp(images) - 1)[:, None]
    operator = cb.operator("sumpool:4,count=10", shape=(32, 32), seed=5)
    y = operator.A(x)
    by_object = cb.solve(cb.solver("dct"), operator, y)
    assert (by_object - x).square().mean() < 0.1 * (cb.solve("pinv", operator, y) - x).square().mean()
    by_spec = cb.solve("dct", "sumpool:4,count=10", y.numpy(), shape=(32, 32), seed=5)
    assert torch.equal(by_object, by_spec)


def test_operators_that_differ_between_images():
    stated = cb.operator("sumpool:4@ctf:15000", shape=(32, 32), pixel_size=1.5)
    assert stated.images is None
    own = cb.operator("sumpool:4@ctf", shape=(32, 32), pixel_size=1.5, table=ctf_table(3))
    x = torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    y = own.A(x)
    assert not torch.allclose(y, stated.A(x), atol=0.1)
    found = cb.solve("pinv", own, y)
    torch.testing.assert_close(cb.solve("pinv", own.select(slice(1, 2)), y[1:2]), found[1:2])
    with pytest.raises(IncompatibleError, match="has 2 images, but the operator was built for 3"):
        cb.solve("pinv", own, y[:2])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: cb.solve("dct", "sumpool:4", torch.zeros(1, 4, 8, 8)), ParameterError),
        (lambda: cb.solve("dct", "sumpool:4", torch.zeros(1, 5, 8, 8), shape=(32, 32)), IncompatibleError),
        (lambda: cb.solve("dct", "sumpool:4", torch.zeros(4, 8, 8), shape=(32, 32)), IncompatibleError),
        (lambda: cb.operator("sumpool:5", shape=(32, 32)), IncompatibleError),
        (lambda: cb.operator("sumpool:4", shape=(32, 32), dtype="float16"), ParameterError),
        (lambda: cb.operator("ctf", shape=(32, 32), pixel_size=1.5), IncompatibleError),
        (lambda: cb.operator("sumpool:4@ctf:15000", shape=(32, 32)), IncompatibleError),
        (lambda: cb.operator("ctf:15000@sumpool:4", shape=(32, 32), pixel_size=1.5), IncompatibleError),
        (lambda: cb.solver("dcd"), UnknownName),
        (lambda: cb.run("dct", "sumpool:4", data="nowhere.mrcs"), CryobenchError),
    ],
)
def test_invalid_arguments_give_a_one_line_error(call, error):
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_here"):
        cb.nothing_here  # noqa: B018
    assert {"run", "solve", "__version__"} <= set(dir(cb))
