"""What an observer costs in calibration: one update with a batch, and finding the range at the end.

    python -m experiments.bench.observers

takes about half a minute on 2 CPU cores. Updates are compared with that of `min_max`, which reads
the values once; those that count all values are bound by one addition to memory for each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags

from compressjax import quant
from experiments.bench import options, timing

_SHAPE = flags.DEFINE_list("shape", ["32", "56", "56", "64"], "Shape of a batch of one tensor.")
_SAMPLES = flags.DEFINE_integer(
    "samples", 2**16, "Values counted in a batch by the observer that samples.", lower_bound=1
)


def measure(*, shape: Sequence[int], samples: int, rounds: int) -> dict[str, Any]:
    """Times the updates of all observers side by side, and then what `find` takes.

    Args:
      shape: of the values, half of which are zero.
      samples: values counted in a batch by the observer that samples.
      rounds: times each program is measured.

    Returns:
      The timings of `update` and of `find`, by observer.
    """
    observers = {
        "min_max": quant.min_max(),
        "min_max again": quant.min_max(),
        "moving_average": quant.moving_average(),
        "percentile": quant.percentile(),
        "mse": quant.mse(),
        "entropy": quant.entropy(),
        "entropy, sampled": quant.entropy(samples=samples),
        "min_max, per channel": quant.per_channel(quant.min_max(), shape[-1]),
        "entropy, per channel": quant.per_channel(quant.entropy(), shape[-1]),
    }
    values = jax.nn.relu(jax.random.normal(jax.random.key(0), shape))

    def updating(observer: quant.Observer) -> Callable[[], Any]:
        update = jax.jit(observer.update)
        state = observer.init()
        return lambda: update(state, values)

    def finding(observer: quant.Observer) -> Callable[[], Any]:
        find = jax.jit(observer.find)
        state = jax.jit(observer.update)(observer.init(), values)
        return lambda: find(state)

    whole = {name: observer for name, observer in observers.items() if "," not in name}
    return {
        "update": timing.interleaved(
            {name: updating(observer) for name, observer in observers.items()}, rounds=rounds
        ),
        "find": timing.interleaved(
            {name: finding(observer) for name, observer in whole.items()}, rounds=rounds
        ),
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rounds = options.ROUNDS.value or 10
    shape = tuple(map(int, _SHAPE.value))
    result = measure(shape=shape, samples=_SAMPLES.value, rounds=rounds)
    if options.JSON.value:
        print(timing.document(result))
        return
    for part, timings in result.items():
        print(f"{part}, float32 {list(shape)}, {rounds} rounds, wall time")
        print(timing.table(timings))


if __name__ == "__main__":
    app.run(main)
