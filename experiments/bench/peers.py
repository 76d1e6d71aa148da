"""Other tools' post-training int8, each used as its own documentation shows it.

`post_training.py` compares accuracies with theirs, `conversion.py` times. Both take a float
function and calibration images, and give a .tflite.
"""

import contextlib
import io
import warnings
from typing import Any

import jax
import numpy as np

import compressjax as cj
from experiments.networks import Apply


def tflite_converter(apply: Apply, variables: Any, images: jax.Array) -> bytes:
    """Converts with `jax2tf` and TFLiteConverter, calibrated by a representative data set.

    Args:
      apply: `(variables, x) -> logits`.
      variables: its variables.
      images: [N, H, W, C], shown one by one, as TensorFlow's guide to post-training integer
        quantization does.

    Returns:
      An int8 file for one image, float at its ends.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    tf.get_logger().setLevel("ERROR")
    signature = tf.TensorSpec((1, *images.shape[1:]), tf.float32, name="input_0")
    module = tf.Module()
    module.serve = tf.function(
        jax2tf.convert(lambda x: apply(variables, x), with_gradient=False),
        input_signature=[signature],
        autograph=False,
    )
    concrete = module.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    shown = np.asarray(images)
    converter.representative_dataset = lambda: ([shown[i : i + 1]] for i in range(len(shown)))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def litert_quantizer(apply: Apply, variables: Any, images: jax.Array) -> bytes:
    """Quantizes a float file with litert-quantizer's static int8 recipe.

    Args:
      apply: `(variables, x) -> logits`.
      variables: its variables.
      images: [N, H, W, C], shown one by one.

    Returns:
      An int8 file for one image, float at its ends.
    """
    from litert_quantizer import quantizer, recipe

    model = cj.export.tflite(apply, variables, images[:1], via="litert")
    shown = np.asarray(images)
    samples = [{"input_0": shown[i : i + 1]} for i in range(len(shown))]  # it reads them twice
    report = io.StringIO()
    with contextlib.redirect_stdout(report), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the interpreter, that it keeps all tensors
        quant = quantizer.Quantizer(bytearray(model), recipe.static_wi8_ai8())
        found = quant.calibrate({"serving_default": samples}, num_threads=1)
        return bytes(quant.quantize(found).quantized_model)
