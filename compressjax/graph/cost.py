"""What one operation costs: multiply-accumulates, parameters, bytes.

Counts follow the convention of the pruning literature: one multiply-accumulate (MAC) for each
product that a convolution or a matrix product sums, nothing for elementwise work.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def conv_macs(
    kernel_shape: Sequence[int], out_shape: Sequence[int], params: Mapping[str, Any]
) -> int:
    """Counts the MACs of a `conv_general_dilated`.

    Args:
      kernel_shape: the kernel's shape, in the layout that `params` names.
      out_shape: the result's shape, batch included.
      params: the primitive's parameters.

    Returns:
      The number of MACs, batch included; taps that fall on padding are counted.

    Example:
      >>> from jax.lax import conv_dimension_numbers
      >>> layout = ('NHWC', 'HWIO', 'NHWC')
      >>> numbers = conv_dimension_numbers((1, 8, 8, 3), (3, 3, 3, 4), layout)
      >>> conv_macs((3, 3, 3, 4), (1, 8, 8, 4), {'dimension_numbers': numbers})
      6912
    """
    out_features = kernel_shape[params["dimension_numbers"].rhs_spec[0]]
    return math.prod(out_shape) * math.prod(kernel_shape) // max(out_features, 1)


def dot_macs(lhs_shape: Sequence[int], out_shape: Sequence[int], params: Mapping[str, Any]) -> int:
    """Counts the MACs of a `dot_general`.

    Args:
      lhs_shape: the left operand's shape.
      out_shape: the result's shape.
      params: the primitive's parameters.

    Returns:
      The number of MACs.

    Example:
      >>> dot_macs((2, 5), (2, 3), {'dimension_numbers': (((1,), (0,)), ((), ()))})
      30
    """
    (contracting, _), _ = params["dimension_numbers"]
    return math.prod(out_shape) * math.prod(lhs_shape[axis] for axis in contracting)


def macs(
    kind: str,
    in_shapes: Sequence[Sequence[int]],
    out_shapes: Sequence[Sequence[int]],
    params: Mapping[str, Any],
) -> int:
    """Counts the MACs of one operation by kind; zero for kinds that multiply nothing together.

    Args:
      kind: the primitive's name.
      in_shapes: the shapes of its operands.
      out_shapes: the shapes of its results.
      params: its parameters; a `scan` counts its body once for each step.

    Returns:
      The number of MACs.

    Example:
      >>> macs('add', [(2, 3), (2, 3)], [(2, 3)], {})
      0
    """
    if kind == "conv_general_dilated":
        return conv_macs(in_shapes[1], out_shapes[0], params)
    if kind == "dot_general":
        return dot_macs(in_shapes[0], out_shapes[0], params)
    repeats = params.get("length", 1) if kind == "scan" else 1
    bodies = [params[key] for key in ("jaxpr", "call_jaxpr", "body_jaxpr") if key in params]
    branches = params.get("branches", ())
    return repeats * sum(map(_jaxpr_macs, bodies)) + max(map(_jaxpr_macs, branches), default=0)


def _jaxpr_macs(jaxpr: Any) -> int:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(
        macs(
            eqn.primitive.name,
            [atom.aval.shape for atom in eqn.invars],
            [atom.aval.shape for atom in eqn.outvars],
            eqn.params,
        )
        for eqn in inner.eqns
    )
