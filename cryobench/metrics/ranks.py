"""Ranks of the truth among the draws of a sampler, which are exchangeable with it if the sampler is exact.

If the truth and K draws are exchangeable, the number r of draws whose statistic is smaller than the truth's is uniform
on 0 .. K. A set of nominal coverage q then contains the truth if r < q (K + 1), and if q (K + 1) is no integer, with
its fraction as probability at the last rank: the mean of

    min(max(q (K + 1) - r, 0), 1)

is q for every K. (Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration".)
"""

from __future__ import annotations

import torch

NEEDS_DRAWS = "it needs draws: give a sampler samples=2 or more"


def rank(truth: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """r, the number of draws [B, K] whose statistic is smaller than the truth's [B], ties as halves; float64 [B]."""
    return (draws < truth[:, None]).double().sum(dim=1) + (draws == truth[:, None]).double().sum(dim=1) / 2


def covered(r: torch.Tensor, K: int, level: float) -> torch.Tensor:
    """1 where a set of this nominal coverage contains the truth, else 0, and the probability in between; [B]."""
    return (level * (K + 1) - r).clamp(0, 1)
