"""Regrowing, latent weights and rewinding: exact counts, fresh moments, exact resume, claims."""

import pathlib
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
from compressjax.pruning.regrow import reset_moments
from tests.support.optimizing import gradients_of, params_of, stepper

_SHAPES = {"conv": (3, 3, 4, 8), "dense": (32, 12)}


def _params(seed: int) -> Any:
    return params_of(_SHAPES, seed)


_REGROWN = {"set": pruning.set_(0.3), "rigl": pruning.rigl(0.3, end=6)}
_PATTERNS = {"unstructured": pruning.unstructured(), "2:4": pruning.n_m(2, 4)}


@pytest.mark.parametrize("pattern", _PATTERNS)
@pytest.mark.parametrize("method", _REGROWN)
@hypothesis.settings(max_examples=3)
@hypothesis.given(seed=st.integers(0, 2**31 - 1))
def test_regrowing_keeps_the_count_and_starts_from_zero(
    method: str, pattern: str, seed: int
) -> None:
    tx = pruning.prune(
        optax.adam(1e-2),
        schedule=pruning.constant(0.7, every=2),
        budget=pruning.erk(),
        pattern=_PATTERNS[pattern],
        regrow=_REGROWN[method],
    )
    step, params = stepper(tx), _params(seed)
    state = tx.init(params)
    size = sum(int(np.prod(shape)) for shape in _SHAPES.values())
    returned = 0
    for i in range(5):
        before, weights = pruning.masks(state), params
        params, state = step(params, state, gradients_of(i, params))
        keep = pruning.masks(state)
        masks = {name: np.asarray(keep[name]["kernel"]) for name in _SHAPES}
        assert sum(mask.sum() for mask in masks.values()) == size - round(0.7 * size)
        for name, mask in masks.items():
            if pattern == "2:4":
                groups = np.moveaxis(mask, -2, -1).reshape(-1, 4)
                assert groups.sum(1).max() <= 2
            back = mask & ~np.asarray(before[name]["kernel"])
            returned += back.sum()
            kernel = np.asarray(params[name]["kernel"])
            assert (kernel[~mask] == 0).all()
            assert (np.asarray(weights[name]["kernel"])[back] == 0).all()
    assert returned > 0


def test_what_goes_is_small_and_what_returns_has_largegradients_of() -> None:
    tx = pruning.prune(
        optax.sgd(0.0),
        schedule=pruning.constant(0.5, every=1),
        regrow=pruning.rigl(0.5, start=None),
    )
    params = {"kernel": jnp.array([[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])}
    gradients = {"kernel": jnp.array([[0.0, 0.0, 1.0, 0.0, 0.0, 9.0, 0.0, 5.0]])}
    _, state = tx.update(gradients, tx.init(params), params)
    expected = [[True, True, False, False, False, True, False, True]]
    np.testing.assert_array_equal(pruning.masks(state)["kernel"], expected)


_OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(1e-2),
    "initial scale": lambda: optax.rmsprop(1e-2, initial_scale=0.5),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
    "masked": lambda: optax.masked(
        optax.adam(1e-2), {name: {"kernel": True, "bias": False} for name in _SHAPES}
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(0.1, momentum=0.9)},
        {name: {"kernel": "a", "bias": "b"} for name in _SHAPES},
    ),
}


@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
def test_moments_of_returned_weights_start_over(optimizer: str) -> None:
    tx = _OPTIMIZERS[optimizer]()
    params = _params(0)
    fresh = state = tx.init(params)
    for i in range(2):
        _, state = tx.update(gradients_of(i, params), state, params)
    rng = np.random.default_rng(0)
    returned = {
        name: {"kernel": jnp.asarray(rng.random(shape) < 0.5), "bias": False}
        for name, shape in _SHAPES.items()
    }
    reset = reset_moments(tx, state, params, returned)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    marks = {shape: returned[name]["kernel"] for name, shape in _SHAPES.items()}
    seen = 0
    for a, b, c in zip(*map(jax.tree.leaves, (reset, state, fresh)), strict=True):
        expected = b
        if jnp.shape(b) in marks:
            seen += 1
            expected = jnp.where(marks[b.shape], c, b)
            assert (np.asarray(expected) != np.asarray(b)).any()
        np.testing.assert_array_equal(a, expected)
    assert seen >= (0 if optimizer == "adafactor" else len(_SHAPES))


_METHODS = {
    "rigl": lambda tx: pruning.prune(
        tx, schedule=pruning.constant(0.7, every=2), regrow=pruning.rigl(0.3, end=6)
    ),
    "set": lambda tx: pruning.prune(
        tx, schedule=pruning.constant(0.7, every=2), regrow=pruning.set_(0.3)
    ),
    "straight_through": lambda tx: pruning.prune(
        tx,
        schedule=pruning.constant(0.5, every=1),
        pattern=pruning.n_m(2, 4),
        latent=pruning.straight_through(2e-4),
    ),
    "top_kast": lambda tx: pruning.prune(
        tx, schedule=pruning.polynomial(0.9, 0, 6, 2), latent=pruning.top_kast(0.5, 1e-3)
    ),
    "rewind": lambda tx: pruning.rewind(
        pruning.prune(tx, schedule=pruning.polynomial(0.9, 0, 6, 3)), to=1
    ),
}


@pytest.mark.parametrize("method", _METHODS)
def test_resumes_bit_for_bit_in_the_middle_and_prunes_to_zero(
    method: str, tmp_path: pathlib.Path
) -> None:
    tx = _METHODS[method](optax.adamw(1e-2, weight_decay=0.1))
    step, params = stepper(tx), _params(3)
    state = tx.init(params)
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for i in range(3):
        params, state = step(params, state, gradients_of(i, params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        template = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, params)
        restored = checkpointer.restore(tmp_path / "checkpoint", template)
    resumed, resumed_state = restored["params"], restored["state"]
    for i in range(3, 7):
        params, state = step(params, state, gradients_of(i, params))
        resumed, resumed_state = step(resumed, resumed_state, gradients_of(i, params))
        keep = pruning.masks(state)
        for name in _SHAPES:
            kernel, mask = params[name]["kernel"], keep[name]["kernel"]
            assert not np.asarray(mask).all()
            assert (np.asarray(kernel)[~np.asarray(mask)] == 0).all()
    for a, b in zip(
        jax.tree.leaves((params, state)), jax.tree.leaves((resumed, resumed_state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_latent_weights_come_back_with_their_values() -> None:
    tx = pruning.prune(
        optax.sgd(1.0),
        schedule=pruning.constant(0.5, every=1),
        latent=pruning.straight_through(),
    )
    step, params = stepper(tx), {"kernel": jnp.array([[3.0, 2.0]])}
    params, state = step(params, tx.init(params), {"kernel": jnp.zeros((1, 2))})
    np.testing.assert_array_equal(params["kernel"], [[3.0, 0.0]])
    params, state = step(params, state, {"kernel": jnp.array([[0.0, -2.0]])})
    np.testing.assert_array_equal(params["kernel"], [[0.0, 4.0]])


def test_top_kast_leaves_weights_out_of_reach_alone() -> None:
    tx = pruning.prune(
        optax.adamw(0.1, weight_decay=0.1),
        schedule=pruning.constant(0.75, every=1),
        latent=pruning.top_kast(backward=0.5, decay=0.1),
    )
    step, params = stepper(tx), {"kernel": jnp.array([[8.0, 6.0, 2.0, 1.0]])}
    params, state = step(params, tx.init(params), {"kernel": jnp.zeros((1, 4))})
    first = np.asarray(state.held.weights["kernel"])
    for _ in range(3):
        params, state = step(params, state, {"kernel": jnp.full((1, 4), 1.0)})
    last = np.asarray(state.held.weights["kernel"])
    np.testing.assert_array_equal(last[0, 2:], first[0, 2:])
    assert (last[0, :2] != first[0, :2]).all()
    np.testing.assert_array_equal(params["kernel"] != 0, [[True, False, False, False]])


def test_rewinding_restores_weights_and_learning_rate_schedules() -> None:
    rate = optax.piecewise_constant_schedule(1.0, {2: 0.5})
    tx = pruning.rewind(pruning.prune(optax.sgd(rate), schedule=pruning.one_shot(0.5, at=4)), to=1)
    step, params = stepper(tx), {"kernel": jnp.array([[8.0, 1.0]]), "bias": jnp.zeros(1)}
    state = tx.init(params)
    seen = []
    for _ in range(6):
        ones = jax.tree.map(jnp.ones_like, params)
        params, state = step(params, state, ones)
        seen.append((*np.asarray(params["kernel"])[0].tolist(), float(params["bias"][0])))
    # Step 4 prunes and goes back to the state after step 1; its schedule starts from there too.
    assert seen == [
        (7.0, 0.0, -1.0),
        (6.0, -1.0, -2.0),
        (5.5, -1.5, -2.5),
        (7.0, 0.0, -1.0),
        (6.0, 0.0, -2.0),
        (5.5, 0.0, -2.5),
    ]


def _planted(seed: int) -> tuple[Any, Any]:
    """A regression on 8 of 128 inputs."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(512, 128)), jnp.float32)
    truth = np.zeros((128, 4), np.float32)
    truth[rng.choice(128, 8, replace=False)] = rng.choice([-1, 1], (8, 4))
    return x, x @ truth


@pytest.mark.parametrize(
    ("regrow", "left"), [(pruning.set_(0.3), 0.5), (pruning.rigl(0.3), 0.1)], ids=["set", "rigl"]
)
def test_regrowing_finds_what_a_fixed_mask_misses(regrow: pruning.Regrow, left: float) -> None:
    x, y = _planted(0)

    def loss(params: Any) -> jax.Array:
        return jnp.mean((x @ params["kernel"] - y) ** 2)

    def trained(regrow: pruning.Regrow | None) -> float:
        schedule = pruning.constant(0.9, every=10, end=250)
        score = pruning.random() if regrow is None else pruning.magnitude()
        tx = pruning.prune(optax.adam(0.05), schedule=schedule, score=score, regrow=regrow)
        params = {"kernel": jnp.full((128, 4), 0.01)}

        @jax.jit
        def run(params: Any) -> Any:
            def step(_: Any, carry: Any) -> Any:
                params, state = carry
                updates, state = tx.update(jax.grad(loss)(params), state, params)
                return optax.apply_updates(params, updates), state

            return jax.lax.fori_loop(0, 300, step, (params, tx.init(params)))[0]

        return float(loss(run(params)))

    assert trained(regrow) < left * trained(None)


def test_bad_arguments() -> None:
    for wrong in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=rf"fraction must be in \(0, 1\), found {wrong}"):
            pruning.set_(wrong)
    with pytest.raises(ValueError, match="end must be at least 1, found 0"):
        pruning.rigl(end=0)
    with pytest.raises(ValueError, match=r"backward must be in \[0, 1\), found 1.0"):
        pruning.top_kast(backward=1.0)
    for method in (pruning.straight_through, lambda decay: pruning.top_kast(0.5, decay)):
        with pytest.raises(ValueError, match="decay must not be negative, found -1"):
            method(-1)
    plain = optax.sgd(0.1)
    with pytest.raises(ValueError, match="pass latent or regrow"):
        pruning.prune(
            plain,
            schedule=pruning.one_shot(0.5),
            regrow=pruning.set_(),
            latent=pruning.straight_through(),
        )
    with pytest.raises(ValueError, match="to must be at least 0, found -1"):
        pruning.rewind(pruning.prune(plain, schedule=pruning.one_shot(0.5)), to=-1)
    with pytest.raises(TypeError, match=r"to must be an int, found 1.5"):
        pruning.rewind(pruning.prune(plain, schedule=pruning.one_shot(0.5)), to=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rewind goes around what prune"):
        pruning.rewind(optax.with_extra_args_support(plain)).init(_params(0))
