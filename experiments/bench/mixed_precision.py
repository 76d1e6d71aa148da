"""What mixed precision buys: accuracy at a size, with bits by sensitivity or the same everywhere.

    python -m experiments.bench.mixed_precision --config=experiments/configs/cifar10.py \
        --workdir=runs/cifar10

trains the first stage of the config, or loads it where that is done, folds batch norm, measures
each layer's sensitivity in three ways on images it was trained on, and prints how every allocation
does on the test set. Weights are quantized and nothing else, with no training after; sizes are
those of the kernels, and bits stand in the order in which the layers run.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import compressjax as cj
from compressjax import tree
from compressjax.quant import Grid, bits
from experiments import networks, run, stages
from experiments.bench import options
from experiments.pipeline import run_stages

_EXAMPLES = flags.DEFINE_integer(
    "examples", 512, "Images that sensitivities are measured on.", lower_bound=1
)
_PROBES = flags.DEFINE_integer("probes", 8, "Random probes for each 128 images.", lower_bound=2)
_WIDTHS = flags.DEFINE_list("widths", ["2", "3", "4", "5", "6", "8"], "Bits a layer may have.")
_BUDGETS = flags.DEFINE_list(
    "budgets", ["2.5", "3", "3.5", "4", "6", "8"], "Sizes, in bits a weight on average."
)
_BATCH = 128


class Score(NamedTuple):
    """How a network does.

    Attributes:
      divergence: mean KL divergence of its predictions from the float network's, in nats.
      accuracy: share of the images that it is right about.
    """

    divergence: float
    accuracy: float


class Row(NamedTuple):
    """One allocation.

    Attributes:
      name: what chose it.
      budget: bits a weight that it was allowed.
      size: bytes of the kernels.
      score: how it does on the test set.
      allocation: the bits of each layer.
    """

    name: str
    budget: float
    size: float
    score: Score
    allocation: bits.Allocation


def judge(
    apply: networks.Apply, variables: Any, data: networks.Data, examples: int
) -> Callable[[Any], Score]:
    """Makes the judge of a trained network.

    Args:
      apply: `(variables, x) -> logits`.
      variables: the float network's.
      data: both splits.
      examples: how many images of the test split count, from the first.

    Returns:
      `score(variables) -> Score`, compiled once for all variables.
    """
    batches = list(_batches(data, data.test_images[:examples], data.test_labels[:examples]))
    logits = jax.jit(apply)
    reference = [jax.nn.log_softmax(logits(variables, x)) for x, _ in batches]

    @jax.jit
    def sums(variables: Any, log_p: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        log_q = jax.nn.log_softmax(apply(variables, x))
        right = jnp.argmax(log_q, axis=-1) == labels
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q)), jnp.sum(right)

    def score(variables: Any) -> Score:
        parts = [
            sums(variables, log_p, *batch) for log_p, batch in zip(reference, batches, strict=True)
        ]
        total = sum(labels.size for _, labels in batches)
        return Score(*(float(sum(part)) / total for part in zip(*parts, strict=True)))

    return score


def _batches(
    data: networks.Data, images: jax.Array, labels: jax.Array
) -> Iterator[tuple[jax.Array, jax.Array]]:
    prepare = jax.jit(data.prepare)
    for start in range(0, images.shape[0], _BATCH):
        yield prepare(images[start : start + _BATCH]), labels[start : start + _BATCH]


def sensitivities(
    apply: networks.Apply,
    variables: Any,
    data: networks.Data,
    grids: Mapping[int, Grid],
    *,
    examples: int,
    probes: int,
) -> Iterator[tuple[str, bits.Table]]:
    """Measures every layer's sensitivity in three ways.

    Args:
      apply: `(variables, x) -> logits`.
      variables: of a trained network.
      data: both splits; the first images of the training split are looked at.
      grids: the grid for each number of bits.
      examples: how many images.
      probes: random probes a batch, for the Hessian.

    Yields:
      The name of each way and its table.
    """

    def loss(variables: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = apply(variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    batches = list(_batches(data, data.train_images[:examples], data.train_labels[:examples]))
    rng = jax.random.key(0)
    yield "Hessian trace", bits.hessian(loss, variables, batches, grids, rng, probes=probes)
    yield "divergence", bits.divergence(apply, variables, [x for x, _ in batches], grids)
    yield "accuracy", bits.accuracy(apply, variables, batches, grids)


def quantized(variables: Any, allocation: bits.Allocation, grids: Mapping[int, Grid]) -> Any:
    """Puts every kernel on the grid that an allocation gives it.

    Args:
      variables: the float network's.
      allocation: the bits of each kernel.
      grids: the grid for each number of bits.

    Returns:
      Variables of the same structure.
    """
    leaves = tree.paths(variables)
    return tree.replace(
        variables,
        {
            path: grids[width].project(leaves[path], grids[width].fit(leaves[path]))
            for path, width in allocation.items()
        },
    )


def measure(
    scores: Mapping[str, bits.Table],
    size: bits.Table,
    budgets: Sequence[float],
    score: Callable[[bits.Allocation], Score],
) -> list[Row]:
    """Judges the best allocation of each table at each size, and equal bits where there are any.

    Args:
      scores: tables of sensitivities by name.
      size: bytes of each layer at each number of bits.
      budgets: sizes, in bits a weight on average.
      score: judges an allocation; it is called once for each different one.

    Returns:
      Rows by size.
    """
    weights = sum(next(iter(row.values())) * 8 / next(iter(row)) for row in size.values())
    widths = set.intersection(*(set(row) for row in size.values()))
    known: dict[tuple[int, ...], Score] = {}
    rows = []
    for budget in budgets:
        limit = bits.Budget("bytes", size, weights * budget / 8)
        found = {f"by {name}": bits.allocate(table, limit) for name, table in scores.items()}
        if budget in widths:
            found = {"uniform": dict.fromkeys(size, int(budget)), **found}
        for name, allocation in found.items():
            key = tuple(allocation[layer] for layer in size)
            if key not in known:
                known[key] = score(allocation)
            rows.append(Row(name, budget, bits.total(size, allocation), known[key], allocation))
    return rows


def table(rows: Sequence[Row], layers: Sequence[str]) -> str:
    """Formats rows for a terminal.

    Args:
      rows: from `measure`.
      layers: the order of the layers' bits.

    Returns:
      One line a row, under a heading.

    Example:
      >>> row = Row('uniform', 4.0, 1500.0, Score(0.01, 0.75), {'a': 4, 'b': 4})
      >>> print(table([row], ['b', 'a']))
      bits  chosen              bytes  divergence  accuracy  bits of each layer
       4.0  uniform             1,500     0.01000   75.00 %  4 4
    """
    lines = ["bits  chosen              bytes  divergence  accuracy  bits of each layer"]
    for row in rows:
        widths = " ".join(str(row.allocation[layer]) for layer in layers)
        lines.append(
            f"{row.budget:>4.1f}  {row.name:<17} {row.size:>7,.0f}  {row.score.divergence:>10.5f}  "
            f"{100 * row.score.accuracy:>6.2f} %  {widths}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Trains or loads, measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config = run.CONFIG.value
    done = run_stages(stages.STAGES[:1], config, run.WORKDIR.value)["train"]
    data = networks.load_data(config.data)
    dense, init = networks.dense(config.model, data.num_classes)
    like = jax.eval_shape(init, jax.random.key(0), data.example)
    apply, variables = cj.fold_batch_norm(
        dense.apply, networks.load(done.directory, like), data.example
    )
    grids = {int(width): cj.quant.grids.integer(int(width)) for width in _WIDTHS.value}
    size = bits.size(variables, grids)
    layers = [op.name for op in cj.trace(apply, variables, data.example).ops if op.name in size]

    scores, start = {}, time.perf_counter()
    measured = sensitivities(
        apply, variables, data, grids, examples=_EXAMPLES.value, probes=_PROBES.value
    )
    for name, scores[name] in measured:
        points, now = len(bits.pareto(scores[name], size)), time.perf_counter()
        print(f"{name}: measured in {now - start:.0f} s, {points} points on its Pareto front")
        start = now
    print("layers:", ", ".join(layers))
    tested = judge(apply, variables, data, options.TESTED.value)
    print(f"float: {100 * tested(variables).accuracy:.2f} %")
    budgets = [float(budget) for budget in _BUDGETS.value]
    rows = measure(scores, size, budgets, lambda a: tested(quantized(variables, a, grids)))
    print(table(rows, layers))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
