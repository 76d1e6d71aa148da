"""What each kind of step computes: on real values, and on the lattice.

`real_step` is what calibration sees and what the converters are told, `lattice_step` is what the
phone computes. The families are in modules of the names that `placement` gives them.
"""

from collections.abc import Mapping, Sequence

import jax

from compressjax.quant.lattice import Affine
from compressjax.quant.plan import Step
from compressjax.quant.steps import contractions, functions, moves, pointwise, windows
from compressjax.quant.steps.kind import Call, Coded, Kind, Operand, Stored, clamped
from compressjax.quant.steps.operands import CONTRACTIONS, code_constant, code_kernel, operands
from compressjax.quant.steps.pointwise import same_rank

__all__ = [
    "CONTRACTIONS",
    "KINDS",
    "Coded",
    "Kind",
    "Operand",
    "Stored",
    "code_constant",
    "code_kernel",
    "lattice_step",
    "operands",
    "real_step",
    "same_rank",
]

KINDS: Mapping[str, Kind] = {
    "constant": moves.CONSTANT,
    "conv": contractions.CONV,
    "depthwise_conv": contractions.CONV,
    "transpose_conv": contractions.CONV,
    "dense": contractions.DENSE,
    "batch_matmul": contractions.BATCH_MATMUL,
    "add": pointwise.ADD,
    "sub": pointwise.SUB,
    "mul": pointwise.MUL,
    "requantize": pointwise.REQUANTIZE,
    "relu": pointwise.RELU,
    "clamp": pointwise.RELU,
    "softmax": pointwise.SOFTMAX,
    "logistic": pointwise.LOGISTIC,
    "tanh": pointwise.TANH,
    "gelu": functions.GELU,
    "elu": functions.ELU,
    "leaky_relu": functions.LEAKY_RELU,
    "exp": functions.EXP,
    "log": functions.LOG,
    "sqrt": functions.SQRT,
    "rsqrt": functions.RSQRT,
    "maximum": functions.MAXIMUM,
    "minimum": functions.MINIMUM,
    "max_pool": windows.MAX_POOL,
    "avg_pool": windows.AVG_POOL,
    "mean": windows.MEAN,
    "sum": windows.SUM,
    "reduce_max": windows.REDUCE_MAX,
    "reduce_min": windows.REDUCE_MIN,
    "pad": moves.PAD,
    "reshape": moves.RESHAPE,
    "transpose": moves.TRANSPOSE,
    "slice": moves.SLICE,
    "gather": moves.GATHER,
    "resize_nearest": moves.RESIZE_NEAREST,
    "concatenate": moves.CONCATENATE,
}


def real_step(step: Step, inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> jax.Array:
    """Computes a step on real values, fused activation included.

    Args:
      step: the step.
      inputs: its inputs.
      constants: weight and bias, or the elementwise constant, or nothing.

    Returns:
      The real output.

    Example:
      >>> import jax.numpy as jnp
      >>> step = Step('sum', 'add', ('x', 'y'), (2,), lo=0.0)
      >>> real_step(step, [jnp.array([1.0, 2.0]), jnp.array([-3.0, 1.0])], [])
      Array([0., 3.], dtype=float32)
    """
    return clamped(step, KINDS[step.kind].real(step, inputs, constants))


def lattice_step(
    step: Step,
    codes: Sequence[jax.Array],
    grids: Sequence[Affine],
    coded: Coded | None,
    out: Affine,
    *,
    wide: bool = False,
) -> Stored:
    """Computes a step on codes, exactly as LiteRT does.

    Args:
      step: the step.
      codes: the codes of its inputs.
      grids: their grids.
      coded: its constant operand, or `None`.
      out: the grid of its output.
      wide: whether codes are those of int16 in place of int8.

    Returns:
      The codes of its output, and the ends of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> grid = Affine(jnp.float32(0.5), jnp.float32(0.0))
      >>> step = Step('sum', 'add', ('x', 'y'), (2,))
      >>> x, y = jnp.array([4.0, 100.0]), jnp.array([-3.0, 100.0])
      >>> lattice_step(step, [x, y], [grid, grid], None, grid).codes
      Array([  1., 127.], dtype=float32)
    """
    kind, call = KINDS[step.kind], Call(step, codes, grids, coded, out)
    if not wide:
        return kind.lattice(call)
    assert kind.wide is not None
    return kind.wide(call)
