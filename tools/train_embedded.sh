#!/usr/bin/env bash
# Trains the packaged prior, only on packaged structures of the split `train`: tools/train_embedded.sh FOLDER [option ...]
# It can be stopped at any time; the same command continues. `tools/pack_prior.py FOLDER` copies the result into the package.
set -euo pipefail
sharp="b_factor=10,envelope=10"  # as much detail per pixel as a large particle, which has large pixels
many="count=100000000,split=train"
out=$1 && shift
exec cryobench train --out "$out" --network small --batch 16 --steps 20000 --lr 4e-4 --target clean --levels mixed \
  --data "simulate:train,snr=2,$many" \
  --data "simulate:train,snr=2,$sharp,$many" \
  --data "simulate:train,snr=2,$sharp,pixel_size=2.2,$many" \
  --data "simulate:3o21,snr=2,chains=\"A,B\",$sharp,$many" \
  --data "simulate:train,snr=8,$sharp,$many" \
  --data "simulate:train,snr=0.5,$many" \
  --data "simulate:train,snr=none,$sharp,$many" \
  --data "simulate:3o21+1r19,snr=0.1,chains=A,$sharp,$many" \
  --validation "simulate:val,snr=2,split=val" \
  --validation "simulate:val,snr=2,$sharp,split=val" \
  --validation "simulate:val,snr=none,$sharp,split=val" \
  --validation "simulate:val,snr=0.5,split=val" "$@"
