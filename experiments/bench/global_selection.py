"""What choosing the largest of many weights costs: global magnitude selection beside NumPy's.

    python -m experiments.bench.global_selection

takes about a minute on 2 CPU cores with the default 5 rounds over 100 million float32 weights. The
goals there are 2 seconds and 1.25 times the weights' bytes for weights, masks and all that is
temporary. NumPy partitions a flat copy for a threshold, and neither breaks ties nor writes masks.

On an AMD EPYC (Zen 4) with 2 cores it took 0.34 s, 0.59 of NumPy's time in the same run (median of
5 rounds), and 2.04 s with 8 to 9 processes waiting for those cores. XLA plans 1.250 times the
weights' bytes, and a process peaked at 1.28 times.
"""

import concurrent.futures
import math
import multiprocessing
import pathlib
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from compressjax.pruning.selection import keep_largest, ranks_of
from experiments.bench import options, timing

_WEIGHTS = flags.DEFINE_integer("weights", 100_000_000, "About how many weights.", lower_bound=1)
_KEPT = flags.DEFINE_float("kept", 0.2, "Fraction of weights that are kept.", 0.0, 1.0)


def shapes(weights: int) -> list[tuple[int, ...]]:
    """Lists leaves as networks have them.

    Args:
      weights: about how many in all.

    Returns:
      The shapes of an embedding, dense and convolution kernels and one vector.

    Example:
      >>> sum(math.prod(shape) for shape in shapes(100_000_000)) / 1e8
      1.00016128
    """

    def wide(share: float, *rest: int) -> int:
        return max(1, round(share * weights / math.prod(rest)))

    return [
        (wide(0.3, 1024), 1024),
        *[(4096, wide(0.12, 4096))] * 4,
        *[(3, 3, 512, wide(0.1, 3, 3, 512))] * 2,
        (3, 3, 64, wide(0.01, 3, 3, 64)),
        (wide(0.01),),
    ]


def select(leaves: list[jax.Array], count: jax.Array) -> list[jax.Array]:
    """Masks the `count` weights that are largest in absolute value.

    Args:
      leaves: the weights.
      count: int32 [].

    Returns:
      Boolean masks of the same shapes.

    Example:
      >>> select([jnp.array([1.0, -2.0])], jnp.int32(1))
      [Array([False,  True], dtype=bool)]
    """
    return keep_largest(
        leaves, count, lambda weights: [ranks_of(jnp.abs(leaf)) for leaf in weights]
    )


def draw(weights: int) -> list[jax.Array]:
    """Draws normal weights from a fixed seed.

    Args:
      weights: about how many.

    Returns:
      float32 arrays of `shapes(weights)`.

    Example:
      >>> draw(1)[-1].shape
      (1,)
    """
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s, dtype=np.float32)) for s in shapes(weights)]


def _compiled(weights: int) -> Any:
    leaves = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(weights)]
    return jax.jit(select).lower(leaves, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def peak_over_weights(weights: int, kept: float) -> float:
    """Measures the memory of this process while it draws weights and selects; for a fresh process.

    Args:
      weights: about how many.
      kept: fraction of them that is kept.

    Returns:
      What the process' peak adds to its memory before, over the weights' bytes.
    """
    program = _compiled(weights)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    leaves = draw(weights)
    size = sum(leaf.size for leaf in leaves)
    jax.block_until_ready(program(leaves, jnp.int32(kept * size)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / (4 * size)


def measure(*, weights: int, kept: float, rounds: int, clock: timing.Clock) -> dict[str, Any]:
    """Times the selection beside NumPy's partition, and counts its memory.

    Args:
      weights: about how many.
      kept: fraction of them that is kept.
      rounds: times each is measured.
      clock: what is measured.

    Returns:
      The timings by program, weights, the masks' count of kept ones less the count asked for, and
      the memory over the weights' bytes: what XLA plans, and the peak of a process of its own
      (None where the system does not tell).
    """
    peak = None
    if sys.platform == "linux":
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as fresh:
            peak = fresh.submit(peak_over_weights, weights, kept).result()
    leaves = draw(weights)
    size = sum(leaf.size for leaf in leaves)
    count = jnp.int32(kept * size)
    program = _compiled(weights)
    plan = program.memory_analysis()
    planned = (
        plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    ) / (4 * size)
    surplus = sum(int(mask.sum()) for mask in program(leaves, count)) - int(count)

    def partition() -> np.ndarray:
        flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
        np.abs(flat, out=flat)
        flat.partition(max(0, size - int(count) - 1))
        return flat

    programs: dict[str, Callable[[], Any]] = {
        "NumPy's partition": partition,
        "keep_largest": lambda: program(leaves, count),
    }
    timings = timing.interleaved(programs, rounds=rounds, warmup=1, clock=clock)
    return {
        "timings": timings,
        "clock": clock.value,
        "weights": size,
        "surplus": surplus,
        "planned_over_weights": planned,
        "peak_over_weights": peak,
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rounds = options.ROUNDS.value or 5
    clock = options.CLOCK.value
    result = measure(weights=_WEIGHTS.value, kept=_KEPT.value, rounds=rounds, clock=clock)
    if options.JSON.value:
        print(timing.document(result))
        return
    load = timing.environment()["load"]
    print(
        f"{result['weights']} float32 weights, {_KEPT.value} kept, {rounds} rounds, "
        f"{clock.value} time, load {load}"
    )
    print(timing.table(result["timings"]))
    print(f"kept beyond the count: {result['surplus']}")
    print(f"memory XLA plans, over the weights': {result['planned_over_weights']:.4f}")
    if result["peak_over_weights"] is not None:
        print(f"peak of a process, over the weights': {result['peak_over_weights']:.3f}")


if __name__ == "__main__":
    app.run(main)
