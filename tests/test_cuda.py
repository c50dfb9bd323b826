"""Every component on a pretended CUDA device, against the same code on the CPU: in float32, then in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partialmethod
from pathlib import Path

import mrcfile
import networks
import numpy as np
import pytest
import torch
from optics import taken
from pretend_cuda import CudaTensor, pretend_cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

import cryobench as cb
from cryobench.core import MINMAX, Imaging, build_operator
from cryobench.networks.film import FilmConfig
from cryobench.priors.conditional import IMAGE, NOISE
from cryobench.priors.diffusion import DiffusionModel
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.sources.simulate import Simulate
from cryobench.sources.stacks import File
from cryobench.training import loop
from cryobench.training.checkpoint import State
from cryobench.training.objectives import ddpm
from cryobench.training.settings import Settings

SIZE, IMAGES = 16, 2
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
HALF = {torch.bfloat16: 0.05, torch.float16: 0.005}
"""Largest allowed relative difference from float32, in the 2-norm, after a few steps with a random network."""

OPERATORS = ["identity", "sumpool:4", "sumpool:2,count=3", "fourier:0.5", "ctf:15000", "ctf", "composed",
             "sumpool:2@ctf:15000", "fourier:0.5@ctf:15000", "decimate:4,axis=0", "bin:4", "blur:0.8", "bin:2@ctf",
             "decimate:2@blur:0.8", "slices:2", "slices:3,thickness=2", "project:1",
             "sumpool:2@ctf:9000,pixel_size=2@project:1"]  # fmt: skip
MASKS = ["sumpool:4,mask=random_binary", "sumpool:4,mask=random_gaussian", "sumpool:4,mask=checkerboard",
         "sumpool:4,mask=superres", "fourier:0.5,mask=random_fourier", "fourier:0.5,mask=fourier_ring",
         "fourier:0.5,mask=fourier_radial"]  # fmt: skip
NOISES = ["none", "gaussian:0.1", "gaussian:rel=0.1", "own", "poisson:100"]
CLASSICAL = {name: name for name in ("pinv", "tikhonov", "wiener")}
CLASSICAL["cg"] = "cg:3"
CLASSICAL |= {name: f"{name},steps=20" for name in ("dct", "wavelet", "tv", "sparse")}
CLASSICAL["tiled"] = "tiled:tv,tile=8,overlap=4,solver.steps=20"
OF_VIEWS = {"fourier_inversion": "fourier_inversion:steps=2"}
JOINT = {"direct": "direct:2", "consensus": "consensus",
         "covariance": "covariance:2,iterations=2", "curve": "curve:2,iterations=2",
         "hypervolume": "hypervolume:dimensions=2,epochs=2"}  # fmt: skip
FROM_FEATURES = "hypervolume:dimensions=2,epochs=1,init=encoder,encoder=pca"
SEEKING = {"abinitio": "abinitio:starts=1,rounds=1,order=1",
           "cryodeco": "cryodeco:dimensions=1,starts=1,groups=1,fit=1,descent=1,order=1"}  # fmt: skip
"""They choose the best of many poses: where two are about the same, rounding decides."""
INTERPOLATING = {"interpolate": "interpolate:cubic", "flow": "flow:ilk"}
DENOISING = {"gaussian": "gaussian", "n2n": "n2n", "emdiffuse": "emdiffuse:model={noise},samples=2,steps=4",
             "regression": "regression:model={image}"}  # fmt: skip
KNOWN = {"exact": "exact:sweeps=8,samples=2"}
DIFFUSION = {
    "ddnm": "ddnm:4", "diffpir": "diffpir:4", "daps": "daps:3,ode_steps=2", "hqs": "hqs:3,first=0.5",
    "cryosense": "cryosense:4", "dps": "dps:4", "pigdm": "pigdm:4", "dmplug": "dmplug:2",
}  # fmt: skip
"""The solvers that evaluate a network, in few steps. The last three differentiate it."""


@pytest.fixture(scope="module", autouse=True)
def card() -> Iterator:
    with pretend_cuda() as card:
        yield card


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    # at the noisiest levels, the image that follows from predicted noise would amplify rounding a hundredfold
    return networks.pipeline(tmp_path_factory.mktemp("prior"), prediction_type="v_prediction")


@pytest.fixture(scope="module")
def conditional_networks(tmp_path_factory) -> dict[str, str]:
    """Folders of random networks that predict the noise, and the image."""
    folder = tmp_path_factory.mktemp("conditional")
    film = networks.film_unet(FilmConfig(8, (1, 2), blocks=1, dropout=0.0))
    return {what: str(networks.conditional(folder / what, film, what, SIZE)) for what in (NOISE, IMAGE)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    """Smooth images, float32 [2, 16, 16]."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, images()[:, 0].numpy())
    return path


def images(size: int = SIZE) -> torch.Tensor:
    """Smooth images in [-1, 1], [2, 1, size, size]."""
    noise = torch.randn((IMAGES, 1, size, size), generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return smooth / smooth.abs().amax(dim=(1, 2, 3), keepdim=True)


def noise_of(seed: int) -> torch.Tensor:
    return torch.randn((IMAGES, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


def assert_same(there: torch.Tensor, here: torch.Tensor, within: float = 1e-6) -> None:
    """Assert that a result of the device is on it and equals that of the CPU."""
    assert there.device == CUDA
    torch.testing.assert_close(there.cpu(), here, rtol=within, atol=within)


# ------------------------------------------------------------------------------------------- the pretended device


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: torch.where(b > 0, a, a),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: b.add_(a),
        lambda a, b: a.index_select(0, torch.tensor([0])),
        lambda a, b: torch.nn.functional.linear(a, b),
        lambda a, b: a.sum() + b,
        lambda a, b: b[a.argsort()],
    ],
)
def test_operands_on_two_devices_are_refused(mix):
    with pytest.raises(RuntimeError, match=r"on the same device|on cpu or on the same device"):
        mix(torch.rand(3, device="cuda"), torch.rand(3))


def test_what_cuda_combines_is_combined():
    a = torch.arange(4.0).cuda()
    assert_same(a + torch.tensor(1.0), torch.arange(4.0) + 1)
    assert_same(a[torch.tensor([2, 0])], torch.tensor([2.0, 0.0]))
    assert_same(a[torch.tensor([True, False, True, False])], torch.tensor([0.0, 2.0]))
    assert_same(torch.zeros(4, device="cuda").copy_(torch.arange(4.0)), torch.arange(4.0))
    assert torch.zeros(4).copy_(a).tolist() == a.tolist() == [0, 1, 2, 3]
    assert a.to("cuda") is a
    assert torch.as_tensor(a, device="cpu").device == torch.zeros_like(a, device="cpu").device == CPU


@pytest.mark.parametrize("convert", [lambda a: a.numpy(), np.asarray, np.abs])
def test_tensors_of_the_device_are_not_converted_to_numpy(convert):
    with pytest.raises(TypeError, match=r"Use Tensor.cpu\(\)"):
        convert(torch.rand(3).cuda())


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.randn(3, generator=g, device="cuda"),
        lambda g: torch.empty(3, device="cuda").normal_(generator=g),
        lambda g: torch.poisson(torch.ones(3, device="cuda"), generator=g),
    ],
)
def test_a_generator_of_the_cpu_does_not_draw_on_the_device(draw):
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        draw(torch.Generator())


def test_gradients_cross_between_the_devices():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (x.cuda().square() * torch.tensor([1.0, 10.0]).cuda()).cpu().sum().backward()
    assert x.grad is not None
    assert not isinstance(x.grad, CudaTensor)
    assert x.grad.tolist() == [2, 40]


# ----------------------------------------------------------------------------------------------------- components


def test_every_component_of_the_package_is_here():
    found = installed()
    used = " ".join(OPERATORS + MASKS + NOISES)
    for kind in ("operators", "masks", "noises"):
        assert all(name in used for name in own(found, kind)), kind
    known = {*CLASSICAL, *OF_VIEWS, *JOINT, *SEEKING, *INTERPOLATING, *DENOISING, *DIFFUSION, *KNOWN}
    assert known == own(found, "solvers")


def own(registry, kind: str) -> set[str]:
    """The names of the components of a kind in the package."""
    return {n for n in registry.names(kind) if any(o.distribution == "cryobench" for o in registry.origins(kind, n))}


@pytest.mark.parametrize("spec", [*OPERATORS, *MASKS])
def test_operators(spec):
    spec = "sumpool:2@ctf" if spec == "composed" else spec
    x, recipe = images(), installed().make("operators", spec)
    imaging: Imaging | tuple[int, ...] = taken(IMAGES, (SIZE, SIZE))
    if 2 not in recipe.dims:
        imaging = (4, 8, 8) if spec.startswith("slices") else (8, 8, 8)
        x = images(32).reshape(-1, 1, *imaging)[:IMAGES]
    here, there = (build_operator(recipe, imaging, seed=3, device=on) for on in (CPU, CUDA))
    y = here.A(x)
    assert_same(there.A(x.cuda()), y)
    assert_same(there.A_adjoint(y.cuda()), here.A_adjoint(y))
    assert_same(there.A_adjoint_A(x.cuda()), here.A_adjoint_A(x))
    assert_same(there.A_dagger(y.cuda()), here.A_dagger(y), within=max(1e-6, here.cg_tol))
    gamma = torch.tensor([0.5, 2.0]).reshape(-1, *[1] * (x.ndim - 1))
    assert_same(there.A_dagger_A(x.cuda(), gamma.cuda()), here.A_dagger_A(x, gamma))
    assert_same(there.prox_l2(x.cuda(), y.cuda(), 0.5), here.prox_l2(x, y, 0.5))
    assert there.compute_norm() == pytest.approx(here.compute_norm(), rel=1e-6 if here.closed_form else 1e-5)
    assert there.rank == here.rank


@pytest.mark.parametrize("spec", NOISES)
@pytest.mark.parametrize("operator", ["sumpool:4", "fourier:0.5"])
def test_noises(spec, operator):
    noise = installed().make("noises", spec)
    answers = []
    for on in ("cpu", "cuda"):
        A = cb.operator(operator, shape=(SIZE, SIZE), device=on)
        if noise.unsupported(A, MINMAX) is not None:
            return
        first, second = (A.A((images() + 0.3 * noise_of(seed)).to(on)) for seed in (1, 2))
        answers.append(noise.apply_to_halves(first, second, A, MINMAX, Rng(0, ["a", "b"])))
    here, there = answers
    assert_same(there.y, here.y)
    assert_same(there.sigma, here.sigma)


def solved(solver: str, operator: str, on: str, noise: str = "none") -> torch.Tensor:
    here = cb.operator(operator, shape=(SIZE, SIZE), pixel_size=2.0)
    y = installed().make("noises", noise).apply(here.A(images()), here, MINMAX, Rng(0, ["a", "b"])).y
    A = cb.operator(operator, shape=(SIZE, SIZE), pixel_size=2.0, device=on)
    with sdpa_kernel(SDPBackend.MATH):  # the one that the device uses
        return cb.solve(solver, A, y, noise=noise, sigma=0.0 if noise == "none" else 0.1)


@pytest.mark.parametrize(
    ("operator", "noise"), [("sumpool:4", "none"), ("sumpool:4", "gaussian:0.1"), ("ctf:15000", "gaussian:0.1")]
)
@pytest.mark.parametrize("name", CLASSICAL)
def test_classical_solvers(name, operator, noise):
    unsupported = {"wiener": "sumpool", "tiled": "ctf"}.get(name)
    if unsupported is not None and operator.startswith(unsupported):
        return
    spec = CLASSICAL[name]
    assert_same(solved(spec, operator, "cuda", noise), solved(spec, operator, "cpu", noise))


@pytest.mark.parametrize(
    ("prior", "operator"),
    # the chains of sparse blocks draw noise in the singular vectors, which are not unique for fourier
    [("gaussian_field", "sumpool:4"), ("gaussian_field", "fourier:0.5"), ("gaussian_mixture", "sumpool:4"),
     ("gaussian_mixture", "fourier:0.5"), ("sparse_blocks", "sumpool:4")],
)  # fmt: skip
def test_exact_posteriors(prior, operator):
    def measured(on: str) -> list[float]:
        (found,) = scores(
            cb.run(f"{KNOWN['exact']},prior={prior}", operator, noises="gaussian:0.1", device=on, floor=False,
                   data=f"{prior}:16,number=2", scaling="none", metrics=["psnr"])
        ).values()  # fmt: skip
        return found

    assert measured("cuda") == pytest.approx(measured("cpu"), rel=1e-4)


@pytest.mark.parametrize("name", OF_VIEWS)
def test_solvers_of_views(name):
    recipe, x = installed().make("operators", "project:8"), images(32).reshape(-1, 1, 8, 8, 8)[:IMAGES]
    answers = []
    for on in (CPU, CUDA):
        operator = build_operator(recipe, (8, 8, 8), seed=3, device=on)
        answers.append(cb.solve(OF_VIEWS[name], operator, operator.A(x.to(on)), noise="none", sigma=0.0))
    assert_same(answers[1], answers[0])


@pytest.mark.parametrize("spec", [*JOINT.values(), FROM_FEATURES])
def test_solvers_of_all_images_together_and_their_map(spec):
    def run(on: str):
        data = "simulate:3mht,size=16,snr=1,count=12"
        (record,) = cb.run(spec, "sumpool:2,count=2", device=on, data=data, images="0:12",
                           metrics=["psnr", "map"], floor=False)  # fmt: skip
        assert record.status == "ok", record.reason
        return record

    here, there = run("cpu"), run("cuda")
    np.testing.assert_allclose(there.values["psnr"], here.values["psnr"], rtol=1e-5)
    assert here.together
    for key, value in here.together.items():
        np.testing.assert_allclose(there.together[key], value, rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", SEEKING)
def test_solvers_that_seek_poses(name):
    if name == "cryodeco":
        pytest.skip("the pretended device has no sparse gradients, which its tables of latents and poses need")

    def run(on: str):
        data = "simulate:6zu5,size=24,snr=4,count=48"
        (record,) = cb.run(SEEKING[name], "identity", device=on, data=data, metrics=["psnr"], floor=False)
        assert record.status == "ok", record.reason
        return np.asarray(record.values["psnr"])

    here, there = run("cpu"), run("cuda")
    assert np.mean(np.abs(here - there) < 0.1) > 0.8
    np.testing.assert_allclose(there.mean(), here.mean(), atol=0.3)


@pytest.mark.parametrize("name", INTERPOLATING)
def test_interpolation_and_its_metrics(name):
    def run(on: str):
        metrics = ["missing_psnr", "fsc_axes", "power_ratio", "section_ratio", "fsim"]
        data = "tissue:0,depth=9,size=16"
        return scores(cb.run(INTERPOLATING[name], "slices:4", device=on, data=data, metrics=metrics, floor=False))

    here, there = run("cpu"), run("cuda")
    assert all(np.isfinite(values).all() for key, values in here.items() if "missing_psnr" in key or "fsim" in key)
    for key, values in here.items():
        np.testing.assert_allclose(there[key], values, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", DENOISING)
def test_denoisers(name, conditional_networks):
    spec = DENOISING[name].format(**conditional_networks)
    here, there = (solved(spec, "identity", on, "gaussian:0.1") for on in ("cpu", "cuda"))
    assert_same(there, here)


@pytest.mark.parametrize("noise", ["none", "gaussian:0.1"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_solvers(name, noise, network):
    spec = f"{DIFFUSION[name]},prior={network},prior.precision=float32"
    assert_same(solved(spec, "sumpool:4", "cuda", noise), solved(spec, "sumpool:4", "cpu", noise))


@cache
def cpu_answer(spec: str) -> torch.Tensor:
    return solved(spec, "sumpool:4", "cpu")


@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("name", DIFFUSION)
def test_half_precision(name, half, network):
    """bfloat16 where the card has it, else float16; never emulated bfloat16."""
    spec = f"{DIFFUSION[name]},prior={network}"
    with pretend_cuda(native_bfloat16=half is torch.bfloat16) as card:
        there = solved(spec, "sumpool:4", "cuda")
    here = cpu_answer(spec)
    differentiated = name in ("dps", "pigdm", "dmplug")
    expected = set() if half is torch.float16 and differentiated else {half}
    assert card.dtypes & {torch.bfloat16, torch.float16} == expected
    error = float((there.cpu() - here).norm() / here.norm())
    assert error < HALF[half]


# ------------------------------------------------------------------------------------------------- whole commands


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> None:
    """AlexNet's features in torch's cache, drawn at random: LPIPS is computed, nothing is downloaded."""
    from torchvision.models import AlexNet_Weights, alexnet

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = alexnet().features.state_dict(prefix="features.")
    torch.save(features, folder / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2])


def scores(records) -> dict[str, list[float]]:
    """Every score of every image, by cell and metric."""
    assert [record.reason for record in records] == [""] * len(records)
    return {f"{r.solver} on {r.operator}: {name}": values for r in records for name, values in r.values.items()}


def test_run_with_every_metric(alexnet, tmp_path):
    """The runner, every metric, the ceiling and figures, on images that are simulated on the device."""
    prior = networks.pipeline(tmp_path / "prior", networks.unet(sample_size=32), prediction_type="v_prediction")
    metrics = [name for name in sorted(own(installed(), "metrics")) if 2 in installed().make("metrics", name).dims]

    def run(on: str):
        records = cb.run(
            ["pinv", f"ddnm:2,samples=2,prior={prior},prior.precision=float32"], "sumpool:4", device=on,
            within="circle", data="simulate:3mht,snr=1,count=2,size=32", metrics=metrics, ceiling=True,
            out=tmp_path / on, save=["reconstructions", "panel"],
        )  # fmt: skip
        return scores(records)

    here, there = run("cpu"), run("cuda")
    assert here.keys() == there.keys()
    for name in ("lpips", "coverage", "diversity", "psnr_clean"):
        assert any(key.endswith(f": {name}") for key in here), name
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("halves", ["first", "average"])
def test_run_on_halves(halves):
    data = "simulate_movies:3mht,count=2,size=64,frames=4"
    here, there = (scores(cb.run("gaussian:0.6", "identity", device=on, data=data, protocol="halves", halves=halves))
                   for on in ("cpu", "cuda"))  # fmt: skip
    assert any(key.endswith(": mse_other") for key in here)
    for name, values in here.items():
        np.testing.assert_allclose(there[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_simulated_images():
    here, there = (Simulate("3mht+2nwl", size=SIZE, count=4, snr=0.1).open(on) for on in ("cpu", "cuda"))
    for index in range(4):
        image = here.read(index)
        np.testing.assert_allclose(there.read(index), image, rtol=1e-6, atol=1e-6 * image.std())
    assert there.particles(range(4)).image.device == CUDA
    assert there.rows(range(4)).equals(here.rows(range(4)))


@pytest.mark.parametrize(
    ("operator", "solver"), [("sumpool:4", "dct:steps=20"), ("ctf", "wiener"), ("fourier:0.5", "tikhonov")]
)
def test_measure_and_reconstruct(cli, tmp_path, operator, solver):
    data = "simulate:3mht,snr=1,count=3,size=16"
    for on in ("cpu", "cuda"):
        code, _, err = cli("measure", "-o", operator, "-n", "gaussian:rel=0.1", "--data", data, "--device", on,
                           "--scaling", "meanstd", "--out", f"{on}.npz")  # fmt: skip
        assert code == 0, err
        code, _, err = cli("reconstruct", f"{on}.npz", "--solver", solver, "--device", on, "--out", f"{on}.mrcs")
        assert code == 0, err
    here, there = (mrcfile.read(tmp_path / f"{on}.mrcs") for on in ("cpu", "cuda"))
    assert len(here) == 3
    np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-6 * np.abs(here).max())


def test_volumes():
    x = images().reshape(1, 1, 8, 8, 8)
    for name in ("dct", "wavelet", "tv"):
        answers = []
        for on in ("cpu", "cuda"):
            A = cb.operator("identity", shape=(8, 8, 8), device=on)
            answers.append(cb.solve(f"{name}:steps=20", A, x, noise="gaussian:0.1", sigma=0.1))
        assert_same(answers[1], answers[0])


def test_train(stack, tmp_path, monkeypatch):
    """On a card without bfloat16 in float32, with the weights of the CPU; otherwise in bfloat16, with near weights."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    losses: list[float] = []

    def reset() -> None:
        for shared in (AcceleratorState, GradientState, PartialState):
            shared._reset_state()

    monkeypatch.setattr(ddpm, "SHOWN", 2)
    monkeypatch.setattr(DiffusionModel, "generate", partialmethod(DiffusionModel.generate, steps=2))
    settings = Settings(data=(str(stack),), validation=(), objective="ddpm:tiny", steps=2, batch=2, warmup=1, lr=1e-3,
                        preload="ram")  # fmt: skip

    class Losses(loop.TrainingObserver):
        def stepped(self, step, loss):
            losses.append(loss)

    def trained(name: str, on: torch.device, native_bfloat16: bool = True) -> torch.Tensor:
        losses.clear()
        reset()
        with pretend_cuda(native_bfloat16=native_bfloat16) as card, sdpa_kernel(SDPBackend.MATH):
            training = loop.Training(
                settings, [File(str(stack)).open()], [], tmp_path / name, device=on, observer=Losses()
            )
            assert training.run()
        state = State.load(tmp_path / name)
        assert state is not None
        assert (torch.bfloat16 in card.dtypes) == (on == CUDA and native_bfloat16)
        return torch.cat([weights.flatten() for weights in state.averaged.values()])

    here, expected = trained("cpu", CPU), list(losses)
    for native_bfloat16, tolerance in ((False, 1e-6), (True, 1e-2)):
        there = trained(f"cuda {native_bfloat16}", CUDA, native_bfloat16)
        assert losses == pytest.approx(expected, rel=tolerance)
        # Adam divides by the size of a gradient, and thus amplifies rounding where that is nearly zero
        assert (there - here).norm() < 10 * tolerance * here.norm()
    reset()
