"""A served model gives the numbers of the model, without its Python code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import compressjax as cj
from compressjax.export._require import require

X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)


def _network(variables, x):
    return {"logits": jax.nn.relu(x @ variables["params"]["kernel"]), "x": x}


def _models():
    variables = {"params": {"kernel": jax.random.normal(jax.random.key(0), (6, 3))}}
    q = cj.quantize(_network)
    return {"float": (_network, variables), "int8": (q, q.calibrate(variables, [X]))}


def _expected(model, variables):
    fn = model.apply if hasattr(model, "freeze") else model
    return jax.tree.map(np.asarray, jax.jit(fn)(variables, X))


@pytest.mark.parametrize("name", ["float", "int8"])
def test_stablehlo_of_any_batch(name):
    model, variables = _models()[name]
    file = cj.export.tflite(model, variables, X[:1], via="stablehlo")
    loaded = export.deserialize(bytearray(file))
    found = loaded.call(X)
    assert found.keys() == {"logits", "x"}
    expected = _expected(model, variables)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-6)
    if name == "int8":
        np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_the_same_bytes_from_any_line():
    model, variables = _models()["int8"]
    first = cj.export.stablehlo(model, variables, X)
    again = cj.export.stablehlo(model, variables, X)
    assert first == again


def test_a_function_that_needs_its_batch_keeps_it():
    file = cj.export.stablehlo(lambda v, x: x + jnp.ones((2, 6)), {}, X[:2])
    assert export.deserialize(bytearray(file)).in_avals[0].shape == (2, 6)


def test_forms_of_a_tflite_are_refused():
    with pytest.raises(ValueError, match="are forms of a .tflite"):
        cj.export.tflite(*_models()["int8"], X, via="stablehlo", int8_io=True)


@pytest.mark.parametrize("name", ["float", "int8"])
def test_saved_model(name, tmp_path):
    tf = require("tensorflow")
    model, variables = _models()[name]
    path = cj.export.saved_model(tmp_path / "served", model, variables, X[:1])
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    found = served(input_0=tf.constant(X))
    assert sorted(found) == ["output_0", "output_1"]
    expected = _expected(model, variables)["logits"]
    np.testing.assert_allclose(found["output_0"].numpy(), expected, rtol=1e-6)
    with pytest.raises(FileExistsError, match="served exists"):
        cj.export.saved_model(path, model, variables, X[:1])


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cj.export.saved_model(tmp_path / "served", lambda v, x: x / (1 // 0), {}, X)
    assert not list(tmp_path.iterdir())
