"""Which layers bear pruning: the accuracy of a trained network with one kernel pruned at a time.

    python -m experiments.bench.sensitivity --config=experiments/configs/cifar10.py \\
        --workdir=runs/cifar10 --plot=sensitivity.png

loads the first stage of the config, or trains it, folds batch norm, and counts right answers on the
first 2,000 test images (`--tested`) for every kernel and every sparsity of `--levels`, smallest
weights first and with no training after. Kernels stand in the order in which they run.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import app, flags

import compressjax as cj
from compressjax import _atomic, pruning
from compressjax.report import plots, table
from experiments import networks, run
from experiments.bench import options, timing, trained

_LEVELS = flags.DEFINE_list(
    "levels", ["0.3", "0.5", "0.7", "0.8", "0.9", "0.95"], "Sparsities, rising."
)
_PLOT = flags.DEFINE_string("plot", None, "Where a PNG of the scan goes.")


def accuracy(
    apply: networks.Apply, batches: Sequence[jax.Array], labels: jax.Array
) -> Callable[[Any], float]:
    """Makes the judge of a network.

    Args:
      apply: `(variables, x [B, H, W, C]) -> logits [B, K]`.
      batches: prepared images.
      labels: of all of them, [N].

    Returns:
      `variables -> accuracy`, compiled once for all variables.
    """
    answers = jax.jit(lambda variables, x: jnp.argmax(apply(variables, x), axis=-1))

    def judge(variables: Any) -> float:
        found = jnp.concatenate([answers(variables, x) for x in batches])
        return float(jnp.mean(found == labels))

    return judge


def scan(network: trained.Trained, levels: Sequence[float], tested: int) -> pruning.Sensitivity:
    """Scans every kernel of a network.

    Args:
      network: trained, batch norm folded.
      levels: sparsities, rising.
      tested: how many images of the test split count, from the first.

    Returns:
      The scan, its kernels in the order in which they run.
    """
    data = network.data
    batches = trained.batches(data, data.test_images, size=500, count=tested)
    judge = accuracy(network.apply, batches, data.test_labels[:tested])
    found = pruning.sensitivity(judge, network.variables, levels)
    ops = cj.trace(network.apply, network.variables, data.example).ops
    order = [op.name for op in ops if op.name in found.scores]
    return found._replace(
        scores={path: found.scores[path] for path in dict.fromkeys([*order, *found.scores])}
    )


def main(argv: Sequence[str]) -> None:
    """Scans, prints and draws."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    network = trained.load(run.CONFIG.value, run.WORKDIR.value)
    tested = options.TESTED.value if flags.FLAGS["tested"].present else 2000
    started = time.monotonic()
    found = scan(network, [float(level) for level in _LEVELS.value], tested)
    seconds = time.monotonic() - started
    if _PLOT.value is not None:
        _atomic.write_bytes(_PLOT.value, plots.sensitivity(found))
    if options.JSON.value:
        scores = {path: values.tolist() for path, values in found.scores.items()}
        print(
            timing.document(
                {
                    "levels": found.levels.tolist(),
                    "dense": found.dense,
                    "scores": scores,
                    "tested": tested,
                    "seconds": seconds,
                }
            )
        )
        return
    console = rich.console.Console(width=120)
    console.print(table.sensitivity(found))
    console.print(f"{tested:,} test images, {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
