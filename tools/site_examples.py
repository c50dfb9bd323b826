"""What each component of the reference is shown on: specs as on the command line, small enough for seconds.

A component without an example has a reason in `WITHOUT`, or is of a kind without figures.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 64
"""Side of the images."""
PARTICLE = f"simulate:6zu5,size={SIZE},count=1,snr=10"
NOISY_PARTICLE = f"simulate:6zu5,size={SIZE},count=1,snr=0.5"
MAP = "structure:6zu5,size=32,pixel_size=14.5"
TISSUE = "tissue:0,depth=37,size=64"
"""Its central section, 18, is halfway between those that `slices:4` measures."""
PARTICLES = "heterogeneous:motion,snr=0.5,size=32,count=120"
MICROGRAPH = "simulate_movies:6zu5,size=256,count=2"


@dataclass(frozen=True)
class Run:
    """A run of a solver on one image or, with `images`, on the first of a stack.

    note: of the caption.
    """

    solver: str
    operator: str = "sumpool:4,count=4"
    noise: str = "none"
    data: str = PARTICLE
    scaling: str = "minmax"
    images: int = 1
    note: str = ""

    def command(self) -> str:
        """The run on the command line."""
        options = [("-s", self.solver), ("-o", self.operator), ("-n", self.noise), ("-d", self.data)]
        options += [("--images", f"0:{self.images}"), ("--scaling", self.scaling), ("--save", "figures")]
        left_out = {("-n", "none"), ("--scaling", "minmax")}
        return " ".join(
            ["cryobench run", *(f"{name} {value}" for name, value in options if (name, value) not in left_out)]
        )


_FEWER = "Fewer steps than the default."
_DENOISING = ("identity", "gaussian:0.3")
_VIEWS = ("ctf:15000@project:count=100", "gaussian:rel=1", MAP)
_OWN = {"operator": "identity", "noise": "own", "data": PARTICLES, "scaling": "relion", "images": 120}

SOLVERS = {
    "cg": Run("cg", *_VIEWS),
    "consensus": Run("consensus", **_OWN),
    "covariance": Run("covariance", **_OWN),
    "cryosense": Run("cryosense:steps=100", note=_FEWER),
    "curve": Run("curve", **_OWN),
    "daps": Run("daps:25", note=_FEWER),
    "dct": Run("dct"),
    "ddnm": Run("ddnm"),
    "diffpir": Run("diffpir"),
    "direct": Run("direct", data="simulate:6zu5,size=32,snr=0.5,count=120", scaling="relion", images=120),
    "dps": Run("dps:steps=100", note=_FEWER),
    "exact": Run("exact", "sumpool:4,count=4", "gaussian:0.05", "gaussian_field:32,number=1", "none"),
    "flow": Run("flow", "slices:4", data=TISSUE),
    "fourier_inversion": Run("fourier_inversion", *_VIEWS),
    "gaussian": Run("gaussian", *_DENOISING),
    "hqs": Run("hqs"),
    "hypervolume": Run("hypervolume:epochs=2", **_OWN, note=_FEWER),
    "interpolate": Run("interpolate:cubic", "decimate:3", note="The floor is `interpolate:linear`."),
    "n2n": Run("n2n", "identity", "own", MICROGRAPH),
    "pigdm": Run("pigdm:50", note=_FEWER),
    "pinv": Run("pinv"),
    "sparse": Run("sparse:tv,prior.kind=anisotropic"),
    "tikhonov": Run("tikhonov", "sumpool:4,count=16", "gaussian:rel=0.1"),
    "tiled": Run("tiled:tv,tile=32,overlap=16"),
    "tv": Run("tv"),
    "wavelet": Run("wavelet"),
    "wiener": Run("wiener", "ctf:15000", "gaussian:0.1"),
}

OPERATORS = {
    "bin": ("bin:4", PARTICLE),
    "blur": ("blur:2", PARTICLE),
    "composed": ("sumpool:4,count=4@ctf:15000", PARTICLE),
    "ctf": ("ctf:15000", PARTICLE),
    "decimate": ("decimate:4", PARTICLE),
    "fourier": ("fourier:0.25", PARTICLE),
    "identity": ("identity", PARTICLE),
    "project": ("project:count=16", MAP),
    "slices": ("slices:4,thickness=2", TISSUE),
    "sumpool": ("sumpool:4,count=4", PARTICLE),
}
"""The spec of the operator and the data."""

NOISES = {"gaussian": "gaussian:0.3", "none": "none", "own": "own", "poisson": "poisson:10"}

DENSITY = 0.25
"""`rho` of the Fourier masks."""

DEVIATION = 0.3
"""Of the noise that priors remove from images in [-1, 1]."""
SPECTRUM = Run(
    "wiener:spectrum=cross_spectrum,spectrum.pairs=simulate_movies:6zu5,spectrum.pairs.size=256,spectrum.pairs.count=2,"
    "spectrum.images=1",
    "identity", "own", MICROGRAPH, "none",
)  # fmt: skip
"""The run that shows `cross_spectrum`."""

SOURCES = {
    "demo": "demo",
    "gaussian_field": "gaussian_field",
    "gaussian_mixture": "gaussian_mixture",
    "heterogeneous": f"heterogeneous:mixture,snr=1,size={SIZE},count=4",
    "simulate": f"simulate:6zu5,snr=0.5,size={SIZE},count=4",
    "simulate_movies": MICROGRAPH,
    "sparse_blocks": "sparse_blocks",
    "structure": "structure:6zu5,size=64,pixel_size=7",
    "tissue": "tissue:0,size=64,count=4",
}

EXAMPLES = {"operators": OPERATORS, "noises": NOISES, "solvers": SOLVERS, "sources": SOURCES}
"""By kind. Masks and priors are all shown alike."""

_OF_FILES = "It reads your files: `cryobench data info SPEC --sheet sheet.png` draws the images."
_TRAINED = "It needs a network that you trained; [EMDiffuse](../../emdiffuse.md) has figures of results."
WITHOUT = {
    ("solvers", "abinitio"): "It takes minutes: [Without poses](../../abinitio.md) has what it finds.",
    ("solvers", "cryodeco"): "It takes minutes: [Without poses](../../abinitio.md) has what it finds.",
    (
        "solvers",
        "dmplug",
    ): "It needs thousands of steps, which take minutes: the [gallery](../../gallery/index.md) has its scores.",
    ("solvers", "emdiffuse"): _TRAINED,
    ("solvers", "regression"): _TRAINED,
    ("priors", "conditional"): _TRAINED,
    **{("sources", name): _OF_FILES for name in ("em_pairs", "file", "hub", "movies", "pairs", "sums", "volume")},
}
"""Why a component has no figure, as Markdown."""
