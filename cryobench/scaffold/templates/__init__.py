"""What `cryobench new` starts from, a kind each: working components of the name Example."""
