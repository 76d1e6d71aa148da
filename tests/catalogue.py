"""One row for every method, so that `test_catalogue.py` can hold each to the same contracts.

A method is described by two pure functions, whatever it is: `init(*inputs) -> state` and
`step(state, *inputs) -> (output, state)`. A stateless method has the state `()`. To add a method,
add a row to `ROWS` at the bottom, with an oracle in NumPy that is written from its paper and shares
no code with the library.

A row's inputs are arrays only; configuration is closed over. Row names are the tests' names.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import compressjax as cj
from compressjax import distill, lowrank, pruning, quant, slimming
from compressjax.quant import grids, lattice
from compressjax.quant.correction.adaround import Problem, choose
from tests.support import (
    bits_oracles,
    distill_oracles,
    equalize_oracles,
    grid_oracles,
    importance_oracles,
    lowrank_oracles,
    mask_oracles,
    observer_oracles,
    penalty_layouts,
    penalty_oracles,
    score_oracles,
    sparse_training_oracles,
)

Inputs = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method and what it must do.

    Attributes:
      name: the name of its tests.
      init: `init(*inputs) -> state`; also called on shapes only, by `jax.eval_shape`.
      step: `step(state, *inputs) -> (output, state)`.
      inputs: `inputs(i) -> inputs` of step i, all of one shape; every leaf an array.
      oracle: `oracle([inputs of each step]) -> output` of the last step, in NumPy.
      steps: how many steps to run.
      rtol: relative tolerance against the oracle, and between jit and eager.
      atol: absolute tolerance of the same.
    """

    name: str
    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Any]]
    inputs: Callable[[int], Inputs]
    oracle: Callable[[Sequence[Inputs]], Any]
    steps: int = 1
    rtol: float = 1e-6
    atol: float = 1e-7


def stateless(
    name: str,
    function: Callable[..., Any],
    inputs: Callable[[int], Inputs],
    oracle: Callable[..., Any],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Row:
    """Makes the row of a pure function.

    Args:
      name: the row's name.
      function: `function(*inputs) -> output`.
      inputs: `inputs(i) -> inputs`.
      oracle: `oracle(*inputs) -> output`, in NumPy.
      rtol: relative tolerance.
      atol: absolute tolerance.

    Returns:
      A row of three steps, so that a second trace would show.
    """
    return Row(
        name=name,
        init=lambda *args: (),
        step=lambda state, *args: (function(*args), state),
        inputs=inputs,
        oracle=lambda history: oracle(*history[-1]),
        steps=3,
        rtol=rtol,
        atol=atol,
    )


# Pruning. Two kernels, one with many equal weights, and a bias that must not be pruned.

_RATE = 0.1
_SHAPES = {"conv": (3, 3, 4, 6), "dense": (16, 5)}


def _pruning_inputs(i: int) -> Inputs:
    """The parameters to start from and the gradients of step i."""
    start = np.random.default_rng(0)
    noise = np.random.default_rng(100 + i)
    params, gradients = {}, {}
    for name, shape in _SHAPES.items():
        kernel = start.normal(size=shape).astype(np.float32)
        if name == "dense":
            kernel = np.round(kernel)
        params[name] = {"kernel": kernel, "bias": np.full(shape[-1], 0.01, np.float32)}
        gradients[name] = {
            "kernel": noise.integers(-4, 5, shape).astype(np.float32) / 8,
            "bias": np.ones(shape[-1], np.float32),
        }
    return params, gradients


def _keep_counts_uniform(sparsity: float) -> dict[str, int]:
    return {name: _num_kept(sparsity, math.prod(shape)) for name, shape in _SHAPES.items()}


def _num_kept(sparsity: float, size: int) -> int:
    return size - round(sparsity * size)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Masks the `count` largest scores, the earlier of equal ones first, by a stable sort."""
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return keep.reshape(scores.shape)


def _masks_layerwise(kernels: dict[str, np.ndarray], counts: dict[str, int]) -> Any:
    return {name: _largest(np.abs(kernel), counts[name]) for name, kernel in kernels.items()}


def _masks_uniform(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
    return _masks_layerwise(kernels, _keep_counts_uniform(sparsity))


def _masks_global(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
    flat = np.concatenate([np.abs(kernel).ravel() for kernel in kernels.values()])
    keep = _largest(flat, _num_kept(sparsity, flat.size))
    cuts = np.cumsum([kernel.size for kernel in kernels.values()])[:-1]
    parts = np.split(keep, cuts)
    return {
        name: part.reshape(kernel.shape)
        for (name, kernel), part in zip(kernels.items(), parts, strict=True)
    }


def proportional_densities(
    weights: dict[str, float], sizes: dict[str, int], kept: int
) -> dict[str, float]:
    """Solves for densities proportional to weight/size, at most 1, as the RigL paper describes.

    Args:
      weights: for each leaf, what its count of weights is proportional to.
      sizes: for each leaf, its number of weights.
      kept: how many weights to keep in all.

    Returns:
      The density of each leaf; the counts they give sum to `kept` before rounding.
    """
    dense: set[str] = set()
    while len(dense) < len(sizes):
        free = kept - sum(sizes[name] for name in dense)
        scale = free / sum(weights[name] for name in weights if name not in dense)
        ratios = {name: scale * weights[name] / sizes[name] for name in weights}
        over = {name for name in weights if name not in dense and ratios[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else ratios[name] for name in weights}
        dense.add(max(over, key=lambda name: ratios[name]))
    return dict.fromkeys(sizes, 1.0)


def _masks_proportional(weight: Callable[[tuple[int, ...]], float]) -> Callable[..., Any]:
    def masks(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
        sizes = {name: kernel.size for name, kernel in kernels.items()}
        kept = _num_kept(sparsity, sum(sizes.values()))
        density = proportional_densities(
            {name: weight(kernel.shape) for name, kernel in kernels.items()}, sizes, kept
        )
        counts = {name: round(density[name] * sizes[name]) for name in kernels}
        # What rounding leaves over goes to the sparsest leaf.
        counts[min(density, key=lambda name: density[name])] += kept - sum(counts.values())
        return _masks_layerwise(kernels, counts)

    return masks


def _masks_2_4(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
    def mask(kernel: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(np.abs(kernel), -2, -1).reshape(-1, 4)
        keep = np.stack([_largest(row, 2) for row in rows])
        moved = np.moveaxis(kernel, -2, -1).shape
        return np.moveaxis(keep.reshape(moved), -1, -2)

    return {name: mask(kernel) for name, kernel in kernels.items()}


def _masks_units(pattern: mask_oracles.Pattern) -> Callable[..., Any]:
    def masks(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
        units = {name: pattern.units(kernel.shape).max() + 1 for name, kernel in kernels.items()}
        shares = [((name,), _num_kept(sparsity, int(count))) for name, count in units.items()]
        scores = {name: np.abs(kernel) for name, kernel in kernels.items()}
        return mask_oracles.choose(scores, shares, pattern)

    return masks


def _masks_by_path(kernels: dict[str, np.ndarray], sparsity: float) -> Any:
    counts = _keep_counts_uniform(sparsity)
    return _masks_layerwise(kernels, {**counts, "conv": _num_kept(0.25, kernels["conv"].size)})


def _pruning_row(
    name: str,
    schedule: pruning.Schedule,
    sparsities: dict[int, float],
    masks: Callable[[dict[str, np.ndarray], float], Any],
    budget: pruning.Budget = pruning.uniform(),  # noqa: B008
    pattern: pruning.Pattern = pruning.unstructured(),  # noqa: B008
) -> Row:
    """Makes the row of a variant of `prune` around SGD.

    Args:
      name: the row's name.
      schedule: the schedule under test.
      sparsities: the sparsity of every step, counted from 1, that must compute masks.
      masks: the oracle's masks from kernels and a sparsity.
      budget: the budget under test.
      pattern: the pattern under test.

    Returns:
      The row; its output is (params, masks) after six steps.
    """
    tx = pruning.prune(optax.sgd(_RATE), schedule=schedule, budget=budget, pattern=pattern)

    def oracle(history: Sequence[Inputs]) -> Any:
        params = history[0][0]
        kernels = {layer: params[layer]["kernel"] for layer in params}
        biases = {layer: params[layer]["bias"] for layer in params}
        keep = {layer: np.ones(kernel.shape, bool) for layer, kernel in kernels.items()}
        for i, (_, gradients) in enumerate(history):
            if i + 1 in sparsities:
                keep = masks(kernels, sparsities[i + 1])
            for layer in params:
                moved = kernels[layer] - np.float32(_RATE) * gradients[layer]["kernel"]
                kernels[layer] = np.where(keep[layer], moved, np.float32(0))
                biases[layer] = biases[layer] - np.float32(_RATE) * gradients[layer]["bias"]
        return (
            {layer: {"kernel": kernels[layer], "bias": biases[layer]} for layer in params},
            {layer: {"kernel": keep[layer], "bias": None} for layer in params},
        )

    return _sparse_row(name, tx, oracle)


def _sparse_row(
    name: str, tx: optax.GradientTransformation, oracle: Callable[[Sequence[Inputs]], Any]
) -> Row:
    """Makes the row of an optimizer that prunes.

    Args:
      name: the row's name.
      tx: the optimizer.
      oracle: `oracle(history) -> (params, masks)`.

    Returns:
      The row; its output is (params, masks) after six steps.
    """

    def step(state: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
        del params
        params, opt_state = state
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, pruning.masks(opt_state)), (params, opt_state)

    return Row(
        name=name,
        init=lambda params, gradients: (jax.tree.map(jnp.asarray, params), tx.init(params)),
        step=step,
        inputs=_pruning_inputs,
        oracle=oracle,
        steps=6,
    )


def _kernels(params: Any) -> dict[str, np.ndarray]:
    return {layer: leaves["kernel"] for layer, leaves in params.items()}


def _training_row(
    name: str,
    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation],
    train: Callable[[dict[str, np.ndarray], list[dict[str, np.ndarray]]], Any],
) -> Row:
    """Makes the row of a way of sparse training around SGD with momentum, biases left alone.

    Args:
      name: the row's name.
      wrap: makes the sparse optimizer of a dense one.
      train: the oracle, `train(kernels, gradients of each step) -> (kernels, masks)`.

    Returns:
      The row; its output is (params, masks) after six steps.
    """
    sgd = optax.sgd(float(sparse_training_oracles.RATE), float(sparse_training_oracles.MOMENTUM))
    biases = {layer: {"kernel": False, "bias": True} for layer in _SHAPES}
    tx = optax.chain(optax.masked(optax.set_to_zero(), biases), wrap(sgd))

    def oracle(history: Sequence[Inputs]) -> Any:
        params = history[0][0]
        kernels, keep = train(_kernels(params), [_kernels(inputs[1]) for inputs in history])
        return (
            {layer: {"kernel": kernels[layer], "bias": params[layer]["bias"]} for layer in params},
            {layer: {"kernel": keep[layer], "bias": None} for layer in params},
        )

    return _sparse_row(name, tx, oracle)


def _set_draws(step: int, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The random numbers that SET sees; the rest of the method is the oracle's own."""
    like = {name: {"kernel": g, "bias": np.zeros(g.shape[-1])} for name, g in gradients.items()}
    drawn = pruning.set_(seed=3).values(jnp.int32(step), like)
    return jax.tree.map(np.asarray, _kernels(drawn))


_EVERY_SECOND = pruning.constant(0.8, begin=1, every=2)
_SPARSE_TRAINING = [
    _training_row(
        "regrow-rigl",
        lambda tx: pruning.prune(
            tx, schedule=_EVERY_SECOND, regrow=pruning.rigl(0.4, end=4, start=None)
        ),
        lambda kernels, history: sparse_training_oracles.regrown(
            kernels,
            history,
            0.8,
            {step: 0.2 * (1 + math.cos(math.pi * step / 4)) for step in (1, 3)} | {5: 0.0},
            lambda step, gradients: {name: np.abs(g) for name, g in gradients.items()},
        ),
    ),
    _training_row(
        "regrow-set",
        lambda tx: pruning.prune(
            tx, schedule=_EVERY_SECOND, regrow=pruning.set_(0.3, seed=3, start=None)
        ),
        lambda kernels, history: sparse_training_oracles.regrown(
            kernels, history, 0.8, dict.fromkeys((1, 3, 5), 0.3), _set_draws
        ),
    ),
    _training_row(
        "latent-straight-through",
        lambda tx: pruning.prune(
            tx, schedule=_EVERY_SECOND, latent=pruning.straight_through(decay=0.05)
        ),
        lambda kernels, history: sparse_training_oracles.latent(
            kernels, history, 0.8, (1, 3, 5), decay=0.05
        ),
    ),
    _training_row(
        "latent-top-kast",
        lambda tx: pruning.prune(
            tx, schedule=_EVERY_SECOND, latent=pruning.top_kast(backward=0.5, decay=0.05)
        ),
        lambda kernels, history: sparse_training_oracles.latent(
            kernels, history, 0.8, (1, 3, 5), decay=0.05, backward=0.5
        ),
    ),
    _training_row(
        "rewind",
        lambda tx: pruning.rewind(
            pruning.prune(tx, schedule=pruning.polynomial(0.9, begin=0, end=5, every=3)), to=2
        ),
        lambda kernels, history: sparse_training_oracles.rewound(
            kernels, history, {3: 0.9 * (1 - 0.4**3), 5: 0.9}, to=2
        ),
    ),
]

_PRUNING = [
    _pruning_row("prune-one-shot", pruning.one_shot(0.5, at=2), {2: 0.5}, _masks_uniform),
    _pruning_row(
        "prune-constant", pruning.constant(0.7, begin=2, every=3), {2: 0.7, 5: 0.7}, _masks_uniform
    ),
    _pruning_row(
        "prune-polynomial",
        pruning.polynomial(0.9, begin=1, end=5, every=2),
        {3: 0.9 * (1 - 0.5**3), 5: 0.9},
        _masks_uniform,
    ),
    _pruning_row(
        "prune-global",
        pruning.one_shot(0.8),
        {1: 0.8},
        _masks_global,
        budget=pruning.global_(),
    ),
    _pruning_row(
        "prune-erdos-renyi",
        pruning.one_shot(0.8),
        {1: 0.8},
        _masks_proportional(lambda shape: math.prod(shape[:-2]) * (shape[-2] + shape[-1])),
        budget=pruning.erdos_renyi(),
    ),
    _pruning_row(
        "prune-erk",
        pruning.one_shot(0.8),
        {1: 0.8},
        _masks_proportional(lambda shape: float(sum(shape))),
        budget=pruning.erk(),
    ),
    _pruning_row(
        "prune-2:4",
        pruning.one_shot(0.5),
        {1: 0.5},
        _masks_2_4,
        pattern=pruning.n_m(2, 4),
    ),
    _pruning_row(
        "prune-block",
        pruning.one_shot(0.7),
        {1: 0.7},
        _masks_units(mask_oracles.block(4, 1)),
        pattern=pruning.block(4, 1),
    ),
    _pruning_row(
        "prune-channels",
        pruning.one_shot(0.5),
        {1: 0.5},
        _masks_units(mask_oracles.channels(-1)),
        pattern=pruning.channels(),
    ),
    _pruning_row(
        "prune-by-path",
        pruning.one_shot(0.8),
        {1: 0.8},
        _masks_by_path,
        budget=pruning.by_path({"conv/*": 0.25}),
    ),
    _pruning_row(
        "prune-cosine",
        pruning.cosine(0.9, begin=1, end=5, every=2),
        {3: mask_oracles.cosine(0.9, 1 / 2), 5: 0.9},
        _masks_uniform,
    ),
    _pruning_row(
        "prune-exponential",
        pruning.exponential(0.9, begin=0, end=6, every=2),
        {2 * k: mask_oracles.exponential(0.9, k, 3) for k in (1, 2, 3)},
        _masks_uniform,
    ),
    _pruning_row(
        "prune-iterative",
        pruning.iterative(0.875, rounds=3, every=2),
        {2 * k + 2: sparsity for k, sparsity in enumerate(mask_oracles.rounds(0.875, 3))},
        _masks_uniform,
    ),
    _pruning_row(
        "prune-cyclic",
        pruning.cyclic(0.8, begin=1, end=6, sparse=2, dense=2),
        {1: 0.8, 3: 0.0, 5: 0.8},
        _masks_uniform,
    ),
]


# Scores of weights. Two kernels, one with equal weights; weights and gradients change every step.

_SCORED = {"first": (4, 6), "second": (6, 5)}
_SURGEON = {"block_size": 5, "damping": 1e-2}


def _score_inputs(i: int) -> Inputs:
    """The parameters and the gradients of step i."""
    rng = np.random.default_rng(200 + i)
    params, gradients = {}, {}
    for name, shape in _SCORED.items():
        kernel = rng.normal(size=shape).astype(np.float32)
        params[name] = np.round(kernel, 1) if name == "second" else kernel
        gradients[name] = rng.normal(size=shape).astype(np.float32)
    return params, gradients


def _score_row(
    name: str,
    score: pruning.Score,
    oracle: Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], np.ndarray],
    *,
    loss: Callable[[Any, Any], jax.Array] | None = None,
    rtol: float = 1e-5,
) -> Row:
    """Makes the row of a score.

    Args:
      name: the row's name.
      score: the score under test.
      oracle: `oracle([(weights, gradients) of each step]) -> values` of one leaf.
      loss: `loss(params, gradients) -> []`, where the score differentiates it again.
      rtol: relative tolerance.

    Returns:
      The row; its output is the values after three steps.
    """

    def step(state: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
        extra = {"obj_fn": lambda params: loss(params, gradients)} if loss is not None else {}
        state = score.update(gradients, state, params, **extra)
        return score.values(state, params), state

    def expected(history: Sequence[Inputs]) -> Any:
        return {
            layer: oracle([(params[layer], gradients[layer]) for params, gradients in history])
            for layer in _SCORED
        }

    return Row(
        name=name,
        init=lambda params, gradients: score.init(params),
        step=step,
        inputs=_score_inputs,
        oracle=expected,
        steps=3,
        rtol=rtol,
        atol=1e-5,
    )


def _norm_quartic(params: Any, gradients: Any) -> jax.Array:
    return sum(jnp.sum(w**2) ** 2 / 4 for w in params.values())


def _quartic(params: Any, gradients: Any) -> jax.Array:
    """Each weight by itself, with `w^2 (2 + g)` for its second derivative."""
    return sum(jnp.sum(w**4 * (2 + gradients[name])) / 12 for name, w in params.items())


def _quartic_damage(history: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    sampled = [w.astype(np.float64) ** 2 * (2 + g) for w, g in history[::2]]
    return score_oracles.brain_damage(history[-1][0], sampled)


_SCORES = [
    _score_row("score-magnitude", pruning.magnitude(), lambda history: np.abs(history[-1][0])),
    _score_row(
        "score-squared-magnitude", pruning.squared_magnitude(), lambda history: history[-1][0] ** 2
    ),
    _score_row("score-lamp", pruning.lamp(), lambda history: score_oracles.lamp(history[-1][0])),
    _score_row(
        "score-saliency",
        pruning.saliency(decay=0.5),
        lambda history: score_oracles.saliency(history, 0.5),
    ),
    _score_row(
        "score-movement",
        pruning.movement(decay=0.75),
        lambda history: score_oracles.movement(history, 0.75),
    ),
    _score_row("score-snip", pruning.snip(), score_oracles.snip),
    _score_row(
        "score-diagonal-fisher",
        pruning.diagonal_fisher(decay=0.5),
        lambda history: score_oracles.diagonal_fisher(history, 0.5),
    ),
    _score_row(
        "score-grasp",
        pruning.grasp(batches=2),
        lambda history: sum(
            score_oracles.grasp(w, g, score_oracles.norm_quartic(w)) for w, g in history[:2]
        ),
        loss=_norm_quartic,
    ),
    _score_row(
        "score-optimal-brain-damage",
        pruning.optimal_brain_damage(every=2),
        _quartic_damage,
        loss=_quartic,
    ),
    _score_row(
        "score-optimal-brain-surgeon",
        pruning.optimal_brain_surgeon(**_SURGEON),
        lambda history: score_oracles.brain_surgeon(history, **_SURGEON),
        rtol=1e-4,
    ),
    stateless(
        "score-synflow",
        lambda params, gradients: pruning.synflow(
            lambda w, x: x @ w["first"] @ w["second"], jax.ShapeDtypeStruct((1, 4), jnp.float32)
        ).values((), params),
        _score_inputs,
        lambda params, gradients: dict(
            zip(params, score_oracles.synflow_chain(*params.values()), strict=True)
        ),
    ),
]


# Distillation.


def _logits(i: int) -> Inputs:
    rng = np.random.default_rng(i)
    return (
        rng.normal(scale=3, size=(8, 5)).astype(np.float32),
        rng.normal(scale=3, size=(8, 5)).astype(np.float32),
        rng.integers(0, 5, 8).astype(np.int32),
        np.float32(1 + i),
        np.float32(0.5 + 0.1 * i),
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def soft_targets_oracle(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """Softened KL divergence in float64, from Hinton et al. 2015.

    Args:
      student: [B, C] logits.
      teacher: [B, C] logits.
      temperature: T.

    Returns:
      float64 [B].
    """
    p = _softmax(np.float64(teacher) / temperature)
    q = _softmax(np.float64(student) / temperature)
    cross_entropy = -(p * np.log(q)).sum(-1)
    entropy = -(p * np.log(p)).sum(-1)
    return temperature**2 * (cross_entropy - entropy)


def hinton_oracle(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, temperature: float, alpha: float
) -> np.ndarray:
    """The weighted sum of soft and hard losses in float64, from Hinton et al. 2015.

    Args:
      student: [B, C] logits.
      teacher: [B, C] logits.
      labels: [B] classes.
      temperature: T of the soft loss.
      alpha: weight of the soft loss.

    Returns:
      float64 [B].
    """
    hard = -np.log(_softmax(np.float64(student)))[np.arange(len(labels)), labels]
    return alpha * soft_targets_oracle(student, teacher, temperature) + (1 - alpha) * hard


_DISTILLATION = [
    stateless(
        "distill-soft-targets",
        distill.soft_targets,
        lambda i: (*_logits(i)[:2], _logits(i)[3]),
        soft_targets_oracle,
    ),
    stateless(
        "distill-hinton",
        lambda student, teacher, labels, temperature, alpha: distill.hinton(
            student, teacher, labels, temperature=temperature, alpha=alpha
        ),
        _logits,
        hinton_oracle,
    ),
    stateless(
        "distill-logits-regression",
        distill.logits_regression,
        lambda i: _logits(i)[:2],
        distill_oracles.logits_regression,
    ),
    stateless(
        "distill-decoupled",
        lambda student, teacher, labels, temperature, alpha: distill.decoupled(
            student, teacher, labels, temperature=temperature, alpha=alpha, beta=2.0
        ),
        _logits,
        lambda *inputs: distill_oracles.decoupled(*inputs, 2.0),
        rtol=1e-4,
    ),
    stateless(
        "distill-virtual-teacher",
        lambda labels, correct: distill.virtual_teacher(labels, 5, correct=correct),
        lambda i: (_logits(i)[2], np.float32(0.9 + 0.02 * i)),
        lambda labels, correct: distill_oracles.virtual_teacher(labels, 5, correct),
    ),
    stateless(
        "distill-hint",
        lambda adapter, student, teacher: distill.hint(distill.adapt(adapter, student), teacher),
        lambda i: (_adapter(i), *_feature_maps(i)),
        lambda adapter, student, teacher: distill_oracles.hint(
            np.float64(student) @ adapter["kernel"] + adapter["bias"], teacher
        ),
    ),
    stateless(
        "distill-attention-transfer",
        lambda student, teacher: distill.attention_transfer(student, teacher, power=2.0),
        lambda i: _feature_maps(i),
        lambda student, teacher: distill_oracles.attention_transfer(student, teacher, 2.0),
    ),
    *(
        stateless(
            f"distill-neuron-selectivity-{kernel}",
            functools.partial(distill.neuron_selectivity, kernel=made),
            lambda i: _feature_maps(i),
            functools.partial(distill_oracles.neuron_selectivity, kernel=kernel),
        )
        for kernel, made in {
            "linear": distill.linear_kernel(),
            "polynomial": distill.polynomial_kernel(),
            "gaussian": distill.gaussian_kernel(),
        }.items()
    ),
    *(
        stateless(
            f"distill-{name}",
            lambda student, teacher, loss=loss: loss(student, teacher).mean(),
            lambda i: _feature_maps(i),
            oracle,
        )
        for name, loss, oracle in (
            ("similarity", distill.similarity, distill_oracles.similarity),
            (
                "relational-distance",
                distill.relational_distance,
                distill_oracles.relational_distance,
            ),
            ("relational-angle", distill.relational_angle, distill_oracles.relational_angle),
        )
    ),
    stateless(
        "distill-ensemble",
        lambda logits, weights, temperature: jax.nn.softmax(
            distill.ensemble(logits, weights, temperature=temperature) / temperature
        ),
        lambda i: (_peers(i), np.array([1.0, 2.0, 0.5], np.float32), np.float32(1 + i)),
        distill_oracles.ensemble,
    ),
    stateless(
        "distill-mutual",
        lambda logits, labels, temperature: distill.mutual(logits, labels, temperature=temperature),
        lambda i: (_peers(i), _logits(i)[2], np.float32(1 + i)),
        distill_oracles.mutual,
    ),
    Row(
        name="distill-contrastive",
        init=lambda *inputs: distill.init_bank(jax.random.key(0), 12, 5),
        step=lambda bank, student, teacher, indices, seed: distill.contrastive(
            student, teacher, indices, bank, jax.random.key(seed), negatives=6, temperature=0.5
        ),
        inputs=lambda i: _embeddings(i),
        oracle=lambda history: _contrasted(history),
        steps=3,
        rtol=1e-4,
        atol=1e-5,
    ),
]


def _feature_maps(i: int) -> Inputs:
    """A student's and a teacher's maps, [B, H, W, C] and [B, H, W, D]."""
    rng = np.random.default_rng(i)
    return tuple(rng.normal(size=(5, 2, 3, c)).astype(np.float32) for c in (3, 4))


def _adapter(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + i)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _peers(i: int) -> np.ndarray:
    return np.random.default_rng(i).normal(scale=2, size=(3, 8, 5)).astype(np.float32)


def _embeddings(i: int) -> Inputs:
    rng = np.random.default_rng(i)
    pair = rng.normal(size=(2, 4, 5))
    pair /= np.linalg.norm(pair, axis=-1, keepdims=True)
    indices = rng.choice(12, 4, replace=False).astype(np.int32)
    return *pair.astype(np.float32), indices, np.int32(i)


def _contrasted(history: Sequence[Inputs]) -> np.ndarray:
    """The last loss, with the bank as the steps before left it."""
    bank = [np.float64(x) for x in distill.init_bank(jax.random.key(0), 12, 5)]
    for student, teacher, indices, seed in history:
        drawn = np.asarray(jax.random.randint(jax.random.key(seed), (4, 6), 0, 12))
        loss = distill_oracles.contrastive(student, teacher, tuple(bank), drawn, 0.5)
        for old, new in zip(bank, (student, teacher), strict=True):
            mixed = (old[indices] + new) / 2
            old[indices] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return loss


def _activations(i: int) -> Inputs:
    """Values of a few batches of a tensor, [B, C]."""
    return (np.random.default_rng(i).normal(0.1 * i, 1 + i, (4, 3)).astype(np.float32),)


def _tails(i: int) -> Inputs:
    """Values with a heavy tail and growing extremes, [N]."""
    tail = np.abs(np.random.default_rng(i).standard_t(3, 1000)) * (1 + i)
    return (tail.astype(np.float32),)


def _observed(
    name: str,
    observer: quant.Observer,
    oracle: Callable[..., Any],
    inputs: Callable[[int], Inputs] = _activations,
    atol: float = 1e-7,
) -> Row:
    def step(state: Any, values: jax.Array) -> tuple[Any, Any]:
        state = observer.update(state, values)
        return observer.find(state), state

    return Row(name, lambda values: observer.init(), step, inputs, oracle, steps=4, atol=atol)


def _of_all(oracle: Callable[[np.ndarray], Any]) -> Callable[[Sequence[Inputs]], Any]:
    """Makes an oracle of the values of all batches one of a row's history."""
    return lambda history: oracle(np.concatenate([values for (values,) in history]))


def min_max_oracle(history: Sequence[Inputs]) -> tuple[np.ndarray, np.ndarray]:
    """Extremes over all batches.

    Args:
      history: the inputs of each step.

    Returns:
      Low and high.
    """
    values = np.concatenate([values for (values,) in history])
    return values.min(), values.max()


def moving_average_oracle(history: Sequence[Inputs]) -> tuple[Any, Any]:
    """Extremes of the batches with weights 0.5^age, normalised to sum to one.

    Args:
      history: the inputs of each step.

    Returns:
      Low and high.
    """
    weights = 0.5 ** np.arange(len(history))[::-1]
    lows, highs = ([end(values) for (values,) in history] for end in (np.min, np.max))
    return np.average(lows, weights=weights), np.average(highs, weights=weights)


_KERNEL = np.random.default_rng(7).normal(size=(3, 2)).astype(np.float32)
_BIAS = np.array([0.3, -0.2], np.float32)
_RANGES = {"input_0": (-3.0, 5.0), "params/kernel": (0.0, 9.0)}


def _dense(variables: Any, x: jax.Array) -> jax.Array:
    params = variables["params"]
    return jax.nn.relu(x @ params["kernel"] + params["bias"][None, :])


def _quantized_dense(x: jax.Array) -> jax.Array:
    ends = {name: {"low": low, "high": high} for name, (low, high) in _RANGES.items()}
    collection = {"input_0": ends["input_0"], "params": {"kernel": ends["params/kernel"]}}
    variables = {"params": {"kernel": _KERNEL, "bias": _BIAS}, "quant": collection}
    return cj.quantize(_dense, quant.int8()).apply(jax.tree.map(jnp.asarray, variables), x)


_ATTENDED = [(0.03, -7), (0.05, 12), (1.7, 3)]


def _attention_codes(i: int) -> Inputs:
    """Two activations as int8 codes, [2, 5, 9] and [2, 9, 4], float32."""
    rng = np.random.default_rng(i)
    shapes = ((2, 5, 9), (2, 9, 4))
    return tuple(rng.integers(-128, 128, shape).astype(np.float32) for shape in shapes)


def _attended(a: jax.Array, b: jax.Array) -> jax.Array:
    a_q, b_q, out_q = (lattice.Affine(jnp.float32(s), jnp.float32(z)) for s, z in _ATTENDED)
    return lattice.matmul_rescale(lattice.matmul_sum(a, b, a_q, b_q), a_q, b_q, out_q)


def int8_matmul_oracle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of activations in gemmlowp's fixed point (Jacob et al. 2018, section 2.2).

    Args:
      a: codes [B, M, K].
      b: codes [B, K, N].

    Returns:
      float32 [B, M, N]: the output's codes.
    """
    (s_a, z_a), (s_b, z_b), (s_out, z_out) = _ATTENDED
    total = (a.astype(np.int64) - z_a) @ (b.astype(np.int64) - z_b)
    fraction, exponent = math.frexp(float(np.float32(s_a) * np.float32(s_b)) / np.float32(s_out))
    product = total * round(fraction * 2**31)
    high = np.sign(product) * ((np.abs(product) + 2**30 - (product < 0)) >> 31)
    moved = np.sign(high) * ((np.abs(high) + (1 << -exponent >> 1)) >> -exponent)
    return np.clip(moved + z_out, -128, 127).astype(np.float32)


def int8_dense_oracle(x: np.ndarray) -> np.ndarray:
    """A fully connected layer with ReLU in integers, from Jacob et al. 2018, section 2.

    Args:
      x: [B, I].

    Returns:
      float32 [B, O]: the real values of the int8 outputs.
    """

    def grid(low: float, high: float) -> tuple[np.float32, int]:
        scale = np.float32(high - low) / np.float32(255)
        return scale, int(np.rint(np.float32(-128) - np.float32(low) / scale))

    (s_x, z_x), (s_y, z_y) = (grid(*ends) for ends in _RANGES.values())
    codes = np.clip(np.rint(x * (np.float32(1) / s_x)) + z_x, -128, 127).astype(np.int32)
    s_w = np.abs(_KERNEL).max(0) / np.float32(127)
    weights = np.rint(_KERNEL / s_w).astype(np.int32)
    bias = np.rint(_BIAS / (s_x * s_w)).astype(np.int32)
    total = ((codes - z_x) @ weights + bias).astype(np.float32)
    out = np.clip(np.rint(total * (s_x * s_w / s_y)) + z_y, z_y, 127)
    return (out - z_y).astype(np.float32) * s_y


def _folded(x: jax.Array, scale: jax.Array, shift: jax.Array, mean: jax.Array, var: jax.Array):
    def fn(variables: Any, x: jax.Array) -> jax.Array:
        y = x @ variables["params"]["kernel"] - variables["stats"]["mean"][None, :]
        norm = jax.lax.rsqrt(variables["stats"]["var"] + 1e-5) * variables["params"]["scale"]
        return y * norm[None, :] + variables["params"]["shift"][None, :]

    params = {"kernel": jnp.asarray(_KERNEL), "scale": scale, "shift": shift}
    folded, variables = cj.fold_batch_norm(
        fn, {"params": params, "stats": {"mean": mean, "var": var}}, x
    )
    return folded(variables, x)


def _batch_norms(i: int) -> Inputs:
    rng = np.random.default_rng(i)
    scale, shift, mean = rng.normal(size=(3, 2)).astype(np.float32)
    return (*_activations(i), scale, shift, mean, rng.uniform(0.1, 2, 2).astype(np.float32))


def batch_norm_oracle(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray
) -> np.ndarray:
    """A dense layer and batch norm in evaluation mode, from Ioffe and Szegedy 2015.

    Args:
      x: [B, I].
      scale: [O].
      shift: [O].
      mean: [O].
      var: [O].

    Returns:
      float64 [B, O].
    """
    y = np.float64(x) @ _KERNEL
    return (y - mean) / np.sqrt(var + 1e-5) * scale + shift


_QUANTIZATION = [
    _observed("observer-min-max", quant.min_max(), min_max_oracle),
    _observed("observer-moving-average", quant.moving_average(0.5), moving_average_oracle),
    _observed(
        "observer-per-channel",
        quant.per_channel(quant.min_max(), 3),
        _of_all(lambda values: (values.min(0), values.max(0))),
    ),
    _observed(
        "observer-percentile",
        quant.percentile(99.0),
        _of_all(lambda values: observer_oracles.percentile(values, 99.0)),
        _tails,
        atol=128 / observer_oracles.BINS,
    ),
    _observed(
        "observer-mse",
        quant.mse(bits=4),
        _of_all(lambda values: observer_oracles.least_end(values, bits=4)),
        _tails,
    ),
    _observed("observer-entropy", quant.entropy(), _of_all(observer_oracles.entropy), _tails),
    stateless("lattice-matmul", _attended, _attention_codes, int8_matmul_oracle),
    stateless("quantize-dense", _quantized_dense, _activations, int8_dense_oracle),
    stateless("fold-batch-norm", _folded, _batch_norms, batch_norm_oracle, atol=1e-5),
]

# Mixed precision: how much two layers mind 2 and 4 bits.

_BIT_GRIDS = {bits: quant.grids.integer(bits) for bits in (2, 4)}


def _two_layers(i: int) -> Inputs:
    """Kernels [4, 6] and [6, 3], images [20, 4] and labels [20]."""
    rng = np.random.default_rng(i)
    first, second, x = (rng.normal(size=size) for size in ((4, 6), (6, 3), (20, 4)))
    kernels = {"first": first.astype(np.float32), "second": second.astype(np.float32)}
    return kernels, x.astype(np.float32), rng.integers(0, 3, 20).astype(np.int32)


def _two_layer_logits(kernels: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ kernels["first"]) @ kernels["second"]


def _squares(kernels: Any, x: jax.Array) -> jax.Array:
    """A loss whose Hessian is diagonal, so that random probes leave no error in its trace."""
    return 0.5 * jnp.mean(x**2) * (jnp.sum(kernels["first"] ** 2) + jnp.sum(kernels["second"] ** 2))


def squares_sensitivity_oracle(kernels: Any, x: np.ndarray, labels: np.ndarray) -> Any:
    """Mean curvature times squared rounding error, from Dong et al. 2020, equation 2.11.

    Args:
      kernels: of two layers.
      x: [B, I]; every weight's curvature is the mean of its squares.
      labels: not used.

    Returns:
      A score for each kernel at each number of bits.
    """

    def score(kernel: np.ndarray, changed: Any) -> float:
        moved = sum(((changed[name] - kernels[name]) ** 2).sum() for name in kernels)
        return np.mean(np.float64(x) ** 2) * moved

    return bits_oracles.each(kernels, tuple(_BIT_GRIDS), score)


_BITS = [
    stateless(
        "bits-hessian",
        lambda kernels, x, labels: quant.bits.hessian(
            _squares, kernels, [x], _BIT_GRIDS, jax.random.key(0), select="*"
        ),
        _two_layers,
        squares_sensitivity_oracle,
    ),
    stateless(
        "bits-divergence",
        lambda kernels, x, labels: quant.bits.divergence(
            _two_layer_logits, kernels, [x], _BIT_GRIDS, select="*"
        ),
        _two_layers,
        lambda kernels, x, labels: bits_oracles.divergence(kernels, x, tuple(_BIT_GRIDS)),
        rtol=1e-4,
    ),
    stateless(
        "bits-accuracy",
        lambda kernels, x, labels: quant.bits.accuracy(
            _two_layer_logits, kernels, [(x, labels)], _BIT_GRIDS, select="*"
        ),
        _two_layers,
        lambda kernels, x, labels: bits_oracles.accuracy_lost(
            kernels, x, labels, tuple(_BIT_GRIDS)
        ),
    ),
]


def _weights(i: int) -> Inputs:
    """A kernel, [I, O], a third of it pruned away."""
    rng = np.random.default_rng(i)
    return ((rng.normal(size=(12, 3)) * (rng.random((12, 3)) > 0.3)).astype(np.float32),)


def _on_grid(name: str, grid: quant.Grid, oracle: Callable[[np.ndarray], np.ndarray]) -> Row:
    return stateless(f"grid-{name}", lambda w: grid.project(w, grid.fit(w)), _weights, oracle)


def _alone(oracle: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """What an oracle makes of the weights that are not zero; zeros stay."""

    def project(w: np.ndarray) -> np.ndarray:
        value = np.zeros(w.shape)
        value[w != 0] = oracle(np.float64(w[w != 0]))
        return value

    return project


_CHANNEL, _TENSOR = grid_oracles.by_channel, grid_oracles.by_tensor
_GRIDS = [
    _on_grid("int4", grids.integer(4), _CHANNEL(grid_oracles.symmetric(4))),
    _on_grid("affine-int4", grids.integer(4, symmetric=False), _CHANNEL(grid_oracles.affine(4))),
    _on_grid(
        "int4-per-block",
        grids.integer(4, granularity=grids.per_block(4)),
        grid_oracles.by_block(grid_oracles.symmetric(4), 4),
    ),
    _on_grid("learned-step", grids.learned_step(4), _CHANNEL(grid_oracles.learned_step_start(4))),
    _on_grid("ternary", grids.ternary(), _TENSOR(grid_oracles.ternary)),
    _on_grid(
        "trained-ternary",
        grids.trained_ternary(0.05),
        _TENSOR(grid_oracles.trained_ternary_start(0.05)),
    ),
    _on_grid("binary", grids.binary(), _CHANNEL(grid_oracles.binary)),
    _on_grid("power-of-two", grids.power_of_two(4), _CHANNEL(grid_oracles.power_of_two(4))),
    _on_grid(
        "additive-power-of-two",
        grids.additive_power_of_two(4),
        _CHANNEL(grid_oracles.additive_power_of_two(4)),
    ),
    _on_grid("logarithmic", grids.logarithmic(4), _CHANNEL(grid_oracles.logarithmic(4))),
    _on_grid("codebook", grids.codebook(4), _TENSOR(grid_oracles.codebook(4))),
    _on_grid(
        "keep-zeros-codebook",
        quant.keep_zeros(grids.codebook(4)),
        _alone(grid_oracles.codebook(4)),
    ),
    _on_grid("bfloat16", grids.bfloat16(), lambda w: w.astype(jnp.bfloat16).astype(np.float32)),
    _on_grid("float16", grids.float16(), lambda w: w.astype(np.float16).astype(np.float32)),
    stateless(
        "grid-fake-quant",
        lambda w: quant.fake_quant(
            {"a": {"kernel": w, "bias": w}}, {"**/kernel": grids.integer(3)}
        ),
        _weights,
        lambda w: {"a": {"kernel": _CHANNEL(grid_oracles.symmetric(3))(w), "bias": w}},
    ),
]

# Corrections: two dense layers of which the first has ill-scaled channels and high biases.


def _biased_layers(variables: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ variables["a"]["kernel"] + variables["a"]["bias"][None])
    return hidden @ variables["b"]["kernel"] + variables["b"]["bias"][None]


def _biased_layers_inputs(i: int) -> Inputs:
    rng = np.random.default_rng(i)
    spread = np.exp(rng.normal(0, 1, 5))
    variables = {
        "a": {"kernel": rng.normal(size=(3, 5)) * spread, "bias": 4 * spread + rng.normal(size=5)},
        "b": {"kernel": rng.normal(size=(5, 2)), "bias": rng.normal(size=2)},
    }
    return jax.tree.map(np.float32, variables), rng.normal(size=(20, 3)).astype(np.float32)


def _equalized(variables: Any, x: np.ndarray) -> Any:
    names = ("a", "b")
    weights, biases = equalize_oracles.equalized(
        [variables[name]["kernel"] for name in names], [variables[name]["bias"] for name in names]
    )
    return {
        name: {"kernel": weight, "bias": bias}
        for name, weight, bias in zip(names, weights, biases, strict=True)
    }


def _absorbed(variables: Any, x: np.ndarray) -> Any:
    first, second = variables["a"], variables["b"]
    constant = equalize_oracles.absorbed(np.float64(x) @ first["kernel"] + first["bias"], 1.5)
    return {
        "a": {**first, "bias": first["bias"] - constant},
        "b": {**second, "bias": second["bias"] + constant @ np.float64(second["kernel"])},
    }


def _normed(variables: Any, x: jax.Array) -> Any:
    old = variables["stats"]
    mean, var = 0.75 * old["mean"] + 0.25 * x.mean(0), 0.5 * old["var"] + 0.5 * x.var(0)
    return x, {"stats": {"mean": mean, "var": var}}


def _reestimated(x: jax.Array) -> Any:
    variables = {"stats": {"mean": jnp.ones(3), "var": jnp.ones(3)}}
    return quant.reestimate_batch_norm(_normed, variables, [x[:1], x[1:]])


def reestimated_oracle(x: np.ndarray) -> Any:
    """Statistics of all examples.

    Args:
      x: [B, C].

    Returns:
      The variables.
    """
    mean, var = equalize_oracles.population([x])
    return {"stats": {"mean": mean, "var": var}}


_COARSE_RANGES = {"input_0": {"low": -8.0, "high": 8.0}, "a": {"low": -99.0, "high": 99.0}}


def _coarse() -> quant.Quantized:
    """A dense layer with 2-bit weights, and activations that are hardly rounded."""
    return cj.quantize(
        lambda v, x: x @ v["a"] + v["bias"][None], quant.uniform(weights=2, activations=16)
    )


def _coarse_inputs(i: int) -> Inputs:
    rng = np.random.default_rng(i)
    shapes = ((5, 4), (4,), (12, 5))
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def _bias_corrected(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> Any:
    qv = {"a": kernel, "bias": bias, "quant": jax.tree.map(jnp.float32, _COARSE_RANGES)}
    return quant.correct_bias(_coarse(), qv, [x[:8], x[8:]])["bias"]


def _bias_expected(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> Any:
    qv = {"a": kernel, "bias": bias, "quant": jax.tree.map(jnp.float32, _COARSE_RANGES)}
    moments = {"input_0": quant.Moments(x.mean(0), x.std(0))}
    return quant.correct_bias_without_data(_coarse(), qv, moments, x)["bias"]


def corrected_bias_oracle(kernel: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A bias less the mean error of rounded weights, from Nagel et al. 2019, section 4.2.

    Args:
      kernel: [I, O].
      bias: [O].
      x: [B, I].

    Returns:
      float64 [O].
    """
    scale = np.abs(np.float64(kernel)).max(0)
    return bias - np.float64(x).mean(0) @ (np.rint(kernel / scale) * scale - kernel)


def _roundings(i: int) -> Inputs:
    rng = np.random.default_rng((0, 2, 6)[i])
    kernel = rng.normal(size=(6, 1))
    x = np.maximum(rng.normal(size=(64, 6)) @ rng.normal(size=(6, 6)) + 0.5, 0)
    return kernel.astype(np.float32), x.astype(np.float32)


def _rounding(kernel: jax.Array, x: jax.Array) -> jax.Array:
    below = jnp.floor(kernel)[None]
    problem = Problem(
        inputs=x[None],
        targets=jax.nn.relu(x @ kernel)[None],
        below=below,
        above=below + 1,
        share=kernel[None] - below,
        bias=jnp.zeros((1, 1, 1)),
        lo=jnp.float32(0),
        hi=jnp.float32(jnp.inf),
    )
    return choose(problem, steps=400, rows=64, weight=64.0)[0]


def rounding_oracle(kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The best of all ways to round, which AdaRound (Nagel et al. 2020) looks for.

    Args:
      kernel: [I, 1].
      x: [B, I].

    Returns:
      Boolean [I, 1], true for up.
    """
    wanted = np.maximum(np.float64(x) @ kernel, 0)

    def error(up: np.ndarray) -> float:
        return np.square(np.maximum(x @ (np.floor(kernel) + up), 0) - wanted).sum()

    every = [np.reshape(up, kernel.shape) for up in itertools.product([False, True], repeat=6)]
    return min(every, key=error)


_CORRECTIONS = [
    stateless("correct-bias", _bias_corrected, _coarse_inputs, corrected_bias_oracle, atol=1e-3),
    stateless(
        "correct-bias-without-data",
        _bias_expected,
        _coarse_inputs,
        corrected_bias_oracle,
        atol=1e-5,
    ),
    stateless("adaround", _rounding, _roundings, rounding_oracle),
    stateless(
        "equalize",
        lambda variables, x: quant.equalize(_biased_layers, variables, x)[1],
        _biased_layers_inputs,
        _equalized,
    ),
    stateless(
        "absorb-bias",
        lambda variables, x: quant.absorb_bias(_biased_layers, variables, [x], deviations=1.5),
        _biased_layers_inputs,
        _absorbed,
        rtol=1e-4,
        atol=1e-4,
    ),
    stateless("reestimate-batch-norm", _reestimated, _activations, reestimated_oracle),
]

# Evidence for importances of channels: what runs compiled.


def _least_squares(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x @ variables["params"]["w"] - y)) / 2


def _moments(w: jax.Array, x: jax.Array, y: jax.Array) -> Any:
    batches = [(x[0], y[0]), (x[1], y[1])]
    return slimming.gradient_moments(_least_squares, {"params": {"w": w}}, batches)


def _moment_inputs(i: int) -> Inputs:
    noise = np.random.default_rng(i)
    return tuple(noise.normal(size=n).astype(np.float32) for n in ((5,), (2, 8, 5), (2, 8)))


def _moments_oracle(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    first, second = importance_oracles.moments_of_least_squares(w, x, y)
    return {"w": first}, {"w": second}


_IMPORTANCES = [
    stateless("gradient-moments", _moments, _moment_inputs, _moments_oracle),
    stateless(
        "mean-magnitude",
        slimming.mean_magnitude().compiled,
        lambda i: (np.random.default_rng(i).normal(size=(2, 5, 5, 3)).astype(np.float32),),
        importance_oracles.mean_magnitude,
    ),
]

# Penalties on channels, at a strength that moves: hand-written groups, SGD, six steps.


def _penalised(
    name: str,
    penalty: optax.GradientTransformation,
    train: Callable[[penalty_oracles.Params, penalty_oracles.Params, int], penalty_oracles.Params],
    *,
    last: bool = False,
) -> Row:
    """Makes the row of a penalty.

    Args:
      name: the row's name.
      penalty: in front of SGD, or behind it.
      train: the oracle of one step, `train(params, gradients, step) -> params`.
      last: whether the penalty comes behind.

    Returns:
      The row; its output is the parameters by path.
    """
    parts = (optax.sgd(_RATE), penalty) if last else (penalty, optax.sgd(_RATE))
    tx = optax.chain(*parts)

    def step(state: Any, params: Any, gradients: Any) -> tuple[Any, Any]:
        del params
        params, opt_state = state
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, (params, opt_state)

    def oracle(history: Sequence[Inputs]) -> Any:
        params = history[0][0]
        for i, (_, gradients) in enumerate(history):
            params = train(params, gradients, i)
        return params

    return Row(
        name=name,
        init=lambda params, gradients: (jax.tree.map(jnp.asarray, params), tx.init(params)),
        step=step,
        inputs=lambda i: (penalty_layouts.draw(0), penalty_layouts.draw(1 + i, 0.1)),
        oracle=oracle,
        steps=6,
        rtol=1e-5,
        atol=1e-6,
    )


def _descended(
    penalty: Callable[[penalty_oracles.Params, int], penalty_oracles.Params],
) -> Callable[..., penalty_oracles.Params]:
    """A step of SGD on the loss and a penalty."""

    def train(params: Any, gradients: Any, step: int) -> Any:
        pull = penalty(params, step)
        return {path: params[path] - _RATE * (gradients[path] + pull[path]) for path in params}

    return train


def _shrunken(
    proximal: Callable[[penalty_oracles.Params, float], penalty_oracles.Params],
) -> Callable[..., penalty_oracles.Params]:
    """A step of SGD on the loss, then the proximal step at the strength of `_strength`."""

    def train(params: Any, gradients: Any, step: int) -> Any:
        moved = {path: params[path] - _RATE * np.float64(gradients[path]) for path in params}
        return proximal(moved, _RATE * _strength(step))

    return train


def _strength(step: Any) -> Any:
    return 0.2 + 0.1 * step


def _slimmed(params: penalty_oracles.Params, step: int) -> penalty_oracles.Params:
    scale = "a/norm/scale"
    zeros = {path: np.zeros(leaf.shape) for path, leaf in params.items()}
    return {**zeros, scale: _strength(step) * np.sign(params[scale])}


def _grown(params: penalty_oracles.Params, step: int) -> penalty_oracles.Params:
    factors = penalty_oracles.growing_factors(
        penalty_layouts.MADE,
        [{0, 1, 2}, {2}],
        step,
        delta=0.3,
        every=2,
        ceiling=0.75,
        ordinary=0.1,
    )
    return penalty_oracles.squares_gradient(params, penalty_layouts.MADE, factors)


def _weighted(params: penalty_oracles.Params, step: int) -> penalty_oracles.Params:
    channels = penalty_layouts.EVERYTHING
    factors = penalty_oracles.importance_factors(
        params, channels, strength=0.1 * _strength(step), alpha=4.0
    )
    return penalty_oracles.squares_gradient(params, channels, factors)


_CHANNELS = penalty_layouts.groups()
_PENALTIES = [
    _penalised("network-slimming", slimming.network_slimming(_strength), _descended(_slimmed)),
    _penalised(
        "proximal-slimming",
        slimming.proximal_slimming(_strength, _RATE),
        _shrunken(lambda params, t: penalty_oracles.proximal_l1(params, ["a/norm/scale"], t)),
        last=True,
    ),
    _penalised(
        "group-lasso",
        slimming.group_lasso(_CHANNELS, _strength),
        _descended(
            lambda params, step: penalty_oracles.lasso_gradient(
                params, penalty_layouts.MADE, _strength(step)
            )
        ),
    ),
    _penalised(
        "proximal-group-lasso",
        slimming.proximal_group_lasso(_CHANNELS, _strength, _RATE),
        _shrunken(
            lambda params, t: penalty_oracles.proximal_lasso(params, penalty_layouts.MADE, t)
        ),
        last=True,
    ),
    _penalised(
        "growing-decay",
        slimming.growing(
            _CHANNELS,
            {"params/b/kernel": [3]},
            slimming.staircase(0.3, every=2, ceiling=0.75),
            ordinary=0.1,
        ),
        _descended(_grown),
    ),
    _penalised(
        "importance-weighted-decay",
        slimming.importance_weighted(_CHANNELS, lambda step: 0.1 * _strength(step)),
        _descended(_weighted),
    ),
]

_LOW_RANK = (
    stateless(
        "factors-product",
        lambda *weights: lowrank.factors.product(
            lowrank.cp().plan(
                lowrank.layers.Layer("w", (3, 2), 4, 6, 1, (((1, 5, 5), (1, 5, 5)),)), (3,)
            ),
            weights,
        ),
        lambda i: tuple(
            np.random.default_rng(i).normal(size=shape).astype("f")
            for shape in ((1, 1, 4, 3), (3, 2, 1, 3), (1, 1, 3, 6))
        ),
        lowrank_oracles.chain,
    ),
)

ROWS: tuple[Row, ...] = (
    *_PRUNING,
    *_SPARSE_TRAINING,
    *_SCORES,
    *_DISTILLATION,
    *_LOW_RANK,
    *_QUANTIZATION,
    *_BITS,
    *_GRIDS,
    *_CORRECTIONS,
    *_IMPORTANCES,
    *_PENALTIES,
)
