"""An NNX module as a pure pair computes what the module computes, statistics and keys included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import compressjax as cj
from compressjax import tree

X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.8, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        for block in self.blocks:
            x = nnx.tanh(block(x))
        return self.head(x)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x))


class Counting(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1.0
        return x * self.calls[...]


def test_variables_are_collections_of_plain_arrays():
    _, variables = cj.from_nnx(Network(nnx.Rngs(0)))
    assert list(variables) == ["params", "batch_stats"]
    assert list(tree.paths(variables)) == [
        "batch_stats/norm/mean",
        "batch_stats/norm/var",
        "params/blocks/0/bias",
        "params/blocks/0/kernel",
        "params/blocks/1/bias",
        "params/blocks/1/kernel",
        "params/conv/kernel",
        "params/head/bias",
        "params/head/kernel",
        "params/norm/bias",
        "params/norm/scale",
    ]
    assert all(type(leaf) is type(jnp.ones(1)) for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_in_both_modes(mode):
    module = Network(nnx.Rngs(0))
    getattr(module, mode)()
    fn, variables = cj.from_nnx(module, mutable=True)
    for step in range(2):
        output, variables = jax.jit(fn)(variables, X + step)
        np.testing.assert_allclose(output, module(X + step), rtol=1e-5, atol=1e-6)
    stats = variables["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], module.norm.mean[...], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], module.norm.var[...], rtol=1e-5, atol=1e-6)
    moved = not np.array_equal(stats["mean"], np.zeros(4))
    assert moved == (mode == "train")


def test_the_module_itself_is_not_touched():
    module = Network(nnx.Rngs(0))
    module.train()
    fn, variables = cj.from_nnx(module, mutable=True)
    jax.grad(lambda v: fn(v, X)[0].sum())(variables)
    np.testing.assert_array_equal(module.norm.mean[...], np.zeros(4))


def test_mutable_false_returns_the_output_alone_and_forgets_statistics():
    module = Network(nnx.Rngs(0))
    module.train()
    fn, variables = cj.from_nnx(module)
    np.testing.assert_array_equal(fn(variables, X), fn(variables, X))
    assert fn(variables, X).shape == (4, 2)


def test_dropout_draws_new_keys_from_its_state():
    module = Dropped(nnx.Rngs(0))
    module.train()
    fn, variables = cj.from_nnx(module, mutable=True)
    assert list(variables) == ["params", "state"]
    first, after = jax.jit(fn)(variables, X[:, 0, 0])
    again, _ = jax.jit(fn)(variables, X[:, 0, 0])
    second, _ = jax.jit(fn)(after, X[:, 0, 0])
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first == 0) != np.asarray(second == 0)).any()
    np.testing.assert_array_equal(first, module(X[:, 0, 0]))


def test_dropout_in_evaluation_mode_is_the_identity():
    module = Dropped(nnx.Rngs(0))
    module.eval()
    fn, variables = cj.from_nnx(module)
    np.testing.assert_allclose(fn(variables, X[:, 0, 0]), module.dense(X[:, 0, 0]), rtol=1e-6)


def test_variables_of_other_types_are_state():
    fn, variables = cj.from_nnx(Counting(), mutable=True)
    for calls in (1.0, 2.0, 3.0):
        output, variables = fn(variables, 10.0)
        assert float(output) == 10.0 * calls
    assert list(variables) == ["state"]


def test_gradients_and_an_optimizer_step():
    module = Network(nnx.Rngs(0))
    module.train()
    fn, variables = cj.from_nnx(module, mutable=True)
    tx = optax.sgd(0.1)

    @jax.jit
    def step(variables, state):
        def loss(params):
            output, new = fn({**variables, "params": params}, X)
            return (output**2).mean(), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(gradients, state)
        return {**new, "params": optax.apply_updates(variables["params"], updates)}, state, value

    state, losses = tx.init(variables["params"]), []
    for _ in range(5):
        variables, state, value = step(variables, state)
        losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("wrong", [nn.Dense(3), nnx.Linear, 3], ids=["linen", "class", "number"])
def test_other_things_than_modules_are_refused(wrong):
    with pytest.raises(TypeError, match=r"takes an nnx.Module, found .*module.apply"):
        cj.from_nnx(wrong)


def test_missing_variables_are_named():
    fn, variables = cj.from_nnx(Network(nnx.Rngs(0)))
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    with pytest.raises(ValueError, match=r"do not fit the module: missing head/bias, head/kernel"):
        fn({**variables, "params": params}, X)


def test_trace_fold_and_prune_work_on_the_pair():
    module = Network(nnx.Rngs(0))
    module.eval()
    fn, variables = cj.from_nnx(module)
    graph = cj.trace(fn, variables, X)
    names = [op.name for op in graph.ops]
    assert {"params/conv/kernel", "params/blocks/1/kernel"} <= set(names)
    assert graph.macs == 4 * (36 * 27 * 4 + 2 * 16 + 8)

    folded, new = cj.fold_batch_norm(fn, variables, X)
    assert list(new) == ["params"] and set(new["params"]["conv"]) == {"kernel", "bias"}
    np.testing.assert_allclose(folded(new, X), fn(variables, X), rtol=1e-4, atol=1e-5)

    tx = cj.prune(optax.sgd(0.1), schedule=cj.pruning.polynomial(0.5, begin=0, end=1, every=1))
    state = tx.init(new["params"])
    params = new["params"]
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    assert float((params["conv"]["kernel"] == 0).mean()) == pytest.approx(0.5, abs=0.02)
    assert np.isfinite(folded({"params": params}, X)).all()
