"""Costs, allocations and the Pareto front against exhaustive search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from compressjax import quant
from compressjax.quant import bits
from compressjax.quant.grids import integer

GRIDS = {width: integer(width) for width in (2, 4, 8)}


@st.composite
def problems(draw, values):
    """Scores and two costs of a few layers, each with some of the widths."""
    widths = draw(
        st.lists(st.sets(st.sampled_from([2, 3, 4, 8]), min_size=1), min_size=1, max_size=4)
    )

    def table(values):
        return {f"layer_{i}": {w: draw(values) for w in sorted(ws)} for i, ws in enumerate(widths)}

    return table(values), table(values), table(values)


# Sums of these are exact, so that ties are ties.
EXACT = st.integers(-64, 64).map(lambda x: x / 8)
WIDE = st.floats(1e-6, 1e3)


def everything(scores):
    """Every allocation there is."""
    return [
        dict(zip(scores, choice, strict=True)) for choice in itertools.product(*scores.values())
    ]


@pytest.mark.parametrize("values", [EXACT, WIDE], ids=["exact", "wide"])
def test_allocations_are_optimal(values):
    @given(problems(values), st.data())
    def check(tables, drawn):
        scores, *costs = tables
        some = drawn.draw(st.sampled_from(everything(scores)))
        slack = drawn.draw(st.sampled_from([0.0, 0.0, 1.0]))
        budgets = [bits.Budget("bytes", cost, bits.total(cost, some) + slack) for cost in costs]
        for used in ([], budgets[:1], budgets):
            allowed = [
                a for a in everything(scores) if all(bits.total(b.cost, a) <= b.limit for b in used)
            ]
            found = bits.allocate(scores, *used)
            assert found in allowed
            best = min(bits.total(scores, a) for a in allowed)
            stake = max(max(map(abs, row.values())) for row in scores.values())
            assert bits.total(scores, found) <= best + 1e-11 * stake

    check()


@given(problems(EXACT))
def test_the_front_is_every_allocation_that_nothing_beats(tables):
    scores, cost, _ = tables
    front = bits.pareto(scores, cost)
    points = {(bits.total(cost, a), bits.total(scores, a)) for a in everything(scores)}
    best = {
        (c, s)
        for c, s in points
        if not any((c2 <= c and s2 <= s) and (c2, s2) != (c, s) for c2, s2 in points)
    }
    assert list(zip(front.cost, front.score, strict=True)) == sorted(best)
    for i in range(len(front)):
        assert front.cost[i] == bits.total(cost, front[i])
        assert front.score[i] == bits.total(scores, front[i])


@given(problems(WIDE))
def test_nothing_beats_the_front_when_sums_are_rounded(tables):
    scores, cost, _ = tables
    front = bits.pareto(scores, cost)
    assert (np.diff(front.cost) > 0).all() and (np.diff(front.score) < 0).all()
    for allocation in everything(scores):
        affordable = front.cost <= bits.total(cost, allocation) * (1 + 1e-12)
        assert front.score[affordable].min() <= bits.total(scores, allocation) * (1 + 1e-12)


def test_the_integer_program_lands_on_the_front_of_a_deep_network():
    rng = np.random.default_rng(0)
    names = [f"layer_{i}" for i in range(40)]
    weights = np.exp(rng.uniform(np.log(100), np.log(1e6), 40)).round()
    harms = np.exp(rng.normal(0, 2, 40))
    scores = {
        n: {w: h * 4.0**-w for w in (2, 3, 4, 6, 8)} for n, h in zip(names, harms, strict=True)
    }
    cost = {n: {w: k * w / 8 for w in (2, 3, 4, 6, 8)} for n, k in zip(names, weights, strict=True)}
    front = bits.pareto(scores, cost)
    assert len(front) > 1000
    for i in np.linspace(0, len(front) - 1, 7).astype(int):
        found = bits.allocate(scores, bits.Budget("bytes", cost, front.cost[i]))
        np.testing.assert_allclose(bits.total(scores, found), front.score[i], rtol=1e-9)
        assert bits.total(cost, found) <= front.cost[i]


def test_a_limit_is_kept_to_the_last_digit():
    """Solvers allow limits to be passed by a millionth; one byte of a gigabyte is less."""
    cost = {"a": {4: 5e8, 8: 1e9 + 1}, "b": {4: 5e8, 8: 1e9}}
    scores = {"a": {4: 1.0, 8: 0.0}, "b": {4: 0.1, 8: 0.0}}
    allocate = lambda limit: bits.allocate(scores, bits.Budget("bytes", cost, limit))  # noqa: E731
    assert allocate(1.5e9) == {"a": 4, "b": 8}
    assert allocate(1.5e9 + 1) == {"a": 8, "b": 4}


def test_differences_far_below_the_largest_score_decide():
    scores = {"a": {4: 1e6, 8: 0.0}, "b": {4: 1.0 + 1e-5, 8: 1.0}, "c": {4: 2.0, 8: 2.0}}
    cost = {layer: {4: 1.0, 8: 2.0} for layer in scores}
    found = bits.allocate(scores, bits.Budget("bytes", cost, 5))
    assert found == {"a": 8, "b": 8, "c": 4}


def test_scores_may_be_arrays():
    scores = {"a": {4: jnp.float32(0.5), 8: jnp.float32(0.25)}}
    assert bits.allocate(scores, bits.Budget("bytes", {"a": {4: 1, 8: 2}}, 2)) == {"a": 8}
    assert bits.pareto(scores, {"a": {4: 1, 8: 2}}).score.tolist() == [0.5, 0.25]


# Fixed layers.


def test_the_first_rule_that_matches_fixes_a_layer():
    scores = {f"params/{n}/kernel": {2: 3.0, 4: 2.0, 8: 1.0} for n in ("first", "mid", "last")}
    fixed = bits.fix(scores, [("**/first/*", 8), ("**/last/kernel", 8), ("**/??[rs]*t/*", 4)])
    assert [list(row) for row in fixed.values()] == [[8], [2, 4, 8], [8]]
    cost = {layer: {2: 2, 4: 4, 8: 8} for layer in scores}
    found = bits.allocate(fixed, bits.Budget("bytes", cost, 18))
    assert list(found.values()) == [8, 2, 8]
    assert bits.pareto(fixed, cost).bits.tolist() == [[8, 2, 8], [8, 4, 8], [8, 8, 8]]


def test_what_cannot_be_fixed_is_refused():
    with pytest.raises(ValueError, match="lack 8 bits, which 'a' needs: found 2, 4"):
        bits.fix({"a": {4: 1.0, 2: 2.0}}, {"a": 8})
    with pytest.raises(ValueError, match="fix pattern 'b' matches none"):
        bits.fix({"a": {4: 1.0}}, {"b": 4})


# Budgets that nothing meets.


def test_an_error_names_the_budget_and_what_could_be_reached():
    scores = {"a": {4: 1.0, 8: 0.0}, "b": {4: 1.0}}
    cost = {"a": {4: 1000, 8: 2000}, "b": {4: 500.5}}
    with pytest.raises(
        ValueError, match=r"budget of 1,500 bytes: the cheapest bits of all 2 layers cost 1,500\.5"
    ):
        bits.allocate(scores, bits.Budget("bytes", cost, 1500))
    with pytest.raises(ValueError, match="budget of nan seconds"):
        bits.allocate(scores, bits.Budget("seconds", cost, float("nan")))


def test_budgets_that_exclude_each_other_are_refused():
    scores = {"a": {4: 0.0, 8: 0.0}, "b": {4: 0.0, 8: 0.0}}
    small = {layer: {4: 1, 8: 2} for layer in scores}
    quick = {layer: {4: 2, 8: 1} for layer in scores}
    budgets = bits.Budget("bytes", small, 3), bits.Budget("seconds", quick, 2)
    with pytest.raises(ValueError, match=r"2 layers meets all budgets.*3 bytes, 2 seconds"):
        bits.allocate(scores, *budgets)
    # No layer can keep to either limit alone with the bits that the other leaves it.
    with pytest.raises(ValueError, match="all budgets at once"):
        bits.allocate(scores, *(budget._replace(limit=2) for budget in budgets))


@pytest.mark.parametrize("call", [bits.allocate, lambda s, b: bits.pareto(s, b.cost)])
def test_tables_that_say_too_little_are_refused(call):
    cost = {"a": {4: 1.0}}
    with pytest.raises(ValueError, match="'a' needs: found 4"):
        call({"a": {4: 1.0, 8: 0.5}}, bits.Budget("bytes", cost, 10))
    with pytest.raises(ValueError, match="'b' needs: found none"):
        call({"b": {4: 1.0}}, bits.Budget("bytes", cost, 10))
    with pytest.raises(ValueError, match="sensitivities of 'a' at 4 bits is nan"):
        call({"a": {4: float("nan")}}, bits.Budget("bytes", cost, 10))
    with pytest.raises(ValueError, match="at 4 bits is inf"):
        call({"a": {4: 1.0}}, bits.Budget("bytes", {"a": {4: float("inf")}}, 10))
    with pytest.raises(ValueError, match="found no layer at all"):
        call({}, bits.Budget("bytes", {}, 10))
    with pytest.raises(ValueError, match="found a"):
        call({"a": {}}, bits.Budget("bytes", {}, 10))


# Costs, and what an allocation becomes.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(x))
        return nn.Dense(5)(x.mean((1, 2)))


def test_costs_are_counted_by_hand():
    x = jnp.zeros((1, 6, 6, 2))
    variables = jax.eval_shape(Net().init, jax.random.key(0), x)
    weights = {"params/Conv_0/kernel": 3 * 3 * 1 * 4, "params/Dense_0/kernel": 4 * 5}
    macs = {"params/Conv_0/kernel": 36 * 3 * 3 * 1 * 4, "params/Dense_0/kernel": 4 * 5}
    assert bits.size(variables, GRIDS) == {
        path: {w: n * w / 8 for w in GRIDS} for path, n in weights.items()
    }
    assert bits.operations(Net().apply, variables, x, grids=GRIDS, activations=6) == {
        path: {w: n * w * 6 for w in GRIDS} for path, n in macs.items()
    }


def test_a_kernel_that_two_calls_share_costs_the_work_of_both():
    def fn(variables, x):
        return jnp.tanh(x @ variables["kernel"]) @ variables["kernel"]

    variables, x = {"kernel": jnp.ones((3, 3))}, jnp.ones((1, 3))
    assert bits.operations(fn, variables, x, grids={4: integer(4)}) == {"kernel": {4: 18 * 4 * 8}}


def test_work_that_cannot_be_counted_is_refused():
    def fn(variables, x):
        kernel = variables["kernel"]
        return x @ (kernel - kernel.mean())

    with pytest.raises(ValueError, match="product reads 'kernel' directly.*out of select"):
        bits.operations(fn, {"kernel": jnp.ones((3, 3))}, jnp.ones((1, 3)), grids=GRIDS)


def test_an_allocation_becomes_rules_that_match_its_layers_alone():
    def fn(variables, x):
        return jnp.maximum(x @ variables["a[0]"], 0) @ variables["a0"]

    variables = {"a[0]": jnp.eye(3), "a0": jnp.array([[1.0, 0.4], [0.7, 0.2], [0.1, 1.0]])}
    found = bits.rules({"a[0]": 8, "a0": 2}, GRIDS)
    assert [grid.name for grid in found.values()] == ["int8 per channel", "int2 per channel"]
    x = jnp.array([[1.0, 2.0, 3.0], [0.5, 0.1, 4.0]])
    q = quant.quantize(fn, quant.int8(weights=found))
    qv = q.calibrate(variables, [x])
    expected = x @ jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(q.apply(qv, x), expected, atol=0.05)
    with pytest.raises(ValueError, match="the grids lack 3 bits, which 'a0' needs: found 2, 4, 8"):
        bits.rules({"a0": 3}, GRIDS)
