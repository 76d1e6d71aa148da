"""Grids on trees of parameters: rules, learned params, and errors that name the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import quant
from compressjax.quant import grids


def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
        "head": {"kernel": draw(8, 3), "bias": draw(3)},
        "steps": jnp.int32(3),
    }


RULES = {"head/kernel": None, "**/kernel": grids.integer(3)}


def test_the_first_rule_that_matches_decides_and_other_leaves_stay():
    tree = params()
    found = quant.fake_quant(tree, RULES)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), found, tree)
    assert changed == {
        "conv": {"kernel": True, "bias": False},
        "head": {"kernel": False, "bias": False},
        "steps": False,
    }
    assert np.unique(np.asarray(found["conv"]["kernel"])[..., 0]).size <= 7
    pairs = quant.fake_quant(tree, list(RULES.items()))
    jax.tree.map(np.testing.assert_array_equal, pairs, found)


def test_it_jits_and_differentiates():
    tree = params()
    tree.pop("steps")
    found = jax.jit(lambda tree: quant.fake_quant(tree, RULES))(tree)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        found,
        quant.fake_quant(tree, RULES),
    )

    def loss(tree):
        return sum(leaf.sum() for leaf in jax.tree.leaves(quant.fake_quant(tree, RULES)))

    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 1), jax.grad(loss)(tree))


def test_fitted_params_are_used_and_trained():
    tree, rules = params(), [("**/kernel", grids.codebook(4))]
    fitted = quant.fit_grids(tree, rules)
    assert sorted(fitted) == ["conv/kernel", "head/kernel"]
    same = quant.fake_quant(tree, rules, fitted)
    jax.tree.map(np.testing.assert_array_equal, same, quant.fake_quant(tree, rules))
    moved = jax.tree.map(lambda centroids: centroids + 0.01, fitted)
    value = quant.fake_quant(tree, rules, moved)["head"]["kernel"]
    assert np.isin(np.asarray(value), np.asarray(moved["head/kernel"])).all()

    def loss(fitted):
        return quant.fake_quant(tree, rules, fitted)["head"]["kernel"].sum()

    slopes = jax.grad(loss)(fitted)
    assert float(slopes["head/kernel"].sum()) == 24.0 and not slopes["conv/kernel"].any()


def test_a_key_rounds_at_random_and_each_leaf_by_its_own_draw():
    tree = {"a": params()["head"], "b": params()["head"]}
    rules = {"**/kernel": grids.integer(3)}
    fitted = quant.fit_grids(tree, rules)
    first, again, other = (
        quant.fake_quant(tree, rules, fitted, rng=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [first["a"]["kernel"], first["b"]["kernel"], other["a"]["kernel"]]
    for i, one in enumerate(kernels):
        assert all((one != two).any() for two in kernels[:i])
        below, above = grids.integer(3).around(tree["a"]["kernel"], fitted["a/kernel"])
        assert ((one == below) | (one == above)).all()


def test_leaves_keep_their_dtype():
    tree = {"kernel": jnp.ones((4, 2), jnp.bfloat16)}
    assert quant.fake_quant(tree, {"kernel": grids.integer(4)})["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"**/kernels": grids.integer(4)}, "'\\*\\*/kernels' matches none .* conv/kernel"),
        ({"steps": grids.integer(4)}, "'steps' holds int32, expected floats"),
        ({"**/kernel": grids.codebook(25)}, "'head/kernel' does not suit .* larger than"),
        (
            {"**/kernel": grids.integer(4, granularity=grids.per_block(8))},
            "'conv/kernel' does not suit the grid 'int4 per block of 8'",
        ),
        (
            {"**/bias": grids.integer(4, granularity=grids.per_block(2))},
            "'conv/bias' does not suit .* shape \\(4,\\)",
        ),
    ],
)
def test_errors_name_the_path(rules, message):
    with pytest.raises(ValueError, match=message):
        quant.fake_quant(params(), rules)
    with pytest.raises(ValueError, match=message):
        quant.fit_grids(params(), rules)


def test_nan_is_found_outside_jit_only():
    tree = {"a": {"kernel": jnp.array([[1.0, jnp.nan]])}}
    rules = {"**/kernel": grids.integer(4)}
    with pytest.raises(ValueError, match="'a/kernel' holds NaN or infinity"):
        quant.fake_quant(tree, rules)
    assert jnp.isnan(jax.jit(lambda tree: quant.fake_quant(tree, rules))(tree)["a"]["kernel"]).any()


def test_fitted_params_must_cover_the_rules():
    with pytest.raises(ValueError, match="'conv/kernel' has no fitted params for .*int3"):
        quant.fake_quant(params(), RULES, {})


@pytest.mark.parametrize(
    "spec",
    [quant.weight_only(grids.codebook(7)), quant.int8(weights={"**": grids.codebook(7)})],
    ids=["weights", "int8"],
)
def test_quantize_names_the_kernel_that_does_not_suit_its_grid(spec):
    q = quant.quantize(lambda v, x: x @ v["dense"]["kernel"], spec)
    variables = {"dense": {"kernel": jnp.ones((3, 2))}}
    with pytest.raises(ValueError, match="'dense/kernel' does not suit the grid 'codebook of 7'"):
        q.calibrate(variables, [jnp.ones((2, 3))])
