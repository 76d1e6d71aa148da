"""A model for servers and accelerators, where `tflite.py` makes one for phones.

The same function, float or on the lattice, without its Python code: a `jax.export` artifact for
whoever runs XLA, a SavedModel for whoever runs TensorFlow. Both hold the variables, and both leave
the batch open. A quantized model gives the same numbers there as on the phone.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from compressjax._atomic import PathLike, directory
from compressjax.export._require import require
from compressjax.export.jax2tf import SIGNATURE, quiet_tensorflow

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(fn_or_q: Any, variables: Any, *args: jax.Array) -> bytes:
    """Serialises a model with `jax.export`: StableHLO for CPU, GPU and TPU.

    Args:
        fn_or_q: `fn(variables, *args) -> outputs`, or what `compressjax.quantize` returns.
        variables: its variables.
        *args: example inputs. A first axis that all have in common is taken for the batch and left
            open, unless the function cannot be traced without its number.

    Returns:
        What `jax.export.deserialize` reads; the same arguments give the same bytes.

    Example:
        >>> file = stablehlo(lambda variables, x: variables * x, 2.0, jnp.ones((1, 3)))
        >>> loaded = export.deserialize(bytearray(file))
        >>> loaded.call(jnp.ones((2, 3))).shape, loaded.platforms
        ((2, 3), ('cpu', 'cuda', 'tpu'))
    """
    fn, shapes = _closed(fn_or_q, variables), [np.shape(arg) for arg in args]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or rows == {()}:
        return _serialise(fn, args, shapes)
    (batch,) = export.symbolic_shape("batch")
    try:
        return _serialise(fn, args, [(batch, *shape[1:]) for shape in shapes])
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return _serialise(fn, args, shapes)


def saved_model(path: PathLike, fn_or_q: Any, variables: Any, *args: jax.Array) -> pathlib.Path:
    """Writes a model as a TensorFlow SavedModel.

    Args:
        path: the directory to make.
        fn_or_q: `fn(variables, *args) -> outputs`, or what `compressjax.quantize` returns.
        variables: its variables.
        *args: example inputs; their first axis is the batch, and is left open.

    Returns:
        The directory. The signature `serving_default` has the inputs `input_0`, ... and the
        outputs `output_0`, ...

    Raises:
        FileExistsError: the directory exists.
    """
    fn = _closed(fn_or_q, variables)

    def serve(*inputs: jax.Array) -> dict[str, jax.Array]:
        return {f"output_{i}": value for i, value in enumerate(jax.tree.leaves(fn(*inputs)))}

    with quiet_tensorflow() as tf, directory(path) as temporary:
        jax2tf = require("jax.experimental.jax2tf")
        rows = ["(batch, ...)" for _ in args]
        module = tf.Module()
        module.serve = tf.function(
            jax2tf.convert(serve, with_gradient=False, polymorphic_shapes=rows),
            input_signature=[
                tf.TensorSpec((None, *np.shape(arg)[1:]), jnp.result_type(arg), name=f"input_{i}")
                for i, arg in enumerate(args)
            ],
            autograph=False,
        )
        tf.saved_model.save(module, str(temporary), {SIGNATURE: module.serve})
    return pathlib.Path(path)


def _closed(fn_or_q: Any, variables: Any) -> Callable[..., Any]:
    """The model as a function of its inputs alone."""
    fn = fn_or_q.apply if hasattr(fn_or_q, "freeze") else fn_or_q

    def serve(*inputs: jax.Array) -> Any:
        return fn(variables, *inputs)

    return serve


def _serialise(fn: Callable[..., Any], args: Sequence[jax.Array], shapes: Sequence[Any]) -> bytes:
    specs = [
        jax.ShapeDtypeStruct(shape, jnp.result_type(arg))
        for shape, arg in zip(shapes, args, strict=True)
    ]
    with _no_locations():
        return bytes(export.export(jax.jit(fn), platforms=PLATFORMS)(*specs).serialize())


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Leaves source lines out of the file: the caller's would make every file another one."""
    before = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)
