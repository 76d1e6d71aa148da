"""The scan of single leaves against NumPy, and what it says of a network that was trained."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax import pruning

LEVELS = (0.0, 0.25, 0.5, 0.9)


def _params() -> dict:
    rng = np.random.default_rng(0)
    shapes = {"first": (6, 8), "second": (8, 8), "last": (8, 3)}
    return {
        name: {
            "kernel": jnp.asarray(np.round(4 * rng.normal(size=shape)), jnp.float32),
            "bias": jnp.ones(shape[1]),
        }
        for name, shape in shapes.items()
    }


def _weighted_sum(params: dict) -> jax.Array:
    return sum((i + 1) * jnp.sum(jnp.abs(leaf)) for i, leaf in enumerate(jax.tree.leaves(params)))


def _oracle(params: dict, name: str, level: float, order: np.ndarray) -> float:
    """The weighted sum with the lowest of one kernel's weights left out, in float64."""
    total = 0.0
    leaves = [(key, leaf) for key in sorted(params) for leaf in sorted(params[key])]
    for i, (key, leaf) in enumerate(leaves):
        flat = np.abs(np.asarray(params[key][leaf], np.float64)).ravel()
        if (key, leaf) == (name, "kernel"):
            kept = flat.size - round(level * flat.size)
            flat = flat[np.argsort(-order.ravel(), kind="stable")[:kept]]
        total += (i + 1) * flat.sum()
    return total


@pytest.mark.parametrize("given", [False, True])
def test_every_leaf_is_pruned_alone_and_exactly(given: bool) -> None:
    params = _params()
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).random(leaf.shape), jnp.float32),
        params,
    )
    scan = pruning.sensitivity(_weighted_sum, params, LEVELS, values=drawn if given else None)
    assert list(scan.scores) == ["first/kernel", "last/kernel", "second/kernel"]
    np.testing.assert_array_equal(scan.levels, LEVELS)
    for path, scores in scan.scores.items():
        name = path.split("/")[0]
        order = drawn[name]["kernel"] if given else np.abs(params[name]["kernel"])
        expected = [_oracle(params, name, level, np.asarray(order)) for level in LEVELS]
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
        assert scores[0] == pytest.approx(scan.dense)


def test_a_pattern_and_a_choice_of_leaves() -> None:
    scan = pruning.sensitivity(
        lambda params: jnp.sum(params["second"]["kernel"] != 0),
        _params(),
        (0.5,),
        pattern=pruning.n_m(2, 4, axis=0),
        values=jax.tree.map(jnp.ones_like, _params()),
        select="second/*nel",
    )
    whole = np.asarray(_params()["second"]["kernel"])
    assert list(scan.scores) == ["second/kernel"]
    assert scan.scores["second/kernel"][0] == (whole.reshape(2, 4, 8)[:, :2] != 0).sum()


def test_nothing_compiles_again_from_level_to_level() -> None:
    chex.clear_trace_counter()
    evaluate = jax.jit(chex.assert_max_traces(_weighted_sum, n=1))
    assert np.isfinite(pruning.sensitivity(evaluate, _params()).scores["last/kernel"]).all()


def test_small_weights_cost_less_than_random_ones_and_sparser_costs_more() -> None:
    """Han et al. 2015, figure 6: every layer falls as it gets sparser, small weights last."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(256, 8)), jnp.float32)
    labels = jnp.asarray((rng.normal(size=(8, 3)).T @ x.T).argmax(0))
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(8, 32)) / 3, jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(32, 3)) / 6, jnp.float32)},
    }

    def logits(params: dict) -> jax.Array:
        return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]

    def loss(params: dict) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params), labels).mean()

    @jax.jit
    def trained(params: dict) -> dict:
        step = jax.value_and_grad(loss)
        return jax.lax.fori_loop(
            0, 300, lambda _, p: jax.tree.map(lambda w, g: w - 0.3 * g, p, step(p)[1]), params
        )

    params = trained(params)

    @jax.jit
    def accuracy(params: dict) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(params), -1) == labels)

    levels = (0.3, 0.6, 0.9)
    chance = pruning.random().values((), params)
    by_size = pruning.sensitivity(accuracy, params, levels)
    by_chance = pruning.sensitivity(accuracy, params, levels, values=chance)
    assert by_size.dense > 0.95
    for path, scores in by_size.scores.items():
        assert scores.mean() > by_chance.scores[path].mean() + 0.03
        assert scores[0] > scores[-1] + 0.03


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": ()}, ValueError, "levels is empty"),
        ({"levels": (0.5, 1.0)}, ValueError, r"levels\[1\] must be in \[0, 1\), found 1.0"),
        ({"levels": (0.5, 0.5)}, ValueError, r"levels must rise, found 0.5 after 0.5 at levels"),
        ({"levels": (float("nan"),)}, ValueError, r"levels\[0\] must be in \[0, 1\), found nan"),
        ({"select": "**/kernle"}, ValueError, "select pattern .* near misses"),
        ({"pattern": pruning.n_m(2, 4, axis=0)}, ValueError, "first/kernel"),
        (
            {"values": {"first": None}},
            ValueError,
            "for first/kernel, found nothing",
        ),
        (
            {"values": jax.tree.map(jnp.sum, _params())},
            ValueError,
            r"expected scores of shape \(6, 8\) for first/kernel, found shape \(\)",
        ),
    ],
)
def test_bad_input_is_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pruning.sensitivity(_weighted_sum, _params(), **options)


def test_whole_numbers_cannot_be_scanned() -> None:
    with pytest.raises(TypeError, match="kernel has dtype int32"):
        pruning.sensitivity(lambda params: 0.0, {"kernel": jnp.arange(4)})
