"""Bias correction: taking back the mean error that rounded weights make (Nagel et al., 2019).

Rounding weights moves the mean of a channel's output, and the means of layers add up. The error is
known per channel, so a bias can take it: measured on data without labels (`correct_bias`), or
expected from what batch norm says about the inputs (`correct_bias_without_data`). AdaRound changes
the rounding itself and leaves smaller errors for this.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import tree
from compressjax.quant import steps
from compressjax.quant.correction import moments as norms
from compressjax.quant.correction import sites, walk
from compressjax.quant.correction.moments import Moments
from compressjax.quant.plan import Plan, Step
from compressjax.quant.quantize import Quantized


def correct_bias(
    q: Quantized,
    qv: Any,
    batches: Iterable[Any],
    *,
    reference: Any = None,
    select: str | Iterable[str] = "**",
) -> dict[str, Any]:
    """Subtracts each channel's mean error from its bias (Nagel et al., 2019, 4.2, appendix D).

    The error is that of the values before the activation, between the quantized network and the
    float one, averaged over all batches. Layers are corrected in the order they run, each seeing
    what the corrected layers before it give. All batches go through the network once, together, so
    memory holds their tensors of a few layers at a time.

    Args:
      q: from `quantize`, with static activations.
      qv: calibrated variables.
      batches: inputs without labels: arrays, or tuples of arguments.
      reference: variables of the float network to compare with, such as those from before
        `adaround`; those of `qv` by default.
      select: globs on the names of kernels; the layers to correct.

    Returns:
      `qv` with other biases.

    Raises:
      ValueError: if a selected layer has no bias of its own, a glob matches no kernel, or there are
        no batches.

    Example:
      >>> from compressjax.quant import int8, quantize
      >>> q = quantize(lambda v, x: x @ v['kernel'] + v['bias'][None], int8(per_channel=False))
      >>> variables = {'kernel': jnp.array([[100.0, 0.3]]), 'bias': jnp.zeros(2)}
      >>> x = jnp.ones((4, 1))
      >>> qv = q.calibrate(variables, [x])
      >>> [round(float(b), 2) for b in correct_bias(q, qv, [x])['bias']]
      [0.0, 0.3]
    """
    calls = walk.calls(batches)
    paths = _bias_paths(*walk.contractions(q, qv, calls[0]), select)
    reference = qv if reference is None else reference

    def correct(layer: walk.Layer, qv: Any) -> Any:
        if layer.step.name not in paths:
            return qv
        path, bare = paths[layer.step.name], walk.without_activation(layer.step)

        @jax.jit
        def error(qv: Any, x: jax.Array, wanted: jax.Array) -> jax.Array:
            found = steps.real_step(bare, [x], walk.constants(layer.stored(qv)))
            return (found - wanted).mean(range(wanted.ndim - 1))

        @jax.jit
        def corrected(qv: Any, errors: list[jax.Array], sizes: jax.Array) -> jax.Array:
            shift = -jnp.average(jnp.stack(errors), axis=0, weights=sizes)
            return sites.bias_leaf(layer.plan, layer.step, qv, path, shift)

        errors = [error(qv, *pair) for pair in zip(layer.inputs, layer.outputs, strict=True)]
        sizes = np.asarray([x.shape[0] for x in layer.inputs], np.float32)
        return tree.replace(qv, {path: corrected(qv, errors, sizes)})

    return walk.walk(q, qv, reference, calls, correct)


def correct_bias_without_data(
    q: Quantized,
    qv: Any,
    moments: Mapping[str, Moments],
    *args: Any,
    reference: Any = None,
    select: str | Iterable[str] | None = None,
) -> dict[str, Any]:
    """Subtracts each channel's expected error from its bias (Nagel et al., 2019, section 4.2.1).

    The error of a channel is the sum of its weights' errors times the mean of their inputs, which
    is that of a clipped normal distribution behind a batch norm and a ReLU. See `expected` for how
    means pass through other steps; the edges of images are ignored (appendix B).

    Args:
      q: from `quantize`, with static activations.
      qv: calibrated variables.
      moments: from `norm_moments`, of each kernel's output before its activation; and of inputs
        (`input_0`), where they are known.
      *args: example inputs, of which only the shapes matter.
      reference: variables of the float network; those of `qv` by default.
      select: globs on the names of kernels; the layers to correct. By default all that have a bias
        and an input whose mean is known.

    Returns:
      `qv` with other biases.

    Raises:
      ValueError: if a selected layer has no bias of its own or an input of unknown mean, or nothing
        can be corrected.

    Example:
      >>> from compressjax.quant import int8, quantize
      >>> q = quantize(lambda v, x: x @ v['kernel'] + v['bias'][None], int8(per_channel=False))
      >>> variables = {'kernel': jnp.array([[100.0, 0.3]]), 'bias': jnp.zeros(2)}
      >>> x = jnp.ones((4, 1))
      >>> qv = q.calibrate(variables, [x])
      >>> known = {'input_0': Moments(jnp.ones(1), jnp.zeros(1))}
      >>> [round(float(b), 2) for b in correct_bias_without_data(q, qv, known, x)['bias']]
      [0.0, 0.3]
    """
    plan, contractions = walk.contractions(q, qv, args)
    reference = qv if reference is None else reference
    known = jax.jit(lambda v, moments: norms.expected(plan, v, moments))(reference, moments)
    if select is None:
        select = [
            name
            for name, step in contractions.items()
            if step.inputs[0] in known and sites.bias_path(plan.graph, step)
        ]
        if not select:
            raise ValueError(
                "no layer has both a bias and an input whose mean is known: pass the moments of "
                "the kernels of this function, from norm_moments before fold_batch_norm"
            )
    paths = _bias_paths(plan, contractions, select)
    for name in paths:
        if contractions[name].inputs[0] not in known:
            raise ValueError(
                f"the mean of the input of {name!r} is not known, as no batch norm says it: pass "
                f"moments for {contractions[name].inputs[0]!r}, leave the layer out of select, or "
                "correct with data (correct_bias)"
            )
    stored = walk.stored_operands(q, plan, qv)

    @jax.jit
    def corrected(qv: Any, reference: Any, stored: Any, known: Any) -> dict[str, jax.Array]:
        leaves = {}
        for name, path in paths.items():
            step = contractions[name]
            error = stored[name].value - sites.operand_of(plan, step, reference).value
            shift = -norms.expected_output(step, error, known[step.inputs[0]].mean)
            leaves[path] = sites.bias_leaf(plan, step, qv, path, shift)
        return leaves

    return tree.replace(qv, corrected(qv, reference, stored, known))


def _bias_paths(
    plan: Plan, contractions: Mapping[str, Step], select: str | Iterable[str]
) -> dict[str, str]:
    """The bias of each selected layer."""
    names = tree.match(select, contractions, what="select")
    paths = {name: sites.bias_path(plan.graph, contractions[name]) for name in names}
    if without := [name for name, path in paths.items() if path is None]:
        raise ValueError(
            f"no bias belongs to {', '.join(without[:4])} alone, so the mean error has nowhere to "
            "go: fold batch norm (fold_batch_norm puts a bias beside every kernel it folds), give "
            "the layer a bias, or leave it out of select"
        )
    return {name: path for name, path in paths.items() if path is not None}
