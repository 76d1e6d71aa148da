"""What it costs to find and cut the channels of a large network.

    python -m experiments.bench.shrinking

ResNet-50 and ViT-B/16 at 224x224 with drawn weights: from the function to smaller arrays, with a
ratio, with half the MACs as the target, and with norms cut apart. Nothing is compiled and nothing
cached between rounds. Memory is what NumPy allocates on top of the variables, at its highest, over
their bytes. Goals: 5 s on 2 CPU cores, and less than a second copy of the variables.
"""

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app

import compressjax as cj
from compressjax import slimming, tree
from experiments.bench import options, parity, timing


class ResNet50(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition" (2016), table 1, for inference."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, 1000]` of `x: [B, H, W, 3]`."""
        x = nn.relu(self._conv(x, 64, 7, 2))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, (width, blocks) in enumerate(
            zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
        ):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                y = nn.relu(self._conv(x, width))
                y = nn.relu(self._conv(y, width, 3, stride))
                x = x if block else self._conv(x, 4 * width, 1, stride)
                x = nn.relu(x + self._conv(y, 4 * width))
        return nn.Dense(1000)(x.mean((1, 2)))

    def _conv(self, x: jax.Array, width: int, size: int = 1, stride: int = 1) -> jax.Array:
        x = nn.Conv(width, (size, size), stride, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=True)(x)


class ViTB16(nn.Module):
    """Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), table 1, ViT-Base."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits `[B, 1000]` of `x: [B, 224, 224, 3]`."""
        x = nn.Conv(768, (16, 16), 16, padding="VALID")(x).reshape(x.shape[0], -1, 768)
        drawn = nn.initializers.normal(0.02)
        token = self.param("token", drawn, (1, 1, 768))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 768)), x], axis=1)
        x = x + self.param("positions", drawn, (1, x.shape[1], 768))
        for _ in range(12):
            x = x + nn.MultiHeadDotProductAttention(12)(nn.LayerNorm()(x))
            x = x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def memory(call: Callable[[], Any]) -> int:
    """Counts the bytes that NumPy holds at once while a function runs.

    Args:
      call: the function.

    Returns:
      The most bytes above those that were held before.
    """
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most - before


def measure(model: nn.Module, *, rounds: int, clock: timing.Clock) -> dict[str, Any]:
    """Times the cuts of one network.

    Args:
      model: the network.
      rounds: times each is measured.
      clock: what is measured.

    Returns:
      The timings, the memory of the first cut over the bytes of the variables, and their bytes.
    """
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    drawn = parity.draw(jax.eval_shape(model.init, jax.random.key(0), x), seed=0)
    variables = jax.tree.map(np.asarray, drawn)  # NumPy says what it allocates, JAX does not

    def shrink(**options: Any) -> None:
        jax.clear_caches()
        cj.shrink(model.apply, variables, x, **options)

    def trace() -> None:
        jax.clear_caches()
        cj.trace(model.apply, variables, x)

    calls = {
        "trace": trace,
        "shrink, half of each group": shrink,
        "shrink to half the MACs": lambda: shrink(target=slimming.macs(0.5)),
        "shrink, norms apart": lambda: shrink(gather=True),
    }
    timings = timing.interleaved(calls, rounds=rounds, warmup=1, clock=clock)
    size = tree.num_bytes(variables)
    return {"timings": timings, "memory": memory(shrink) / size, "bytes": size}


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    found = {
        type(model).__name__: measure(
            model, rounds=options.ROUNDS.value or 5, clock=options.CLOCK.value
        )
        for model in (ResNet50(), ViTB16())
    }
    if options.JSON.value:
        print(timing.document(found))
        return
    for name, result in found.items():
        print(f"{name}, {result['bytes'] / 1e6:.0f} MB of variables")
        print(timing.table(result["timings"]))
        print(f"memory beside the variables: {result['memory']:.2f} of their bytes\n")


if __name__ == "__main__":
    app.run(main)
