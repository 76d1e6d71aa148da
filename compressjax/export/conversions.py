"""What the two converters make of JAX's operations, as it was measured.

Each operation was converted alone by both converters and run by LiteRT beside JAX
(`tests/support/conversions.py` holds those functions and measures again). What came out as builtin
operations with JAX's values is in `BUILTIN`; what was refused, became an operation that only a
reference kernel runs (those of StableHLO), or gave other values, has a `Row` that says so and what
to write in its place. `check.py` holds a model against both. jax 0.10.2, tensorflow 2.21.0,
litert-converter 0.5.0, ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.graph import Graph, Op

BUILTIN = frozenset(
    """
    abs acos acosh add and argmax argmin asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type broadcast_in_dim ceil clamp concatenate conv_general_dilated
    convert_element_type copy copy_p cos cosh cumsum digamma div dot_general dynamic_slice
    dynamic_update_slice eq erf erf_inv erfc exp exp2 expand_dims expm1 floor gather ge gt
    integer_pow iota is_finite le lgamma log log1p logistic lt max min mul ne neg not
    optimization_barrier or pad polygamma pow ragged_dot_general reduce_and reduce_max
    reduce_min reduce_or reduce_prod reduce_sum reduce_window_max reduce_window_sum relu relu6
    rem reshape rev round rsqrt scan select_n shift_right_arithmetic sign sin sinh slice split
    sqrt square squeeze stack stop_gradient sub tan tanh tile top_k transpose xor zeta
    """.split()
)
BOTH = ("jax2tf", "litert")


class Row(NamedTuple):
    """One thing that a converter does not make builtin operations of.

    Attributes:
        kind: of the operation.
        problem: what comes of it, a phrase.
        fix: what to write in its place.
        when: `when(graph, op)`, true where it applies.
        vias: the converters of which this is true.
    """

    kind: str
    problem: str
    fix: str
    when: Callable[[Graph, Op], bool] = lambda graph, op: True
    vias: tuple[str, ...] = BOTH


def _reads_ints(graph: Graph, op: Op) -> bool:
    return bool(jnp.issubdtype(op.inputs[0].dtype, jnp.integer))


def _reads_bools(graph: Graph, op: Op) -> bool:
    return op.inputs[0].dtype == np.bool_


def _truncates(graph: Graph, op: Op) -> bool:
    """A remainder that is not part of `jnp.mod`, which compares its sign."""
    readers = graph.consumers.get(op.outputs[0], ())
    return not any(reader.kind in ("ne", "lt") for reader in readers)


def _rounds_away(graph: Graph, op: Op) -> bool:
    """Not in `x // y`, which rounds a quotient or one less and becomes FLOOR_DIV."""
    chosen = graph.producers.get(op.inputs[0])
    if chosen is not None and chosen.kind == "select_n":
        quotient = graph.producers.get(chosen.inputs[1])
        if quotient is not None and quotient.kind == "div":
            return False
    return op.params["rounding_method"] == jax.lax.RoundingMethod.AWAY_FROM_ZERO


def _inside(graph: Graph, op: Op) -> bool:
    return any(between for *_, between in op.params["padding_config"])


def _large_pad(graph: Graph, op: Op) -> bool:
    return len(op.out_shape) > 5


def _changes_inputs(graph: Graph, op: Op) -> bool:
    return not graph.is_static(op.outputs[0])  # of constants, converters compute it themselves


def _no_indices(graph: Graph, op: Op) -> bool:
    """The indices of the largest are what makes litert-converter see TOPK_V2."""
    indices = op.outputs[1]
    return indices not in graph.consumers and indices not in graph.outputs


def _is_loop(graph: Graph, op: Op) -> bool:
    return not is_unrolled(op)


def is_unrolled(op: Op) -> bool:
    """Tells whether a `scan` is written out when it is compiled, so that no loop is left.

    Args:
        op: an operation of kind `scan`.

    Returns:
        Whether `unroll` covers all of its steps.
    """
    return bool(int(op.params["unroll"]) >= op.params["length"])


def _clips(graph: Graph, op: Op) -> bool:
    clip = op.params["mode"] == jax.lax.GatherScatterMode.CLIP
    return clip and not graph.is_static(op.inputs[1])


def _spatial(op: Op) -> int:
    return len(op.out_shape) - 2


def _batch_groups(graph: Graph, op: Op) -> bool:
    return bool(op.params["batch_group_count"] != 1)


def _spread(op: Op) -> bool:
    return any(dilation != 1 for dilation in op.params["lhs_dilation"])


def _deep(graph: Graph, op: Op) -> bool:
    grouped = op.params["feature_group_count"] != 1
    return _spatial(op) > 3 or (_spatial(op) == 3 and (grouped or _spread(op)))


def _cropped(graph: Graph, op: Op) -> bool:
    return any(edge < 0 for pair in op.params["padding"] for edge in pair)


def _odd_transposed(graph: Graph, op: Op) -> bool:
    """A transposed convolution that converters refuse; `transposed.py` sees to its edges."""
    if _spatial(op) > 2 or not _spread(op):
        return False
    params, spec = op.params, op.params["dimension_numbers"].rhs_spec
    if _spatial(op) == 1 or params["feature_group_count"] != 1:
        return True
    if {*params["rhs_dilation"], *params["window_strides"]} != {1}:
        return True
    sizes = [op.inputs[1].shape[axis] for axis in spec[2:]]
    pads = [(int(low), int(high)) for low, high in params["padding"]]
    strides = params["lhs_dilation"]
    same = pads == [_same(size, stride) for size, stride in zip(sizes, strides, strict=True)]
    beyond = any(max(pair) >= size for pair, size in zip(pads, sizes, strict=True))
    return beyond and not same


def _same(size: int, stride: int) -> tuple[int, int]:
    """What `jax.lax.conv_transpose` pads for SAME."""
    total = size + stride - 2
    low = size - 1 if stride > size - 1 else math.ceil(total / 2)
    return low, total - low


def _odd_window(graph: Graph, op: Op) -> bool:
    """A window over other axes than two of four, or with holes."""
    window = op.params["window_dimensions"]
    dilated = {*op.params["base_dilation"], *op.params["window_dilation"]} != {1}
    over = sum(size != 1 for size in window)
    return len(window) != 4 or over > 2 or window[0] != 1 or dilated


def _no_average(graph: Graph, op: Op) -> bool:
    """A window sum that is not divided at once by the number of its terms."""
    readers = graph.consumers.get(op.outputs[0], ())
    if _odd_window(graph, op) or graph.is_static(op.outputs[0]):
        return False
    if len(readers) != 1 or readers[0].kind != "div" or op.outputs[0] in graph.outputs:
        return True
    padded = any(map(any, op.params["padding"]))
    divisor = readers[0].inputs[1]
    number = getattr(divisor, "value", None)
    if number is not None:
        size = math.prod(op.params["window_dimensions"])
        return padded or not math.isclose(float(number), size, rel_tol=1e-5)
    return not graph.is_static(divisor) or (padded and not _same_window(op))


def _same_window(op: Op) -> bool:
    params, shape = op.params, op.inputs[0].shape
    wanted = jax.lax.padtype_to_pads(
        shape, params["window_dimensions"], params["window_strides"], "SAME"
    )
    return [tuple(pair) for pair in wanted] == [tuple(pair) for pair in params["padding"]]


def _backwards(graph: Graph, op: Op) -> bool:
    return bool(op.params.get("reverse"))


_LOOP = "becomes control flow, which litert-converter refuses and delegates do not run"
_WRITE_OUT = "write it out: lax.scan(..., unroll=True), or a Python loop over a fixed count"
_STABLEHLO = "becomes an operation of StableHLO, which no delegate runs"
_SELECT_TF = "needs an operation of TensorFlow (Flex), which LiteRT does not have"
_ALGEBRA = "is a call to LAPACK, which LiteRT does not have"
_PRECOMPUTE = "compute it outside of the function and pass the result as a variable or an input"
_NOISE = "makes random numbers in unsigned integers, which LiteRT does not compute with"
_DETERMINISTIC = (
    "export the model in evaluation mode (deterministic=True), or pass the noise as an input"
)
_NO_CHLO = "is left as a call that TensorFlow's converter does not lower"
_SCATTER = (
    "choose with jnp.where and a constant mask, join parts with jnp.concatenate, use "
    "lax.dynamic_update_slice, or multiply by a one-hot matrix for sums"
)
_BITS = "write it with +, -, * and // on int32, or with comparisons"
_SORT = "becomes STABLEHLO_SORT, for which LiteRT has no kernel"
_SORT_OUTSIDE = "sort outside of the function: the outputs of the model are small"
_WINDOW = "pool over the height and width of [B, H, W, C]; give a line an axis of size 1"
_PROBABILITY = "is computed in a loop until it converges"

ROWS = (
    Row("round", "is not lowered: LiteRT rounds halves to even", "use jnp.round", _rounds_away),
    Row("cbrt", "becomes POW, which gives NaN for what is negative",
        "write jnp.sign(x) * jnp.abs(x) ** (1 / 3)"),
    *(Row(kind, _NO_CHLO, "export with via='litert', or write it with exp, log and sqrt",
          vias=("jax2tf",))
      for kind in ("sinh", "cosh", "asin", "acos", "asinh", "acosh", "atanh")),
    Row("erf", _NO_CHLO, "write 1 - lax.erfc(x); for gelu, approximate=True", vias=("jax2tf",)),
    Row("nextafter", _SELECT_TF, _PRECOMPUTE),
    *(Row(kind, _SELECT_TF, _BITS, _reads_ints) for kind in ("and", "or", "shift_left", "clz")),
    Row("population_count", _SELECT_TF, _BITS),
    Row("xor", "is not lowered for booleans", "write a != b", _reads_bools),
    Row("shift_right_logical", "becomes an arithmetic shift: other values for what is negative",
        _BITS),
    Row("rem", "becomes FLOOR_MOD: other values for what is negative",
        "use jnp.mod, whose sign is the divisor's", _truncates),
    Row("reduce_precision", "is not lowered", "leave it out of what is exported"),
    Row("reduce_xor", _STABLEHLO, "sum and take the remainder"),
    Row("reduce", _STABLEHLO, "use jnp.sum, max, min, prod, any or all"),
    Row("pad", _STABLEHLO + " where it pads between elements",
        "use lax.conv_transpose, or join with zeros and reshape", _inside),
    Row("pad", "takes at most 5 axes", "reshape before and after", _large_pad),
    *(Row(kind, _STABLEHLO, "write it out over a short axis, or precompute it")
      for kind in ("cumprod", "cummax", "cummin", "cumlogsumexp")),
    Row("cumsum", _STABLEHLO + " where it is reversed", "write jnp.flip(jnp.cumsum(jnp.flip(x)))",
        _backwards),
    *(Row(kind, _SORT, _SORT_OUTSIDE) for kind in ("sort", "approx_top_k")),
    Row("top_k", _NO_CHLO, f"export with via='litert', or {_SORT_OUTSIDE}", vias=("jax2tf",)),
    Row("top_k", _SORT + " where its indices are not used", "return the indices too", _no_indices,
        ("litert",)),
    *(Row(kind, _STABLEHLO, _SCATTER, _changes_inputs) for kind in (
        "scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-max", "scatter-min",
        "select_and_scatter_add", "select_and_gather_add")),
    Row("gather", "loses its clipping: LiteRT fails at run time on an index that is out of range",
        "clip the indices with jnp.clip, and index without mode='clip'", _clips),
    *(Row(kind, "has no kernel for integers", "cast to float32 before", _reads_ints)
      for kind in ("dot_general", "conv_general_dilated")),
    Row("conv_general_dilated", "is grouped along the batch, which LiteRT has no operation for",
        "write one convolution for each group", _batch_groups),
    Row("conv_general_dilated", "has three axes with groups or transposed, or more than three axes",
        "write it as convolutions over two axes", _deep),
    Row("conv_general_dilated", "has negative padding, which converters get wrong",
        "slice the input", _cropped),
    Row("conv_general_dilated",
        "is transposed in a way that is refused, or that gives another shape or other values",
        "use padding='VALID' or 'SAME', one group, no dilated kernel, and two axes; or quantize: "
        "int8 places all of them", _odd_transposed),
    *(Row(kind, _STABLEHLO, _WINDOW, _odd_window)
      for kind in ("reduce_window_max", "reduce_window_sum")),
    Row("reduce_window_sum", _STABLEHLO + " unless it is an average",
        "divide (not multiply) at once by the size of the window, without padding; with SAME "
        "padding by the number of terms: nn.avg_pool(..., count_include_pad=False)", _no_average),
    Row("reduce_window_min", _STABLEHLO, "write -nn.max_pool(-x, ...)"),
    Row("reduce_window", _STABLEHLO, "use nn.max_pool or nn.avg_pool"),
    Row("scan", _LOOP, _WRITE_OUT, _is_loop),
    Row("while", _LOOP, _WRITE_OUT),
    Row("cond", _LOOP, "compute both and choose with jnp.where"),
    Row("fft", "is lowered for some sizes alone", "multiply by the matrix of the transform"),
    *(Row(kind, "makes complex numbers, which LiteRT has few operations for",
          "write the real and the imaginary part") for kind in ("complex", "conj", "real", "imag")),
    *(Row(kind, _ALGEBRA, _PRECOMPUTE) for kind in (
        "cholesky", "qr", "geqrf", "householder_product", "svd", "eig", "eigh", "lu", "schur",
        "hessenberg", "tridiagonal", "tridiagonal_solve", "triangular_solve",
        "custom_linear_solve")),
    *(Row(kind, _NOISE, _DETERMINISTIC) for kind in (
        "random_seed", "random_bits", "random_wrap", "random_unwrap", "random_split",
        "random_fold_in", "random_gamma", "random_clone", "threefry2x32", "rng_uniform",
        "rng_bit_generator")),
    *(Row(kind, _PROBABILITY, _PRECOMPUTE)
      for kind in ("igamma", "igammac", "igamma_grad_a", "regularized_incomplete_beta")),
    *(Row(kind, "calls back to Python, which is not there on a phone", "leave it out")
      for kind in ("pure_callback", "io_callback", "debug_callback")),
)  # fmt: skip


@functools.cache
def rows() -> Mapping[str, tuple[Row, ...]]:
    """The rows of each kind of operation."""
    found: dict[str, tuple[Row, ...]] = {}
    for row in ROWS:
        found[row.kind] = (*found.get(row.kind, ()), row)
    return found


def of_types(op: Op, via: str) -> tuple[str, str] | None:
    """Says what is wrong with the types and the axes of an operation's values.

    Args:
        op: the operation.
        via: the converter.

    Returns:
        The problem and its fix; `None` where LiteRT has the operation for them.

    Example:
        >>> from compressjax.graph import trace
        >>> graph = trace(lambda v, x: x + x, {}, jnp.ones(3, jnp.bfloat16))
        >>> of_types(graph.ops[0], 'litert')[0]
        'is computed in bfloat16, which LiteRT has no kernel for'
    """
    values = (*op.inputs, *op.outputs)
    for kind in dict.fromkeys(str(value.dtype) for value in values):
        if kind in _TYPES or (op.kind in _VIEWS and kind in _STORED):
            continue
        if op.kind in _ALSO.get(kind, ()) or (kind == "float16" and op.kind in _HALF[via]):
            continue
        problem = f"is computed in {kind}, which LiteRT has no kernel for"
        if kind.startswith(("float", "bfloat")):
            return problem, "make the network with dtype=float32 for the export"
        if kind.startswith("complex"):
            return problem, "write the real and the imaginary part"
        return problem, "cast to int32 or float32 before"
    axes = max((len(value.shape) for value in values), default=0)
    # MAXIMUM and MINIMUM broadcast over fewer axes than the other operations.
    most = 5 if op.kind in ("max", "min", "relu", "relu6", "clamp") else 6
    if axes > most and (op.kind in _NARROW or _broadcasts(op)):
        problem = f"has values of {axes} axes, of which LiteRT takes at most {most} here"
        return problem, "reshape: merge axes that lie beside each other"
    return None


def _broadcasts(op: Op) -> bool:
    return op.kind in _ELEMENTWISE and len({value.shape for value in op.inputs}) > 1


_TYPES = frozenset({"float32", "int32", "int64", "bool"})
# What casts and views take besides.
_STORED = frozenset("float16 bfloat16 int8 uint8 int16 uint16 uint32 int4".split())
_VIEWS = frozenset(
    "convert_element_type reshape squeeze expand_dims stop_gradient copy copy_p iota "
    "optimization_barrier bitcast_convert_type broadcast_in_dim".split()
)
_ALSO: Mapping[str, frozenset[str]] = {
    "int8": frozenset("transpose concatenate slice gather".split()),
    "uint8": frozenset("transpose concatenate slice gather rev".split()),
    "int16": frozenset("concatenate rev abs add mul".split()),
    "uint32": frozenset("concatenate slice abs add mul".split()),
}
_HALF: Mapping[str, frozenset[str]] = {
    "jax2tf": frozenset(),
    "litert": frozenset(
        "add concatenate exp logistic max mul neg reduce_max reduce_sum slice tanh "
        "transpose".split()
    ),
}
_NARROW = frozenset(
    "max min relu relu6 clamp concatenate dot_general pad argmax argmin cumsum reduce_sum "
    "reduce_max reduce_min reduce_prod reduce_or reduce_and".split()
)
_ELEMENTWISE = frozenset("add sub mul div pow rem atan2".split())
