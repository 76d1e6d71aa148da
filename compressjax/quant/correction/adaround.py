"""AdaRound: choosing for each weight whether to round it up or down (Nagel et al., 2020).

Nearest rounding makes the smallest error in the weights, not in what the layer puts out. Here every
weight gets a soft variable between its two neighbours on the grid, and gradient steps on a sample
of the layer's own inputs push it to one of them. Layers are done in order, each on what the
quantized layers before it give, against what the float layer gives for float inputs, activation
included (the paper's equation 25). Bias correction repairs the mean of the same error.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from compressjax import tree
from compressjax.quant.correction import patches, sites, walk
from compressjax.quant.forward import grid_params
from compressjax.quant.grids import Grid
from compressjax.quant.plan import Plan, Step
from compressjax.quant.quantize import Quantized
from compressjax.quant.spec import layout
from compressjax.quant.steps import Operand
from compressjax.quant.steps.kind import clamped

# The paper's stretch of the sigmoid, and the ends between which its exponent is annealed.
ZETA, GAMMA = 1.1, -0.1
_BETA_START, _BETA_END = 20.0, 2.0
# The share of the steps before the regularizer begins, as in the authors' implementation.
_WARM = 0.2
_RATE = 1e-2


class Problem(NamedTuple):
    """One layer as a matrix product: `clamp(inputs @ kernel + bias)` shall be `targets`.

    Attributes:
      inputs: `[G, N, K]`, of the quantized network.
      targets: `[G, N, O]`, of the float network, after the activation.
      below: `[G, K, O]`, the representable value below each weight.
      above: `[G, K, O]`, the one above; equal to `below` where there is no choice.
      share: `[G, K, O]`, where the weight lies between them, in [0, 1].
      bias: `[G, 1, O]`.
      lo: lower bound of the fused activation, [].
      hi: upper bound of the fused activation, [].
    """

    inputs: jax.Array
    targets: jax.Array
    below: jax.Array
    above: jax.Array
    share: jax.Array
    bias: jax.Array
    lo: jax.Array
    hi: jax.Array


def rectified_sigmoid(v: jax.Array) -> jax.Array:
    """Maps soft variables to [0, 1], reaching both ends (Nagel et al., 2020, equation 23).

    Args:
      v: of any shape.

    Returns:
      `clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)` with zeta 1.1 and gamma -0.1.

    Example:
      >>> rectified_sigmoid(jnp.array([-9.0, 0.0, 9.0]))
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jnp.clip(jax.nn.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def soft_variable(share: jax.Array) -> jax.Array:
    """Inverts `rectified_sigmoid`, so that rounding starts from the weights as they are.

    Args:
      share: in [0, 1].

    Returns:
      The variable whose rectified sigmoid is `share`.

    Example:
      >>> rectified_sigmoid(soft_variable(jnp.array([0.0, 0.25, 1.0]))).round(3)
      Array([0.  , 0.25, 1.  ], dtype=float32)
    """
    stretched = (share - GAMMA) / (ZETA - GAMMA)
    return jnp.log(stretched) - jnp.log1p(-stretched)


def indecision(h: jax.Array, beta: jax.typing.ArrayLike) -> jax.Array:
    """Charges values for being between 0 and 1 (Nagel et al., 2020, equation 24, one term).

    Args:
      h: in [0, 1], of any shape.
      beta: a large exponent is flat in the middle, a small one pushes everything to an end.

    Returns:
      `1 - |2 h - 1|^beta`, in the shape of `h`.

    Example:
      >>> indecision(jnp.array([0.0, 0.5, 0.75, 1.0]), 2.0)
      Array([0.  , 1.  , 0.75, 0.  ], dtype=float32)
    """
    return 1.0 - jnp.abs(2.0 * h - 1.0) ** beta


def annealed(progress: jax.Array) -> jax.Array:
    """Gives the exponent of `indecision` after a share of the steps: 20 at first, 2 at the end.

    The paper does not give the curve; half a cosine is the one of the authors' implementation.

    Args:
      progress: in [0, 1]; up to 0.2 nothing happens.

    Returns:
      The exponent.

    Example:
      >>> annealed(jnp.array([0.0, 0.6, 1.0])).round(2)
      Array([20., 11.,  2.], dtype=float32)
    """
    done = jnp.clip((progress - _WARM) / (1.0 - _WARM), 0.0, 1.0)
    return _BETA_END + (_BETA_START - _BETA_END) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))


def reconstruction(problem: Problem, kernel: jax.Array) -> jax.Array:
    """The squared error of a layer's output, summed over channels, averaged over the sample.

    Args:
      problem: the layer.
      kernel: `[G, K, O]`.

    Returns:
      float32, [].
    """
    products = lax.dot_general(problem.inputs, kernel, (((2,), (1,)), ((0,), (0,))))
    found = jnp.clip(products + problem.bias, problem.lo, problem.hi)
    return jnp.square(found - problem.targets).sum((0, 2)).mean()


@functools.partial(jax.jit, static_argnames=("steps", "rows", "weight"))
def choose(problem: Problem, *, steps: int, rows: int, weight: float) -> jax.Array:
    """Chooses up or down for every weight of a layer (Nagel et al., 2020, section 3.3).

    Args:
      problem: the layer.
      steps: gradient steps (Adam, rate 0.01).
      rows: of the sample that a step looks at.
      weight: of the regularizer, in units of what nearest rounding costs for each weight.

    Returns:
      Boolean `[G, K, O]`, true for up; nearest rounding where that is better on the sample.
    """
    free = (problem.above > problem.below).astype(jnp.float32)
    gap = problem.above - problem.below
    nearest = problem.share > 0.5
    error = functools.partial(_rounded_error, problem)
    unit = error(nearest) / jnp.maximum(free.sum(), 1.0)
    blocks = max(problem.inputs.shape[1] // rows, 1)
    optimizer = optax.adam(_RATE)

    def loss(v: jax.Array, i: jax.Array) -> jax.Array:
        start = (i % blocks) * rows
        inputs, targets = (
            lax.dynamic_slice_in_dim(x, start, min(rows, x.shape[1]), axis=1)
            for x in (problem.inputs, problem.targets)
        )
        h = rectified_sigmoid(v)
        seen = problem._replace(inputs=inputs, targets=targets)
        progress = i / steps
        penalty = (indecision(h, annealed(progress)) * free).sum()
        penalty = jnp.where(progress < _WARM, 0.0, weight * unit * penalty)
        return reconstruction(seen, problem.below + h * gap) + penalty

    def step(i: jax.Array, state: Any) -> Any:
        v, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(v, i), moments)
        return v + updates * free, moments

    v = soft_variable(problem.share)
    v, _ = lax.fori_loop(0, steps, step, (v, optimizer.init(v)))
    return jnp.where(error(v > 0) < error(nearest), v > 0, nearest)


def _rounded_error(problem: Problem, up: jax.Array) -> jax.Array:
    return reconstruction(problem, jnp.where(up, problem.above, problem.below))


def adaround(
    q: Quantized,
    qv: Any,
    batches: Iterable[Any],
    *,
    steps: int = 1000,
    samples: int = 4096,
    rows: int = 512,
    regularization: float = 64.0,
    reference: Any = None,
    select: str | Iterable[str] = "**",
    rng: jax.Array,
) -> dict[str, Any]:
    """Rounds weights up or down so that layers put out what they did (Nagel et al., 2020).

    Layers are done in the order they run. Of each, `samples` output positions of the batches are
    drawn, and the soft variables are fitted to those. Afterwards the weights lie on their grids, so
    rounding them to the nearest value is the choice. Weights that are zero stay zero, and the
    largest weight of each scale keeps its size.

    Args:
      q: from `quantize`, with static activations.
      qv: calibrated variables.
      batches: inputs without labels: arrays, or tuples of arguments.
      steps: gradient steps for each layer; the paper takes 10,000.
      samples: output positions to fit a layer to.
      rows: of these, how many a gradient step looks at.
      regularization: what it costs to be undecided about a weight, in units of what nearest
        rounding costs: the error of the layer's output, divided by its weights. (The paper's lambda
        is 0.01 in units of that output, which differ from layer to layer.)
      reference: variables of the float network; those of `qv` by default.
      select: globs on the names of kernels; the layers to round. Kernels that the spec leaves as
        they are stay so.
      rng: which positions are drawn.

    Returns:
      `qv` with other kernels.

    Raises:
      ValueError: if the kernel of a selected layer is not a variable of its own, a grid refits to
        rounded weights, a glob matches no kernel, or there are no batches.

    Example:
      >>> from compressjax.quant import quantize, uniform
      >>> q = quantize(lambda v, x: x @ v['kernel'], uniform(weights=2, activations=8))
      >>> x = jnp.ones((8, 3))
      >>> qv = q.calibrate({'kernel': jnp.array([[1.0], [0.45], [0.4]])}, [x])
      >>> adaround(q, qv, [x], rng=jax.random.key(0))['kernel'].ravel().tolist()
      [1.0, 1.0, 0.0]
    """
    calls = walk.calls(batches)
    plan, contractions = walk.contractions(q, qv, calls[0])
    order = list(contractions)
    weights = layout(q.spec, plan).weights
    chosen = [name for name in tree.match(select, order, what="select") if weights[name]]
    paths = _kernel_paths(plan, [contractions[name] for name in chosen])

    def correct(layer: walk.Layer, qv: Any) -> Any:
        name, step, grid = layer.step.name, layer.step, layer.grid
        if name not in paths or grid is None:
            return qv

        @jax.jit
        def problem_of(qv: Any, key: jax.Array, inputs: Any, outputs: Any) -> Problem:
            operand = sites.operand_of(layer.plan, step, qv)
            params = grid_params(name, grid, operand.value, qv)
            drawn = _sample(step, operand.value.shape, inputs, outputs, samples, key)
            return _problem(step, grid, operand, params, *drawn)

        @jax.jit
        def rounded(qv: Any, problem: Problem, up: jax.Array) -> tuple[jax.Array, jax.Array]:
            shape = sites.operand_of(layer.plan, step, qv).value.shape
            matrix = jnp.where(up, problem.above, problem.below)
            kernel = patches.from_matrix(matrix, shape)
            again = grid.project(kernel, grid_params(name, grid, kernel, qv))
            moved = (jnp.abs(again - kernel) > 1e-5 * jnp.abs(kernel).max()).any()
            return sites.kernel_leaf(layer.plan, step, qv, paths[name], kernel), moved

        key = jax.random.fold_in(rng, order.index(name))
        problem = problem_of(qv, key, layer.inputs, layer.outputs)
        up = choose(problem, steps=steps, rows=rows, weight=regularization)
        leaf, moved = rounded(qv, problem, up)
        if moved:
            raise ValueError(
                f"the grid {grid.name!r} of {name!r} moves when it is fitted to rounded weights, "
                "so their rounding cannot be kept: use integers scaled by the largest weight, or a "
                "grid whose params are stored"
            )
        return tree.replace(qv, {paths[name]: leaf})

    return walk.walk(q, qv, qv if reference is None else reference, calls, correct)


def _kernel_paths(plan: Plan, contractions: Iterable[Step]) -> dict[str, str]:
    """The variables that are the kernels of some layers."""
    found = {}
    for step in contractions:
        path = sites.kernel_path(plan.graph, step)
        if path is None:
            raise ValueError(
                f"the kernel of {step.name!r} is computed from variables or used twice, so its "
                "rounding cannot be chosen: leave the layer out of select"
            )
        found[step.name] = path
    return found


def _sample(
    step: Step,
    kernel_shape: tuple[int, ...],
    inputs: list[jax.Array],
    outputs: list[jax.Array],
    samples: int,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Draws output positions from all batches: `[G, N, K]` and `[G, N, O / G]`, shuffled."""
    sizes = [y.size // y.shape[-1] for y in outputs]
    rows, targets = [], []
    for i, (x, y, size) in enumerate(zip(inputs, outputs, sizes, strict=True)):
        count = min(math.ceil(samples * size / sum(sizes)), size)
        # One in each stretch of equal length: spread out, and nothing has to be sorted.
        spread = jnp.arange(count) + jax.random.uniform(jax.random.fold_in(key, i), (count,))
        at = jnp.minimum(jnp.floor(spread * (size / count)).astype(int), size - 1)
        rows.append(patches.sample(step, x, kernel_shape, at))
        targets.append(patches.by_group(step, y.reshape(size, -1)[at]))
    mixed = jax.random.permutation(key, sum(row.shape[1] for row in rows))
    drawn = jnp.concatenate(rows, axis=1)[:, mixed], jnp.concatenate(targets, axis=1)[:, mixed]
    return drawn[0], clamped(step, drawn[1])


def _problem(
    step: Step, grid: Grid, operand: Operand, params: Any, inputs: jax.Array, targets: jax.Array
) -> Problem:
    """Brings a layer into the shape of a product; a weight without a choice is its own."""
    kernel = operand.value
    below, above = grid.around(kernel, params)
    free = (above > below) & (kernel != 0)
    nearest = grid.project(kernel, params)
    share = jnp.clip((kernel - below) / jnp.where(free, above - below, 1.0), 0.0, 1.0)
    bias = jnp.zeros(kernel.shape[-1]) if operand.bias is None else operand.bias
    return Problem(
        inputs=inputs,
        targets=targets,
        below=patches.to_matrix(step, jnp.where(free, below, nearest)),
        above=patches.to_matrix(step, jnp.where(free, above, nearest)),
        share=patches.to_matrix(step, jnp.where(free, share, 0.0)),
        bias=patches.by_group(step, bias.reshape(1, -1)),
        lo=jnp.float32(-jnp.inf if step.lo is None else step.lo),
        hi=jnp.float32(jnp.inf if step.hi is None else step.hi),
    )
