"""How much faster int8 runs than float on LiteRT, and than what the TFLite converter makes by hand.

    python -m experiments.bench.int8_latency

ResNet-8 at 32x32, two depthwise networks and ResNet-18 at 224x224 with drawn weights, one
example on one thread; float and int8 from both of our exporters and from the TFLite converter with
a representative data set, all of a network in turns. Takes some minutes on 2 CPU cores. Goals: int8
at least 2.8, 2.2 (depthwise) and 3.0 times faster than float, and never slower than the converter's
own int8 (at most 1.03 of it).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import models
from experiments.bench import options, parity, peers, timing
from experiments.bench.sparse_export import caller

_FASTER = flags.DEFINE_list("faster", [], "Networks that are measured; all if empty.")
_WIDE = flags.DEFINE_integer("wide", 224, "Height and width of the large images.", 32)
_BY_HAND = "int8, TFLite converter"
_MOST = 1.03


class Case(NamedTuple):
    """A network and what int8 should bring.

    Attributes:
      model: the network.
      size: height and width of its images.
      goal: how many times faster than float.
    """

    model: Any
    size: int
    goal: float


def cases(wide: int) -> dict[str, Case]:
    """Lists the networks.

    Args:
      wide: height and width of the large images.

    Returns:
      The networks by name.
    """
    return {
        "ResNet-8": Case(models.ResNet8(num_classes=10), 32, 2.8),
        "MobileNetV1": Case(models.MobileNetV1(num_classes=1000), wide, 2.2),
        "MobileNetV2": Case(models.MobileNetV2(num_classes=1000), wide, 2.2),
        "ResNet-18": Case(models.ResNet18(num_classes=1000), wide, 3.0),
    }


def measure(case: Case, *, rounds: int, clock: timing.Clock) -> dict[str, timing.Timing]:
    """Exports one network in all ways and times the files in turns.

    Args:
      case: the network.
      rounds: times each file is called.
      clock: what is measured.

    Returns:
      The timing of each file; ratios are over our int8 file through jax2tf.
    """
    x = jax.random.normal(jax.random.key(0), (4, case.size, case.size, 3))
    shapes = jax.eval_shape(case.model.init, jax.random.key(0), x[:1])
    apply, variables = cj.fold_batch_norm(case.model.apply, parity.draw(shapes, seed=0), x[:1])
    q = cj.quantize(apply, cj.quant.int8())
    qv = q.calibrate(variables, [x], observer=cj.quant.min_max())
    files = {
        "int8, via jax2tf": cj.export.tflite(q, qv, x[:1], via="jax2tf"),
        "int8, via litert": cj.export.tflite(q, qv, x[:1], via="litert"),
        _BY_HAND: peers.tflite_converter(apply, variables, x),
        "float, via jax2tf": cj.export.tflite(apply, variables, x[:1], via="jax2tf"),
        "float, via litert": cj.export.tflite(apply, variables, x[:1], via="litert"),
    }
    return timing.interleaved(
        {name: caller(file, np.asarray(x[:1])) for name, file in files.items()},
        rounds=rounds,
        warmup=5,
        clock=clock,
    )


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    known = cases(_WIDE.value)
    chosen = _FASTER.value or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise app.UsageError(f"no network {unknown[0]!r}; there are {', '.join(known)}")
    rounds, clock = options.ROUNDS.value or 40, options.CLOCK.value
    rows = {name: measure(known[name], rounds=rounds, clock=clock) for name in chosen}
    if options.JSON.value:
        print(timing.document({"rows": rows, "rounds": rounds, "clock": clock.value}))
        return
    print(f"{rounds} rounds, {clock.value} time, one example, one thread")
    for name, timings in rows.items():
        print(f"\n{name}: goals: float at least {known[name].goal}, ours at most {_MOST} of theirs")
        print(timing.table(timings))
        print(f"ours over the TFLite converter's int8: {1 / timings[_BY_HAND].ratio:.3f}")


if __name__ == "__main__":
    app.run(main)
