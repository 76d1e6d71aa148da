"""Rules: budgets are met and not missed by much, variational ranks are those of the paper."""

import functools

import jax
import numpy as np
import pytest

import compressjax as cj
from compressjax import lowrank, tree
from compressjax.lowrank.vbmf import free_energy, relevant
from tests.support import lowrank_oracles as oracles

RNG = np.random.default_rng(0)
X = np.ones((2, 16), "f")


def decaying(rows, columns, speed):
    left, _ = np.linalg.qr(RNG.normal(size=(rows, rows)))
    right, _ = np.linalg.qr(RNG.normal(size=(columns, columns)))
    size = min(rows, columns)
    values = np.exp(-speed * np.arange(size))
    return ((left[:, :size] * values) @ right[:size]).astype("f")


VARIABLES = {
    "params": {
        "a": {"kernel": decaying(16, 24, 0.5)},
        "b": {"kernel": decaying(24, 16, 0.05)},
        "bias": np.zeros(16, "f"),
    }
}


def fn(v, x):
    p = v["params"]
    return jax.nn.relu(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["bias"].reshape(1, -1)


factorize = functools.partial(cj.factorize, fn, VARIABLES, X)


def count(variables):
    return sum(leaf.size for leaf in tree.paths(variables).values())


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("rule", [lowrank.macs, lowrank.params])
def test_a_budget_is_met_by_one_level_of_energy(rule, limit):
    found = factorize(rank=rule(limit))
    graph = cj.trace(found.apply, found.variables, X)
    assert found.report.macs[1] == graph.macs
    used = graph.macs / found.report.macs[0] if rule is lowrank.macs else (
        count(found.variables) / count(VARIABLES))  # fmt: skip
    assert limit - 0.1 < used <= limit
    a = found.ranks["params/a/kernel"][0]
    b = found.ranks.get("params/b/kernel", (16,))[0]
    assert a < b  # its energy falls faster


def test_absolute_limits_and_multiples():
    most = 2 * 400
    found = factorize(rank=lowrank.macs(most, relative=False, round_to=4))
    assert found.report.macs[1] <= most
    assert all(rank % 4 == 0 for (rank,) in found.ranks.values())
    assert factorize(rank=lowrank.energy(0.9, round_to=4)).ranks["params/a/kernel"] == (4,)


def test_a_measured_cost_is_called_for_the_whole_and_for_candidates():
    seen = []

    def measure(apply, variables):
        seen.append(count(variables))
        assert apply(variables, X).shape == (2, 16)
        return 1e-3 * seen[-1]

    found = factorize(rank=lowrank.measured(measure, 0.5, steps=5))
    assert seen[0] == count(VARIABLES)
    assert len(seen) == 2 + 5
    assert 0.4 * seen[0] < count(found.variables) <= 0.5 * seen[0]


@pytest.mark.parametrize("rule", [
    lowrank.macs(0.01), lowrank.params(0.01), lowrank.measured(lambda f, v: count(v), 0.01)
])  # fmt: skip
def test_a_budget_that_cannot_be_reached(rule):
    with pytest.raises(ValueError, match=r"cannot be reached: .* are left when each of 2 layers"):
        factorize(rank=rule)


def test_bad_rules():
    with pytest.raises(ValueError, match="limit of MACs is 1.5"):
        lowrank.macs(1.5)
    with pytest.raises(ValueError, match="limit of parameters is -1"):
        lowrank.params(-1, relative=False)
    with pytest.raises(ValueError, match="steps is 0"):
        lowrank.measured(lambda f, v: 1.0, 0.5, steps=0)
    for rule in (lowrank.vbmf, functools.partial(lowrank.energy, 0.5)):
        with pytest.raises(ValueError, match="round_to is 0"):
            rule(round_to=0)
    with pytest.raises(ValueError, match=r"energy is 0, expected a part in \(0, 1\]"):
        lowrank.energy(0)
    with pytest.raises(ValueError, match="no singular values"):
        cj.factorize(lambda v, x: jax.lax.conv(x, v["w"], (1, 1), "SAME"),
                     {"w": np.ones((3, 2, 3, 3), "f")}, np.ones((1, 2, 4, 4), "f"),
                     rank=lowrank.energy(0.5), method=lowrank.cp())  # fmt: skip


@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (30, 30), (12, 200)])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_variational_bayes_finds_the_rank_under_noise(shape, rank):
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    matrix = 2 * signal + 0.5 * rng.normal(size=shape)
    assert relevant(np.linalg.svd(matrix, compute_uv=False), shape) == rank
    scaled = np.linalg.svd(1e-3 * matrix, compute_uv=False)
    assert relevant(scaled, shape) == rank


@pytest.mark.parametrize("shape", [(5, 10), (10, 10), (3, 30)])
def test_the_threshold_is_where_the_free_energy_turns(shape):
    """A value is kept where a minimisation over all parameters finds less than for none."""
    rows, columns = shape
    alpha = rows / columns
    tau = 2.5129 * np.sqrt(alpha)
    threshold = np.sqrt(columns * (1 + tau) * (1 + alpha / tau))
    for factor, kept in ((0.97, False), (1.03, True)):
        energy = oracles.variational_minimum(factor * threshold, rows, columns)
        assert (energy < 0) == kept


@pytest.mark.parametrize("factor", [1.1, 1.5, 4.0])
def test_the_free_energy_is_the_smallest_over_all_parameters(factor):
    rows, columns = 5, 10
    alpha = rows / columns
    x = factor * (1 + 2.5129 * np.sqrt(alpha)) * (1 + np.sqrt(alpha) / 2.5129)
    gain = free_energy(np.array([x]), alpha) - (x - np.log(x))
    least = oracles.variational_minimum(np.sqrt(columns * x), rows, columns)
    assert columns * gain == pytest.approx(least, rel=1e-4)


def test_vbmf_as_a_rule():
    noisy = {"w": (5 * decaying(20, 30, 4.0) + 0.01 * RNG.normal(size=(20, 30))).astype("f")}
    found = cj.factorize(lambda v, x: x @ v["w"], noisy, np.ones((1, 20), "f"), rank=lowrank.vbmf())
    assert found.ranks["w"][0] in (1, 2)
    zeros = {"w": np.zeros((20, 30), "f")}
    found = cj.factorize(lambda v, x: x @ v["w"], zeros, np.ones((1, 20), "f"), rank=lowrank.vbmf())
    assert found.ranks == {"w": (1,)}


def test_a_scan_scores_one_layer_at_a_time_and_its_budget_spares_what_matters():
    def evaluate(apply, variables):
        kernels = tree.paths(variables)
        # `b` is what this model must keep: each rank of it is worth a point.
        rank = kernels["params/b/up/kernel"].shape[0] if "params/b/up/kernel" in kernels else 16
        return float(rank)

    scan = lowrank.sensitivity(fn, VARIABLES, X, evaluate=evaluate, parts=(0.5, 0.25))
    assert scan.whole == 16
    assert {path: list(scores) for path, scores in scan.scores.items()} == {
        "params/a/kernel": [16, 16],
        "params/b/kernel": [8, 4],
    }
    assert scan.ranks["params/a/kernel"] == ((8,), (4,))
    assert "params/b/kernel" in str(scan)
    assert factorize(rank=lowrank.spend(scan, 0.8)).ranks == {"params/a/kernel": (4,)}
    both = factorize(rank=lowrank.spend(scan, 0.55))
    assert both.ranks == {"params/a/kernel": (4,), "params/b/kernel": (4,)}
    assert both.report.macs[1] <= 0.55 * both.report.macs[0]
    with pytest.raises(ValueError, match="cannot be reached: .* scan smaller parts"):
        factorize(rank=lowrank.spend(scan, 0.1))
    with pytest.raises(ValueError, match="each smaller than the last"):
        lowrank.sensitivity(fn, VARIABLES, X, evaluate=evaluate, parts=(0.25, 0.5))


def test_spending_is_the_best_of_all_combinations():
    rng = np.random.default_rng(3)
    paths = [f"params/{name}/kernel" for name in "ab"]
    ranks = {path: ((8,), (6,), (2,)) for path in paths}
    scan = lowrank.Scan((0.5, 0.4, 0.1), 1.0, {p: rng.uniform(0, 1, 3) for p in paths}, ranks)
    for limit in (0.35, 0.6, 0.8):
        found = factorize(rank=lowrank.spend(scan, limit)).ranks
        best = oracles.cheapest(scan, {p: (768, lambda r: 80 * r) for p in paths}, limit)
        assert sum(_loss(scan, p, r) for p, r in found.items()) == pytest.approx(best)


def _loss(scan, path, ranks):
    return scan.whole - scan.scores[path][scan.ranks[path].index(ranks)]
