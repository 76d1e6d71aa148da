"""What penalties on channels promise beside their oracles in the catalogue."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import strategies as st

from compressjax import slimming, tree
from compressjax.slimming import penalties
from tests.support import penalty_layouts, penalty_oracles
from tests.support.optimizing import stepper
from tests.support.penalty_layouts import EVERYTHING, KERNELS, MADE, draw

GROUPS = penalty_layouts.groups()
RATE = 0.5
KEPT = {"params/a/kernel": [1, 4], "params/b/kernel": [3]}
Make = Callable[..., optax.GradientTransformation]

ADDED: dict[str, Make] = {
    "network_slimming": slimming.network_slimming,
    "group_lasso": lambda strength, **options: slimming.group_lasso(GROUPS, strength, **options),
    "growing": lambda strength, **options: slimming.growing(GROUPS, KEPT, strength, **options),
    "importance_weighted": lambda strength, **options: slimming.importance_weighted(
        GROUPS, strength, **options
    ),
}
PROXIMAL: dict[str, Make] = {
    "proximal_slimming": lambda strength, **options: slimming.proximal_slimming(
        strength, RATE, **options
    ),
    "proximal_group_lasso": lambda strength, **options: slimming.proximal_group_lasso(
        GROUPS, strength, RATE, **options
    ),
}
ALL = {**ADDED, **PROXIMAL}
OF_GROUPS = {name: make for name, make in ALL.items() if "slimming" not in name}


def pull(tx: optax.GradientTransformation, params: Any, step: int = 0) -> Any:
    """What a penalty alone adds to the updates."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return tx.update(zeros, penalties.PenaltyState(jnp.int32(step)), params)[0]


def _growing_factors(step: int) -> Any:
    return penalty_oracles.growing_factors(
        MADE, [{1}, {2}], step, delta=0.3, every=3, ceiling=0.8, ordinary=0.1
    )


DERIVED = {
    "network_slimming": (
        slimming.network_slimming(0.3),
        lambda params: lambda p: penalty_oracles.l1(p, ["a/norm/scale"], 0.3),
    ),
    "group_lasso": (
        slimming.group_lasso(GROUPS, 0.3),
        lambda params: lambda p: penalty_oracles.group_lasso(p, MADE, 0.3),
    ),
    "group_lasso of kernels": (
        slimming.group_lasso(GROUPS, 0.3, members=penalties.kernels),
        lambda params: lambda p: penalty_oracles.group_lasso(p, KERNELS, 0.3),
    ),
    "group_lasso of everything": (
        slimming.group_lasso(GROUPS, 0.3, members=penalties.everything),
        lambda params: lambda p: penalty_oracles.group_lasso(p, EVERYTHING, 0.3),
    ),
    "growing": (
        slimming.growing(GROUPS, KEPT, slimming.staircase(0.3, every=3, ceiling=0.8), ordinary=0.1),
        lambda params: lambda p: penalty_oracles.squares(p, MADE, _growing_factors(4)),
    ),
    "importance_weighted": (
        slimming.importance_weighted(GROUPS, 0.3, alpha=2.0),
        lambda params: (
            lambda p: penalty_oracles.squares(
                p,
                EVERYTHING,
                penalty_oracles.importance_factors(params, EVERYTHING, strength=0.3, alpha=2.0),
            )
        ),
    ),
}


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_added_is_the_derivative_of_the_penalty(name: str) -> None:
    tx, penalty = DERIVED[name]
    params = draw(1)
    expected = penalty_oracles.derivative(penalty(params), params)
    found = pull(tx, params, step=4)
    for path in params:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ALL)
def test_without_strength_nothing_changes(name: str) -> None:
    tx, params, updates = ALL[name](0.0), draw(2), draw(3)
    found, _ = tx.update(updates, tx.init(params), params)
    for path in params:
        np.testing.assert_array_equal(found[path], updates[path], err_msg=path)


@pytest.mark.parametrize("name", ADDED)
@hypothesis.settings(max_examples=3)
@hypothesis.given(seed=st.integers(0, 2**31 - 1), factor=st.floats(0.01, 100.0))
def test_the_pull_grows_with_the_weights_as_the_penalty_says(
    name: str, seed: int, factor: float
) -> None:
    params = draw(seed)
    small = pull(ADDED[name](0.3), params)
    large = pull(ADDED[name](0.3), {path: x * np.float32(factor) for path, x in params.items()})
    degree = 0 if name in ("network_slimming", "group_lasso") else 1
    for path, found in large.items():
        np.testing.assert_allclose(found, small[path] * factor**degree, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PROXIMAL)
@hypothesis.settings(max_examples=3)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1), factor=st.floats(0.01, 100.0), strength=st.floats(0.0, 3.0)
)
def test_a_proximal_step_scales_and_never_grows_a_weight(
    name: str, seed: int, factor: float, strength: float
) -> None:
    def stepped(scale: float) -> Any:
        params = {path: x * np.float32(scale) for path, x in draw(seed).items()}
        return optax.apply_updates(params, pull(PROXIMAL[name](strength * scale), params))

    params, one, other = draw(seed), stepped(1.0), stepped(factor)
    for path, whole in params.items():
        near = 1e-3 * np.abs(whole).max() + 1e-6
        np.testing.assert_allclose(other[path] / factor, one[path], rtol=1e-3, atol=near)
        assert (np.abs(one[path]) <= np.abs(whole)).all()
        assert (one[path] * whole >= 0).all()


@pytest.mark.parametrize("name", OF_GROUPS)
def test_what_is_in_no_channel_is_untouched(name: str) -> None:
    params = draw(4)
    found = pull(OF_GROUPS[name](0.3), params)
    assert not np.any(found["b/bias"][2])
    assert not np.any(found["c/bias"])
    if name != "importance_weighted":  # which counts what reads a channel as well
        assert not np.any(found["b/kernel"][:, 2])
        assert not np.any(found["c/kernel"])
    for path in ("a/kernel", "b/kernel", "b/bias", "d/kernel"):
        assert np.any(found[path]), path


@pytest.mark.parametrize("name", OF_GROUPS)
def test_what_is_protected_neither_moves_nor_counts(name: str) -> None:
    params = draw(5)
    tx = OF_GROUPS[name](0.3, protect=["*/norm/*", "*/c/kernel"])
    found = pull(tx, params)
    for path in ("a/norm/scale", "a/norm/bias", "c/kernel"):
        assert not np.any(found[path]), path
    assert np.any(found["a/kernel"])
    other = pull(tx, {**params, "a/norm/scale": 100 * params["a/norm/scale"]})
    chex.assert_trees_all_equal(found, other)
    chex.assert_trees_all_equal(
        found, pull(OF_GROUPS[name](0.3, select=["*/kernel", "*/b/*"], protect="*/c/*"), params)
    )


@pytest.mark.parametrize("name", ["network_slimming", "proximal_slimming"])
def test_scales_are_selected_and_protected_by_path(name: str) -> None:
    norms = {"first": {"scale": jnp.ones(2)}, "last": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    found = pull(ALL[name](0.3, select=["**/scale", "last/bias"], protect="first/*"), norms)
    assert not np.any(found["first"]["scale"])
    assert np.any(found["last"]["scale"]) and np.any(found["last"]["bias"])


@pytest.mark.parametrize("name", ALL)
def test_strength_goes_by_path(name: str) -> None:
    """The first glob that matches counts; what none matches has no penalty."""
    params = draw(6)
    rules = {"*a/norm/scale": 0.2, "*/norm/*": lambda step: 99.0}
    found = pull(ALL[name](rules), params)
    expected = pull(ALL[name]({"*a/norm/scale": 0.2}), params)
    chex.assert_trees_all_equal(found, expected)
    assert np.any(found["a/norm/scale"])
    assert not np.any(found["b/bias"])


@pytest.mark.parametrize("name", ALL)
def test_strength_can_be_injected_and_moved_by_hand(name: str) -> None:
    tx = optax.inject_hyperparams(lambda strength: ALL[name](strength))(strength=0.1)
    params = draw(7)
    state = tx.init(params)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for strength in (0.1, 0.4):
        state.hyperparams["strength"] = jnp.float32(strength)
        found, state = step(draw(8), state, params)
        plain = ALL[name](strength)
        expected, _ = plain.update(draw(8), plain.init(params), params)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def _moving(name: str) -> optax.GradientTransformation:
    strength = optax.linear_schedule(0.1, 0.8, 6)
    sgd = optax.sgd(RATE, momentum=0.9)
    parts = (sgd, ALL[name](strength)) if name in PROXIMAL else (ALL[name](strength), sgd)
    return optax.chain(*parts)


@pytest.mark.parametrize("name", ALL)
def test_resumes_bit_for_bit_from_orbax(name: str, tmp_path: pathlib.Path) -> None:
    tx = _moving(name)
    step, params = stepper(tx), jax.tree.map(jnp.asarray, tree.from_paths(draw(9)))
    gradients = [tree.from_paths(draw(i, 0.1)) for i in range(8)]
    state = tx.init(params)
    for i in range(3):
        params, state = step(params, state, gradients[i])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        template = jax.eval_shape(lambda p: {"params": p, "state": tx.init(p)}, params)
        restored = checkpointer.restore(tmp_path / "checkpoint", template)
    resumed, resumed_state = restored["params"], restored["state"]
    for i in range(3, 8):
        params, state = step(params, state, gradients[i])
        resumed, resumed_state = step(resumed, resumed_state, gradients[i])
    chex.assert_trees_all_equal((params, state), (resumed, resumed_state))


@pytest.mark.parametrize("name", OF_GROUPS)
def test_groups_may_speak_of_the_whole_tree_or_of_a_collection(name: str) -> None:
    params = draw(10)
    bare = {
        "group_lasso": lambda **o: slimming.group_lasso(penalty_layouts.groups(""), 0.3, **o),
        "growing": lambda **o: slimming.growing(penalty_layouts.groups(""), KEPT, 0.3, **o),
        "importance_weighted": lambda **o: slimming.importance_weighted(
            penalty_layouts.groups(""), 0.3, **o
        ),
        "proximal_group_lasso": lambda **o: slimming.proximal_group_lasso(
            penalty_layouts.groups(""), 0.3, RATE, **o
        ),
    }[name](collection="", protect="batch_stats/*")
    chex.assert_trees_all_equal(pull(bare, params), pull(OF_GROUPS[name](0.3), params))
    found = OF_GROUPS[name](0.3)
    whole = {"params": params, "batch_stats": {"a/norm/mean": np.ones(6, np.float32)}}
    with pytest.raises(ValueError, match="'a/kernel' .*no such path"):
        found.init(whole)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_summed_in_float32(name: str) -> None:
    exact = {path: x.astype(jnp.bfloat16).astype(np.float32) for path, x in draw(11).items()}
    half = {path: jnp.asarray(x, jnp.bfloat16) for path, x in exact.items()}
    found, expected = pull(ALL[name](0.3), half), pull(ALL[name](0.3), exact)
    for path, update in found.items():
        assert update.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(update, np.float32), expected[path], rtol=2e-2, atol=1e-2, err_msg=path
        )


@pytest.mark.parametrize("name", PROXIMAL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_proximal_steps_reach_exact_zeros_and_leave_them(name: str, dtype: Any) -> None:
    params = {path: jnp.asarray(x, dtype) for path, x in draw(12).items()}
    updates = {path: jnp.asarray(x, jnp.bfloat16) for path, x in draw(13).items()}
    tx = PROXIMAL[name](1e3)
    moved = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    assert moved["a/norm/scale"].dtype == dtype
    assert not np.any(moved["a/norm/scale"])
    tx = PROXIMAL[name](1e-3)
    back = optax.apply_updates(moved, tx.update(updates, tx.init(moved), moved)[0])
    assert np.any(back["a/norm/scale"])


@pytest.mark.parametrize("name", PROXIMAL)
def test_what_is_not_a_number_stays_visible(name: str) -> None:
    params, updates = draw(14), draw(15)
    updates["a/norm/scale"][0] = np.nan
    tx = PROXIMAL[name](1e3)
    found, _ = tx.update(updates, tx.init(params), params)
    assert np.isnan(found["a/norm/scale"][0])


def test_channels_of_one_size_decay_alike() -> None:
    params = {path: np.ones_like(x) for path, x in draw(0).items()}
    found = pull(slimming.importance_weighted(GROUPS, 0.5, select="*/a/*"), params)
    np.testing.assert_array_equal(found["a/kernel"], np.ones((2, 1, 2, 6)))


def test_factors_grow_in_steps_up_to_the_ceiling() -> None:
    strength = slimming.staircase(0.25, every=2, ceiling=0.6, begin=3)
    found = [float(strength(jnp.int32(step))) for step in range(9)]
    np.testing.assert_allclose(found, [0, 0, 0, 0.25, 0.25, 0.5, 0.5, 0.6, 0.6], rtol=1e-6)


def test_params_are_needed() -> None:
    tx = slimming.group_lasso(GROUPS, 0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(draw(0), tx.init(draw(0)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("strength", [-0.1, float("nan"), {"*a*": 1.0, "*b*": -0.1}])
def test_negative_strengths_are_refused(name: str, strength: Any) -> None:
    where = "'*b*'" if isinstance(strength, dict) else "'*'"
    with pytest.raises(ValueError, match=f"strength for {re.escape(where)} is .* at least 0"):
        ALL[name](strength)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("option", ["select", "protect", "strength"])
def test_globs_that_match_nothing_are_refused(name: str, option: str) -> None:
    options = {"strength": 0.1, option: {"**/nothing": 0.1} if option == "strength" else "nothing"}
    with pytest.raises(ValueError, match=f"{option} pattern '.*nothing' matches none"):
        ALL[name](**options).init(draw(0))


@pytest.mark.parametrize("name", OF_GROUPS)
def test_groups_of_another_model_are_refused(name: str) -> None:
    tx = OF_GROUPS[name](0.1)
    params = draw(0)
    other = {**params, "b/kernel": np.zeros((6, 7), np.float32)}
    message = r"group 'params/b/kernel' does not fit .* expected 'b/kernel' with 5 positions along "
    with pytest.raises(
        ValueError, match=message + r"axis 1, found shape \(6, 7\); give the groups"
    ):
        tx.init(other)
    del params["a/norm/bias"]
    with pytest.raises(ValueError, match="expected 'a/norm/bias' .* found no such path"):
        tx.init(params)
    with pytest.raises(ValueError, match="no group has a variable in collection 'weights'"):
        OF_GROUPS[name](0.1, collection="weights")


def test_bad_numbers_and_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no groups"):
        slimming.group_lasso([], 0.1)
    with pytest.raises(ValueError, match="alpha is -1"):
        slimming.importance_weighted(GROUPS, 0.1, alpha=-1)
    with pytest.raises(ValueError, match="learning_rate for .* is -0.1"):
        slimming.proximal_slimming(0.1, -0.1)
    with pytest.raises(ValueError, match="ordinary for .* is -0.1"):
        slimming.growing(GROUPS, KEPT, 0.1, ordinary=-0.1)
    for name, value in {"delta": -1, "every": 0, "ceiling": -1, "begin": -1}.items():
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            slimming.staircase(**{"delta": 0.1, "every": 1, name: value})
    with pytest.raises(ValueError, match="'b/kernel' has channels .* along axis 0 .* along axis 1"):
        slimming.proximal_group_lasso(GROUPS, 0.1, RATE, members=penalties.everything)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"params/x": [0]}, "kept names 'params/x', which is none of the groups"),
        ({"params/b/kernel": [2, 3]}, r"is \[2, 3\]: expected .* one of the group's 4"),
        ({"params/b/kernel": [5]}, r"is \[5\]: expected"),
        ({"params/b/kernel": []}, r"'params/b/kernel' is \[\]: expected at least one"),
        ({"params/b/kernel": [-1]}, r"is \[-1\]: expected"),
    ],
)
def test_kept_of_another_model_is_refused(kept: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slimming.growing(GROUPS, kept, 0.1)
