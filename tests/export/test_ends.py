"""Images go in as bytes and classes come out, with the numbers of the steps in JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import compressjax as cj

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), np.uint8)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 70.0)


def _network(variables, x):
    y = jax.lax.conv_general_dilated(
        x, variables["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2)) @ variables["dense"]


@functools.cache
def _model(int8=False):
    keys = jax.random.split(jax.random.key(1))
    variables = {
        "conv": jax.random.normal(keys[0], (3, 3, 3, 8)),
        "dense": jax.random.normal(keys[1], (8, 5)),
    }
    x = np.asarray(_prepared(IMAGES))
    model = _network
    if int8:
        model = cj.quantize(_network)
        variables = model.calibrate(variables, [x])
    return model, variables, cj.export.tflite(model, variables, x[:1], via="litert")


def _prepared(images, size=(6, 6)):
    x = jnp.asarray(images, jnp.float32)
    x = jax.image.resize(x, (len(images), *size, 3), "linear", antialias=False)
    spread = [jnp.asarray(value, jnp.float32).reshape(1, 1, 1, 3) for value in (MEAN, STD)]
    return (x - spread[0]) / spread[1]


def test_bytes_of_another_size_are_resized_and_normalised():
    model, variables, file = _model()
    whole = cj.export.with_image_input(file, mean=MEAN, std=STD, size=(9, 7))
    expected = model(variables, _prepared(IMAGES))
    np.testing.assert_allclose(cj.export.run(whole, IMAGES), expected, rtol=1e-4, atol=1e-4)
    ops = cj.export.ops(whole)
    assert ops[:4] == ["CAST", "RESIZE_BILINEAR", "SUB", "DIV"]


def test_an_int8_model_keeps_its_codes():
    """Without a resize the normalised pixels are the same floats, so the results are the same."""
    q, qv, file = _model(int8=True)
    whole = cj.export.with_image_input(file, mean=MEAN, std=STD)
    images = IMAGES[:, :6, :6]
    normalised = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    found = cj.export.run(whole, images)
    np.testing.assert_array_equal(found, cj.export.run(file, normalised))
    np.testing.assert_array_equal(found, q.apply(qv, normalised))


def test_probabilities_and_classes():
    model, variables, file = _model()
    x = np.asarray(_prepared(IMAGES))
    probabilities = jax.nn.softmax(model(variables, x))
    found = cj.export.run(cj.export.with_softmax(file), x)
    np.testing.assert_allclose(found, probabilities, rtol=1e-4, atol=1e-6)
    scores, classes = cj.export.run(cj.export.with_top_k(cj.export.with_softmax(file), 2), x)
    expected, places = jax.lax.top_k(found, 2)
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(classes, places)
    assert classes.dtype == np.int32


def test_everything_at_once_from_bytes_to_classes():
    _, _, file = _model(int8=True)
    whole = cj.export.with_image_input(file, mean=MEAN, std=STD, size=(9, 7))
    _, classes = cj.export.run(cj.export.with_top_k(whole, 1), IMAGES)
    expected = cj.export.run(whole, IMAGES).argmax(-1)
    np.testing.assert_array_equal(classes[:, 0], expected)
    assert cj.export.with_top_k(whole, 1) == cj.export.with_top_k(whole, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mean=(1.0, 2.0)), r"mean is \(1.0, 2.0\), expected .* each of 3"),
        (dict(std=0.0), "std is 0.0, expected positive"),
        (dict(mean=float("nan")), "mean is nan, expected one finite"),
        (dict(size=(0, 3)), "are empty"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        cj.export.with_image_input(_model()[2], **change)


def test_models_that_take_or_give_something_else_are_refused():
    _, _, file = _model()
    with pytest.raises(ValueError, match="k is 6, expected 1 to the 5"):
        cj.export.with_top_k(file, 6)
    with pytest.raises(ValueError, match="inputs are uint8 .*expected one of float32"):
        cj.export.with_image_input(cj.export.with_image_input(file))
    with pytest.raises(TypeError, match="input 0 is float32, expected uint8"):
        cj.export.run(cj.export.with_image_input(file), np.ones((1, 6, 6, 3), np.float32))
    with pytest.raises(ValueError, match="outputs are float32 .*, int32 .*expected one"):
        cj.export.with_softmax(cj.export.with_top_k(file, 2))
