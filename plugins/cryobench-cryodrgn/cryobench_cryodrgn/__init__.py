"""cryoDRGN in cryobench: the solver `cryodrgn` runs `cryodrgn train_vae` and `cryodrgn eval_vol`."""
