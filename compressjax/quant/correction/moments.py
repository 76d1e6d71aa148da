"""What batch norm knows about activations without seeing data: a mean and a deviation per channel.

A batch norm in evaluation mode puts out values of mean beta and deviation |gamma|, if the data are
those it was trained on. Data-free corrections start from these numbers, so `norm_moments` reads
them from the graph before folding drops the norm, and `clipped_normal` carries them through the
ReLU behind it and `expected` through the rest of the network. Moments are not ranges: those are
measured, by observers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from compressjax import graph as graphs
from compressjax.graph import Graph, Value
from compressjax.quant import steps
from compressjax.quant.correction import patches
from compressjax.quant.placement import place
from compressjax.quant.plan import Plan, Step

# Beyond so many deviations a normal distribution has no mass that float32 can hold.
_FAR = 9.0


class Moments(NamedTuple):
    """Mean and standard deviation of a tensor's channels.

    Attributes:
      mean: float32 `[O]`.
      std: float32 `[O]`, not negative.
    """

    mean: jax.Array
    std: jax.Array


def clipped_normal(moments: Moments, lo: float | None, hi: float | None) -> Moments:
    """Computes the moments of a normal variable after a clamp (Nagel et al., 2019, appendix C).

    With `lo = 0` and no `hi` it is the ReLU of their section 4.2.1, with `hi = 6` ReLU6.

    Args:
      moments: of the normal variable; any shape.
      lo: lower bound, or `None`.
      hi: upper bound, or `None`.

    Returns:
      Mean and deviation of the clamped variable.

    Example:
      >>> relu = clipped_normal(Moments(jnp.zeros(1), jnp.ones(1)), 0.0, None)
      >>> [round(float(x[0]), 4) for x in relu]
      [0.3989, 0.5838]
    """
    mean, std = moments
    safe = jnp.where(std > 0, std, 1.0)
    low = -jnp.inf if lo is None else lo
    high = jnp.inf if hi is None else hi
    # In deviations from the mean, where no large numbers cancel.
    a, b = (jnp.clip((bound - mean) / safe, -_FAR, _FAR) for bound in (low, high))
    below, above = norm.cdf(a), norm.cdf(-b)
    first = norm.pdf(a) - norm.pdf(b) + a * below + b * above
    second = 1.0 - below - above + a * norm.pdf(a) - b * norm.pdf(b) + a * a * below + b * b * above
    spread = jnp.sqrt(jnp.maximum(second - first * first, 0.0))
    return Moments(jnp.clip(mean + std * first, low, high), std * spread)


def norm_moments(fn: Callable[..., Any], variables: Any, *args: Any) -> dict[str, Moments]:
    """Reads beta and |gamma| of the batch norm behind each kernel (Nagel et al., 2019, 4.2.1).

    Call it before folding. A norm is recognised, whoever wrote it, by what it does: it subtracts a
    number for each channel, and scales by a square root of another.

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode, unfolded.
      variables: its variables.
      *args: example inputs.

    Returns:
      The moments of the values before the activation, by path of the kernel; a kernel that no norm
      follows is missing.

    Raises:
      ValueError: if no kernel is followed by a norm, or the function cannot be quantized.

    Example:
      >>> def fn(v, x):
      ...     y = x @ v['kernel'] - v['mean'][None]
      ...     return y * (v['gamma'] * jax.lax.rsqrt(v['var'] + 1e-5))[None] + v['beta'][None]
      >>> vectors = {name: jnp.full(2, float(i)) for i, name in enumerate(['mean', 'var', 'beta'])}
      >>> variables = {'kernel': jnp.ones((3, 2)), 'gamma': jnp.array([-3.0, 4.0]), **vectors}
      >>> norm_moments(fn, variables, jnp.ones((1, 3)))['kernel']
      Moments(mean=Array([2., 2.], dtype=float32), std=Array([3., 4.], dtype=float32))
    """
    plan = place(graphs.trace(fn, variables, *args, keep_custom=False))
    known = graphs.bind_variables(plan.graph, variables)
    found = {}
    for step in plan.steps:
        moments = _behind(plan.graph, step, known)
        if moments is not None:
            found[step.name] = moments
    if not found:
        raise ValueError(
            "no kernel of the function is followed by a batch norm in evaluation mode, so nothing "
            "is known about its activations: pass the function as it was before fold_batch_norm, "
            "or correct with data (correct_bias)"
        )
    return found


def _behind(graph: Graph, step: Step, known: dict[Value, Any]) -> Moments | None:
    """The moments that the last norm in the affine chain of a contraction gives its output."""
    if step.constant is None:
        return None
    chain, axis = step.constant.chain, step.constant.chain_axis
    for i in reversed(range(len(chain))):
        op, other = chain[i]
        root = _root(graph, other) if other is not None and op.kind in ("mul", "div") else None
        centred = [j for j in range(i) if chain[j][0].kind == "sub"]
        if root is None or not centred:
            continue
        scale, shift = graphs.affine_map(graph, chain[centred[-1] + 1 :], axis, known)
        (number,) = graphs.evaluate(graph, [root], known)
        deviation = jnp.reshape(number, (-1,))
        deviation = 1.0 / deviation if graph.producers[root].kind == "rsqrt" else deviation
        std, mean = jnp.abs(scale * deviation), shift
        wide = step.shape[-1:]
        return Moments(*(jnp.broadcast_to(x.astype(jnp.float32), wide) for x in (mean, std)))
    return None


def _root(graph: Graph, value: Value) -> Value | None:
    """The square root that a static value is computed with."""
    op = graph.producers.get(value)
    if op is None:
        return None
    if op.kind in ("sqrt", "rsqrt"):
        return value
    roots = (_root(graph, source) for source in op.inputs)
    return next((root for root in roots if root is not None), None)


def expected(plan: Plan, variables: Any, moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Carries moments through a network without data.

    Behind a norm and its activation a tensor is a clipped normal variable. A contraction without a
    norm maps the moments of its input, an addition adds those of its inputs, both as if they were
    independent; averaging over positions, padding and reshaping leave channels as they are. What
    other steps put out is not known.

    Args:
      plan: the plan.
      variables: of the float network.
      moments: of kernels' outputs before the activation, by kernel; of inputs, by input.

    Returns:
      The moments of every tensor that has known ones, by name.

    Example:
      >>> from compressjax.quant import quantize
      >>> q = quantize(lambda v, x: jax.nn.relu(x @ v['kernel']))
      >>> variables = {'kernel': jnp.array([[3.0], [4.0]])}
      >>> given = {'input_0': Moments(jnp.ones(2), jnp.ones(2))}
      >>> found = expected(q.plan(variables, jnp.ones((1, 2))), variables, given)['kernel']
      >>> [round(float(x[0]), 2) for x in found]
      [7.18, 4.65]
    """
    operands = steps.operands(plan, variables)
    known = {name: moments[name] for name in plan.inputs if name in moments}
    for step in plan.steps:
        inputs = [known.get(name) for name in step.inputs]
        if step.kind in steps.CONTRACTIONS and step.name in moments:
            found: Moments | None = moments[step.name]
        elif None in inputs or not inputs:
            continue
        else:
            found = _through(step, [x for x in inputs if x], operands.get(step.name))
        if found is not None:
            known[step.name] = clipped_normal(found, step.lo, step.hi)
    return known


def _through(step: Step, inputs: list[Moments], operand: steps.Operand | None) -> Moments | None:
    """The moments of a step's output before its activation."""
    mean, std = inputs[0]
    if step.kind in steps.CONTRACTIONS and operand is not None:
        kernel, bias = operand
        shift = jnp.zeros(()) if bias is None else bias
        variance = expected_output(step, jnp.square(kernel), jnp.square(std))
        return Moments(expected_output(step, kernel, mean) + shift, jnp.sqrt(variance))
    if step.kind in ("add", "sub") and len(inputs) == 2:
        other = inputs[1].mean if step.kind == "add" else -inputs[1].mean
        return Moments(mean + other, jnp.hypot(std, inputs[1].std))
    if step.kind == "concatenate" and step.params["axis"] in (-1, len(step.shape) - 1):
        return Moments(*(jnp.concatenate(parts) for parts in zip(*inputs, strict=True)))
    if step.kind == "mean" and len(step.shape) - 1 not in step.params["axes"]:
        return inputs[0]
    if step.kind in ("avg_pool", "pad", "requantize", "relu"):
        return inputs[0]
    if step.kind == "reshape" and step.shape[-1] % mean.size == 0:
        return Moments(*(jnp.tile(x, step.shape[-1] // x.size) for x in inputs[0]))
    return None


def expected_output(step: Step, kernel: jax.Array, mean: jax.Array) -> jax.Array:
    """Computes the mean output of a contraction from its mean inputs (Nagel et al., 2019, app. B).

    Args:
      step: the contraction.
      kernel: its weights, or their errors: `[KH, KW, I / G, O]` or `[I, O]`.
      mean: of each input channel, `[I]`.

    Returns:
      `[O]`, as far from the edges of an image as its window reaches.

    Example:
      >>> step = Step('c', 'conv', ('x',), (1, 1, 1, 1), {'feature_group_count': 1})
      >>> expected_output(step, jnp.ones((3, 3, 2, 1)), jnp.array([1.0, 2.0])).tolist()
      [27.0]
    """
    taps = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
    matrix = patches.to_matrix(step, taps)
    means = mean.reshape(patches.groups(step), 1, -1)
    return jnp.matmul(means, matrix).reshape(-1)
