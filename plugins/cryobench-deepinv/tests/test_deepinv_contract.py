"""Every component satisfies cryobench's contract."""

from cryobench.testing import operator_contract, prior_contract, solver_contract

MEDIAN, WAVELET = (f"prior=deepinv_denoiser,prior.source={name}" for name in ("median", "wavelet"))

test_blur = operator_contract("deepinv_blur")
test_downsampling = operator_contract("deepinv_downsampling")
test_inpainting = operator_contract("deepinv_inpainting")
test_median = prior_contract("deepinv_denoiser:median")
test_wavelet = prior_contract("deepinv_denoiser:wavelet")
test_dps = solver_contract(f"deepinv_dps:{WAVELET},steps=12")
test_ddrm = solver_contract(f"deepinv_ddrm:{MEDIAN},steps=20")
test_diffpir = solver_contract(f"deepinv_diffpir:{MEDIAN},steps=6")
test_dpir = solver_contract(f"deepinv_dpir:{MEDIAN}")
test_red = solver_contract(f"deepinv_red:{MEDIAN},steps=4")
test_tv_pgd = solver_contract("deepinv_tv_pgd:4,inner=10")
test_wavelet_pgd = solver_contract("deepinv_wavelet_pgd:4")
