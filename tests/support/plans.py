"""Hand-made frozen plans: networks of LiteRT steps with random integers, for the export tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.quant.frozen import Codes, Frozen, FrozenStep

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)


def linear(x: jax.Array) -> jax.Array:
    return x


@dataclasses.dataclass
class Builder:
    """Adds steps one by one; every method returns the name of the new value."""

    seed: int = 0
    inputs: list[tuple[str, tuple[int, ...], float, int]] = dataclasses.field(default_factory=list)
    steps: list[FrozenStep] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, *shape: int) -> str:
        name = f"input_{len(self.inputs)}"
        self.inputs.append((name, shape, self._scale(0.03), int(self.rng.integers(-20, 20))))
        return name

    def _scale(self, about: float) -> float:
        return float(np.float32(about * self.rng.uniform(0.7, 1.4)))

    def grid(self, name: str) -> tuple[float, int]:
        return self.plan([]).quantization()[name]

    def shape(self, name: str) -> tuple[int, ...]:
        shapes = {n: s for n, s, _, _ in self.inputs} | {s.name: s.out_shape for s in self.steps}
        return shapes[name]

    def step(
        self,
        kind: str,
        inputs: Sequence[str],
        apply: Callable[..., jax.Array],
        constants: Sequence[Codes] = (),
        *,
        grid: tuple[float, int] | None = None,
        **params: Any,
    ) -> str:
        name = f"{kind}_{sum(step.kind == kind for step in self.steps)}"
        args = [jax.ShapeDtypeStruct(self.shape(i), jnp.float32) for i in inputs]
        args += [jax.ShapeDtypeStruct(c.codes.shape, jnp.float32) for c in constants]
        shape = jax.eval_shape(apply, *args).shape
        scale, point = grid or (self._scale(0.05), int(self.rng.integers(-30, 30)))
        self.steps.append(
            FrozenStep(name, kind, tuple(inputs), apply, tuple(constants), scale, point, shape,
                       params)
        )  # fmt: skip
        return name

    def weight(self, shape: tuple[int, ...], fan_in: int, axis: int, top: int = 127) -> Codes:
        """Random codes; with `top` below 127 no channel reaches the largest code."""
        codes = self.rng.integers(-top, top + 1, shape, np.int8)
        scale = self.rng.uniform(0.5, 1.5, shape[axis]) * 2 / (top * math.sqrt(fan_in))
        return Codes(codes, scale.astype(np.float32), axis)

    def bias(self, source: str, weight: Codes) -> Codes:
        scale = np.float32(self.grid(source)[0]) * weight.scale
        real = self.rng.normal(size=scale.shape)
        return Codes(np.round(real / scale).astype(np.int32), scale, None)

    def conv(
        self, x: str, features: int, size: int = 3, stride: int = 1, act=linear, top: int = 127,
        padding: Any = "SAME", bias: bool = True,
    ) -> str:  # fmt: skip
        channels = self.shape(x)[-1]
        weight = self.weight((size, size, channels, features), size * size * channels, 3, top)

        def apply(x, w, *b):
            y = jax.lax.conv_general_dilated(
                x, w, (stride, stride), padding, dimension_numbers=_LAYOUT
            )
            return act(y + b[0].reshape(1, 1, 1, -1) if b else y)

        constants = [weight, self.bias(x, weight)][: 2 if bias else 1]
        return self.step("conv", [x], apply, constants, grid=self._grid(act))

    def depthwise(self, x: str, size: int = 3, stride: int = 1, act=linear, top: int = 127) -> str:
        channels = self.shape(x)[-1]
        weight = self.weight((size, size, 1, channels), size * size, 3, top)

        def apply(x, w, b):
            y = jax.lax.conv_general_dilated(
                x, w, (stride, stride), "SAME", dimension_numbers=_LAYOUT,
                feature_group_count=channels,
            )  # fmt: skip
            return act(y + b.reshape(1, 1, 1, -1))

        constants = [weight, self.bias(x, weight)]
        return self.step("depthwise_conv", [x], apply, constants, grid=self._grid(act))

    def dense(self, x: str, features: int, act=linear, top: int = 127) -> str:
        channels = self.shape(x)[-1]
        weight = self.weight((channels, features), channels, 1, top)

        def apply(x, w, b):
            return act(x @ w + b.reshape((1,) * (x.ndim - 1) + (-1,)))

        constants = [weight, self.bias(x, weight)]
        return self.step("dense", [x], apply, constants, grid=self._grid(act))

    def _grid(self, act) -> tuple[float, int] | None:
        if act is relu6:
            return float(np.float32(6 / 255)), -128
        return (self._scale(0.02), -128) if act is relu else None

    def add(self, x: str, y: str, act=linear) -> str:
        return self.step("add", [x, y], lambda a, b: act(a + b), grid=self._grid(act))

    def add_constant(self, x: str) -> str:
        codes = self.rng.integers(-100, 100, (1, 1, 1, self.shape(x)[-1]), np.int8)
        constant = Codes(codes, np.float32(0.013), None, 3)
        return self.step("add", [x], lambda a, c: a + c, [constant])

    def mul(self, x: str, y: str) -> str:
        return self.step("mul", [x, y], lambda a, b: a * b)

    def mean(self, x: str, keepdims: bool = False) -> str:
        axes = (1, 2)
        return self.step(
            "mean", [x], lambda a: a.mean(axes, keepdims=keepdims), axes=axes, keepdims=keepdims
        )

    def max_pool(self, x: str) -> str:
        def apply(a):
            return jax.lax.reduce_window(
                a, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )

        return self.step("max_pool", [x], apply, grid=self.grid(x))

    def avg_pool(self, x: str) -> str:
        def apply(a):
            s = jax.lax.reduce_window(a, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            return s / 4

        return self.step("avg_pool", [x], apply, grid=self.grid(x))

    def pad(self, x: str, amount: int = 1) -> str:
        widths = ((0, 0), (amount, amount), (amount, amount), (0, 0))
        return self.step("pad", [x], lambda a: jnp.pad(a, widths), grid=self.grid(x))

    def reshape(self, x: str, *shape: int) -> str:
        return self.step("reshape", [x], lambda a: a.reshape(shape), grid=self.grid(x))

    def transpose(self, x: str, *axes: int) -> str:
        return self.step("transpose", [x], lambda a: a.transpose(axes), grid=self.grid(x))

    def concatenate(self, *xs: str) -> str:
        return self.step(
            "concatenate", xs, lambda *a: jnp.concatenate(a, axis=-1), grid=self.grid(xs[0])
        )

    def same_grid(self, name: str, like: str) -> None:
        """Gives the last-made value the grid of another, as concatenation needs."""
        scale, point = self.grid(like)
        self.steps = [
            dataclasses.replace(s, scale=scale, zero_point=point) if s.name == name else s
            for s in self.steps
        ]

    def logistic(self, x: str) -> str:
        return self.step("logistic", [x], jax.nn.sigmoid, grid=(1 / 256, -128))

    def tanh(self, x: str) -> str:
        return self.step("tanh", [x], jnp.tanh, grid=(1 / 128, 0))

    def softmax(self, x: str) -> str:
        return self.step("softmax", [x], jax.nn.softmax, grid=(1 / 256, -128), axis=-1)

    def plan(self, outputs: Sequence[str]) -> Frozen:
        return Frozen(tuple(self.inputs), tuple(self.steps), tuple(outputs))


@dataclasses.dataclass(frozen=True)
class Model:
    """A quantized model that is nothing but its plan."""

    plan: Frozen

    def freeze(self, variables: Any, *args: Any) -> Frozen:
        del variables, args
        return self.plan

    def example(self) -> list[np.ndarray]:
        return [np.zeros(shape, np.float32) for _, shape, _, _ in self.plan.inputs]


def resnet(top: int = 127) -> Frozen:
    """Residual blocks, one with a strided 1x1 shortcut, as in ResNet-8."""
    b = Builder(1)
    x = b.conv(b.input(1, 16, 16, 3), 8, act=relu, top=top)
    y = b.conv(b.conv(x, 8, act=relu, top=top), 8, top=top)
    x = b.add(x, y, act=relu)
    y = b.conv(b.conv(x, 8, stride=2, act=relu, top=top), 8, top=top)
    x = b.add(b.conv(x, 8, size=1, stride=2, top=top), y, act=relu)
    return b.plan([b.dense(b.mean(x), 10, top=top)])


def mobile(top: int = 127) -> Frozen:
    """Inverted residuals with depthwise convolutions and relu6."""
    b = Builder(2)
    x = b.conv(b.input(1, 16, 16, 3), 8, stride=2, act=relu6, top=top)
    y = b.depthwise(b.conv(x, 24, size=1, act=relu6, top=top), act=relu6, top=top)
    x = b.add(x, b.conv(y, 8, size=1, top=top))
    y = b.depthwise(b.conv(x, 24, size=1, act=relu6, top=top), stride=2, act=relu6, top=top)
    x = b.conv(b.conv(y, 12, size=1, top=top), 16, size=1, act=relu6, top=top)
    return b.plan([b.dense(b.mean(x), 10, top=top)])


def pools() -> Frozen:
    """Every step that keeps its input's scale."""
    b = Builder(3)
    x = b.conv(b.pad(b.input(1, 16, 16, 3)), 8, act=relu, padding="VALID")
    left, right = b.conv(x, 8, size=1), b.conv(x, 8, size=1, bias=False)
    b.same_grid(right, left)
    x = b.avg_pool(b.max_pool(b.concatenate(left, right)))
    x = b.transpose(b.add_constant(x), 0, 2, 1, 3)
    return b.plan([b.dense(b.reshape(x, 1, 256), 10, top=50)])
