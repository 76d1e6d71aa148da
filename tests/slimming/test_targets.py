"""Cutting to a cost: the limit is reached, and by no more than it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj
from compressjax import slimming, tree
from tests.support.topologies import IMAGE, inception, linen, residual

COSTS = {
    "macs": (slimming.macs, lambda fn, v: cj.trace(fn, v, IMAGE).macs),
    "params": (slimming.params, lambda fn, v: tree.size(v["params"])),
    "bytes": (slimming.num_bytes, lambda fn, v: tree.num_bytes(v)),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("ranking", [slimming.per_group(), slimming.global_()])
def test_the_cost_is_reached_and_hardly_passed(name, ranking):
    target, cost = COSTS[name]
    fn, variables = linen(residual)
    whole = cost(fn, variables)
    for limit in (0.35, 0.7):
        shrunk = slimming.shrink(
            fn, variables, IMAGE, target=target(limit), ranking=ranking, round_to=1
        )
        found = cost(shrunk.apply, shrunk.variables)
        assert (limit - 0.12) * whole < found <= limit * whole
    absolute = slimming.shrink(
        fn,
        variables,
        IMAGE,
        target=target(0.7 * whole, relative=False),
        ranking=ranking,
        round_to=1,
    )
    assert absolute.kept == shrunk.kept


def test_a_mapping_says_the_proportions():
    fn, variables = linen(inception)
    shrunk = slimming.shrink(
        fn, variables, IMAGE, target=slimming.macs(0.8), ratio={"**/Conv_3/kernel": 0.9}, round_to=1
    )
    cut = {name for name, (old, new) in shrunk.report.groups.items() if new < old}
    assert cut == {"params/Conv_3/kernel"}
    with pytest.raises(ValueError, match=r"MACs cannot be reached: .*Conv_0/kernel keeps 8 of 8"):
        slimming.shrink(
            fn,
            variables,
            IMAGE,
            target=slimming.macs(0.3),
            ratio={"**/Conv_3/kernel": 0.9},
            round_to=1,
        )


def test_a_measured_cost():
    fn, variables = linen(residual)
    tried = []

    def measure(apply, smaller):
        assert apply(smaller, IMAGE).shape == (2, 4)
        tried.append(tree.size(smaller))
        return float(tried[-1])

    target = slimming.measured(measure, 0.5, steps=3)
    shrunk = slimming.shrink(fn, variables, IMAGE, target=target, round_to=1)
    assert tree.size(shrunk.variables) <= 0.5 * tree.size(variables)
    assert tried[0] == tree.size(variables) and len(tried) == 5


def test_macs_of_a_scanned_stack():
    def fn(v, x):
        x = x @ v["a"]
        x, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, v["loop"])
        return x @ v["c"]

    shapes = {"a": (3, 16), "loop": (4, 16, 16), "c": (16, 2)}
    variables = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    x = np.ones((1, 3), np.float32)
    shrunk = slimming.shrink(fn, variables, x, target=slimming.macs(0.3), round_to=1)
    left = len(shrunk.kept["a"])
    found = 3 * left + 4 * left * left + 2 * left
    assert cj.trace(shrunk.apply, shrunk.variables, x).macs == found <= 0.3 * (80 + 4 * 256)
    assert left == 8


def test_errors_name_the_limit_the_groups_and_what_stays():
    fn, variables = linen(residual)
    with pytest.raises(ValueError, match=r"limit of MACs is 1.5, expected a part .* in \(0, 1\)"):
        slimming.macs(1.5)
    with pytest.raises(ValueError, match="limit of parameters is -3, expected a positive number"):
        slimming.params(-3, relative=False)
    with pytest.raises(ValueError, match="steps is 0"):
        slimming.measured(lambda apply, v: 1.0, 0.5, steps=0)
    with pytest.raises(ValueError) as raised:
        slimming.shrink(
            fn, variables, IMAGE, target=slimming.params(0.01), protect="**/Conv_4/*", round_to=8
        )
    text = str(raised.value)
    assert "parameters cannot be reached" in text and "With round_to=8" in text
    assert "params/Conv_0/kernel keeps 8 of 8 channels (members params/Conv_0/kernel" in text
    assert "params/Conv_4/kernel" in text or "stays: protected" in text
