"""What `shrink` promises besides equality: options, other modes and shapes, `kept`, errors."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import slimming, tree
from tests.support.reference import check, draw, positions, widths, zeroed
from tests.support.topologies import (
    IMAGE,
    dense_blocks,
    grouped,
    head,
    linen,
    norm,
    plain,
    residual,
    shuffled,
)


def test_training_mode_takes_the_same_cut():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(norm(train)(nn.Conv(8, (3, 3))(x)))
            return head(nn.relu(norm(train)(nn.Conv(12, (3, 3))(x)))), x

    shapes = jax.eval_shape(lambda x: Network().init(jax.random.key(0), x, False), IMAGE)
    variables = draw(shapes)
    infer = lambda v, x: Network().apply(v, x, False)[0]  # noqa: E731
    train = lambda v, x: Network().apply(v, x, True, mutable=["batch_stats"])  # noqa: E731
    shrunk = slimming.shrink(infer, variables, IMAGE, round_to=1)
    left = positions(infer, variables, shrunk.kept, IMAGE)
    (found, narrow), found_state = jax.jit(shrunk.transform(train))(shrunk.variables, IMAGE)
    (expected, wide), state = jax.jit(train)(zeroed(variables, left), IMAGE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    first = left["params/Conv_0/kernel"][3]
    np.testing.assert_allclose(narrow, wide[..., first], rtol=1e-4, atol=1e-5)
    assert narrow.shape[-1] == 4
    for path, leaf in tree.paths(found_state).items():
        expected = tree.paths(state)[path][left[path][0]]
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_gradients_and_vmap_and_jit_agree():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    left = positions(fn, variables, shrunk.kept, IMAGE)
    loss = lambda apply: lambda v: jnp.sum(apply(v, IMAGE) ** 2)  # noqa: E731
    found = jax.jit(jax.grad(loss(shrunk.apply)))(shrunk.variables)
    whole = jax.jit(jax.grad(loss(fn)))(zeroed(variables, left))
    for path, leaf in tree.paths(whole).items():
        if "kernel" in path:  # of biases and norms, cut channels have gradients of their own
            expected = np.asarray(leaf)[np.ix_(*left[path])]
            np.testing.assert_allclose(
                tree.paths(found)[path], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
            )
    one = jax.jit(jax.vmap(lambda x: shrunk.apply(shrunk.variables, x[None])[0]))
    expected = jax.jit(fn)(zeroed(variables, left), IMAGE)
    np.testing.assert_allclose(one(IMAGE), expected, rtol=1e-4, atol=1e-5)
    with jax.disable_jit():
        eager = shrunk.apply(shrunk.variables, IMAGE)
    np.testing.assert_allclose(eager, expected, rtol=1e-4, atol=1e-5)


def test_what_is_prepared_inside_one_jit_serves_another():
    constant = jnp.arange(8.0)[None]
    fn = lambda v, x: (x @ v["a"] * constant) @ v["b"]  # noqa: E731
    variables = {"a": np.ones((3, 8), np.float32), "b": np.ones((8, 2), np.float32)}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    x = np.ones((2, 3), np.float32)
    first = jax.jit(lambda v, x: shrunk.apply(v, x))(shrunk.variables, x)
    second = jax.jit(lambda v, x: shrunk.apply(v, x) + 0)(shrunk.variables, x)
    for found in (first, second, shrunk.apply(shrunk.variables, x)):
        np.testing.assert_allclose(found, 3.0 * sum(shrunk.kept["a"]) * np.ones((2, 2)))


def test_batch_and_image_sizes_are_free():
    fn, variables = linen(dense_blocks)
    example = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")
    shrunk = slimming.shrink(fn, variables, example, round_to=1)
    left = positions(fn, variables, shrunk.kept, IMAGE)
    for shape in ((5, 8, 8, 3), (1, 11, 9, 3)):
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(
            jax.jit(shrunk.apply)(shrunk.variables, x),
            jax.jit(fn)(zeroed(variables, left), x),
            rtol=1e-4,
            atol=1e-5,
        )


def test_shrinking_again_cuts_further():
    for body in (residual, shuffled, grouped):
        fn, variables = linen(body)
        once = slimming.shrink(fn, variables, IMAGE, ratio=0.3, round_to=1)
        twice = check(once.apply, once.variables, IMAGE, ratio=0.4)
        assert list(twice.kept) == list(once.kept)
        for name in twice.kept:
            assert len(twice.kept[name]) < len(once.kept[name])


def test_kept_is_json_and_fits_a_fresh_checkpoint():
    fn, variables = linen(dense_blocks)
    shrunk = slimming.shrink(fn, variables, IMAGE, round_to=1)
    kept = json.loads(json.dumps(shrunk.kept))
    assert kept == shrunk.kept
    other = linen(dense_blocks, seed=1)[1]
    again = slimming.shrink(fn, other, IMAGE, kept=kept)
    assert again.kept == kept
    np.testing.assert_array_equal(
        again.variables["params"]["Conv_0"]["bias"],
        other["params"]["Conv_0"]["bias"][kept["params/Conv_0/kernel"]],
    )


def test_keeps_the_filters_with_the_largest_l1_norm():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE, ratio=0.5, round_to=1)
    norms = np.abs(variables["params"]["Conv_1"]["kernel"]).sum((0, 1, 2))
    assert shrunk.kept["params/Conv_1/kernel"] == sorted(np.argsort(-norms)[:6].tolist())
    kernel = shrunk.variables["params"]["Conv_1"]["kernel"]
    rows = shrunk.kept["params/Conv_0/kernel"]
    columns = shrunk.kept["params/Conv_1/kernel"]
    np.testing.assert_array_equal(
        kernel, variables["params"]["Conv_1"]["kernel"][:, :, rows][..., columns]
    )
    assert isinstance(kernel, np.ndarray)


@pytest.mark.parametrize(
    ("ratio", "round_to", "expected"),
    [(0.0, 8, 20), (0.5, 1, 10), (0.5, 4, 12), (0.5, 8, 8), (0.99, 8, 8), (0.99, 1, 1),
     (0.5, 16, 16), (0.5, 20, 20), (0.5, 64, 20)],
)  # fmt: skip
def test_kept_counts_are_multiples(ratio, round_to, expected):
    variables = {"a": np.ones((3, 20), np.float32), "b": np.ones((20, 2), np.float32)}
    fn = lambda v, x: nn.relu(x @ v["a"]) @ v["b"]  # noqa: E731
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3)), ratio=ratio, round_to=round_to)
    assert len(shrunk.kept["a"]) == expected


def test_no_part_of_a_split_becomes_empty():
    def fn(v, x):
        left, right = jnp.split(x @ v["a"], 2, axis=-1)
        return left @ v["b"] + right @ v["c"]

    a = np.ones((3, 8), np.float32) * np.arange(8)
    variables = {"a": a, "b": np.ones((4, 2), np.float32), "c": np.ones((4, 2), np.float32)}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    assert shrunk.kept == {"a": [3, 4, 5, 6, 7]}
    assert shrunk.apply(shrunk.variables, np.ones((1, 3), np.float32)).shape == (1, 2)


def test_ratios_by_path_and_protection():
    fn, variables = linen(residual)
    ratios = {"params/Conv_1/*": 0.25, "**/Conv_[346]/kernel": 0.5}
    shrunk = slimming.shrink(fn, variables, IMAGE, ratio=ratios, round_to=1)
    assert widths(shrunk) == {
        "Conv_0": "8/8",
        "Conv_1": "6/8",
        "Conv_3": "8/16",
        "Conv_4": "8/16",
        "Conv_6": "8/16",
    }
    safe = slimming.shrink(fn, variables, IMAGE, protect="params/Conv_4/*", round_to=1)
    assert list(widths(safe)) == ["Conv_0", "Conv_1", "Conv_6"]
    assert safe.report.frozen["params/Conv_3/kernel[3]"] == "protected"
    assert safe.variables["params"]["Conv_4"]["kernel"].shape == (3, 3, 16, 16)


def test_loops_of_unknown_length_stay_whole_and_are_named():
    def fn(v, x):
        x = nn.relu(x @ v["a"])
        x = jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ v["loop"], x @ v["b"])
        return x @ v["c"]

    shapes = {"a": (3, 8), "b": (8, 6), "loop": (6, 6), "c": (6, 2)}
    variables = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    shrunk = slimming.shrink(fn, variables, np.ones((1, 3), np.float32), round_to=1)
    assert {name: len(kept) for name, kept in shrunk.kept.items()} == {"a": 4}
    assert "no rule for while" in shrunk.report.frozen["b[1]"]
    assert "while is left whole" in str(shrunk.report)


def test_what_the_function_does_not_use_stays():
    fn = lambda v, x: nn.relu(x @ v["a"]) @ v["b"]  # noqa: E731
    head = lambda v, x: fn(v, x) + (x @ v["a"]).sum() + x @ v["other"]  # noqa: E731
    shapes = {"a": (3, 8), "b": (8, 2), "other": (3, 2)}
    variables = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    x = np.ones((1, 3), np.float32)
    shrunk = slimming.shrink(fn, variables, x, round_to=1)
    assert list(shrunk.kept) == ["a"]
    assert shrunk.report.frozen["other[1]"] == "not used by this function"
    np.testing.assert_allclose(
        shrunk.transform(head)(shrunk.variables, x), head(shrunk.masked(variables), x)
    )


def test_dropout_draws_what_the_whole_network_draws():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(16)(x))
            return nn.Dense(4)(x)

    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = draw(jax.eval_shape(Network().init, rngs, x))
    fn = lambda v, x: Network().apply(v, x, rngs={"dropout": jax.random.key(2)})  # noqa: E731
    assert widths(check(fn, variables, x)) == {"Dense_0": "8/16"}


def test_a_function_that_returns_its_statistics_holds_their_widths():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = norm(True)(nn.Conv(8, (3, 3), name="normed")(x))
            return head(nn.Conv(6, (1, 1), name="plain")(x))

    variables = draw(jax.eval_shape(Network().init, jax.random.key(0), IMAGE))
    train = lambda v, x: Network().apply(v, x, mutable=["batch_stats"])  # noqa: E731
    shrunk = slimming.shrink(train, variables, IMAGE, round_to=1)
    assert widths(shrunk) == {"plain": "3/6"}
    assert "output" in shrunk.report.frozen["params/normed/kernel[3]"]


def test_half_precision_variables():
    fn, variables = linen(plain)
    shrunk = slimming.shrink(fn, variables, IMAGE)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), shrunk.variables)
    assert shrunk.apply(half, jnp.asarray(IMAGE, jnp.bfloat16)).dtype == jnp.bfloat16


class TestErrors:
    fn, variables = (
        staticmethod(lambda v, x: nn.relu(x @ v["a"]) @ v["b"]),
        {
            "a": np.ones((3, 8), np.float32),
            "b": np.ones((8, 2), np.float32),
        },
    )
    x = np.ones((1, 3), np.float32)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ratio": 1.0}, r"ratio for 'all' is 1.0, expected a number in \[0, 1\)"),
            ({"ratio": {"a": -0.1}}, "ratio for 'a' is -0.1"),
            ({"ratio": {"kernel": 0.1}}, "ratio pattern 'kernel' matches none"),
            ({"round_to": 0}, "round_to is 0"),
            ({"protect": "c"}, "protect pattern 'c' matches none"),
            ({"kept": {"z": [1]}}, "kept names 'z'.*its groups are a"),
            ({"kept": {"a": []}}, "kept of group 'a'.*at least one position"),
            ({"kept": {"a": [8]}}, r"kept of group 'a'.*a\[1\], which has 8"),
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            slimming.shrink(self.fn, self.variables, self.x, **options)

    def test_scores_that_are_not_finite(self):
        broken = {**self.variables, "a": np.full((3, 8), np.nan, np.float32)}
        with pytest.raises(ValueError, match="importance of group 'a'.*not a number"):
            slimming.shrink(self.fn, broken, self.x)

    def test_variables_that_do_not_fit(self):
        shrunk = slimming.shrink(self.fn, self.variables, self.x, round_to=1)
        with pytest.raises(ValueError, match=r"a has shape \(3, 8\), expected \(3, 4\)"):
            shrunk.apply(self.variables, self.x)
        with pytest.raises(ValueError, match="missing b"):
            shrunk.apply({"a": shrunk.variables["a"]}, self.x)

    def test_another_function_that_does_not_allow_the_cut(self):
        shrunk = slimming.shrink(self.fn, self.variables, self.x, round_to=1)
        other = shrunk.transform(lambda v, x: nn.softmax(x @ v["a"]) @ v["b"])
        with pytest.raises(
            ValueError, match=r"does not allow the cut of a\[1\], b\[0\]: reduce_max"
        ):
            other(shrunk.variables, self.x)

    def test_variables_that_the_function_does_not_take(self):
        broken = {**self.variables, "b": np.ones((7, 2), np.float32)}
        with pytest.raises(TypeError, match="contracting dimensions") as raised:
            slimming.shrink(self.fn, broken, self.x)
        assert "check that the variables fit it" in "".join(raised.value.__notes__)

    def test_output_that_is_no_array(self):
        with pytest.raises(TypeError, match="not a valid JAX type"):
            slimming.shrink(lambda v, x: "logits", self.variables, self.x)
