"""Scores: scaling and conservation laws, exact cases, the papers' claims, bad input."""

import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import strategies as st

from compressjax import pruning
from compressjax.pruning.scores.inverse_fisher import moved
from tests.support import score_oracles

_SHAPES = {"conv": (3, 3, 4, 5), "dense": (7, 6)}
_seeds = st.integers(0, 2**31 - 1)
_few = hypothesis.settings(max_examples=5)


def _params(seed: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), dtype),
            "bias": jnp.asarray(rng.normal(size=shape[-1:]), dtype),
        }
        for name, shape in _SHAPES.items()
    }


def _flow(params: Any, x: jax.Array) -> jax.Array:
    y = jnp.sum(params["conv"]["kernel"], axis=(0, 1, 2)).reshape(1, 5)
    return jax.nn.relu(jnp.sum(x) * jnp.sum(y) * params["dense"]["kernel"])


_SCORES = {
    "magnitude": pruning.magnitude(),
    "squared": pruning.squared_magnitude(),
    "random": pruning.random(),
    "lamp": pruning.lamp(),
    "saliency": pruning.saliency(),
    "movement": pruning.movement(decay=0.5),
    "snip": pruning.snip(),
    "grasp": pruning.grasp(),
    "synflow": pruning.synflow(_flow, jnp.zeros((1, 2))),
    "fisher": pruning.diagonal_fisher(),
    "damage": pruning.optimal_brain_damage(every=2),
    "surgeon": pruning.optimal_brain_surgeon(block_size=8),
}


def _cubes(params: Any) -> jax.Array:
    return sum(jnp.sum(x**3) for x in jax.tree.leaves(params))


def test_evidence_of_bfloat16_is_wide_and_survives_a_checkpoint(tmp_path: pathlib.Path) -> None:
    params = _params(0, jnp.bfloat16)

    @jax.jit
    def gather(states: Any) -> Any:
        gradients = jax.grad(_cubes)(params)
        return {
            name: score.update(
                gradients, states[name], params, **({"obj_fn": _cubes} if score.extra else {})
            )
            for name, score in _SCORES.items()
        }

    @jax.jit
    def values(states: Any) -> Any:
        return {name: score.values(states[name], params) for name, score in _SCORES.items()}

    states = gather({name: score.init(params) for name, score in _SCORES.items()})
    wide = {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {x.dtype for x in jax.tree.leaves(states)} == wide
    evidence = {name: state for name, state in states.items() if jax.tree.leaves(state)}
    assert len(evidence) == 7
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "evidence", evidence)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "evidence", evidence)
    jax.tree.map(np.testing.assert_array_equal, evidence, restored)
    found, again = values(states), values({**states, **restored})
    jax.tree.map(np.testing.assert_array_equal, found, again)
    for name, tree in found.items():
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params), name
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree)), name


def test_prunes_bfloat16_by_a_score_of_the_loss() -> None:
    tx = pruning.prune(
        optax.sgd(0.01), schedule=pruning.one_shot(0.5), score=_SCORES["damage"], select="dense/*"
    )
    params = _params(0, jnp.bfloat16)

    @jax.jit
    def step(state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(_cubes)(params), state, params, obj_fn=_cubes)
        return optax.apply_updates(params, updates), state

    pruned, state = step(tx.init(params))
    # The Hessian of a sum of cubes is diagonal, 6 w, so half of w^2 * 6 w is 3 w^3.
    kernel = np.asarray(params["dense"]["kernel"], np.float32)
    expected = np.zeros(42, bool)
    expected[np.argsort(-kernel.ravel(), kind="stable")[:21]] = True
    keep = pruning.masks(state)["dense"]["kernel"]
    np.testing.assert_array_equal(keep, expected.reshape(7, 6))
    assert pruned["dense"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(pruned["dense"]["kernel"] != 0, keep)


def test_says_that_the_loss_is_missing() -> None:
    tx = pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.5), score=pruning.grasp())
    with pytest.raises(ValueError, match="obj_fn"):
        tx.update(_params(1), tx.init(_params(0)), _params(0))


@_few
@hypothesis.given(seed=_seeds, scale=st.sampled_from([1e-25, 1e-3, 7.0, 1e25]))
def test_lamp_does_not_depend_on_the_scale_of_a_leaf(seed: int, scale: float) -> None:
    leaf = np.random.default_rng(seed).normal(size=(5, 9)).astype(np.float32)
    score = pruning.lamp()
    found = score.values((), leaf * np.float32(scale))
    np.testing.assert_allclose(found, score_oracles.lamp(leaf), rtol=1e-5)


def test_lamp_keeps_the_order_of_magnitudes_in_a_large_leaf() -> None:
    """So large that shares of near magnitudes differ by less than their sums are rounded by."""
    leaf = np.random.default_rng(0).normal(size=2_000_000).astype(np.float32)
    values = np.asarray(pruning.lamp().values((), jnp.asarray(leaf)))
    assert (np.diff(values[np.argsort(-np.abs(leaf), kind="stable")]) <= 0).all()


def test_lamp_never_empties_a_layer() -> None:
    params = {"a": {"kernel": jnp.ones((20, 20))}, "b": {"kernel": jnp.full((3, 3), 1e-6)}}
    budget = pruning.global_()
    by_lamp = pruning.choose(pruning.lamp().values((), params), 0.99, budget=budget)
    assert bool(by_lamp["b"]["kernel"].any())
    by_size = pruning.choose(pruning.magnitude().values((), params), 0.99, budget=budget)
    assert not bool(by_size["b"]["kernel"].any())


def test_lamp_of_zeros_is_zero() -> None:
    values = pruning.lamp().values((), {"a": jnp.zeros(3), "b": jnp.zeros((0, 2))})
    np.testing.assert_array_equal(values["a"], 0)
    assert values["b"].shape == (0, 2)


@pytest.mark.parametrize(
    ("score", "power_w", "power_g"),
    [
        (pruning.saliency(), 1, 1),
        (pruning.movement(), 1, 1),
        (pruning.snip(), 1, 1),
        (pruning.diagonal_fisher(), 2, 2),
        (pruning.squared_magnitude(), 2, 0),
    ],
)
def test_scores_scale_as_their_formulas_do(
    score: pruning.Score, power_w: int, power_g: int
) -> None:
    def values(scale_w: float, scale_g: float) -> Any:
        state = score.init(_params(0))
        for i in range(2):
            params = jax.tree.map(lambda x: scale_w * x, _params(i))
            gradients = jax.tree.map(lambda x: scale_g * x, _params(10 + i))
            state = score.update(gradients, state, params)
        return score.values(state, params)

    for found, base in zip(
        jax.tree.leaves(values(2.0, 4.0)), jax.tree.leaves(values(1.0, 1.0)), strict=True
    ):
        np.testing.assert_array_equal(found, base * 2.0**power_w * 4.0**power_g)


def test_movement_prunes_what_moves_to_zero_and_magnitude_what_is_small() -> None:
    params, target = {"kernel": jnp.array([1.0, 0.2])}, jnp.array([0.0, 1.0])
    score = pruning.movement()
    state, weights = score.init(params), params
    for _ in range(5):
        gradients = {"kernel": weights["kernel"] - target}
        state = score.update(gradients, state, weights)
        weights = jax.tree.map(lambda w, g: w - 0.02 * g, weights, gradients)
    by_movement = pruning.choose(score.values(state, weights), 0.5)["kernel"]
    by_size = pruning.choose(pruning.magnitude().values((), weights), 0.5)["kernel"]
    assert by_movement.tolist() == [False, True]
    assert by_size.tolist() == [True, False]


def test_grasp_keeps_what_carries_the_gradient() -> None:
    """Removing a weight of a low score lets the gradient's squared norm fall less."""
    curvature = jnp.diag(jnp.array([10.0, 1.0, 0.1]))
    w = jnp.ones(3)

    def loss(w: jax.Array) -> jax.Array:
        return w @ curvature @ w / 2

    score = pruning.grasp()
    state = score.update(jax.grad(loss)(w), score.init(w), w, obj_fn=loss)
    left = [float(jnp.sum(jax.grad(loss)(w.at[i].set(0.0)) ** 2)) for i in range(3)]
    values = score.values(state, w)
    assert np.argsort(values).tolist() == np.argsort(left)[::-1].tolist()
    later = score.update(jnp.full(3, 9.0), state, w, obj_fn=loss)
    np.testing.assert_array_equal(score.values(later, w), values)


@_few
@hypothesis.given(seed=_seeds)
def test_synflow_is_conserved_from_layer_to_layer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = (4, 6, 5, 3)
    params = {
        str(i): jnp.asarray(rng.normal(size=pair), jnp.float32)
        for i, pair in enumerate(zip(widths, widths[1:], strict=False))
    }

    def fn(params: Any, x: jax.Array) -> Any:
        for w in params.values():
            x = jax.nn.relu(x @ w)
        return {"logits": x}

    values = pruning.synflow(fn, jax.ShapeDtypeStruct((2, 4), jnp.float32)).values((), params)
    totals = [float(jnp.sum(leaf)) for leaf in values.values()]
    flow = float(jnp.sum(fn(jax.tree.map(jnp.abs, params), jnp.ones((2, 4)))["logits"]))
    np.testing.assert_allclose(totals, flow, rtol=1e-5)
    # Units are conserved too: what comes in goes out.
    np.testing.assert_allclose(jnp.sum(values["0"], 0), jnp.sum(values["1"], 1), rtol=1e-5)


def test_synflow_never_empties_a_layer_where_magnitude_does() -> None:
    params = {
        "a": {"kernel": _params(0)["dense"]["kernel"]},
        "b": {"kernel": 1e-3 * jnp.eye(6, 4) + 1e-4},
    }
    score = pruning.synflow(lambda p, x: x @ p["a"]["kernel"] @ p["b"]["kernel"], jnp.zeros((1, 7)))

    def pruned(score: pruning.Score) -> Any:
        tx = pruning.prune(
            optax.sgd(0.0),
            schedule=pruning.exponential(0.9, begin=0, end=20, every=1),
            score=score,
            budget=pruning.global_(),
        )
        step = jax.jit(lambda state, params: tx.update(zeros, state, params))
        zeros, weights, state = jax.tree.map(jnp.zeros_like, params), params, tx.init(params)
        for _ in range(20):
            updates, state = step(state, weights)
            weights = optax.apply_updates(weights, updates)
        return [int(jnp.sum(leaf)) for leaf in jax.tree.leaves(pruning.masks(state))]

    by_flow, by_size = pruned(score), pruned(pruning.magnitude())
    assert sum(by_flow) == sum(by_size) == 7
    assert min(by_flow) > 0
    assert by_size[1] == 0


def _hutchinson(loss: Callable[[jax.Array], jax.Array], w: jax.Array, samples: int) -> Any:
    score = pruning.optimal_brain_damage(seed=3)

    def step(state: Any, _: None) -> tuple[Any, None]:
        return score.update(w, state, w, obj_fn=loss), None

    return jax.lax.scan(step, score.init(w), length=samples)[0]


def test_hutchinson_is_exact_on_a_diagonal_and_unbiased_otherwise() -> None:
    factor = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    hessian, w = jnp.asarray(factor @ factor.T), jnp.ones(4)
    diagonal = jnp.diagonal(hessian)
    once = _hutchinson(lambda w: jnp.sum(diagonal * w**2) / 2, w, 1)
    np.testing.assert_allclose(once.diagonal, diagonal, rtol=1e-6)
    many = _hutchinson(lambda w: w @ hessian @ w / 2, w, 2000)
    deviation = np.sqrt(np.sum(np.square(hessian - jnp.diag(diagonal)), axis=1) / 2000)
    assert (np.abs(many.diagonal - diagonal) < 4 * deviation).all()


def _quadratic(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A correlated Hessian, and weights at its minimum."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(size, size)) * rng.uniform(0.2, 1.0, size) + rng.normal(size=(size, 1))
    return mixed @ mixed.T / size + 0.05 * np.eye(size), rng.normal(size=size)


def _observed(hessian: np.ndarray, score: pruning.Score) -> Any:
    """Evidence from gradients whose outer products have the Hessian for their mean."""
    size = len(hessian)
    columns = np.linalg.cholesky(hessian).T * np.sqrt(size)
    state = score.init(jnp.zeros(size))
    for gradient in columns:
        state = score.update(jnp.asarray(gradient, jnp.float32), state, jnp.zeros(size))
    return state


@_few
@hypothesis.given(seed=_seeds)
def test_compensation_reaches_the_minimum_with_the_given_zeros(seed: int) -> None:
    hessian, w = _quadratic(seed, 8)
    keep = np.random.default_rng(seed).random(8) < 0.6
    state = _observed(hessian, pruning.optimal_brain_surgeon(block_size=8, damping=1e-7))
    found = pruning.compensate(state, jnp.asarray(w, jnp.float32), jnp.asarray(keep))
    expected = score_oracles.surgery(w, np.linalg.inv(hessian), ~keep)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(found)[~keep], 0)
    # Nothing pulls at the weights that are left.
    np.testing.assert_allclose((hessian @ (np.asarray(found) - w))[keep], 0, atol=1e-3)


def test_surgery_is_that_of_the_paper_in_every_block() -> None:
    cases = [_quadratic(seed, 4) for seed in range(3)]
    keep = np.array([[True, False, True, False], [False] * 4, [True] * 4])
    hessians, weights = (np.stack(x).astype(np.float32) for x in zip(*cases, strict=True))
    found = moved(jnp.asarray(hessians), jnp.asarray(weights), jnp.asarray(keep))
    for row, (hessian, w), kept in zip(found, cases, keep, strict=True):
        expected = score_oracles.surgery(w, np.linalg.inv(hessian), ~kept)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_compensation_leaves_alone_what_it_should() -> None:
    params = _params(0, jnp.bfloat16)
    score = pruning.optimal_brain_surgeon(block_size=8)
    state = score.update(_params(1), score.init(params), params)
    keep = jax.tree.map(lambda x: None, params)
    keep["conv"]["kernel"] = jnp.arange(180).reshape(3, 3, 4, 5) != 3
    found = pruning.compensate(state, params, keep)
    same = jax.tree.map(lambda a, b: np.asarray(a == b), found, params)
    flat = same["conv"]["kernel"].ravel()
    assert flat[8:].all() and not flat[:8].all()
    assert same["conv"]["bias"].all() and same["dense"]["kernel"].all()
    assert found["conv"]["kernel"].dtype == jnp.bfloat16


def test_surgeon_beats_damage_beats_magnitude_where_weights_stand_in_for_each_other() -> None:
    """One weight of four goes: a twin, a weight that matters little, or a small one that matters.

    By equation 5 of Hassibi and Stork a twin costs `w^2 (1 - r^2) / 2` once the other makes up for
    it, with `r` the correlation. Only `optimal_brain_surgeon` sees that.
    """
    r = 0.9
    hessian = np.array([[1, r, 0, 0], [r, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 100]])
    w = np.array([1.0, 1.1, 0.6, 0.3])
    weights = {"kernel": jnp.asarray(w, jnp.float32)}
    surgeon = pruning.optimal_brain_surgeon(block_size=4, damping=1e-7)
    state = _observed(hessian, surgeon)
    state = state._replace(fisher={"kernel": state.fisher})
    damage = {"kernel": jnp.asarray(w**2 * np.diag(hessian) / 2, jnp.float32)}

    def loss_after(values: Any) -> tuple[float, float]:
        """The loss of weights set to 0, and that where the others make up for it."""
        keep = pruning.choose(values, 0.25)
        left = pruning.apply_masks(weights, keep), pruning.compensate(state, weights, keep)
        changes = [np.asarray(after["kernel"], np.float64) - w for after in left]
        plain, moved = (float(change @ hessian @ change / 2) for change in changes)
        return plain, moved

    _, by_surgeon = loss_after(surgeon.values(state, weights))
    by_damage, by_damage_moved = loss_after(damage)
    by_size, by_size_moved = loss_after(pruning.magnitude().values((), weights))
    np.testing.assert_allclose(by_surgeon, (1 - r**2) / 2, rtol=1e-3)
    np.testing.assert_allclose([by_damage, by_damage_moved], 0.6**2 / 2, rtol=1e-3)
    np.testing.assert_allclose([by_size, by_size_moved], 0.3**2 * 100 / 2, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_surgeon_bears_fewer_and_larger_gradients_than_float32_can_tell_from_none(
    steps: int,
) -> None:
    """Blocks are singular, and the damping is lost in the rounding of their entries."""
    rng = np.random.default_rng(0)
    weights, history = jnp.asarray(rng.normal(size=512), jnp.float32), rng.normal(size=(steps, 512))
    score = pruning.optimal_brain_surgeon(block_size=16, damping=1e-5)
    state = score.init(weights)
    for gradient in history:
        state = score.update(jnp.asarray(100 * gradient, jnp.float32), state, weights)
    values = np.asarray(score.values(state, weights))
    after = pruning.compensate(state, weights, jnp.asarray(rng.random(512) < 0.5))
    assert (values > 0).all() and np.isfinite(values).all()
    assert bool(jnp.isfinite(after).all())
    # Never more than the loss of the weight alone.
    alone = np.square(weights) * np.mean(np.square(100 * history), axis=0) / 2
    assert (values <= 1.01 * alone + 1e-2).all()


@pytest.mark.parametrize(
    ("made_for", "message"),
    [
        ({"a": (16,)}, "kernel has 10 weights, 2 blocks of 8, and the evidence nothing"),
        ({"kernel": (20,)}, "kernel has 10 weights, 2 blocks of 8, and the evidence 3 blocks"),
    ],
)
def test_compensation_refuses_evidence_of_another_model(made_for: Any, message: str) -> None:
    other = {name: jnp.zeros(shape) for name, shape in made_for.items()}
    state = pruning.optimal_brain_surgeon(block_size=8).init(other)
    with pytest.raises(ValueError, match=message):
        pruning.compensate(state, {"kernel": jnp.ones(10)}, {"kernel": jnp.ones(10, bool)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pruning.saliency(decay=0.0), "decay must be in .0, 1., found 0.0"),
        (lambda: pruning.movement(decay=1.5), "decay must be"),
        (lambda: pruning.snip(decay=-1.0), "decay must be"),
        (lambda: pruning.diagonal_fisher(decay=float("nan")), "decay must be"),
        (lambda: pruning.grasp(batches=0), "batches must be .* found 0"),
        (lambda: pruning.optimal_brain_damage(every=0), "every must be"),
        (lambda: pruning.optimal_brain_surgeon(block_size=0), "block_size must be"),
        (lambda: pruning.optimal_brain_surgeon(damping=0.0), "damping must be positive"),
        (lambda: pruning.optimal_brain_surgeon(decay=2.0), "decay must be"),
    ],
)
def test_refuses_bad_numbers(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_blocks_of_a_fraction() -> None:
    with pytest.raises(TypeError, match="block_size must be an int, found 2.0"):
        pruning.optimal_brain_surgeon(block_size=2.0)  # type: ignore[arg-type]


def test_blocks_are_factored_without_lapack() -> None:
    # Batched LAPACK calls of several leaves in one program wait for each other for ever on a CPU.
    params = {"kernel": jnp.ones((64, 8)), "other": jnp.ones((32, 8))}
    keep = {"kernel": jnp.ones((64, 8), bool), "other": None}
    score = pruning.optimal_brain_surgeon(block_size=16)
    state = score.init(params)
    for function in (
        lambda: score.values(state, params),
        lambda: pruning.compensate(state, params, keep),
    ):
        assert "lapack" not in jax.jit(function).lower().as_text()
