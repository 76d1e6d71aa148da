"""What a mask does to a .tflite: bytes and latency at several sparsities, dense and sparse files.

    python -m experiments.bench.sparse_export

Found with `--rounds=30` (2 cores of an AMD EPYC, one thread, ai-edge-litert 2.3): at 90 % zeros the
MLP's float file shrinks from 2,676 to 405 kB (gzip of the dense one: 332; entropy: 308), its int8
file keeps its 700 kB (125; 117), because LiteRT's delegate refuses an int8 FULLY_CONNECTED behind a
DENSIFY. Of the convolutions, the float file shrinks from 259 to 50 kB, the int8 file from 95 to 57.
All outputs are equal.

A mask alone makes nothing faster. At 90 % zeros the MLP's float calls take 0.98 of the unpruned
time dense and 0.93 sparse, int8 calls 0.42 and 0.38, where the unpruned int8 file takes 0.42; those
of the convolutions 0.98, 1.02, 0.53 and 0.53, where it takes 0.56. LiteRT unpacks the weights and
multiplies by the zeros, also where a network has the form that XNNPACK documents for sparse
inference. For speed take `compressjax.slimming`, which changes shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import pruning, report, tree
from compressjax.export.runtime import Session
from compressjax.models import MLP
from experiments.bench import options, timing

_SPARSITIES = flags.DEFINE_multi_float(
    "sparsities", [0.0, 0.8, 0.9, 0.95], "Fractions of each kernel's weights that are pruned."
)


class Case(NamedTuple):
    """A network to export.

    Attributes:
      model: the network.
      shape: of its input, one example.
    """

    model: nn.Module
    shape: tuple[int, ...]


class Pointwise(nn.Module):
    """A convolution of stride 2, then pairs of a depthwise 3x3 and a 1x1 one, as in MobileNet.

    It is what XNNPACK's documentation asks of a network for its sparse kernels: 3 channels in, a
    3x3 stem of stride 2, and a mean at the end, with the same padding on all sides at odd sizes.

    Attributes:
      widths: channels behind each 1x1 convolution.
      strides: of each depthwise convolution.
    """

    widths: Sequence[int] = (64, 128, 128, 256)
    strides: Sequence[int] = (1, 2, 1, 2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns features `[B, widths[-1]]` of `x: [B, H, W, 3]`."""
        x = nn.relu6(nn.Conv(32, (3, 3), 2)(x))
        for width, stride in zip(self.widths, self.strides, strict=True):
            channels = x.shape[-1]
            x = nn.Conv(channels, (3, 3), stride, feature_group_count=channels)(x)
            x = nn.relu6(nn.Conv(width, (1, 1))(nn.relu6(x)))
        return x.mean(axis=(1, 2))


CASES = {
    "MLP 784-512-512-10": Case(MLP(num_classes=10, widths=(512, 512)), (1, 784)),
    "1x1 convolutions, 49x49": Case(Pointwise(), (1, 49, 49, 3)),
}


def files(case: Case, sparsity: float) -> dict[str, bytes]:
    """Exports a network of random weights, pruned by magnitude in every kernel but depthwise ones.

    Args:
      case: the network.
      sparsity: fraction of the weights of each of these kernels that become zero.

    Returns:
      The float and the int8 file, each stored dense and sparse.
    """
    x = jax.random.normal(jax.random.key(0), case.shape)
    variables = jax.jit(case.model.init)(jax.random.key(1), x)
    apply = case.model.apply
    leaves = tree.paths(variables["params"])
    kernels = [
        path for path, leaf in leaves.items() if path.endswith("kernel") and leaf.shape[-2] > 1
    ]
    keep = pruning.choose(variables["params"], sparsity, select=kernels, of_weight=jnp.abs)
    variables = {**variables, "params": pruning.apply_masks(variables["params"], keep)}
    q = cj.quantize(apply)
    calibrated = q.calibrate(variables, [x])
    dense = {
        "float": cj.export.tflite(apply, variables, x, via="litert"),
        "int8": cj.export.tflite(q, calibrated, x, via="litert"),
    }
    sparse = {f"{name}, sparse": cj.export.sparsify(model) for name, model in dense.items()}
    return dense | sparse


def caller(model: bytes, x: np.ndarray) -> Callable[[], None]:
    """Makes a program that computes one example with LiteRT on one thread.

    Args:
      model: the file.
      x: its input.

    Returns:
      The program; the input is copied only once.
    """
    session = Session(model)
    session.interpreter.set_tensor(session.inputs[0]["index"], x)
    return session.interpreter.invoke


def measure(
    *, cases: Sequence[str], sparsities: Sequence[float], rounds: int, clock: timing.Clock
) -> list[dict[str, Any]]:
    """Measures every file of every case at every sparsity.

    All files of a case take turns, so that ratios over its dense unpruned float file hold on a busy
    machine.

    Args:
      cases: names in `CASES`.
      sparsities: fractions of the weights that are pruned; the first is compared with.
      rounds: times each file is called.
      clock: what is measured.

    Returns:
      One row for each file: its case, sparsity, kind, sizes, timing, and whether the outputs of the
      sparse file equal those of the dense one.
    """
    rows = []
    for name in cases:
        case = CASES[name]
        x = np.asarray(jax.random.normal(jax.random.key(2), case.shape))
        models = {
            f"{kind}, {sparsity:.0%}": (sparsity, kind, model)
            for sparsity in sparsities
            for kind, model in files(case, sparsity).items()
        }
        timings = timing.interleaved(
            {label: caller(model, x) for label, (_, _, model) in models.items()},
            rounds=rounds,
            warmup=5,
            clock=clock,
        )
        for label, (sparsity, kind, model) in models.items():
            base = kind.removesuffix(", sparse")
            dense = models[f"{base}, {sparsity:.0%}"][2]
            same = bool((cj.export.run(model, x) == cj.export.run(dense, x)).all())
            rows.append(
                {
                    "case": name,
                    "sparsity": sparsity,
                    "kind": kind,
                    "size": report.coded_size(model)._asdict(),
                    "timing": timings[label],
                    "same_outputs": same,
                }
            )
    return rows


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    clock, rounds = options.CLOCK.value, options.ROUNDS.value or 30
    rows = measure(cases=list(CASES), sparsities=_SPARSITIES.value, rounds=rounds, clock=clock)
    if options.JSON.value:
        print(timing.document({"rows": rows, "rounds": rounds, "clock": clock.value}))
        return
    print(f"{rounds} rounds, {clock.value} time, one thread; kB of 1000 bytes")
    print(
        f"{'network':<24} {'zeros':>5} {'file':<14} {'nonzero':>9} {'file kB':>8} {'gzip kB':>8} "
        f"{'entropy kB':>10} {'p50 ms':>8} {'ratio':>6}  same outputs"
    )
    for row in rows:
        size, taken = row["size"], row["timing"]
        sizes = " ".join(
            f"{size[key] / 1e3:>{width}.1f}"
            for key, width in (("file_bytes", 8), ("gzip_bytes", 8), ("entropy_bytes", 10))
        )
        print(
            f"{row['case']:<24} {row['sparsity']:>5.0%} {row['kind']:<14} {size['nonzero']:>9,} "
            f"{sizes} {1e3 * taken.median:>8.3f} {taken.ratio:>6.2f}  {row['same_outputs']}"
        )


if __name__ == "__main__":
    app.run(main)
