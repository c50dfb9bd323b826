#!/usr/bin/env bash
# Trains the packaged denoising network on simulated movies of structures of the split `train`: tools/train_n2n.sh FOLDER
# [option ...]. Ten minutes of a processor core. It can be stopped at any time; the same command continues.
# `tools/pack_n2n.py FOLDER` copies the result into the package.
set -euo pipefail
out=$1 && shift
exec cryobench train --out "$out" --objective noise2noise --network tiny --patch 192 --batch 8 --steps 1500 \
  --lr 2e-3 --warmup 50 --ema 0.995 --preload ram --validate-every 250 --checkpoint-every 250 --sample-every 1500 \
  --data "simulate_movies:train,split=train,count=24" \
  --data "simulate_movies:train,split=train,count=8,dose=0.8" \
  --data "simulate_movies:train,split=train,count=8,pixel_size=3.2" \
  --validation "simulate_movies:val,split=val,count=4" "$@"
