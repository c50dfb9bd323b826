"""A package of an extra that is not installed is one line that names the extra."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from cryobench.errors import DependencyError
from cryobench.extras import of_extra


def potentials():
    from cryobench.physics.potential import Atoms, potential

    return potential(Atoms("one", np.zeros((1, 3)), np.array([6])), 8, 2.0, 50.0)


def transform():
    from cryobench.numerics.nufft import Points

    return Points(np.zeros((3, 3)), 8, 1e-6).to(np.zeros((8, 8, 8)))


def grouped():
    from cryobench.maps.latents import clusters

    return clusters(np.zeros((8, 2)), 2)


def trained():
    from cryobench.training.processes import Processes

    return Processes(torch.device("cpu"))


def perceived():
    from cryobench.metrics.perceptual import alexnet_weights

    return alexnet_weights()


@pytest.mark.parametrize(("package", "extra", "use"), [
    ("finufft", "simulate", potentials), ("finufft", "structure", transform), ("sklearn", "structure", grouped),
    ("accelerate", "train", trained), ("lpips", "perceptual", perceived),
])  # fmt: skip
def test_what_needs_an_absent_package_names_its_extra(package, extra, use, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as found:
        use()
    assert str(found.value) == f"this needs the package {package}; run pip install 'cryobench[{extra}]'"


def test_diffusion_names_its_extra(monkeypatch):
    from cryobench import environment

    monkeypatch.setattr(environment, "version", lambda _: environment.NOT_INSTALLED)
    with pytest.raises(DependencyError, match=r"package diffusers; run pip install 'cryobench\[diffusion\]'"):
        environment.import_diffusers()


def test_other_errors_are_not_hidden():
    with pytest.raises(ImportError, match="cannot import name"), of_extra("simulate"):
        from numpy import nothing_of_this_name  # noqa: F401  # pyright: ignore[reportAttributeAccessIssue]
