"""How much faster LiteRT runs a network once channels are cut: latency beside multiply-accumulates.

    python -m experiments.bench.slim_latency

VGG16 at 32x32 and ResNet-18 at 224x224 with drawn weights, shrunk to half their MACs and resized to
plain modules; float and int8 files, dense and shrunk in turns, one example on one thread. Takes
two minutes on 2 CPU cores. Goal: at half the MACs at most 0.65 of the dense latency.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import models, slimming
from experiments import networks
from experiments.bench import options, parity, timing
from experiments.bench.sparse_export import caller

_GOAL = 0.65
_MACS = flags.DEFINE_float("macs", 0.5, "Part of the multiply-accumulates to keep.", 0.0, 1.0)
_MULTIPLE = flags.DEFINE_integer("multiple", 8, "Channels are multiples of this.", lower_bound=1)
_PIXELS = flags.DEFINE_integer("pixels", 224, "Height and width of ResNet-18's image.", 32)
_NETWORKS = flags.DEFINE_list("networks", ["VGG16", "ResNet-18"], "Which are measured.")


class Case(NamedTuple):
    """A network to shrink.

    Attributes:
      model: the network.
      size: height and width of its images.
    """

    model: Any
    size: int


def cases(pixels: int) -> dict[str, Case]:
    """The networks of the benchmark.

    Args:
      pixels: height and width of ResNet-18's images.

    Returns:
      The networks by name.
    """
    return {
        "VGG16": Case(models.VGG16(num_classes=10), 32),
        "ResNet-18": Case(models.ResNet18(num_classes=1000), pixels),
    }


def files(apply: networks.Apply, variables: Any, x: jax.Array) -> dict[str, bytes]:
    """Exports a network with its batch norms folded.

    Args:
      apply: the network, in evaluation mode.
      variables: its variables.
      x: one example, which the int8 file is calibrated with.

    Returns:
      The float and the int8 file.
    """
    apply, folded = cj.fold_batch_norm(apply, variables, x)
    q = cj.quantize(apply, cj.quant.int8())
    calibrated = q.calibrate(folded, [x], observer=cj.quant.min_max())
    return {
        "float": cj.export.tflite(apply, folded, x, via="litert"),
        "int8": cj.export.tflite(q, calibrated, x, via="litert"),
    }


def measure(
    case: Case, *, macs: float, multiple: int, rounds: int, clock: timing.Clock
) -> dict[str, Any]:
    """Shrinks one network and times it against itself.

    Args:
      case: the network.
      macs: part of the multiply-accumulates to keep.
      multiple: what is kept of a layer is a multiple of this many channels.
      rounds: times each file is called.
      clock: what is measured.

    Returns:
      MACs, parameters and the widths of the shrunk network, and for each kind of file the sizes and
      the timing, dense first.
    """
    x = jax.random.normal(jax.random.key(0), (1, case.size, case.size, 3))
    abstract = jax.eval_shape(functools.partial(case.model.init, jax.random.key(0)), x)
    variables = parity.draw(abstract, seed=0)
    cut = cj.shrink(case.model.apply, variables, x, target=slimming.macs(macs), round_to=multiple)
    small = models.resize(case.model, cut.variables, cut.kept)
    pairs = {"dense": (case.model.apply, variables), "shrunk": (small.apply, cut.variables)}
    graphs = {name: cj.trace(apply, v, x) for name, (apply, v) in pairs.items()}
    made = {name: files(apply, v, x) for name, (apply, v) in pairs.items()}
    found: dict[str, Any] = {
        "macs": {name: graph.macs for name, graph in graphs.items()},
        "parameters": {name: graph.num_params for name, graph in graphs.items()},
        "widths": [tuple(small.widths), tuple(small.hidden)],
        "files": {},
    }
    for kind in made["dense"]:
        found["files"][kind] = {
            "bytes": {name: len(kinds[kind]) for name, kinds in made.items()},
            "timings": timing.interleaved(
                {name: caller(kinds[kind], np.asarray(x)) for name, kinds in made.items()},
                rounds=rounds,
                warmup=5,
                clock=clock,
            ),
        }
    return found


def line(name: str, kind: str, row: dict[str, Any]) -> str:
    """Formats one kind of file for a terminal."""
    timings = row["files"][kind]["timings"]
    dense, shrunk = timings["dense"], timings["shrunk"]
    ratios = [
        sizes["shrunk"] / sizes["dense"]
        for sizes in (row["macs"], row["parameters"], row["files"][kind]["bytes"])
    ]
    return (
        f"{name:<12} {kind:<6} {row['macs']['dense'] / 1e6:>8.0f} "
        + " ".join(f"{ratio:>7.3f}" for ratio in ratios)
        + f" {1e3 * dense.median:>9.2f} {1e3 * shrunk.median:>9.2f}   {shrunk.ratio:.3f} "
        f"({shrunk.ratio_low:.3f} to {shrunk.ratio_high:.3f})"
    )


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    known = cases(_PIXELS.value)
    if unknown := [name for name in _NETWORKS.value if name not in known]:
        raise app.UsageError(f"no network {unknown[0]!r}; there are {', '.join(known)}")
    rounds, clock = options.ROUNDS.value or 40, options.CLOCK.value
    rows = {
        name: measure(
            known[name],
            macs=_MACS.value,
            multiple=_MULTIPLE.value,
            rounds=rounds,
            clock=clock,
        )
        for name in _NETWORKS.value
    }
    if options.JSON.value:
        print(timing.document({"rows": rows, "rounds": rounds, "clock": clock.value}))
        return
    print(
        f"{rounds} rounds, {clock.value} time, one example, one thread; goal: at most {_GOAL} of "
        "the dense latency at half the MACs"
    )
    print(
        f"{'network':<12} {'file':<6} {'MMACs':>8} {'MACs':>7} {'params':>7} {'bytes':>7} "
        f"{'dense ms':>9} {'shrunk ms':>9}   latency (quartiles)"
    )
    for name, row in rows.items():
        for kind in row["files"]:
            print(line(name, kind, row))
        print(f"{'':<12} widths {row['widths']}")


if __name__ == "__main__":
    app.run(main)
