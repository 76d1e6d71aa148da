"""The cut of a model, applied to what else has its shapes: checkpoints, averages, optimizers."""

import jax
import numpy as np
import optax
import pytest

import compressjax as cj
from compressjax import slimming, tree
from tests.support.reference import positions
from tests.support.topologies import IMAGE, linen, plain, residual


def test_masked_variables_compute_the_same():
    fn, variables = linen(residual)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    whole = shrunk.masked(variables)
    left = positions(fn, variables, shrunk.kept, IMAGE)
    for path, leaf in tree.paths(whole).items():
        kept = np.zeros(leaf.shape, bool)
        kept[np.ix_(*left[path])] = True
        np.testing.assert_array_equal(leaf, np.where(kept, tree.paths(variables)[path], 0))
    np.testing.assert_allclose(
        fn(whole, IMAGE), shrunk.apply(shrunk.variables, IMAGE), rtol=1e-5, atol=1e-5
    )


def test_another_checkpoint_is_cut_alike():
    fn, variables = linen(residual)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    other = linen(residual, seed=5)[1]
    cut = shrunk.cut(jax.tree.map(jax.numpy.asarray, other))
    expected = slimming.shrink(fn, other, IMAGE, kept=shrunk.kept).variables
    for path, leaf in tree.paths(expected).items():
        np.testing.assert_array_equal(tree.paths(cut)[path], leaf, err_msg=path)


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(1e-2),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
        optax.inject_hyperparams(optax.adam)(1e-2),
        optax.chain(slimming.network_slimming(1e-3), optax.sgd(0.1, momentum=0.9)),
        cj.prune(optax.adam(1e-2), schedule=cj.pruning.one_shot(0.5)),
    ],
    ids=["adamw", "clipped", "injected", "slimmed", "pruned"],
)
def test_training_goes_on_with_the_cut_state(tx):
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    whole = shrunk.masked(variables)

    def step(apply, variables, state):
        grads = jax.grad(lambda p: (apply({**variables, "params": p}, IMAGE) ** 2).sum())(
            variables["params"]
        )
        updates, state = tx.update(grads, state, variables["params"])
        return {**variables, "params": optax.apply_updates(variables["params"], updates)}, state

    whole, state = jax.jit(lambda v, s: step(fn, v, s))(whole, tx.init(whole["params"]))
    small = shrunk.cut(whole)
    found = shrunk.cut_state(state)
    like = tx.init(small["params"])
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, like)
    after, _ = jax.jit(lambda v, s: step(shrunk.apply, v, s))(small, found)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_moments_are_those_of_the_channels_that_stay():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    tx = optax.trace(0.9)
    state = tx.update(variables["params"], tx.init(variables["params"]))[1]
    found = shrunk.cut_state(state)
    expected = shrunk.cut(variables)["params"]
    for path, leaf in tree.paths(expected).items():
        np.testing.assert_array_equal(tree.paths(found.trace)[path], leaf)


def test_a_tree_without_collections():
    fn = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["b"]  # noqa: E731
    variables = {"a": np.ones((3, 8), np.float32), "b": np.ones((8, 2), np.float32)}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    tx = optax.adam(0.1)
    found = shrunk.cut_state(tx.init(variables))
    assert found[0].mu["a"].shape == (3, 4) and found[0].nu["b"].shape == (4, 2)


def test_errors():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2).init(variables["params"])
    with pytest.raises(ValueError, match=r"v_row/.*kernel has shape .* belongs to .* tx.init"):
        shrunk.cut_state(factored)
    with pytest.raises(ValueError, match=r"Conv_0/.* has shape .*, expected .*whole function"):
        shrunk.cut(shrunk.variables)
    with pytest.raises(ValueError, match="do not fit: missing params/Conv_0"):
        shrunk.masked({"params": {}})
    with pytest.raises(ValueError, match=r"shape of argument 1/0 is \(b, 8, 8, 3\)"):
        (batch,) = jax.export.symbolic_shape("b")
        cj.shrink(fn, variables, jax.ShapeDtypeStruct((batch, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match=r"kept names 'params/Dense_0/kernel'.*output 0 of"):
        cj.shrink(fn, variables, IMAGE, kept={"params/Dense_0/kernel": [0]})


def test_groups_can_be_looked_at():
    fn, variables = linen(residual)
    found = slimming.find_groups(fn, jax.eval_shape(lambda: variables), IMAGE)
    assert [group.name for group in found] == list(
        slimming.shrink(fn, variables, IMAGE, round_to=1).kept
    )
    assert "params/Conv_4/kernel" not in [
        group.name for group in slimming.find_groups(fn, variables, IMAGE, protect="**/Conv_4/*")
    ]
