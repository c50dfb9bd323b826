"""`cryodrgn`: what is written and read, with a program in its place, and with the program itself where it is."""

from __future__ import annotations

import pickle
import shutil
import stat
import sys

import numpy as np
import pytest
import starfile
import torch
from cryobench_cryodrgn.program import tables_of
from cryobench_cryodrgn.solver import CryoDrgn, neighbourhoods

from cryobench.core import Imaging, Problem, Scale, build_operator
from cryobench.errors import DataError, ParameterError, ResultsError
from cryobench.maps.particle_images import particle_images
from cryobench.operators.identity import Identity
from cryobench.operators.noise import NoNoise
from cryobench.rng import Rng
from cryobench.sources.heterogeneous import Heterogeneous

PROGRAM = """#!{python}
import pickle, sys
from pathlib import Path
import mrcfile, numpy as np
arguments = sys.argv[1:]
after = lambda name: arguments[arguments.index(name) + 1]
if arguments[0] == "train_vae":
    if "{broken}" == "train":
        sys.exit("no such thing")
    images = mrcfile.read(arguments[1])
    poses, ctf = (pickle.load(open(after(name), "rb")) for name in ("--poses", "--ctf"))
    assert len(poses[0]) == len(poses[1]) == len(ctf) == len(images)
    out = Path(after("-o"))
    out.mkdir()
    z = np.arange(len(images) * int(after("--zdim")), dtype=np.float32).reshape(len(images), -1)
    pickle.dump(z[1:] if "{broken}" == "latents" else z, open(out / "z.pkl", "wb"))
    (out / "weights.pkl").write_bytes(b"weights")
    (out / "config.yaml").write_bytes(b"config %d" % images.shape[-1])
else:
    side = int(Path(after("-c")).read_text().split()[1])
    out = Path(after("-o"))
    out.mkdir()
    for number, z in enumerate(np.loadtxt(after("--zfile"), ndmin=2)):
        with mrcfile.new(out / f"vol_{{number:03d}}.mrc") as file:
            file.set_data(np.full((side,) * 3, -z[0], np.float32))
"""


def problem(count: int = 12, size: int = 16) -> Problem:
    stack = Heterogeneous("mixture", count=count, size=size, snr=1.0).open()
    table = stack.table.drop(columns=[name for name in stack.table if name.startswith("true")])
    imaging = Imaging(stack.shape, (stack.pixel_size(0),) * count, table, stack.through_ctf)
    operator = build_operator(Identity(), imaging, seed=0, dtype=torch.float32)
    y = torch.from_numpy(stack.read_block(range(count)))[:, None]
    scale = Scale(torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64))
    return Problem(operator, y, NoNoise(), torch.zeros((count, 1, 1, 1)), scale, imaging)


@pytest.fixture
def program(tmp_path):
    def write(broken: str = "") -> str:
        path = tmp_path / "cryodrgn"
        path.write_text(PROGRAM.format(python=sys.executable, broken=broken))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


RNG = Rng(0, [str(i) for i in range(12)])


def test_latents_and_maps_are_those_of_the_program(program):
    p, solver = problem(), CryoDrgn(dimensions=2, program=program())
    assert solver.unsupported(p) is None
    answer = solver.solve(p, rng=RNG)
    many = answer.heterogeneity
    assert many.latents.flatten().tolist() == list(range(24))
    assert answer.x.shape == p.y.shape
    maps = many.model.volumes(torch.tensor([[3.0, 0.0], [-1.0, 2.0]]))
    assert maps[:, 0, 0, 0].tolist() == [3, -1]
    again = solver.volume_model(many.model.arrays())
    assert torch.equal(again.volumes(many.latents[:2]), many.model.volumes(many.latents[:2]))
    with pytest.raises(DataError, match="the saved model has other; expected weights, config and shape"):
        solver.volume_model({"other": torch.zeros(1)})


@pytest.mark.parametrize(("broken", "message"), [
    ("train", "cryodrgn train_vae failed with exit code 1: no such thing"),
    ("latents", r"latents of shape \[11, 2\] for 12 particles"),
])  # fmt: skip
def test_a_program_that_fails_is_one_line(program, broken, message):
    with pytest.raises(ResultsError, match=message) as error:
        CryoDrgn(dimensions=2, program=program(broken)).solve(problem(), rng=RNG)
    assert "\n" not in str(error.value)


def test_without_the_program_the_solver_says_how_to_get_it():
    reason = CryoDrgn(program="/nowhere/cryodrgn").unsupported(problem())
    assert reason is not None
    assert "pip install cryodrgn" in reason
    with pytest.raises(ParameterError, match="dimensions must be at least 1, got 0"):
        CryoDrgn(dimensions=0)


def test_tables_are_those_of_our_writer(tmp_path):
    from cryobench.io.cryodrgn import drgn_tables

    p = problem()
    images = particle_images(p, "it")
    path = tmp_path / "particles.star"
    table = p.imaging.table.assign(rlnImageName=[f"{i + 1}@a.mrcs" for i in range(12)],
                                   rlnImagePixelSize=images.pixel_size, rlnImageSize=16)  # fmt: skip
    starfile.write(table, path)
    wanted, got = drgn_tables(path, 16, images.pixel_size), tables_of(images)
    for name in ("rotations", "translations", "ctf"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-4, atol=1e-4)


def test_neighbourhoods_have_each_particle_once():
    latents = torch.randn((100, 3), generator=torch.Generator().manual_seed(0))
    groups = neighbourhoods(latents, 8)
    assert sorted(torch.cat(groups).tolist()) == list(range(100))
    assert max(map(len, groups)) <= 8


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cryodrgn") is None, reason="the program cryodrgn is not installed")
def test_the_program_itself():
    p = problem(64, 32)
    solver = CryoDrgn(dimensions=2, epochs=1, width=32, layers=1)
    many = solver.solve(p, rng=Rng(0, [str(i) for i in range(64)])).heterogeneity
    assert many.latents.shape == (64, 2)
    assert many.model.volumes(many.latents[:2]).shape == (2, 32, 32, 32)
    assert pickle.dumps(many.model.arrays())
