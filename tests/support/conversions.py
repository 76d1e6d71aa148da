"""Small functions of one operation each, and what converters really make of them.

`compressjax/export/conversions.py` was written from these. Measure all of them again with

    python -m tests.support.conversions

which prints where the table and the converters differ, and how many agree.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from compressjax.export import Report, check, flatbuffer, jax2tf, litert
from compressjax.export.transposed import cut_apart

LINE, IMAGE = (2, 6), (2, 6, 6, 4)
NHWC = ("NHWC", "HWIO", "NHWC")
Function = Callable[[jax.Array], object]


def kernel(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def real(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def whole(x: jax.Array) -> jax.Array:
    return (9 * x).astype(jnp.int32)


def conv(x: jax.Array, *shape: int, numbers=NHWC, padding="SAME", strides=None, **more):
    strides = strides or (1,) * (len(shape) - 2)
    return lax.conv_general_dilated(
        x, kernel(*shape), strides, padding, dimension_numbers=numbers, **more
    )


def spread(size: int, stride: int, pads) -> Function:
    """A transposed convolution of an image: padding by name as JAX has it, or explicit."""
    if isinstance(pads, str):
        return lambda x: lax.conv_transpose(
            x, kernel(size, size, 4, 3), (stride, stride), pads, dimension_numbers=NHWC
        )
    return lambda x: conv(x, size, size, 4, 3, padding=(pads, pads), lhs_dilation=(stride, stride))


def window(op, start: float, sizes, strides, padding="VALID", **more) -> Function:
    return lambda x: lax.reduce_window(x, np.float32(start), op, sizes, strides, padding, **more)


def unary(name: str, scale: float = 1.0, shift: float = 0.0) -> Function:
    return lambda x: real(getattr(lax, name)(scale * x + shift))


def in_type(dtype: str, fn: Callable[[jax.Array], jax.Array]) -> Function:
    return lambda x: real(fn(jnp.abs(3 * x).astype(dtype)))


def solve(x: jax.Array) -> jax.Array:
    return (x @ x.T)[:2, :2] + 2 * jnp.eye(2)


POOL = ((1, 2, 2, 1), (1, 2, 2, 1))
_CONV_3D = {"numbers": ("NDHWC", "DHWIO", "NDHWC")}
_LINES: dict[str, Function] = {
    **{name: unary(name) for name in (
        "abs neg sign floor ceil exp exp2 expm1 tanh logistic sin cos sinh cosh asinh atan cbrt "
        "erf erfc square is_finite round bessel_i0e bessel_i1e"
    ).split()},
    **{name: unary(name, 0.2, 0.3) for name in "asin acos atanh erf_inv".split()},
    **{name: lambda x, name=name: getattr(lax, name)(jnp.abs(x) + 1.1)
       for name in "log log1p sqrt rsqrt acosh lgamma digamma".split()},
    **{name: lambda x, name=name: getattr(lax, name)(x, x[:, ::-1] + 0.5)
       for name in "add sub mul div max min atan2 rem nextafter".split()},
    **{name: lambda x, name=name: jnp.where(getattr(lax, name)(x, x[:, ::-1]), x, 0.0)
       for name in "eq ne lt le gt ge".split()},
    **{f"reduce {name}": lambda x, name=name: real(getattr(jnp, name)(x, axis=1))
       for name in "sum max min prod mean var any all".split()} ,
    **{name: lambda x, name=name: getattr(lax, name)(x, axis=1)
       for name in "cumsum cumprod cummax cummin cumlogsumexp".split()},
    **{f"{name} of bits": lambda x, name=name: real(
        getattr(jnp, f"bitwise_{name}")(whole(x), whole(x[:, ::-1])))
       for name in "and or xor".split()},
    **{f"{name} of booleans": lambda x, name=name: real(
        getattr(jnp, f"logical_{name}")(x > 0, x[:, ::-1] > 0)) for name in "and or xor".split()},
    **{f"{fn} in {dtype}": in_type(dtype, getattr(jnp, fn))
       for dtype in "bfloat16 float16 int8 uint8 int16".split() for fn in ("negative", "abs")},
    **{f"{dtype} product": in_type(dtype, lambda x: x @ x.T)
       for dtype in ("bfloat16", "float16", "int32")},
    **{f"cast to {dtype}": in_type(dtype, lambda x: x)
       for dtype in "float16 bfloat16 int8 uint8 int16 int32 bool float8_e4m3fn".split()},
    **{f"scatter {name}": lambda x, name=name: getattr(x.at[:, jnp.array([0, 3])], name)(0.5)
       for name in "set add multiply max min".split()},
    "scatter of a constant": lambda x: x + jnp.ones((1, 6)).at[0, 2].set(3.0),
    "round to even": jnp.round,
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
    "mod": lambda x: jnp.mod(5 * x, 3.0),
    "floor division": lambda x: x // 0.3,
    "shift left": lambda x: real(whole(x) << 2),
    "shift right": lambda x: real(whole(x) >> 1),
    "logical shift": lambda x: real(lax.shift_right_logical(whole(x), 1)),
    "population count": lambda x: real(lax.population_count(whole(x))),
    "leading zeros": lambda x: real(lax.clz(whole(jnp.abs(x)))),
    "integer power": lambda x: lax.integer_pow(x + 4, -2),
    "clamp": lambda x: lax.clamp(-0.5, x, 0.5),
    "transpose": lambda x: x.T,
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (2, 3, 6)),
    "reverse": lambda x: x[::-1, ::-1],
    "split": lambda x: jnp.split(x, 3, axis=1),
    "strided slice": lambda x: x[:, 1:5:2],
    "pad": lambda x: jnp.pad(x, 1, constant_values=2.0),
    "pad inside": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1))),
    "tile": lambda x: jnp.tile(x, (1, 3)),
    "reduce precision": lambda x: lax.reduce_precision(x, 5, 3),
    "reduce xor": lambda x: real(lax.reduce(whole(x), np.int32(0), lax.bitwise_xor, (1,))),
    "reduce another way": lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b * b, (1,)),
    "argmax": lambda x: real(jnp.argmax(x, axis=1)),
    "indices as an output": lambda x: jnp.argmax(x, axis=1),
    "cumsum backwards": lambda x: lax.cumsum(x, axis=1, reverse=True),
    "sort": lambda x: jnp.sort(x, axis=1),
    "argsort": lambda x: real(jnp.argsort(x, axis=1)),
    "sort of a constant": lambda x: x + jnp.sort(kernel(1, 6)),
    "largest": lambda x: lax.top_k(x, 3)[0],
    "largest and where": lambda x: [real(found) for found in lax.top_k(x, 3)],
    "about the largest": lambda x: lax.approx_max_k(x, 3)[0],
    "gather": lambda x: x[:, jnp.array([4, 0, 2])],
    "gather by values": lambda x: kernel(5, 3)[jnp.clip(whole(x[0]), 0, 4)],
    "gather and fill": lambda x: jnp.take(kernel(5, 3), jnp.clip(whole(x[0]), 0, 4), axis=0),
    "gather and clip": lambda x: jnp.take(kernel(5, 3), whole(x[0]), axis=0, mode="clip"),
    "along an axis": lambda x: jnp.take_along_axis(x, whole(x) % 6, axis=1),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (0, whole(x[0, 0])), (2, 3)),
    "dynamic update": lambda x: lax.dynamic_update_slice(x, x[:, :2], (0, whole(x[0, 0]))),
    "one-hot": lambda x: jax.nn.one_hot(whole(x[0]), 4),
    "product": lambda x: x @ kernel(6, 3),
    "product of inputs": lambda x: x @ x.T,
    "line convolved": lambda x: conv(x[..., None], 3, 1, 5, numbers=("NHC", "HIO", "NHC")),
    "line pooled": lambda x: nn.max_pool(x[..., None], (2,), (2,)),
    "scan": lambda x: lax.scan(lambda c, _: (c * 0.5 + 1, None), x, None, 3)[0],
    "scan written out": lambda x: lax.scan(
        lambda c, _: (c * 0.5 + 1, None), x, None, 3, unroll=True)[0],
    "sort in a scan": lambda x: lax.scan(
        lambda c, _: (jnp.sort(c), None), x, None, 2, unroll=True)[0],
    "loop": lambda x: lax.fori_loop(0, 3, lambda i, c: c + 1, x),
    "while": lambda x: lax.while_loop(lambda c: c.sum() < 99, lambda c: c + 1, x),
    "cond": lambda x: lax.cond(x.sum() > 0, lambda c: c + 1, lambda c: c - 1, x),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x)),
    "complex product": lambda x: lax.real(lax.complex(x, x) * lax.complex(x, 2 * x)),
    "cholesky": lambda x: jnp.linalg.cholesky(solve(x)),
    "qr": lambda x: jnp.linalg.qr(solve(x))[0],
    "svd": lambda x: jnp.linalg.svd(x)[1],
    "eigh": lambda x: jnp.linalg.eigh(solve(x))[0],
    "solve": lambda x: jnp.linalg.solve(solve(x), x),
    "triangular solve": lambda x: jax.scipy.linalg.solve_triangular(solve(x), x, lower=True),
    "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "dropout": lambda x: nn.Dropout(0.5, deterministic=False).apply(
        {}, x, rngs={"dropout": jax.random.key(0)}),
    "rng": lambda x: x + lax.rng_uniform(0.0, 1.0, x.shape),
    "igamma": lambda x: lax.igamma(jnp.abs(x) + 1.5, jnp.abs(x) + 0.5),
    "betainc": lambda x: lax.betainc(jnp.abs(x) + 1, jnp.abs(x) + 1, jax.nn.sigmoid(x)),
    "callback": lambda x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(LINE, "float32"), x),
    "print": lambda x: (jax.debug.print("{}", x.sum()), 2 * x)[1],
    "softmax": jax.nn.softmax, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "elu": jax.nn.elu,
    "softplus": jax.nn.softplus, "relu6": jax.nn.relu6, "mish": jax.nn.mish,
    "standardize": jax.nn.standardize, "log softmax": jax.nn.log_softmax,
    "six axes": lambda x: x.reshape(1, 2, 1, 2, 1, 3) + kernel(1, 1, 1, 2, 1, 3),
    "relu of six axes": lambda x: jax.nn.relu(x.reshape(1, 2, 1, 2, 1, 3)),
    "seven axes": lambda x: x.reshape(1, 1, 2, 1, 2, 1, 3) + kernel(1, 1, 1, 1, 2, 1, 3),
    "pad of six axes": lambda x: jnp.pad(x.reshape(1, 2, 1, 2, 1, 3), 1),
}  # fmt: skip
_IMAGES: dict[str, Function] = {
    "conv": lambda x: conv(x, 3, 3, 4, 5),
    "depthwise": lambda x: conv(x, 3, 3, 1, 8, feature_group_count=4),
    "groups": lambda x: conv(x, 3, 3, 2, 6, feature_group_count=2),
    "batch groups": lambda x: conv(x, 3, 3, 4, 2, batch_group_count=2),
    "negative padding": lambda x: conv(x, 3, 3, 4, 5, padding=((-1, 1), (0, 0))),
    "channels first": lambda x: conv(x, 5, 6, 3, 3, numbers=("NCHW", "OIHW", "NCHW")),
    "bfloat16 conv": lambda x: real(lax.conv(*(a.astype(jnp.bfloat16) for a in (
        x, kernel(5, 6, 3, 3))), (1, 1), "SAME")),
    "volume": lambda x: conv(x[..., None], 2, 2, 2, 1, 5, **_CONV_3D),
    "volume in groups": lambda x: conv(
        jnp.stack([x, x], -1), 2, 2, 2, 1, 4, feature_group_count=2, **_CONV_3D),
    "spread volume": lambda x: conv(
        x[..., None], 2, 2, 2, 1, 4, padding=((1, 1),) * 3, lhs_dilation=(2, 2, 2), **_CONV_3D),
    **{f"spread {size} by {stride} {pads}": spread(size, stride, pads)
       for size, stride, pads in (
           (2, 2, "SAME"), (3, 2, "SAME"), (4, 2, "SAME"), (5, 2, "SAME"), (4, 3, "SAME"),
           (2, 3, "SAME"), (3, 2, "VALID"), (2, 3, "VALID"), (3, 2, (1, 1)), (3, 2, (1, 2)),
           (5, 2, (2, 3)), (4, 2, (3, 1)), (4, 2, (2, 2)))},
    "spread groups": lambda x: conv(
        x, 3, 3, 2, 4, padding=((1, 1),) * 2, lhs_dilation=(2, 2), feature_group_count=2),
    "max pool": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "max pool with padding": lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    "max pool with holes": window(
        lax.max, -np.inf, POOL[0], (1, 1, 1, 1), window_dilation=(1, 2, 2, 1)),
    "max pool of the batch": window(lax.max, -np.inf, (2, 2, 1, 1), (1, 1, 1, 1)),
    "min pool": window(lax.min, np.inf, *POOL),
    "sum pool": window(lax.add, 0.0, *POOL),
    "average pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "average by a product": lambda x: 0.25 * window(lax.add, 0.0, *POOL)(x),
    "average with padding": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "average of what is there": lambda x: nn.avg_pool(
        x, (3, 3), (2, 2), "SAME", count_include_pad=False),
    "derivative of a pool": jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum()),
    "bilinear": lambda x: jax.image.resize(x, (2, 12, 12, 4), "bilinear"),
    "nearest": lambda x: jax.image.resize(x, (2, 12, 12, 4), "nearest"),
    "attention": lambda x: jax.nn.dot_product_attention(x, x, x),
}  # fmt: skip
CASES: dict[str, tuple[Function, tuple[int, ...]]] = {
    **{name: (fn, LINE) for name, fn in _LINES.items()},
    **{name: (fn, IMAGE) for name, fn in _IMAGES.items()},
}


def report(name: str, via: str) -> Report:
    """What `check` says about a case; its input is a shape alone."""
    fn, shape = CASES[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return check(lambda _, x: fn(x), {}, x, via=via)


def converts(name: str, via: str) -> bool:
    """Whether a converter makes builtin operations of a case that give JAX's values in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    fn, shape = CASES[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    specs = [("input_0", jax.ShapeDtypeStruct(shape, jnp.float32))]
    converter = {"jax2tf": jax2tf, "litert": litert}[via]
    try:
        flat = cut_apart(lambda x: jax.tree.leaves(fn(x)), [specs[0][1]])  # as `tflite` does
        data = converter.convert(flat, specs)
        if any(kind.startswith("CUSTOM") for kind in flatbuffer.ops(data)):
            return False
        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.asarray(x))
        interpreter.invoke()
    except (ValueError, RuntimeError, NotImplementedError):
        return False
    runner = interpreter.get_signature_runner().get_output_details()
    found = [interpreter.get_tensor(runner[key]["index"]) for key in sorted(runner)]
    pairs = zip(found, map(np.asarray, jax.tree.leaves(fn(x))), strict=True)
    return all(
        got.shape == wanted.shape and np.allclose(got, wanted, rtol=1e-3, atol=5e-3)
        for got, wanted in pairs
    )


def main() -> None:
    agree = 0
    for via in ("litert", "jax2tf"):
        for name in CASES:
            said, found = report(name, via).ok, converts(name, via)
            agree += said == found
            if said != found:
                print(f"{via}: {name}: the table says {said}, the converter {found}", flush=True)
    print(f"{agree} of {2 * len(CASES)} agree")


if __name__ == "__main__":
    main()
