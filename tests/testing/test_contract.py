"""Every built-in component satisfies the contract, and for every rule a plugin that breaks it is detected."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

import mrcfile
import numpy as np
import pytest
import tifffile
from networks import conditional, denoiser, pipeline, transformer_weights, unet
from safetensors.torch import save_file

from cryobench.core import check_dims
from cryobench.errors import IncompatibleError
from cryobench.io.movies.settings import MovieSettings
from cryobench.movies.task import SumTask
from cryobench.networks.film import FilmConfig, FilmUNet
from cryobench.networks.unet import UNet, UNetConfig
from cryobench.priors.conditional import IMAGE, NOISE
from cryobench.registry import KINDS, Registry
from cryobench.testing import KINDS as CONTRACTS
from cryobench.testing import common, examine, rules
from cryobench.testing.rules import check_rule

TOYS = {
    "solvers": (
        "ToySolver",
        "Uninterruptible",
        "NotFrozen",
        "Growing",
        "Unpicklable",
        "Silent",
        "NoSolver",
        "Flatland",
    ),
    "operators": ("Toy",),
    "masks": ("ToyMask", "ToyFourierMask"),
    "noises": ("ToyNoise",),
    "priors": ("ToyPrior", "ToyDiffusion"),
    "metrics": ("ToyMetric", "ToyJointMetric", "Percent"),
    "sources": ("ToySource",),
    "objectives": ("ToyObjective",),
    "encoders": ("ToyEncoder",),
}
BUILT_IN = {
    "operators": {
        "bin": "bin:3",
        "blur": "blur:0.8",
        "decimate": "decimate:2,axis=1",
        "project": "project:3",
        "slices": "slices:3,thickness=2",
        "sumpool": "sumpool:4,count=2,mask=random_gaussian",
        "fourier": "fourier:0.5",
        "composed": "sumpool:2@ctf",
    },
    "priors": {
        "cross_spectrum": "cross_spectrum:{sums}",
        "diffusion": "diffusion:{network}",
        "denoiser": "denoiser:{denoiser}",
        "planes": "planes:{network}",
        "conditional": "conditional:{conditional}",
    },
    "sources": {
        "em_pairs": "em_pairs:{em_pairs}",
        "file": "file:{images}",
        "heterogeneous": "heterogeneous:mixture,structure=3mht+2nwl,size=16,count=8",
        "movies": "movies:{movie}",
        "pairs": "pairs:{images},even={images}",
        "gaussian_field": "gaussian_field:16,number=4",
        "gaussian_mixture": "gaussian_mixture:16,number=4",
        "sparse_blocks": "sparse_blocks:16,number=4",
        "simulate_movies": "simulate_movies:3mht,size=32,frames=2",
        "structure": "structure:3mht,size=16,pixel_size=8",
        "sums": "sums:{sums}",
        "tissue": "tissue:3,depth=8,size=16,view=reslices",
        "volume": "volume:{volume}",
    },
    "objectives": {"ddpm": "{}:tiny"}
    | dict.fromkeys(("conditional", "noise2noise", "regression", "supervised"), "{}:patch=16"),
    "encoders": {"diffusion": "diffusion:prior={network}", "vit": "vit:{transformer},heads=2"},
    "noises": {"gaussian": "gaussian:rel=0.1", "poisson": "poisson:50"},
    "solvers": dict.fromkeys(("dct", "sparse", "tv", "wavelet"), "{}:steps=10")
    | {
        "abinitio": "{}:starts=1,rounds=1,order=1,ctf=false",
        "covariance": "{}:2,iterations=2",
        "curve": "{}:2,iterations=2",
        "cryodeco": "{}:dimensions=1,starts=1,groups=1,fit=1,descent=1,order=1,ctf=false",
        "hypervolume": "{}:dimensions=2,epochs=2",
        "tiled": "{}:tikhonov,tile=12,overlap=4",
        "n2n": "{}:model={denoiser}",
        "emdiffuse": "{}:model={conditional},steps=2",
        "regression": "{}:model={regression}",
    }
    | dict.fromkeys(
        ("cryosense", "daps", "ddnm", "diffpir", "dmplug", "dps", "hqs", "pigdm"), "{}:steps=2,prior={network}"
    ),
}
"""Specs for components that require a value, or few steps of a small network."""
NETWORKS = ("network", "denoiser", "conditional", "regression")
OMITTED = {"sources": {"hub"}} | ({} if find_spec("timm") else {"encoders": {"vit"}})
"""Components that require a server, or an extra that is not installed."""
UNTRAINED = {"residual", "denoises"}
"""Rules that an untrained network breaks."""


@pytest.fixture(scope="module")
def registry() -> Registry:
    points = [
        EntryPoint(name.lower(), f"contract_toys:{name}", f"cryobench.{kind}") for kind in TOYS for name in TOYS[kind]
    ]
    return Registry([*points, *(point for kind in KINDS for point in entry_points(group=f"cryobench.{kind}"))])


def broken(kind: str, spec: str, registry: Registry) -> dict[str, str]:
    """The broken rules of a component, by the names of their checks, and how they are broken."""
    found = [result for result in examine(kind, spec, registry) if result.status == "broken"]
    return {result.rule.check.__name__: result.why for result in found}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A network of 32 x 32 images with random weights, a stack of images, and a density map."""
    folder = tmp_path_factory.mktemp("files")
    values = np.random.default_rng(0).random((2, 8, 8, 8), np.float32)
    np.save(folder / "images.npy", values[0])
    with mrcfile.new(folder / "map.mrc", values[1]) as map:
        map.set_volume()
        map.voxel_size = 2.0
    with mrcfile.new(folder / "movie.mrc", np.random.default_rng(0).poisson(9, (4, 8, 8)).astype(np.int16)) as movie:
        movie.set_image_stack()
    work = SumTask((f"{folder}/movie.mrc",), MovieSettings(), f"{folder}/sums").open()
    work.start()
    work.run(0, lambda fraction: None)
    (folder / "em" / "cell" / "level").mkdir(parents=True)
    for name, image in zip(("wf_0", "gt_0"), values[0], strict=False):
        tifffile.imwrite(folder / "em" / "cell" / "level" / f"{name}.tif", image)
    network = pipeline(folder / "model", unet(sample_size=32))
    small = denoiser(folder / "denoiser", UNet(UNetConfig((4, 8))))
    if find_spec("timm"):
        save_file(transformer_weights(), folder / "transformer.safetensors")
    film = FilmUNet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0))
    conditioned = {name: str(conditional(folder / name, film, predicts, 16))
                   for name, predicts in (("conditional", NOISE), ("regression", IMAGE))}  # fmt: skip
    return {
        "network": str(network),
        "denoiser": str(small),
        "transformer": f"{folder}/transformer.safetensors",
        **conditioned,
        "em_pairs": f"{folder}/em",
        "images": f"{folder}/images.npy",
        "volume": f"{folder}/map.mrc",
        "movie": f"{folder}/movie.mrc",
        "sums": f"{folder}/sums",
    }


def built_in() -> list[tuple[str, str]]:
    return [
        (kind, BUILT_IN.get(kind, {}).get(point.name, "{}").replace("{}", point.name))
        for kind in KINDS
        for point in sorted(entry_points(group=f"cryobench.{kind}"))
        if point.value.startswith("cryobench.") and point.name not in OMITTED.get(kind, set())
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "spec"), built_in())
def test_a_built_in_component_satisfies_the_contract(kind, spec, registry, files):
    allowed = UNTRAINED if any(f"{{{name}}}" in spec for name in NETWORKS) else set()
    assert broken(kind, spec.format(**files), registry).keys() <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_the_toys_satisfy_it_unless_broken(kind, registry):
    for name in TOYS[kind]:
        if name.startswith("Toy"):
            assert broken(kind, name.lower(), registry) == {}


BROKEN = [(kind, rule) for kind in KINDS for rule in rules(kind)[len(common.RULES) :]]
OTHER = {
    "fraction": "toyfouriermask",
    "denoises": "toydiffusion",
    "together": "toyjointmetric",
    "chunks": "toyjointmetric",
}


@pytest.mark.parametrize(("kind", "rule"), BROKEN, ids=lambda part: getattr(part, "name", part))
def test_a_plugin_that_breaks_a_rule_is_detected(kind, rule, registry):
    broken = rule.check.__name__
    if broken == "interruptible":
        spec = "uninterruptible"
    else:
        toy = "toydiffusion" if (kind, broken) == ("priors", "alone") else OTHER.get(broken, TOYS[kind][0].lower())
        spec = f"{toy}:broken={broken}"
    result = check_rule(rule, CONTRACTS[kind][0](kind, spec, registry))
    assert result.status == "broken"
    assert result.why


@pytest.mark.parametrize(
    ("name", "rule", "how"),
    [
        ("notfrozen", "builds", "must be a frozen dataclass"),
        ("nosolver", "builds", "registered under solvers, but its class does not derive from cryobench.core.Solver"),
        ("growing", "round_trips", "makes Growing"),
        ("unpicklable", "pickles", "it holds an open file"),
        ("silent", "documented", "Silent has no docstring"),
        ("nothing", "builds", "no solver 'nothing'"),
        ("flatland", "dimensions", "dims is (2, 4), expected (2,), (3,) or (2, 3)"),
    ],
)
def test_a_solver_that_is_not_a_component_is_detected(name, rule, how, registry):
    found = broken("solvers", name, registry)
    assert list(found) == [rule]
    assert how in found[rule]


def test_a_reason_must_be_one_line(registry):
    assert "unsupported() returned ''" in broken("solvers", "toysolver:broken=reason", registry)["accepts"]


def test_a_proportion_is_from_0_to_1(registry):
    found = broken("metrics", "percent", registry)
    assert found.keys() == {"numbers"}
    assert "percent has a binomial interval and is [90.0, " in found["numbers"]


def test_a_rule_is_tested_in_every_stated_dimension(registry):
    found = broken("solvers", "toysolver:broken=planar", registry)
    assert found.keys() == {"residual"}
    assert found["residual"].startswith("in 3-D: ")


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("toysolver", (8,)), ("toysolver", (8, 8, 8, 8)), ("ddnm:steps=2", (8, 8, 8)), ("toymetric", (8,))],
)
def test_images_of_another_number_of_axes_are_refused_in_one_line(spec, shape, registry):
    kind = "metrics" if spec == "toymetric" else "solvers"
    with pytest.raises(IncompatibleError, match=r"supports .*, got") as error:
        check_dims(kind.removesuffix("s"), registry.make(kind, spec), shape)
    assert "\n" not in str(error.value)
