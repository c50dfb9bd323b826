"""Time one data-consistency gradient, A^T (A x - y), of `sumpool`, compared with a plain implementation.

The plain implementation follows the public CryoSENSE code: multiply every image by every mask ([B M, 1, H, W] in
memory), average-pool, sum of squares, autograd. Ours is a batched product with the Gram matrices of the blocks,
B_p^T B_p, or with B_p and its transpose, whichever is cheaper. The relative difference of the two is printed.

    uv run python benchmarks/gradient.py

Times are medians over repeats within one process, alternating between the methods; compare ratios, not seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from cryobench.operators.masks import RandomBinary
from cryobench.operators.sumpool import SumPoolOperator

SIZE = 128
CASES = ((2, 4), (4, 16), (8, 64), (16, 64), (16, 256), (32, 256), (32, 1024))


def plain_gradient(x: torch.Tensor, y: torch.Tensor, masks: torch.Tensor, block: int) -> torch.Tensor:
    """The gradient of 1/2 ||A x - y||^2 by broadcasting, pooling and autograd."""
    x = x.detach().requires_grad_()
    pooled = torch.nn.functional.avg_pool2d(masks * x, block) * block**2
    (gradient,) = torch.autograd.grad(0.5 * (pooled - y).square().sum(), x)
    return gradient


def seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(block: int, count: int, batch: int, repeats: int, device: torch.device) -> tuple[float, float, float]:
    """Median seconds of the plain implementation and of ours, and the relative difference of the gradients."""
    masks = RandomBinary().draw(count, (SIZE, SIZE), 0).to(device)
    operator = SumPoolOperator(masks, block, dtype=torch.float32, device=device)
    draw = torch.Generator().manual_seed(0)
    x, truth = (torch.rand((batch, 1, SIZE, SIZE), generator=draw).mul(2).sub(1).to(device) for _ in range(2))
    y = operator.A(truth)
    back_projection = operator.A_adjoint(y)  # computed once per problem
    methods = (
        lambda: plain_gradient(x, y, masks, block),
        lambda: operator.A_adjoint_A(x) - back_projection,
    )
    plain, ours = (method() for method in methods)  # also the warm-up, which computes the Gram matrices
    difference = float((ours - plain).norm() / plain.norm())
    rounds = [[seconds(method, device) for method in methods] for _ in range(repeats)]
    return statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds), difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {arguments.images} images")
    print("|  K |    M | plain, s | ours, s | ratio | relative difference |")
    print("|---:|-----:|---------:|--------:|------:|--------------------:|")
    for block, count in CASES:
        plain, ours, difference = compare(block, count, arguments.images, arguments.repeats, device)
        print(f"| {block:2d} | {count:4d} | {plain:8.4f} | {ours:7.5f} | {plain / ours:5.0f} | {difference:19.1e} |")


if __name__ == "__main__":
    main()
