"""The benchmark of runtimes exports to each of them and compares; times are not tested."""

import jax
import numpy as np
import pytest

import compressjax as cj
from compressjax import models
from experiments.bench import runtimes, timing

pytest.importorskip("MNN")
pytest.importorskip("onnxruntime")


def test_every_runtime_has_its_rows():
    model = models.SmallCNN(num_classes=3, widths=(4,), strides=(2,))
    x = jax.random.normal(jax.random.key(0), (12, 8, 8, 3))
    variables = model.init(jax.random.key(1), x[:1])
    fn, variables = cj.fold_batch_norm(model.apply, variables, x[:1])
    network = runtimes.Network(fn, variables, x, x[:10])
    rows = runtimes.measure(network, rounds=2, clock=timing.Clock.WALL)
    names = ["LiteRT", "ONNX Runtime", "MNN"]
    expected = [(name, form) for form in ("float32", "int8") for name in names]
    assert [(row.runtime, row.form) for row in rows] == expected
    assert rows[0].latency.ratio == 1.0
    for row in rows[:3]:
        assert row.max_step == 0 and row.max_relative < 1e-5 and row.top1 == 1.0
    litert, onnx, mnn = rows[3:]
    assert litert.differing == onnx.differing == 0
    assert litert.values == onnx.values > mnn.values == 2 * 10 * 3
    assert mnn.max_step <= 3
    assert np.all([row.size > 0 and row.latency.median > 0 for row in rows])
    assert len(runtimes.table(rows).splitlines()) == 7


def test_networks_can_be_drawn():
    network = runtimes.drawn("ResNet-8", images=2, size=8)
    assert network.apply(network.variables, network.tested).shape == (2, 10)
