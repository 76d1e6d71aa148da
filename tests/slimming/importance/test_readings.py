"""What each weight reads, against the function itself and against loops written out.

Where a kernel is used linearly, the mean of what it gives is the mean of what it reads times the
weights: with the signed mean as a statistic, the function is its own oracle.
"""

import equinox as eqx
import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from compressjax import slimming
from tests.support.topologies import IMAGE, linen, shared, standardized

RNG = np.random.default_rng(0)
MEAN = slimming.Statistic(lambda x: x.mean(axis=tuple(range(x.ndim - 1))))
MAGNITUDE = slimming.mean_magnitude()


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    data=st.permutations("nbcd"), kernel=st.permutations("bcdio"), swapped=st.booleans()
)
def test_any_order_of_axes(data, kernel, swapped):
    """`b` is shared, `c` and `d` are summed over, `i` and `o` are made."""
    sizes = dict(n=4, b=2, c=3, d=2, i=3, o=2)
    x, w = (normal(*(sizes[axis] for axis in axes)) for axes in (data, kernel))
    x, v = np.asarray(x), np.asarray(w)
    terms = ["".join(data), "".join(kernel)]

    def fn(v, x):
        if swapped:
            return jnp.einsum(f"{terms[1]},{terms[0]}->nbio", v, x)
        return jnp.einsum(f"{terms[0]},{terms[1]}->nbio", x, v)

    seen = slimming.observe(fn, v, [x], MEAN)[""]
    assert seen.shape == v.shape
    made = np.einsum(f"{terms[1]}->bio", seen * v)
    np.testing.assert_allclose(made, fn(v, x).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("layout", ["NHWC/HWIO", "NCHW/OIHW", "NHWC/OHWI"])
def test_convolutions_in_groups_and_any_layout(groups, layout):
    inputs, kernels = layout.split("/")
    sizes = dict(N=2, H=3, W=3, C=6)
    x = normal(*(sizes[axis] for axis in inputs))
    v = normal(*(dict(H=1, W=1, I=6 // groups, O=12)[axis] for axis in kernels))

    def fn(v, x):
        return jax.lax.conv_general_dilated(
            x,
            v,
            (1, 1),
            "VALID",
            dimension_numbers=(inputs, kernels, inputs),
            feature_group_count=groups,
        )

    seen = slimming.observe(fn, v, [x], MEAN)[""]
    out = kernels.index("O")
    made = (seen * v).sum(axis=tuple(i for i in range(4) if i != out))
    others = tuple(i for i in range(4) if i != inputs.index("C"))
    np.testing.assert_allclose(made, fn(v, x).mean(others), rtol=1e-4, atol=1e-5)


def test_moves_between_variable_and_kernel():
    v, x = normal(4, 6), normal(5, 12)
    fn = lambda v, x: x @ jnp.flip(v.reshape(2, 2, 6).transpose(2, 0, 1).reshape(12, 2), 0)  # noqa: E731
    seen = slimming.observe(fn, v, [x], MEAN)[""]
    made = fn(seen * v, np.ones((1, 12), np.float32))
    np.testing.assert_allclose(made[0], fn(v, x).mean(0), rtol=1e-4, atol=1e-5)


def test_a_kernel_used_twice_is_told_the_mean_of_its_uses():
    fn = lambda v, x: nn.relu(nn.relu(x) @ v) @ v  # noqa: E731
    v, x = normal(6, 6), normal(5, 6)
    seen = slimming.observe(fn, v, [x], MAGNITUDE)[""]
    first = np.maximum(x, 0)
    expected = (first.mean(0) + np.maximum(first @ v, 0).mean(0)) / 2
    np.testing.assert_allclose(seen, np.broadcast_to(expected[:, None], (6, 6)), rtol=1e-5)
    assert "params/Conv_1/kernel" in slimming.observe(*linen(shared), [IMAGE], MAGNITUDE)


def scanned(v, x):
    """A stack of layers, between them one that all of them share."""

    def step(h, w):
        return jnp.tanh(jnp.tanh(h @ w) @ v["same"]), None

    return jax.lax.scan(step, x, v["stack"].transpose(0, 2, 1))[0]


def unrolled(v, x):
    for w in v["stack"]:
        x = jnp.tanh(jnp.tanh(x @ w.T) @ v["same"])
    return x


def test_loops_read_as_if_they_were_written_out():
    v, x = {"stack": normal(3, 4, 5), "same": normal(4, 5)}, normal(6, 5)
    batches = [x, 2 * x]
    seen = slimming.observe(scanned, v, batches, MAGNITUDE)
    stack, same = [], []
    for x in batches:
        for w in v["stack"]:
            stack.append(np.abs(x).mean(0))
            x = np.tanh(x @ w.T)
            same.append(np.abs(x).mean(0))
            x = np.tanh(x @ v["same"])
    each = np.reshape(stack, (2, 3, 5)).mean(0)
    np.testing.assert_allclose(seen["stack"], np.broadcast_to(each[:, None], (3, 4, 5)), rtol=1e-5)
    np.testing.assert_allclose(
        seen["same"], np.broadcast_to(np.mean(same, 0)[:, None], (4, 5)), rtol=1e-5
    )


def test_loops_in_loops_and_ranks_in_loops():
    def fn(v, x):
        def inner(h, w):
            return jnp.tanh(h @ w @ v["same"]), None

        def outer(h, w):
            return jax.lax.scan(inner, h, w, reverse=True)[0], h.sum()

        return jax.lax.scan(outer, x, v["stack"])

    v, x = {"stack": normal(3, 2, 4, 4), "same": normal(4, 4)}, normal(5, 4)
    seen = slimming.observe(fn, v, [x], MAGNITUDE)
    expected, same = np.zeros((3, 2, 4)), []
    h = x
    for i, j in ((i, j) for i in range(3) for j in (1, 0)):
        expected[i, j] = np.abs(h).mean(0)
        same.append(np.abs(h @ v["stack"][i, j]).mean(0))
        h = np.tanh(h @ v["stack"][i, j] @ v["same"])
    np.testing.assert_allclose(
        seen["stack"], np.broadcast_to(expected[..., None], (3, 2, 4, 4)), rtol=1e-5
    )
    np.testing.assert_allclose(seen["same"][:, 0], np.mean(same, 0), rtol=1e-5)
    x[2:] = 0
    assert (
        slimming.observe(fn, v, [x], slimming.mean_rank())["stack"][0, 1].tolist()
        == [[0.4] * 4] * 4
    )


def test_a_scanned_network_is_cut_by_its_activations():
    v = {"stack": normal(3, 8, 6), "same": normal(8, 6), "head": normal(6, 2)}
    v["stack"][:, [1, 5]] = 0
    fn = lambda v, x: scanned(v, x) @ v["head"]  # noqa: E731
    x = normal(7, 6)
    shrunk = slimming.shrink(
        fn,
        v,
        x,
        importance=slimming.activation_mean(fn, v, [x]),
        ratio={"stack": 0.25},
        round_to=1,
    )
    assert shrunk.kept["stack"] == [0, 2, 3, 4, 6, 7]


def test_a_module_of_equinox():
    shapes = eqx.filter_eval_shape(eqx.nn.MLP, 5, 2, 8, 1, key=jax.random.key(0))
    arrays, static = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    v = jax.tree.map(lambda leaf: normal(*leaf.shape), arrays)
    fn = lambda v, x: jax.vmap(eqx.combine(v, static))(x)  # noqa: E731
    x = normal(4, 5)
    seen = slimming.observe(fn, v, [x], MAGNITUDE)
    first, second = v.layers
    hidden = np.maximum(x @ first.weight.T + first.bias, 0)
    np.testing.assert_allclose(seen["layers/0/weight"][3], np.abs(x).mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen["layers/1/weight"][1], hidden.mean(0), rtol=1e-5, atol=1e-7)


def test_what_is_not_a_reading():
    def fn(v, x):
        def step(h, _):
            return h @ v["w"], h @ x.T  # `start` is the carry, and no variable after a step

        h, outer = jax.lax.scan(step, v["start"], None, length=2)
        return h, outer, x @ (v["a"] @ v["b"]), x @ jnp.concatenate([v["a"], v["a"]], 1)

    v = {"w": normal(4, 4), "start": normal(3, 4), "a": normal(4, 4), "b": normal(4, 4)}
    seen = slimming.observe(fn, v, [normal(5, 4)], MAGNITUDE)
    assert sorted(seen) == ["w"]
    assert sorted(slimming.observe(*linen(standardized), [IMAGE], MAGNITUDE)) == [
        "params/Dense_0/kernel"
    ]
