"""Equalization finds its pairs, leaves the function as it is, and makes per-tensor int8 usable."""

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import compressjax as cj
from compressjax import quant, tree
from compressjax.quant.correction.equalize import Tie, log_scales
from tests.support import equalize_oracles, topologies

IMAGE = topologies.IMAGE
SEEN = np.random.default_rng(11).normal(size=(64, 8, 8, 3)).astype(np.float32)


def linen(body, x=IMAGE, spread=1.0, seed=0):
    """A folded network whose channels have ranges that differ by `exp(spread)`."""
    fn, variables = topologies.linen(body, x, seed=seed)
    fn, variables = cj.fold_batch_norm(fn, variables, x)
    rng = np.random.default_rng(seed)

    def leaf(path, w):
        if not path.endswith("kernel"):
            return jnp.asarray(w)
        w = np.asarray(w)
        return jnp.asarray(w * np.exp(rng.normal(0, spread, w.shape[-2:])), w.dtype)

    return fn, tree.map_with_path(leaf, variables)


def gap(found, expected):
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def check(fn, variables, x=IMAGE, limit=1e-5, **kwargs):
    new_fn, new = quant.equalize(fn, variables, x, **kwargs)
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
        lambda a: (a.shape, a.dtype), variables
    )
    assert gap(jax.jit(new_fn)(new, x), jax.jit(fn)(variables, x)) < limit
    return new_fn, new


def ranges(pair, variables):
    """Largest absolute weight of each channel in both kernels of a pair."""
    leaves = tree.paths(variables)
    made, read = (np.abs(k.take(leaves[k.path])) for k in (pair.first, pair.second))
    by_position = read.max((0, 3)).T.ravel()
    r2 = np.zeros(pair.first.width)
    np.maximum.at(r2, pair.channel, by_position)
    return made.max((0, 1)).ravel(), r2


def conv_dense_of(x):
    return topologies.head(nn.relu(nn.Conv(6, (3, 3))(x)))


def pooled(x):
    x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), strides=(2, 2), padding="SAME")
    x = nn.avg_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (2, 2), padding="SAME")
    return topologies.head(nn.Conv(5, (1, 1))(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))


def triple(x):
    x = nn.relu(nn.Conv(12, (1, 1))(x))
    x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=12, strides=2)(x))
    return nn.Conv(4, (1, 1))(x)


def grouped_shuffle(x):
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    x = nn.relu(nn.Conv(8, (1, 1), feature_group_count=2)(x))
    x = x.reshape(*x.shape[:3], 2, 4).swapaxes(-1, -2).reshape(*x.shape[:3], 8)
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    return nn.Conv(4, (1, 1), feature_group_count=4)(x)


def upscaled(x):
    x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2))(x))
    return nn.relu(nn.DenseGeneral(4, axis=(1, 2, 3))(x)) * 0.5


def linear_steps(x):
    x = nn.Dense(5, use_bias=False)(nn.Conv(6, (3, 3))(x))
    return nn.Dense(3)(-jnp.abs(jnp.flip(x, -1)).max((1, 2)) / 3.0)


def channels_first_flat(x):
    x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x)).transpose(0, 3, 1, 2)
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


BODIES = {
    conv_dense_of: 1,
    pooled: 3,
    triple: 2,
    grouped_shuffle: 3,
    upscaled: 1,
    linear_steps: 2,
    topologies.flattened: 2,
    channels_first_flat: 1,
    topologies.channel_multiplier: 3,
    topologies.plain: 2,
}
named = {"ids": lambda body: getattr(body, "__name__", "")}


@pytest.mark.parametrize("body", BODIES, **named)
def test_the_function_stays_and_ranges_become_equal(body):
    fn, variables = linen(body)
    _, new = check(fn, variables)
    pairs = quant.layer_pairs(fn, variables, IMAGE)
    assert len(pairs.found) == BODIES[body], str(pairs)
    before = [ranges(pair, variables) for pair in pairs.found]
    after = [ranges(pair, new) for pair in pairs.found]
    assert max(np.abs(np.log(r1 / r2)).max() for r1, r2 in before) > 1.0
    for r1, r2 in after:
        np.testing.assert_allclose(r1, r2, rtol=5e-3)


ARCHITECTURES = [
    topologies.depthwise,
    topologies.residual,
    topologies.padded_shortcut,
    topologies.same_twice,
    topologies.shuffled,
    topologies.squeeze_excite,
    topologies.gated,
    topologies.shared,
    topologies.upsampled,
    topologies.masked,
]


@pytest.mark.parametrize("body", ARCHITECTURES, **named)
def test_no_architecture_is_changed(body):
    check(*linen(body))


def test_it_is_exact_in_double_precision():
    with jax.enable_x64(True):
        fn, variables = linen(triple)
        variables = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), variables)
        check(fn, variables, IMAGE.astype(np.float64), limit=1e-12)


def mlp(v, x):
    for name in "ab":
        x = jax.nn.relu(x @ v[name]["kernel"] + v[name]["bias"][None])
    return x @ v["c"]["kernel"] + v["c"]["bias"][None]


def mlp_variables(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 6), "b": (6, 5), "c": (5, 3)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=s) * np.exp(rng.normal(0, 2, s)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=s[1:]), jnp.float32),
        }
        for name, s in shapes.items()
    }


def test_the_numbers_are_those_of_the_paper():
    variables = mlp_variables()
    _, new = check(mlp, variables, SEEN[:5, 0, 0, :1] * np.ones((1, 4), np.float32))
    weights, biases = equalize_oracles.equalized(
        [variables[k]["kernel"] for k in "abc"], [variables[k]["bias"] for k in "abc"]
    )
    for name, w, b in zip("abc", weights, biases, strict=True):
        np.testing.assert_allclose(new[name]["kernel"], w, rtol=5e-3)
        np.testing.assert_allclose(new[name]["bias"], b, rtol=5e-3)


def test_a_depthwise_triple_has_the_closed_form():
    fn, variables = linen(triple)
    _, new = check(fn, variables)
    first, second = quant.layer_pairs(fn, variables, IMAGE).found
    r1, r2 = ranges(first, variables)
    _, r3 = ranges(second, variables)
    for found in (*ranges(first, new), *ranges(second, new)):
        np.testing.assert_allclose(found, np.cbrt(r1 * r2 * r3), rtol=5e-3)


def test_dead_channels_stay_as_they_are():
    variables = mlp_variables()
    variables["a"]["kernel"] = variables["a"]["kernel"].at[:, 1].set(0.0)
    variables["b"]["kernel"] = variables["b"]["kernel"].at[2].set(0.0).at[:, 3].set(0.0)
    _, new = check(mlp, variables, SEEN[:5, 0, 0, :1] * np.ones((1, 4), np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    for channel in (1, 2):
        np.testing.assert_array_equal(new["a"]["bias"][channel], variables["a"]["bias"][channel])
    assert not np.any(new["b"]["kernel"][2]) and not np.any(new["a"]["kernel"][:, 1])


def test_any_batch_size_and_jit_of_the_whole():
    fn, variables = linen(topologies.depthwise)
    apply, new = quant.equalize(fn, variables, IMAGE[:1], remove_clips=True)
    eager = apply(new, SEEN)
    jitted = jax.jit(lambda v: quant.equalize(fn, v, IMAGE[:1], remove_clips=True)[1])(variables)
    np.testing.assert_allclose(jax.jit(apply)(jitted, SEEN), eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 6])
def test_channels_first_kernels(groups):
    def fn(v, x):
        for name, count in (("a", 1), ("b", groups)):
            x = lax.conv_general_dilated(
                x, v[name]["w"], (1, 1), "SAME",
                dimension_numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=count,
            )  # fmt: skip
            x = jax.nn.relu(x - v[name]["shift"].reshape(1, -1, 1, 1))
        return x

    rng = np.random.default_rng(0)
    shapes = {"a": (6, 3, 3, 3), "b": (6, 6 // groups, 3, 3)}
    variables = {
        name: {
            "w": jnp.asarray(rng.normal(size=s) * np.exp(rng.normal(0, 2, (s[0], 1, 1, 1))), "f"),
            "shift": jnp.asarray(rng.normal(size=s[0]), "f"),
        }
        for name, s in shapes.items()
    }
    x = IMAGE.transpose(0, 3, 1, 2)
    _, new = check(fn, variables, x)
    (pair,) = quant.layer_pairs(fn, variables, x).found
    np.testing.assert_allclose(*ranges(pair, new), rtol=5e-3)


W = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3)), "c": jnp.arange(3.0)[None]}
LEFT = {
    "output": (lambda v, x: x @ v["a"], "a", "output of the function"),
    "two readers": (lambda v, x: (lambda y: y @ v["b"] + y)(x @ v["a"]), "a", "are read by b, add"),
    "shared": (lambda v, x: x @ v["a"] @ v["a"], "a", "computed, or used more than once"),
    "computed": (lambda v, x: x @ v["a"] @ (2.0 * v["b"]), "a", "computed, or used more"),
    "not homogeneous": (lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], "a", "tanh has no rule"),
    "clipped elsewhere": (lambda v, x: jnp.clip(x @ v["a"], -1, 1) @ v["b"], "a", "something else"),
    "factor": (lambda v, x: (x @ v["a"] * v["c"]) @ v["b"], "a", "fold_batch_norm"),
    "constant": (lambda v, x: (x @ v["a"] + 1.0) @ v["b"], "a", "no bias variable of its own"),
    "bias elsewhere": (lambda v, x: (x @ v["a"] + v["c"]) @ v["b"] + v["c"], "a", "of its own"),
    "joined": (lambda v, x: (x @ v["a"] + x) @ v["b"], "a", "joins the channels"),
    "squared": (lambda v, x: jnp.square(x @ v["a"]) @ v["b"], "a", "square"),
    "times itself": (lambda v, x: (lambda y: y * y)(x @ v["a"]) @ v["b"], "a", "twice"),
    "over channels": (lambda v, x: (x @ v["a"]).sum(1)[None], "a", "goes over the channels"),
    "other axis": (lambda v, x: v["b"] @ (x @ v["a"]), "a", "does not sum over the channels"),
    "divides": (lambda v, x: (1.0 / (x @ v["a"])) @ v["b"], "a", "divides by the channels"),
    "split": (lambda v, x: (x @ jnp.zeros((3, 4)) @ v["d"]).reshape(-1, 2, 2).sum(1) @ v["e"], "d",
              "splits the channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_equalized_is_left_alone_and_named(name):
    fn, path, why = LEFT[name]
    variables = {**W, "d": jnp.ones((4, 4)), "e": jnp.ones((2, 3))}
    x = jnp.ones((3, 3))
    pairs = quant.layer_pairs(fn, variables, x)
    assert not [pair for pair in pairs.found if pair.first.path == path]
    assert why in pairs.left[path], str(pairs)
    _, new = quant.equalize(fn, variables, x)
    np.testing.assert_array_equal(new[path], variables[path])


def test_a_kernel_that_is_not_finite_is_named():
    variables = mlp_variables()
    variables["b"]["kernel"] = variables["b"]["kernel"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"b/kernel has weights that are not finite"):
        quant.equalize(mlp, variables, jnp.ones((1, 4)))


def clipped(v, x):
    x = jnp.clip(x @ v["a"] + v["b"], 0.0, 6.0)
    return jnp.minimum(jax.nn.relu6(x @ v["c"]), 4.0) @ v["d"]


def clipped_variables():
    rng = np.random.default_rng(1)
    shapes = {"a": (4, 8), "b": (1, 8), "c": (8, 8), "d": (8, 3)}
    spread = {"a": 1.5, "c": 1.0}
    return {
        name: jnp.asarray(
            rng.normal(size=s) * np.exp(rng.normal(0, spread.get(name, 0.0), (1, s[1]))), "float32"
        )
        for name, s in shapes.items()
    }


X = np.random.default_rng(2).normal(size=(200, 4)).astype(np.float32)


def test_layers_with_a_clip_in_between_are_left_alone():
    variables = clipped_variables()
    apply, new = quant.equalize(clipped, variables, X)
    assert apply is clipped
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_clips_are_removed_where_layers_are_equalized():
    """What the paper does with ReLU6 (section 5.1.1)."""

    def unclipped(v, x):
        return jax.nn.relu(jax.nn.relu(x @ v["a"] + v["b"]) @ v["c"]) @ v["d"]

    variables = clipped_variables()
    apply, new = quant.equalize(clipped, variables, X, remove_clips=True)
    assert gap(apply(new, X), unclipped(variables, X)) < 1e-5
    assert gap(apply(new, X), clipped(variables, X)) > 1e-2
    found = "\n".join(map(str, quant.layer_pairs(clipped, variables, X).found))
    assert found == "a -> c, min_0 clips at 6\nc -> d, relu6_0 clips at 6, min_1 clips at 4"


def test_clips_elsewhere_stay():
    def fn(v, x):
        return jax.nn.relu6(jax.nn.relu6(x @ v["a"] + v["b"]) @ v["c"])

    variables = clipped_variables()
    apply, new = quant.equalize(fn, variables, X, remove_clips=True)
    assert float(apply(new, X).max()) == 6.0


def test_with_batches_clips_stay_and_the_function_is_the_same_on_them():
    variables = clipped_variables()
    apply, new = quant.equalize(clipped, variables, X, batches=[X[:100], X[100:]])
    assert apply is clipped
    assert gap(apply(new, X), clipped(variables, X)) < 1e-5
    assert any(not np.array_equal(new[name], variables[name]) for name in "acd")
    # A channel that was seen at its clip keeps its scale.
    peak = np.max(X @ variables["a"] + variables["b"], axis=0)
    scaled = ~np.isclose(new["b"], variables["b"])[0]
    assert (peak > 6).any() and not scaled[peak > 6].any() and scaled[peak <= 6].any()


def test_batches_are_checked():
    variables = clipped_variables()
    with pytest.raises(ValueError, match="batches and remove_clips=True"):
        quant.equalize(clipped, variables, X, batches=[X], remove_clips=True)
    with pytest.raises(ValueError, match="there are no batches"):
        quant.equalize(clipped, variables, X, batches=[])
    with pytest.raises(ValueError, match="a: some channels are not finite"):
        quant.equalize(clipped, variables, X, batches=[X * np.nan])


def mobile(act):
    """Inverted residuals: pointwise, depthwise, linear pointwise, some of them added."""

    def body(x):
        x = act(nn.Conv(8, (3, 3))(x))
        for hidden, features in ((24, 8), (24, 12)):
            y = act(nn.Conv(hidden, (1, 1))(x))
            y = act(nn.Conv(hidden, (3, 3), feature_group_count=hidden)(y))
            y = nn.Conv(features, (1, 1))(y)
            x = x + y if features == x.shape[-1] else y
        return topologies.head(act(nn.Conv(32, (1, 1))(x)))

    return body


def per_tensor_error(fn, variables, expected):
    """Of int8 with one scale for each kernel, in deviations of what is expected."""
    q = cj.quantize(fn, quant.int8(per_channel=False))
    qv = q.calibrate(variables, [SEEN[:32]])
    found = np.asarray(jax.jit(q.apply)(qv, SEEN))
    return np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected)


def ill_scaled(fn, variables, x, spread):
    """The same function with channels of all pairs rescaled at random."""
    rng = np.random.default_rng(4)
    leaves = {path: np.array(leaf) for path, leaf in tree.paths(variables).items()}
    for pair in quant.layer_pairs(fn, variables, x).found:
        s = np.exp(rng.normal(0, spread, pair.first.width)).astype(np.float32)
        first, second = leaves[pair.first.path], leaves[pair.second.path]
        leaves[pair.first.path] = first * s
        depthwise = second.shape[-2] == 1
        leaves[pair.second.path] = second / (s if depthwise else s[:, None])
        for bias in pair.biases.values():
            leaves[bias.path] = leaves[bias.path] * s
    return tree.from_paths({path: jnp.asarray(leaf) for path, leaf in leaves.items()})


def test_the_claim_of_the_paper():
    """Per-tensor int8: at least 90 % of what ill-scaled channels cost is won back (table 1)."""
    fn, variables = topologies.linen(mobile(nn.relu))
    spoiled = ill_scaled(fn, variables, IMAGE, 1.5)
    expected = np.asarray(fn(variables, SEEN))
    assert gap(fn(spoiled, SEEN), expected) < 1e-4
    well, naive = (per_tensor_error(fn, v, expected) for v in (variables, spoiled))
    equalized = per_tensor_error(*quant.equalize(fn, spoiled, IMAGE), expected)
    assert naive > 5 * well
    assert (naive - equalized) / (naive - well) >= 0.9


def test_keeping_clips_beats_removing_them():
    """With ReLU6, batches keep the function, so what is won is not lost to missing clips."""
    fn, variables = topologies.linen(mobile(nn.relu6))
    rng = np.random.default_rng(6)

    def leaf(path, w):
        gains = np.exp(rng.normal(0.5, 1.0, w.shape[-1:]))
        return jnp.asarray(w * (gains if path.endswith("kernel") else 1.0), w.dtype)

    variables = tree.map_with_path(leaf, variables)
    expected = np.asarray(fn(variables, SEEN))
    naive = per_tensor_error(fn, variables, expected)
    kept = quant.equalize(fn, variables, IMAGE, batches=[SEEN[:32]])
    apply, removed = quant.equalize(fn, variables, IMAGE, remove_clips=True)
    assert per_tensor_error(*kept, expected) < 0.5 * naive
    assert np.std(apply(removed, SEEN) - expected) / np.std(expected) > naive


MADE, READ, CHANNEL = (5, 2, 3), (4, 3, 2), np.array([5, 0, 0, 1, 2, 2, 2, 3, 4, 4, 1, 5])


@hypothesis.given(
    hypothesis.strategies.integers(0, 2**31 - 1),
    hypothesis.strategies.floats(0.0, 8.0),
    hypothesis.strategies.floats(0.0, 0.9),
)
def test_ranges_meet_in_their_geometric_mean(seed, spread, zeros):
    """Whatever the weights: channels with none stay, the others get one range from two."""
    rng = np.random.default_rng(seed)
    made, read = (
        (np.exp(rng.normal(0, spread, s)) * (rng.random(s) >= zeros)).astype(np.float32)
        for s in (MADE, READ)
    )
    free = np.full(6, -np.inf, np.float32), np.full(6, np.inf, np.float32)
    with np.errstate(divide="ignore"):
        logs = [jnp.asarray(np.log(w)) for w in (made, read)]
    (log,) = SOLVE(logs, *free)
    r1, r2 = made.max(0).ravel(), np.zeros(6)
    np.maximum.at(r2, CHANNEL, read.max(2).T.ravel())
    alive = (r1 > 0) & (r2 > 0)
    np.testing.assert_array_equal(log[~alive], 0.0)
    scale = np.exp(np.float64(log))[alive]
    np.testing.assert_allclose(r1[alive] / scale, np.sqrt(r1 * r2)[alive], rtol=1e-4)
    np.testing.assert_allclose(r2[alive] * scale, np.sqrt(r1 * r2)[alive], rtol=1e-4)


SOLVE = jax.jit(lambda logs, low, high: log_scales(logs, [Tie(0, 1, CHANNEL, low, high)]))
