"""The matrix of formats counts what is in the files, and says why there is none."""

import jax
import jax.numpy as jnp
import numpy as np

import compressjax as cj
from experiments.bench import formats

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)


def _case() -> formats.Case:
    kernel = jax.random.normal(jax.random.key(0), (6, 3))
    expected = np.asarray(jax.nn.relu(X @ kernel)).argmax(-1)
    return formats.Case(lambda v, x: jax.nn.relu(x @ v["kernel"]), {"kernel": kernel}, X, expected)


def test_a_row_says_what_is_in_the_file():
    chosen = ["float32", "int8", "int8, int8 ends"]
    rows = list(formats.cells("tiny", _case(), "litert", chosen, rounds=2))
    assert [row.form for row in rows] == chosen
    assert rows[0].latency == 1.0 and rows[0].accuracy == 1.0 and rows[0].values == 0
    for row in rows[1:]:
        assert not row.refused and not row.foreign and not row.floats
        assert row.differing == row.max_step == 0 < row.values
        assert row.size < rows[0].size + 2000
    assert formats.line(rows[1]).endswith("none")


def test_a_cell_that_cannot_be_exported_says_why():
    case = _case()._replace(apply=lambda v, x: jnp.sort(x @ v["kernel"], axis=-1))
    rows = list(formats.cells("sorted", case, "litert", ["int8"], rounds=2))
    assert rows[0].refused and "refused: " in formats.line(rows[0])


def test_float_operations_are_found():
    kernel = jnp.eye(6)
    file = cj.export.tflite(lambda v, x: jax.nn.relu(x @ v), kernel, X[:1], via="litert")
    assert formats.float_operations(file) == ("FULLY_CONNECTED",)


def test_the_zoo_has_every_model_and_architecture():
    assert len(formats.zoo()) >= 15
    assert formats.zoo()["MLP"]().x.shape == (16, 8, 8, 3)
