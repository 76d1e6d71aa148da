"""The benchmark of mixed precision counts right; what it finds on a trained network it prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.quant import bits
from compressjax.quant.grids import integer
from experiments import networks
from experiments.bench import mixed_precision
from experiments.bench.mixed_precision import Row, Score

GRIDS = {width: integer(width) for width in (2, 4, 8)}


def apply(variables, x):
    hidden = jnp.tanh(x.reshape(x.shape[0], -1) @ variables["first"]["kernel"])
    return hidden @ variables["second"]["kernel"]


@pytest.fixture(scope="module")
def setup():
    rng = np.random.default_rng(0)
    variables = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)},
        "second": {"kernel": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)},
    }
    images = jnp.asarray(rng.integers(0, 255, (300, 2, 2, 1)), jnp.uint8)

    def prepare(images):
        return images.astype(jnp.float32) / 128.0 - 1.0

    labels = jnp.where(jnp.arange(300) % 3 > 0, apply(variables, prepare(images)).argmax(-1), 0)
    data = networks.Data(
        images, labels, images, labels, 3, lambda rng, images: prepare(images), prepare
    )
    return data, variables


def test_the_judge_counts_all_examples_once(setup):
    data, variables = setup
    score = mixed_precision.judge(apply, variables, data, 200)
    changed = mixed_precision.quantized(variables, {"second/kernel": 2}, GRIDS)
    assert changed["first"]["kernel"] is variables["first"]["kernel"]

    x = data.prepare(data.test_images[:200])
    p, q = (np.float64(jax.nn.softmax(apply(v, x))) for v in (variables, changed))
    right = q.argmax(-1) == data.test_labels[:200]
    found = score(changed)
    np.testing.assert_allclose(found.divergence, (p * np.log(p / q)).sum(-1).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, right.mean())
    assert abs(score(variables).divergence) < 1e-6 < found.divergence


def test_every_way_measures_every_layer(setup):
    data, variables = setup
    found = dict(
        mixed_precision.sensitivities(apply, variables, data, GRIDS, examples=200, probes=2)
    )
    assert list(found) == ["Hessian trace", "divergence", "accuracy"]
    for scores in found.values():
        assert {path: list(row) for path, row in scores.items()} == {
            "first/kernel": [2, 4, 8],
            "second/kernel": [2, 4, 8],
        }
    assert found["divergence"]["first/kernel"][2] > found["divergence"]["first/kernel"][8]


def test_rows_are_of_their_size_and_allocations_are_judged_once():
    size = {"a": {2: 20.0, 4: 40.0, 8: 80.0}, "b": {2: 2.0, 4: 4.0, 8: 8.0}}
    scores = {
        "one": {"a": {2: 0.4, 4: 0.2, 8: 0.1}, "b": {2: 9.0, 4: 3.0, 8: 1.0}},
        "other": {"a": {2: 9.0, 4: 3.0, 8: 1.0}, "b": {2: 0.4, 4: 0.2, 8: 0.1}},
    }
    judged: list[bits.Allocation] = []

    def score(allocation):
        judged.append(allocation)
        return Score(len(judged), 0.5)

    rows = mixed_precision.measure(scores, size, [3.0, 4.0, 8.0], score)
    assert [(row.budget, row.name) for row in rows] == [
        (3.0, "by one"),
        (3.0, "by other"),
        (4.0, "uniform"),
        (4.0, "by one"),
        (4.0, "by other"),
        (8.0, "uniform"),
        (8.0, "by one"),
        (8.0, "by other"),
    ]
    for row in rows:
        assert row.size == bits.total(size, row.allocation) <= 110 * row.budget / 8
    assert [(*row.allocation.values(),) for row in rows] == [
        (2, 8),
        (2, 8),
        (4, 4),
        (2, 8),
        (4, 4),
        (8, 8),
        (8, 8),
        (8, 8),
    ]
    assert judged == [{"a": 2, "b": 8}, {"a": 4, "b": 4}, {"a": 8, "b": 8}]
    assert [row.score.divergence for row in rows] == [1, 1, 2, 1, 2, 3, 3, 3]


def test_the_table_has_the_layers_in_their_order():
    row = Row("by one", 3.5, 12_345.6, Score(0.0123456, 0.7654), {"a": 4, "b": 8})
    heading, line = mixed_precision.table([row], ["b", "a"]).split("\n")
    assert line.split() == ["3.5", "by", "one", "12,346", "0.01235", "76.54", "%", "8", "4"]
    assert len(heading) >= line.index("8 4")
