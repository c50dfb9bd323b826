"""Tries the same number of settings of every solver with a diffusion prior, on validation images only.

    python tools/tune_diffusion.py --out runs/tune
    python tools/tune_diffusion.py --out runs/tune --deepinv        # solvers of plugins/cryobench-deepinv, if installed

Eight settings each, that of the paper first, on two particles of the validation structure (snr 2; neither they nor
their structure are used in training or in the benchmark), sum pooling by 4 and by 16 at C = 4, exact measurements. The
best has the highest PSNR to the measured image, averaged over both. Settings saved in --out are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cryobench as cb
from cryobench.leaderboard.statistics.bootstrap import mean

DATA = "simulate:val,snr=2,split=val,seed=1"
OPERATORS = ("sumpool:4,count=4", "sumpool:16,count=64")
LAMS = ("3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "0.01", "0.03", "0.1")


def also_with_20_steps(*settings: str) -> tuple[str, ...]:
    """The settings, followed by each of them with 20 steps."""
    return *settings, *(f"steps=20,{setting}".rstrip(",") for setting in settings)


SETTINGS = {
    "hqs": ("", "start=0.2", "start=1", "end=0.05", "end=0.2", "start=0.2,end=0.05", "first=10,start=10", "steps=10"),
    "ddnm": also_with_20_steps("", "eta=0", "eta=0.5", "eta=1"),
    "diffpir": also_with_20_steps("", "zeta=0", "zeta=0.6", "zeta=1"),
    "pigdm": also_with_20_steps("", "eta=0", "eta=0.5", "eta=0.85"),
    "daps": ("", "end=0.05", "end=0.3", "start=10", "start=10,end=0.3", "spread=0.3", "spread=1",
             "steps=10,ode_steps=2"),
    "dps": ("", "zeta=0.3", "zeta=3", "zeta=10", "steps=100", "steps=100,zeta=0.3", "steps=100,zeta=3",
            "steps=100,zeta=10"),
    "dmplug": ("steps=1000", "steps=300", "steps=300,lr=0.03", "steps=300,lr=0.1", "steps=300,lr=0.03,ddim_steps=2",
               "steps=100,lr=0.03,window=30", "steps=100,lr=0.1,window=30", "steps=100,lr=0.1,window=30,ddim_steps=2"),
    "cryosense": ("", "zeta=0.3", "zeta=3", "zeta=10", "zeta=30", "beta=0.5", "beta=0.5,zeta=3", "beta=0.5,zeta=10"),
}  # fmt: skip
DEEPINV = {
    "deepinv_dpir": ("", "gain=3", "gain=10", "gain=30", "gain=100", "gain=300", "gain=10,least=0.05",
                     "gain=100,least=0.05"),
    "deepinv_red": ("", "lam=0.1", "sigma=0.1", "sigma=0.1,lam=0.1", "sigma=0.2", "sigma=0.2,lam=0.1", "sigma=0.02",
                    "sigma=0.02,lam=0.1"),
    "deepinv_ddrm": also_with_20_steps("", "eta=0", "eta=0.5", "eta=1"),
    "deepinv_diffpir": also_with_20_steps("", "zeta=0", "zeta=0.6", "zeta=1"),
    "deepinv_dps": ("", "weight=10", "weight=30", "weight=300", "weight=1000", "weight=3000",
                    "guidance=annealed,weight=1", "guidance=annealed,weight=10"),
    "deepinv_tv_pgd": tuple(f"inner=20,lam={lam}" for lam in LAMS),
    "deepinv_wavelet_pgd": tuple(f"lam={lam}" for lam in LAMS),
}  # fmt: skip
"""deepinv's solvers, including those without a network."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = SETTINGS | DEEPINV
    parser.add_argument("--solver", action="append", choices=known, help="can be repeated; default: all of ours")
    parser.add_argument("--deepinv", action="store_true", help="all of deepinv's instead")
    parser.add_argument("--prior", help="a prior; default: embedded")
    parser.add_argument("--images", default="0:2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    given = parser.parse_args()
    print("| solver | NFE | PSNR, K=4 | K=16 | mean |\n|---|---|---|---|---|")
    for solver in given.solver or (DEEPINV if given.deepinv else SETTINGS):
        scores: dict[str, float] = {}
        for setting in known[solver]:
            chosen = ",".join(filter(None, (setting, f"prior={given.prior}" if given.prior else "")))
            spec = f"{solver}:{chosen}" if chosen else solver
            records = cb.run(spec, OPERATORS, data=DATA, images=given.images, metrics="psnr", floor=False,
                             device=given.device, out=given.out)  # fmt: skip
            found = [mean(record.values.get("psnr", [])) for record in records]
            if None in found:
                print(f"| {spec} | | {records[0].reason} | {records[-1].reason} | |", flush=True)
                continue
            scores[spec] = sum(filter(None, found)) / len(found)
            nfe = records[0].counters.get("nfe", 0)
            print(f"| {spec} | {nfe:.0f} | {found[0]:.2f} | {found[1]:.2f} | {scores[spec]:.2f} |", flush=True)
        best = max(scores, key=lambda spec: scores[spec])
        print(f"| best of {solver}: `{best}` | | | | **{scores[best]:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
