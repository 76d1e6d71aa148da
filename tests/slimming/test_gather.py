"""Norms of a residual stream cut apart from it: equality, the report, and what stays together."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from compressjax import slimming, tree
from compressjax.graph.branches import branch
from compressjax.graph.trace import trace
from tests.support.reference import draw
from tests.support.topologies import (
    IMAGE,
    dense_blocks,
    head,
    linen,
    norm,
    plain,
    preactivation,
    residual,
)


def selections(fn, variables, *args):
    graph = branch(trace(fn, variables, *args, keep_custom=False))
    return [op.name for op in graph.ops if op.kind == "select"]


def equal(fn, variables, shrunk):
    expected = jax.jit(fn)(shrunk.masked(variables), IMAGE)
    found = jax.jit(shrunk.apply)(shrunk.variables, IMAGE)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    whole = fn(variables, IMAGE)
    assert np.abs(whole - expected).max() > 1e-3 * np.abs(whole).max(), "the cut changed nothing"


def test_selections_stand_only_where_a_stream_has_other_readers():
    assert selections(*linen(plain), IMAGE) == []
    assert selections(*linen(residual), IMAGE) == []
    # The norms behind a convolution are its only readers; the last norm is that of the stream.
    first = ["params/BatchNorm_0/scale", "params/BatchNorm_2/scale"]
    assert selections(*linen(preactivation), IMAGE) == first
    assert len(selections(*linen(dense_blocks), IMAGE)) == 3


@pytest.mark.parametrize("body", [preactivation, dense_blocks])
def test_norms_are_cut_and_the_stream_stays(body):
    fn, variables = linen(body)
    norms = selections(fn, variables, IMAGE)
    shrunk = slimming.shrink(
        fn, variables, IMAGE, ratio=dict.fromkeys(norms, 0.5), gather=True, round_to=1
    )
    equal(fn, variables, shrunk)
    assert list(shrunk.report.gathers) == norms
    for name, (there, read, values) in shrunk.report.gathers.items():
        assert shrunk.report.groups[name] == (there, read) and read == there // 2
        assert tree.paths(shrunk.variables)[name].shape == (read,)
        assert values == 2 * 8 * 8 * read
        assert f"{name} reads {read} of {there} channels: a gather of {values:,} values" in str(
            shrunk.report
        )
    again = slimming.shrink(
        fn, variables, IMAGE, gather=True, kept=json.loads(json.dumps(shrunk.kept))
    )
    assert again.kept == shrunk.kept


def test_what_is_cut_alike_needs_no_gather():
    fn, variables = linen(preactivation)
    apart = slimming.shrink(fn, variables, IMAGE, gather=True, round_to=1)
    assert apart.report.gathers == {}
    equal(fn, variables, apart)
    together = slimming.shrink(fn, variables, IMAGE, round_to=1)
    assert "params/BatchNorm_0/scale" not in together.kept
    for path, leaf in tree.paths(together.variables).items():
        assert tree.paths(apart.variables)[path].shape == leaf.shape


def test_a_norm_reads_nothing_that_the_stream_has_not():
    fn, variables = linen(preactivation)
    ratios = {"params/Conv_0/*": 0.75, "params/BatchNorm_0/*": 0.25}
    shrunk = slimming.shrink(fn, variables, IMAGE, ratio=ratios, gather=True, round_to=1)
    stream = set(shrunk.kept["params/Conv_0/kernel"])
    assert len(stream) == 2
    assert set(shrunk.kept["params/BatchNorm_0/scale"]) == stream
    equal(fn, variables, shrunk)
    wrong = {**shrunk.kept, "params/BatchNorm_0/scale": list(range(8))}
    broken = slimming.shrink(fn, variables, IMAGE, gather=True, kept=wrong)
    with pytest.raises(ValueError, match=r"not allow the cut of .*BatchNorm_0/scale reads it"):
        broken.apply(broken.variables, IMAGE)


def test_training_mode_gathers_alike():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(8, (3, 3))(x)
            for _ in range(2):
                y = nn.Conv(12, (3, 3))(nn.relu(norm(train)(x)))
                x = x + nn.Conv(8, (3, 3))(nn.relu(norm(train)(y)))
            return head(nn.relu(norm(train)(x)))

    infer = lambda v, x: Network().apply(v, x, False)  # noqa: E731
    train = lambda v, x: Network().apply(v, x, True, mutable=["batch_stats"])  # noqa: E731
    variables = draw(jax.eval_shape(lambda x: Network().init(jax.random.key(0), x, False), IMAGE))
    ratios = {f"params/BatchNorm_{i}/scale": 0.5 for i in (0, 1, 2)}
    shrunk = slimming.shrink(infer, variables, IMAGE, ratio=ratios, gather=True, round_to=1)
    assert set(shrunk.report.gathers) == {"params/BatchNorm_0/scale", "params/BatchNorm_2/scale"}
    found, found_state = jax.jit(shrunk.transform(train))(shrunk.variables, IMAGE)
    expected, state = jax.jit(train)(shrunk.masked(variables), IMAGE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    kept = shrunk.cut({**variables, **state})["batch_stats"]
    for path, leaf in tree.paths(found_state["batch_stats"]).items():
        np.testing.assert_allclose(leaf, tree.paths(kept)[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_layer_norm_keeps_the_width_of_its_stream():
    def body(x):
        x = nn.Conv(8, (1, 1))(x)
        x = x + nn.Conv(8, (1, 1))(nn.relu(nn.LayerNorm()(x)))
        return head(x)

    fn, variables = linen(body)
    assert selections(fn, variables, IMAGE) == []
    shrunk = slimming.shrink(fn, variables, IMAGE, gather=True, round_to=1)
    assert shrunk.report.groups == {"params/Conv_0/kernel": (8, 4)}
    equal(fn, variables, shrunk)


def test_a_protected_norm_holds_the_stream():
    fn, variables = linen(preactivation)
    shrunk = slimming.shrink(
        fn, variables, IMAGE, gather=True, protect="params/BatchNorm_2/scale", round_to=1
    )
    assert "params/Conv_0/kernel" not in shrunk.kept
    assert "params/BatchNorm_0/scale" in shrunk.kept
    assert "BatchNorm_2/scale reads it" in shrunk.report.frozen["params/Conv_0/kernel[3]"]
