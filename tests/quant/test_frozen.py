"""A frozen plan refuses what no file could hold."""

import numpy as np
import pytest

from compressjax.quant.frozen import Codes, Frozen, FrozenStep


def _plan(**changes) -> Frozen:
    fields = {
        "name": "relu_0",
        "kind": "relu",
        "inputs": ("input_0",),
        "apply": lambda x: x,
        "constants": (),
        "scale": 0.5,
        "zero_point": -3,
        "out_shape": (1, 4),
    }
    return Frozen((("input_0", (1, 4), 0.5, -3),), (FrozenStep(**fields | changes),), ("relu_0",))


def test_quantization_lists_inputs_and_steps():
    assert _plan().quantization() == {"input_0": (0.5, -3), "relu_0": (0.5, -3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "input_0"}, "two values .* 'input_0'"),
        ({"inputs": ("conv_9",)}, "'relu_0' reads 'conv_9'"),
        ({"scale": float("nan")}, "'relu_0' has the scale nan"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": 1e-60}, "scale 1e-60"),
        ({"zero_point": 128}, "zero point 128"),
        ({"name": "other"}, "returns 'relu_0', which no step makes"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        _plan(**changes)


def test_codes_dequantize_per_channel_and_per_tensor():
    codes = np.array([[1, 2], [3, 4]], np.int8)
    rows = Codes(codes, np.array([1.0, 0.5], np.float32), axis=0).dequantize()
    np.testing.assert_array_equal(rows, [[1, 2], [1.5, 2]])
    whole = Codes(codes, np.float32(2), axis=None, zero_point=1).dequantize()
    np.testing.assert_array_equal(whole, [[0, 2], [4, 6]])
    assert rows.dtype == whole.dtype == np.float32
