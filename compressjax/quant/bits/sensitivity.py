"""How much each layer minds fewer bits, in three ways.

All three quantize one kernel at a time and leave the rest as it is. `hessian` needs gradients and
says what a second-order model expects of the loss; `divergence` measures how far the outputs move
and needs no labels; `accuracy` measures what one is after, in steps of one example, so that it sees
little on small sets. The tables they return are what `allocate` and `pareto` take.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax import tree
from compressjax.quant.grids import Grid

Arrays = dict[str, dict[int, jax.Array]]
Select = str | tuple[str, ...]


class Trace(NamedTuple):
    """An estimate of the trace of one layer's block of the Hessian.

    Attributes:
      mean: float [].
      error: float [], the standard error that the random probes leave, given the batches.
    """

    mean: jax.Array
    error: jax.Array


def hessian_trace(
    loss: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[Any],
    rng: jax.Array,
    *,
    select: Select = "**/kernel",
    probes: int = 16,
) -> dict[str, Trace]:
    """Estimates the trace of every layer's block of the loss's Hessian.

    Hutchinson's estimator as in Dong et al. 2020, "HAWQ-V2: Hessian Aware trace-Weighted
    Quantization of Neural Networks", section 2: the mean of `z^T H z` over probes z of random
    signs. One Hessian-vector product a probe serves all layers: the signs of different layers are
    independent, so what the blocks between them add has mean zero. Products are forward over
    reverse.

    Args:
      loss: `loss(variables, *batch) -> []`, twice differentiable, the mean over the batch's
        examples.
      variables: the network's variables.
      batches: arrays, or tuples of arguments; all count the same.
      rng: key of the probes.
      select: globs on the kernels' paths.
      probes: how many a batch, at least 2.

    Returns:
      For each kernel the trace of its block of the mean Hessian, and the standard error.

    Raises:
      ValueError: if there are no batches, fewer than 2 probes, or a glob matches nothing.

    Example:
      >>> def loss(variables, x):
      ...     return jnp.mean((x @ variables['kernel']) ** 2)
      >>> variables = {'kernel': jnp.ones((2, 1))}
      >>> found = hessian_trace(loss, variables, [jnp.eye(2)], jax.random.key(0))
      >>> float(found['kernel'].mean), float(found['kernel'].error)
      (2.0, 0.0)
    """
    if probes < 2:
        raise ValueError(f"probes is {probes}, expected at least 2, to tell the estimate's error")
    chosen = select if isinstance(select, str) else tuple(select)
    estimates = []
    for i, batch in enumerate(_tuples(batches)):
        # A loop in Python, since XLA's convolutions are many times slower inside its loops on CPUs.
        found = [
            _quadratic_forms(loss, chosen, rng_of_probe, variables, batch)
            for rng_of_probe in jax.random.split(jax.random.fold_in(rng, i), probes)
        ]
        estimates.append(jax.tree.map(lambda *values: jnp.stack(values), *found))

    def over_batches(*values: jax.Array) -> Trace:
        table = jnp.stack(values)
        variances = table.var(axis=1, ddof=1) / probes
        return Trace(table.mean(), jnp.sqrt(variances.sum()) / len(values))

    return {path: over_batches(*(values[path] for values in estimates)) for path in estimates[0]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quadratic_forms(
    loss: Callable[..., jax.Array],
    select: Select,
    rng: jax.Array,
    variables: Any,
    batch: tuple[Any, ...],
) -> dict[str, jax.Array]:
    """`z^T H z` of every layer's block and, with mean zero, of its row of blocks; one product."""
    kernels = _kernels(variables, select)

    def loss_of(kernels: dict[str, jax.Array]) -> jax.Array:
        return loss(tree.replace(variables, kernels), *batch)

    keys = dict(zip(kernels, jax.random.split(rng, len(kernels)), strict=True))
    probe = {
        path: jax.random.rademacher(keys[path], kernel.shape, kernel.dtype)
        for path, kernel in kernels.items()
    }
    _, product = jax.jvp(jax.grad(loss_of), (kernels,), (probe,))
    return {path: _sum_of_products(probe[path], product[path]) for path in kernels}


def hessian(
    loss: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[Any],
    grids: Mapping[int, Grid],
    rng: jax.Array,
    *,
    select: Select = "**/kernel",
    probes: int = 16,
) -> Arrays:
    """Weighs each layer's rounding errors by the mean curvature of the loss along its weights.

    Dong et al. 2020 (HAWQ-V2), equation 2.11: `Tr(H) / n * |Q(w) - w|^2` for a layer of n weights,
    which assumes a trained network, where H has no direction downwards. A trace smaller than its
    own standard error, or below zero, counts as that error: what the probes cannot tell from zero
    is not taken for harmless.

    Args:
      loss: `loss(variables, *batch) -> []`, twice differentiable, the mean over the batch's
        examples.
      variables: the network's variables.
      batches: arrays, or tuples of arguments; all count the same.
      grids: the grid for each number of bits.
      rng: key of the probes.
      select: globs on the kernels' paths.
      probes: how many a batch, at least 2.

    Returns:
      The sensitivity, float [], of each kernel at each number of bits.

    Raises:
      ValueError: if there are no batches, fewer than 2 probes, or a glob matches nothing.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> def loss(variables, x):
      ...     return jnp.mean((x @ variables['kernel']) ** 2)
      >>> variables = {'kernel': jnp.array([[1.0], [0.4]])}
      >>> grids = {2: integer(2), 4: integer(4)}
      >>> found = hessian(loss, variables, [jnp.eye(2)], grids, jax.random.key(0))
      >>> {bits: round(float(score), 4) for bits, score in found['kernel'].items()}
      {2: 0.16, 4: 0.0008}
    """
    traces = hessian_trace(loss, variables, batches, rng, select=select, probes=probes)
    kernels = _kernels(variables, select)

    return {
        path: {
            bits: _expected_harm(traces[path], kernels[path], value) for bits, value in row.items()
        }
        for path, row in _projected(kernels, grids).items()
    }


def divergence(
    fn: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[Any],
    grids: Mapping[int, Grid],
    *,
    select: Select = "**/kernel",
) -> Arrays:
    """Measures how far the predictions move when one layer is quantized; needs no labels.

    The mean over examples of `KL(p || q)`, p the softmax of the logits and q that with one kernel
    on its grid (Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework").

    Args:
      fn: pure function `fn(variables, *batch) -> logits [..., C]`.
      variables: its variables.
      batches: arrays, or tuples of arguments.
      grids: the grid for each number of bits.
      select: globs on the kernels' paths.

    Returns:
      The sensitivity, float32 [] in nats, of each kernel at each number of bits.

    Raises:
      ValueError: if there are no batches, or a glob matches nothing.
      TypeError: if `fn` puts out anything but floating logits.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> def fn(variables, x):
      ...     return x @ variables['kernel']
      >>> variables = {'kernel': jnp.array([[1.0, 0.4], [0.2, 1.0]])}
      >>> found = divergence(fn, variables, [jnp.eye(2)], {2: integer(2), 8: integer(8)})
      >>> {bits: round(float(score), 4) for bits, score in found['kernel'].items()}
      {2: 0.0108, 8: 0.0}
    """
    return _one_by_one(
        fn, _divergences, variables, ((args, ()) for args in _tuples(batches)), grids, select
    )


def accuracy(
    fn: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[Any],
    grids: Mapping[int, Grid],
    *,
    select: Select = "**/kernel",
) -> Arrays:
    """Measures how much accuracy is lost when one layer is quantized.

    Args:
      fn: pure function `fn(variables, *args) -> logits [..., C]`.
      variables: its variables.
      batches: tuples of arguments followed by the labels, integers `[...]`.
      grids: the grid for each number of bits.
      select: globs on the kernels' paths.

    Returns:
      The share of examples, float32 [], by which accuracy falls below that of `fn`, of each kernel
      at each number of bits; below zero where it rises.

    Raises:
      ValueError: if there are no batches, labels do not fit the logits, or a glob matches nothing.
      TypeError: if `fn` puts out anything but floating logits, or labels are not integers.

    Example:
      >>> from compressjax.quant.grids import integer
      >>> def fn(variables, x):
      ...     return x @ variables['kernel']
      >>> variables = {'kernel': jnp.array([[1.0, 0.8], [0.2, 1.0]])}
      >>> batches = [(jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([0, 1]))]
      >>> found = accuracy(fn, variables, batches, {2: integer(2), 8: integer(8)})
      >>> {bits: float(score) for bits, score in found['kernel'].items()}
      {2: 0.5, 8: 0.0}
    """

    def labelled(batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if len(batch) < 2:
            raise ValueError(
                f"a batch has {len(batch)} part, expected arguments and labels: (images, labels)"
            )
        return batch[:-1], batch[-1:]

    return _one_by_one(fn, _losses, variables, map(labelled, _tuples(batches)), grids, select)


def _divergences(reference: jax.Array, logits: jax.Array) -> jax.Array:
    log_p, log_q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0.0), axis=-1)


def _losses(reference: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integer classes, found dtype {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {labels.shape} and logits {logits.shape} disagree; labels must be "
            f"{logits.shape[:-1]}, and come last in every batch"
        )
    right, still = (jnp.argmax(x, axis=-1) == labels for x in (reference, logits))
    return right.astype(jnp.float32) - still.astype(jnp.float32)


def _one_by_one(
    fn: Callable[..., jax.Array],
    harm: Callable[..., jax.Array],
    variables: Any,
    batches: Iterable[tuple[tuple[Any, ...], tuple[Any, ...]]],
    grids: Mapping[int, Grid],
    select: Select,
) -> Arrays:
    """Averages `harm(logits, logits with one kernel on a grid, *extra)` over all examples.

    Args:
      fn: `fn(variables, *args) -> logits`.
      harm: one number for each example.
      variables: the variables of `fn`.
      batches: `(args, extra)`.
      grids: the grid for each number of bits.
      select: globs on the kernels' paths.

    Returns:
      float32 [] for each kernel at each number of bits.
    """
    projected = _projected(_kernels(variables, select), grids)
    sums = {path: dict.fromkeys(row, jnp.float32(0.0)) for path, row in projected.items()}
    count = 0
    for args, extra in batches:
        reference = _logits(fn, variables, args)
        count += reference[..., 0].size
        for path, row in projected.items():
            for bits, kernel in row.items():
                replaced = tree.replace(variables, {path: kernel})
                sums[path][bits] += _harm(fn, harm, replaced, args, reference, extra)
    return {path: {bits: x / count for bits, x in row.items()} for path, row in sums.items()}


@functools.partial(jax.jit, static_argnums=0)
def _logits(fn: Callable[..., jax.Array], variables: Any, args: tuple[Any, ...]) -> jax.Array:
    logits = fn(variables, *args)
    shape = getattr(logits, "shape", ())
    if not shape or not jnp.issubdtype(logits.dtype, jnp.floating):
        found = jax.tree.map(jax.typeof, logits)
        raise TypeError(f"the function must put out floating logits [..., C], found {found}")
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _harm(
    fn: Callable[..., jax.Array],
    harm: Callable[..., jax.Array],
    variables: Any,
    args: tuple[Any, ...],
    reference: jax.Array,
    extra: tuple[Any, ...],
) -> jax.Array:
    return jnp.sum(harm(reference, _logits(fn, variables, args), *extra))


def _kernels(variables: Any, select: Select) -> dict[str, jax.Array]:
    leaves = tree.paths(variables)
    return {path: leaves[path] for path in tree.match(select, leaves, what="select")}


def _projected(kernels: Mapping[str, jax.Array], grids: Mapping[int, Grid]) -> Arrays:
    """Every kernel on every grid."""
    return {
        path: dict(zip(grids, _on_grids(tuple(grids.values()), kernel), strict=True))
        for path, kernel in kernels.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _on_grids(grids: tuple[Grid, ...], kernel: jax.Array) -> list[jax.Array]:
    return [grid.project(kernel, grid.fit(kernel)) for grid in grids]


@jax.jit
def _expected_harm(trace: Trace, kernel: jax.Array, projected: jax.Array) -> jax.Array:
    error = projected - kernel
    curvature = jnp.maximum(trace.mean, trace.error) / kernel.size
    return curvature * _sum_of_products(error, error)


def _sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.sum(a.astype(wide) * b.astype(wide))


def _tuples(batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """The batches as tuples of arguments; at least one."""
    if hasattr(batches, "shape"):
        raise ValueError(
            f"batches are one array of shape {batches.shape}, expected an iterable of batches, "
            "such as [images]"
        )
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007
        yield tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if not count:
        raise ValueError("there are no batches: pass an iterable of at least one, such as [images]")
