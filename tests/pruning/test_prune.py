"""`prune` under real optimizers: exact zeros, exact counts, masks that only grow, exact resume."""

import functools
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

import compressjax.pruning as pruning
from tests.support.devices import run_on_eight_devices
from tests.support.optimizing import gradients_of, params_of, stepper

_SHAPES = {"conv": (3, 3, 4, 8), "dense": (32, 10)}
_OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "lion": lambda: optax.lion(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
}


def _params(seed: int, dtype: Any = jnp.float32) -> Any:
    return params_of(_SHAPES, seed, dtype)


@functools.cache
def _ramp(optimizer: str) -> tuple[optax.GradientTransformation, Any]:
    tx = pruning.prune(
        _OPTIMIZERS[optimizer](), schedule=pruning.polynomial(0.9, begin=1, end=7, every=2)
    )
    return tx, stepper(tx)


@hypothesis.settings(max_examples=8)
@hypothesis.given(st.integers(0, 2**31 - 1), st.sampled_from([jnp.float32, jnp.bfloat16]))
@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
def test_pruned_weights_are_zero_and_stay_so(optimizer: str, seed: int, dtype: Any) -> None:
    tx, step = _ramp(optimizer)
    params = _params(seed, dtype)
    state = tx.init(params)
    before = pruning.masks(state)
    for i in range(10):
        params, state = step(params, state, gradients_of(i, params))
        keep = pruning.masks(state)
        # Steps are counted from 1; the masks of step t are those of the last grid point up to t.
        point = next(p for p in (7, 5, 3, 1, 0) if p <= i + 1)
        sparsity = 0.9 * (1 - (1 - max(point - 1, 0) / 6) ** 3)
        for name, shape in _SHAPES.items():
            mask = np.asarray(keep[name]["kernel"])
            size = int(np.prod(shape))
            assert mask.sum() == size - round(sparsity * size)
            assert not (mask & ~np.asarray(before[name]["kernel"])).any()
            kernel = np.asarray(params[name]["kernel"], np.float64)
            assert (kernel[~mask] == 0).all()
            assert np.isfinite(kernel).all()
            assert keep[name]["bias"] is None
            assert (np.asarray(params[name]["bias"], np.float64) != 0).all()
        before = keep


def test_a_pruned_weight_does_not_return_for_a_kept_one_that_becomes_zero() -> None:
    tx = pruning.prune(optax.sgd(1.0), schedule=pruning.constant(0.25, every=1))
    params = {"dense": {"kernel": jnp.array([[0.5, 3.0, 5.0, 7.0]])}}
    gradients = {"dense": {"kernel": jnp.array([[0.0, 3.0, 0.0, 0.0]])}}
    state, step = tx.init(params), stepper(tx)
    params, state = step(params, state, gradients)
    np.testing.assert_array_equal(params["dense"]["kernel"], [[0.0, 0.0, 5.0, 7.0]])
    params, state = step(params, state, gradients)
    np.testing.assert_array_equal(
        pruning.masks(state)["dense"]["kernel"], [[False, True, True, True]]
    )


def test_narrow_updates_still_give_exact_zeros() -> None:
    halve = optax.stateless(lambda u, p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), u))
    tx = pruning.prune(optax.chain(optax.sgd(0.1), halve), schedule=pruning.one_shot(0.5))
    params = _params(0)
    params, state = stepper(tx)(params, tx.init(params), gradients_of(0, params))
    keep = pruning.masks(state)["dense"]["kernel"]
    assert (np.asarray(params["dense"]["kernel"])[~np.asarray(keep)] == 0).all()


def test_unpruned_leaves_train_as_without_prune() -> None:
    params = _params(0)
    tx = pruning.prune(optax.adam(1e-2), schedule=pruning.one_shot(0.5), select=["conv/kernel"])
    plain = optax.adam(1e-2)
    state, plain_state, plain_params = tx.init(params), plain.init(params), params
    step, plain_step = stepper(tx), stepper(plain)
    for i in range(3):
        gradients = gradients_of(i, params)
        params, state = step(params, state, gradients)
        plain_params, plain_state = plain_step(plain_params, plain_state, gradients)
    for name, leaf in [("dense", "kernel"), ("dense", "bias"), ("conv", "bias")]:
        np.testing.assert_array_equal(params[name][leaf], plain_params[name][leaf])
    assert pruning.masks(state)["dense"] == {"kernel": None, "bias": None}


def test_the_optimizer_sees_no_gradient_of_pruned_weights() -> None:
    tx = pruning.prune(optax.sgd(0.1, momentum=0.5), schedule=pruning.one_shot(0.5, at=2))
    params = _params(0)
    state, step = tx.init(params), stepper(tx)
    traces = []
    for i in range(4):
        params, state = step(params, state, gradients_of(i, params))
        traces.append(np.asarray(state.inner[0].trace["dense"]["kernel"]))
    pruned = ~np.asarray(state.keep["dense"]["kernel"])
    assert (traces[0][pruned] != 0).all()
    np.testing.assert_allclose(traces[3][pruned], traces[0][pruned] * 0.125, rtol=1e-6)


def test_the_score_sees_gradients_and_keeps_state() -> None:
    total = pruning.Score(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda gradients, state, params: jax.tree.map(
            lambda s, g: s + jnp.abs(g), state, gradients
        ),
        values=lambda state, params: state,
    )
    tx = pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(0.5, at=3), score=total)
    params = _params(0)
    state, step = tx.init(params), stepper(tx)
    gathered = np.zeros(_SHAPES["dense"], np.float32)
    for i in range(3):
        gradients = gradients_of(i, params)
        gathered += np.abs(np.asarray(gradients["dense"]["kernel"]))
        params, state = step(params, state, gradients)
    expected = np.zeros(gathered.size, bool)
    expected[np.argsort(-gathered.ravel(), kind="stable")[: gathered.size // 2]] = True
    np.testing.assert_array_equal(state.keep["dense"]["kernel"].ravel(), expected)


def test_resumes_bit_for_bit_from_orbax(tmp_path: pathlib.Path) -> None:
    tx, step = _ramp("adamw")
    params = _params(3)
    state = tx.init(params)
    for i in range(4):
        params, state = step(params, state, gradients_of(i, params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        template = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, params)
        restored = checkpointer.restore(tmp_path / "checkpoint", template)
    resumed, resumed_state = restored["params"], restored["state"]
    assert jax.tree.structure(resumed_state) == jax.tree.structure(state)
    for i in range(4, 9):
        params, state = step(params, state, gradients_of(i, params))
        resumed, resumed_state = step(resumed, resumed_state, gradients_of(i, params))
    for a, b in zip(
        jax.tree.leaves((params, state)), jax.tree.leaves((resumed, resumed_state)), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _pruned_sgd(select: str = "**/kernel", sparsity: float = 0.5) -> Any:
    return pruning.prune(optax.sgd(0.1), schedule=pruning.one_shot(sparsity), select=select)


_NESTINGS = {
    "alone": _pruned_sgd,
    "chain": lambda: optax.chain(optax.clip(1.0), _pruned_sgd()),
    "multi_steps": lambda: optax.MultiSteps(_pruned_sgd(), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda rate: pruning.prune(optax.sgd(rate), schedule=pruning.one_shot(0.5))
    )(rate=0.1),
    "masked": lambda: optax.chain(
        optax.masked(
            _pruned_sgd(),
            {name: {"kernel": True, "bias": False} for name in _SHAPES},
        ),
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"a": _pruned_sgd(), "b": _pruned_sgd()}, {"conv": "a", "dense": "b"}
    ),
    "multi_transform_by_leaf": lambda: optax.multi_transform(
        {"pruned": _pruned_sgd(), "plain": optax.adam(1e-3)},
        {name: {"kernel": "pruned", "bias": "plain"} for name in _SHAPES},
    ),
    "two_prunes": lambda: pruning.prune(
        _pruned_sgd("conv/kernel"), schedule=pruning.one_shot(0.5), select="dense/kernel"
    ),
    "skip_not_finite": lambda: optax.apply_if_finite(_pruned_sgd(), 3),
}


@pytest.mark.parametrize("nesting", _NESTINGS)
def test_masks_are_found_in_any_nesting(nesting: str) -> None:
    tx = _NESTINGS[nesting]()
    params = _params(1)
    state = jax.jit(tx.init)(params)
    step = stepper(tx)
    for i in range(4):
        params, state = step(params, state, gradients_of(i, params))
    keep = pruning.masks(state)
    assert list(keep) == list(_SHAPES)
    for name, shape in _SHAPES.items():
        assert set(keep[name]) == {"kernel", "bias"}
        assert keep[name]["bias"] is None
        assert keep[name]["kernel"].dtype == bool
        assert int(keep[name]["kernel"].sum()) == np.prod(shape) // 2
        kernel = np.asarray(params[name]["kernel"])
        assert (kernel[~np.asarray(keep[name]["kernel"])] == 0).all()
    for a, b in zip(
        jax.tree.leaves(pruning.apply_masks(params, keep)), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_masks_of_two_prunes_on_one_leaf_are_joined() -> None:
    tx = pruning.prune(_pruned_sgd(sparsity=0.25), schedule=pruning.one_shot(0.5, at=2))
    params = _params(0)
    state, step = tx.init(params), stepper(tx)
    for i in range(2):
        params, state = step(params, state, gradients_of(i, params))
    outer, inner = state.keep["dense"]["kernel"], state.inner.keep["dense"]["kernel"]
    np.testing.assert_array_equal(pruning.masks(state)["dense"]["kernel"], outer & inner)


def test_masks_without_prune() -> None:
    with pytest.raises(ValueError, match="comes from an optimizer without prune"):
        pruning.masks(optax.adam(1e-3).init(_params(0)))


def test_apply_masks() -> None:
    keep = {"a": jnp.array([[True], [False]]), "b": None}
    params = {"a": jnp.array([[1.0], [jnp.nan]]), "b": jnp.ones(3)}
    masked = pruning.apply_masks(params, keep)
    np.testing.assert_array_equal(masked["a"], [[1.0], [0.0]])
    assert masked["b"] is params["b"]


def test_refuses_masks_that_do_not_fit() -> None:
    keep = {"a": {"kernel": jnp.ones((2, 3), bool)}}
    with pytest.raises(ValueError, match=r"a/kernel has shape \(2, 3\), the parameter \(2, 4\)"):
        pruning.apply_masks({"a": {"kernel": jnp.ones((2, 4))}}, keep)
    with pytest.raises(ValueError, match="mask for a/kernel, but no such parameter"):
        pruning.apply_masks({"b": {"kernel": jnp.ones((2, 3))}}, keep)
    params = _params(0)
    tx = _pruned_sgd()
    shrunk = {**params, "dense": {"kernel": jnp.ones((16, 10)), "bias": jnp.ones(10)}}
    with pytest.raises(ValueError, match=r"mask of dense/kernel has shape \(32, 10\)"):
        tx.update(shrunk, tx.init(params), shrunk)


def test_refuses_an_update_without_parameters() -> None:
    params, tx = _params(0), _pruned_sgd()
    with pytest.raises(ValueError, match="prune needs the parameters"):
        tx.update(params, tx.init(params))


def test_refuses_a_select_that_matches_nothing() -> None:
    with pytest.raises(ValueError, match=r"select pattern 'dense/kernl' .*dense/kernel"):
        _pruned_sgd("dense/kernl").init(_params(0))


def test_refuses_integer_parameters() -> None:
    with pytest.raises(TypeError, match="table/kernel has dtype int8"):
        _pruned_sgd().init({"table": {"kernel": jnp.ones((2, 2), jnp.int8)}})


def test_sparse_training_never_sorts_and_masks_only_when_due() -> None:
    tx, _ = _ramp("adamw")
    params = _params(0)
    text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    assert "stablehlo.sort" not in text
    # The search for thresholds is inside the branch of the steps that are due.
    assert text.index("stablehlo.case") < text.index("stablehlo.while")


_MESH_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from compressjax import pruning

assert jax.device_count() == 8
values = np.round(np.random.default_rng(0).normal(size=(64, 32)), 1).astype(np.float32)
params = {'a': {'kernel': values}, 'b': {'kernel': values.reshape(2, 2, 16, 32)[..., ::-1] + 0}}
specs = {'a': {'kernel': P('x', 'y')}, 'b': {'kernel': P(None, None, 'y', 'x')}}

once, often = pruning.one_shot(0.7), pruning.constant(0.7, every=1)
ramp = pruning.polynomial(0.7, begin=0, end=2, every=1)
both = (AxisType.Auto, AxisType.Explicit)
adam = optax.adam(0.1)
cases = [
    (pruning.prune(adam, schedule=once, budget=pruning.uniform()), both),
    (pruning.prune(adam, schedule=once, budget=pruning.global_()), both),
    (pruning.prune(adam, schedule=often, regrow=pruning.rigl(0.3)), both[1:]),
    (pruning.prune(adam, schedule=often, latent=pruning.top_kast(0.5, 0.1)), both[1:]),
    (pruning.rewind(pruning.prune(adam, schedule=ramp), to=1), both[1:]),
]
for tx, kinds in cases:
    def update(params, state):
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
        return params, pruning.masks(state)
    one = jax.jit(update)(params, tx.init(jax.tree.map(jnp.asarray, params)))
    for kind in kinds:
        mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
            sharded = jax.device_put(params, shardings)
            state = tx.init(sharded)
            program = jax.jit(update).lower(sharded, state).compile()
            for operation in ('all-gather', 'all-to-all', 'collective-permute'):
                assert operation not in program.as_text(), operation
            found, keep = program(sharded, state)
            for name in params:
                mask, leaf = keep[name]['kernel'], sharded[name]['kernel']
                assert mask.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), name
                np.testing.assert_array_equal(mask, one[1][name]['kernel'])
                np.testing.assert_allclose(
                    found[name]['kernel'], one[0][name]['kernel'], rtol=1e-6, atol=1e-7
                )
print('meshes agree')
"""


def test_masks_on_eight_devices_equal_those_on_one() -> None:
    assert "meshes agree" in run_on_eight_devices(_MESH_PROGRAM)
