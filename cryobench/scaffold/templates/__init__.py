"""Templates of `cryobench new`, one for each kind: working components with the name Example."""
