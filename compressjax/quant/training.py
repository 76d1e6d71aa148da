"""Quantization-aware training by phases, and with live batch norm.

Nothing here trains: these are forward passes `(qv, step, *args) -> (outputs, qv)` for a loss to
differentiate. Ranges freeze by calling `q.apply` instead of `q.observe`, batch norm freezes by
leaving its statistics alone, and quantization starts late by calling `q.watch` before. `phased`
makes that choice by the step, `live_batch_norm` moves the statistics.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from compressjax.quant.quantize import Quantized

Variables = Mapping[str, Any]
Observe = Callable[..., tuple[Any, dict[str, Any]]]


def phased(q: Quantized, *, start: int = 0, freeze: int | None = None) -> Observe:
    """Starts quantizing late and stops moving ranges later (Jacob et al., 2018, section 3.1).

    Before `start` the float function runs and its tensors move the ranges; from then on the
    quantized one does; from `freeze` on the ranges stay. The phase is chosen on the device, so a
    jitted step is compiled once.

    Args:
      q: a quantized function with static activations.
      start: the first quantized step.
      freeze: the first step with fixed ranges; never by default.

    Returns:
      `forward(qv, step, *args) -> (outputs, qv)`; `step` is an integer or an int32 scalar.

    Raises:
      ValueError: if `start` is negative or `freeze` comes before it.

    Example:
      >>> from compressjax.quant import int8, quantize
      >>> q = quantize(lambda v, x: x @ v['kernel'], int8(decay=0.5))
      >>> x = jnp.array([[1.0, -0.3]])
      >>> qv = q.calibrate({'kernel': jnp.eye(2)}, [x])
      >>> forward = phased(q, start=2, freeze=4)
      >>> [f'{forward(qv, step, x)[0][0, 1]:.4f}' for step in (0, 2)]
      ['-0.3000', '-0.3008']
      >>> [float(forward(qv, step, 2 * x)[1]['quant']['input_0']['high']) for step in (0, 4)]
      [1.5, 1.0]
    """
    if start < 0 or (freeze is not None and freeze < start):
        raise ValueError(f"start is {start} and freeze {freeze}, expected 0 <= start <= freeze")

    def forward(qv: Variables, step: jax.Array | int, *args: Any) -> Any:
        phases = [q.watch, q.observe, lambda qv, *args: (q.apply(qv, *args), dict(qv))]
        ends = [start] if freeze is None else [start, freeze]
        phase = sum(jnp.asarray(step >= end, jnp.int32) for end in ends)
        return lax.switch(phase, phases[: len(ends) + 1], qv, *args)

    return forward


def live_batch_norm(observe: Observe, train: Callable[..., tuple[Any, Variables]]) -> Observe:
    """Moves the statistics of batch norm while training on the lattice, before folding.

    The float network in training mode shows each batch to batch norm; the quantized network then
    runs with the moved statistics, which its kernels take in as they do at export (Krishnamoorthi,
    2018, section 3.2.2). No gradient passes the statistics. It costs one more float forward pass.

    Args:
      observe: `q.observe`, or a function like it.
      train: `train(variables, *args) -> (outputs, {collection: moved})`, the training mode of the
        function that was quantized.

    Returns:
      `forward(qv, *args) -> (outputs, qv)`.

    Example:
      >>> from compressjax.quant import int8, quantize
      >>> fn = lambda v, x: x @ v['kernel'] - v['stats']['mean'][None]
      >>> train = lambda v, x: (None, {'stats': {'mean': (x @ v['kernel']).mean(0)}})
      >>> q = quantize(fn, int8())
      >>> x = jnp.array([[2.0, 1.0], [4.0, 1.0]])
      >>> qv = q.calibrate({'kernel': jnp.eye(2), 'stats': {'mean': jnp.zeros(2)}}, [x])
      >>> live_batch_norm(q.observe, train)(qv, x)[1]['stats']['mean'].tolist()
      [3.0, 1.0]
    """

    def forward(qv: Variables, *args: Any) -> tuple[Any, dict[str, Any]]:
        variables = {name: collection for name, collection in qv.items() if name != "quant"}
        _, updates = train(lax.stop_gradient(variables), *args)
        return observe({**qv, **updates}, *args)

    return forward
