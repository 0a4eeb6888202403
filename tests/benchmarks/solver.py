"""What pruning a layer costs, against what the arithmetic says.

    python tests/benchmarks/solver.py --tile 4x1 --sparsity 0.6

A row of tiles is a Cholesky factorisation that stops early, of Hinv (K inputs, K x K), and a
least-squares fit on what is left: 2/3 K^3 (1 - (1 - s)^3) and 2/3 ((1 - s) K)^3 operations,
2/3 K^3 together at any sparsity s. The inverse before it, of all rows together, takes 2 K^3. So
a layer costs 2/3 K^3 (rows of tiles + 3): cubic in its inputs, linear in its outputs. A line a
layer: seconds, GFLOP/s of that count, and both exponents, fitted to the times.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from tilewright.layout import Tile
from tilewright.passes.prune import obs

INPUTS = (256, 512, 1024, 1536, 3072)
OUTPUTS = (64, 128, 256, 512)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tile", type=Tile.parse, default=Tile(4))
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    middle = INPUTS[len(INPUTS) // 2]
    # Wide layers fill the cores; few rows of tiles would measure their number.
    wide = [(given.tile.outputs * 32, inputs) for inputs in INPUTS]
    high = [(outputs, middle) for outputs in OUTPUTS]
    print("| outputs | inputs | seconds | GFLOP/s |\n|---|---|---|---|")
    for name, layers, axis in (("inputs", wide, 1), ("outputs", high, 0)):
        times = []
        for shape in layers:
            times.append(min(seconds(shape, given) for _ in range(given.rounds)))
            work = 2 / 3 * shape[1] ** 3 * (given.tile.grid(shape)[0] + 3)
            print(
                f"| {shape[0]} | {shape[1]} | {times[-1]:.3f} | {work / times[-1] / 1e9:.1f} |"
            )
        sizes = np.log([shape[axis] for shape in layers])
        slope = np.polyfit(sizes[-3:], np.log(times[-3:]), 1)[0]
        print(f"the three largest grow with {name} to the power of {slope:.2f}\n")


def seconds(shape: tuple[int, int], given: argparse.Namespace) -> float:
    """Return how long a layer of correlated inputs takes."""
    outputs, inputs = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(inputs, 4 * inputs)) + rng.normal(size=4 * inputs)
    weights = rng.normal(size=(outputs, inputs))
    hessian = obs.damped(x @ x.T, 0.05)
    start = time.perf_counter()
    obs.prune(weights, hessian, given.tile, given.sparsity)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
