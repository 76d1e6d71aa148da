"""Whether LiteRT computes what `q.apply` says, layer by layer, on real images.

    python -m experiments.bench.parity --data=cifar10 --images=1000

takes some minutes on 2 CPU cores with the default narrow widths; `--full` takes the published
ones. Weights are drawn so that dead, nearly dead and dominant channels occur, and batch norm gets
the statistics of real images. `--config` and `--workdir` add the trained network of an experiment.
The goal is 0 differing values in every row.
"""

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags

import compressjax as cj
from compressjax import models, tree
from experiments import networks, run
from experiments.bench import options, timing, trained

_DATA = flags.DEFINE_string("data", "digits", "A data set of TFDS, or the embedded digits.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS keeps it.")
_FULL = flags.DEFINE_bool("full", False, "Networks of their published widths.")
_ONLY = flags.DEFINE_list("only", [], "Networks to compare; all if empty.")
_VIA = flags.DEFINE_list("via", ["litert"], "Exporters: litert, jax2tf or both.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights.")

_V2_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)
_V3_STRIDES = (1, 1, 2, 2, 1, 2)
_VGG = (8, 8, 16, 16, *(24,) * 3, *(32,) * 6)
NARROW = {
    "ResNet-8": (models.ResNet8, {}),
    "MobileNetV2 x0.25": (models.MobileNetV2, {"multiplier": 0.25, "strides": _V2_STRIDES}),
    "VGG16 narrow": (models.VGG16, {"widths": _VGG, "hidden": (32,)}),
    "ResNet-18 narrow": (
        models.ResNet18,
        {"widths": (8, 16, 24, 32), "small_images": True},
    ),
    "MobileNetV3-Small x0.5": (
        models.MobileNetV3Small,
        {"multiplier": 0.5, "strides": _V3_STRIDES},
    ),
}
FULL = {
    "ResNet-8": (models.ResNet8, {}),
    "MobileNetV2": (models.MobileNetV2, {"strides": _V2_STRIDES}),
    "VGG16": (models.VGG16, {"hidden": (512,)}),
    "ResNet-18": (models.ResNet18, {"small_images": True}),
    "MobileNetV3-Small": (models.MobileNetV3Small, {"strides": _V3_STRIDES}),
}


class Row(NamedTuple):
    """How one file compares with its network.

    Attributes:
      model: its name.
      via: the exporter.
      images: compared.
      values: compared, of all int8 tensors and the logits.
      differing: of them.
      max_step: the largest difference, in steps of the tensor's grid.
      first: the first tensor that differs, or None.
      seconds: that exporting and comparing took.
    """

    model: str
    via: str
    images: int
    values: int
    differing: int
    max_step: int
    first: str | None
    seconds: float


def draw(shapes: Any, seed: int) -> Any:
    """Draws variables in which dead, nearly dead and dominant channels occur.

    Of every layer about 4 % of the kernels' output channels are zero, and 4 % of the norms' scales
    are zero, 4 % a millionth and 4 % twenty times the others; signs are mixed.

    Args:
      shapes: the variables, abstract.
      seed: the same seed gives the same variables.

    Returns:
      NumPy arrays in the same tree; statistics are those of a unit normal.
    """
    rng = np.random.default_rng(seed)

    def leaf(path: str, x: Any) -> np.ndarray:
        kind = rng.uniform(size=x.shape[-1])
        if path.endswith("kernel"):
            kernel = rng.normal(size=x.shape) / math.sqrt(math.prod(x.shape[:-1]))
            drawn = kernel * (kind > 0.04)
        elif path.endswith("scale"):
            usual = rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1.0, 1.0, 1.0, 1.0], x.shape)
            rare = [kind < 0.04, kind < 0.08, kind < 0.12]
            drawn = np.select(rare, [0.0 * usual, 1e-6 * usual, 20 * usual], usual)
        elif path.endswith("var"):
            drawn = np.ones(x.shape)
        else:
            drawn = rng.normal(0, 0.3, x.shape) * (not path.endswith("mean"))
        return drawn.astype(np.float32)

    return tree.map_with_path(leaf, shapes)


def untrained(make: Any, fields: dict[str, Any], data: networks.Data, seed: int) -> trained.Trained:
    """Builds a network with drawn weights and with batch statistics of real images.

    Args:
      make: the model's class.
      fields: of the model.
      data: its images.
      seed: of the weights.

    Returns:
      The folded network.
    """
    settings = ml_collections.ConfigDict({"make": make, "options": fields})
    network, init = networks.dense(settings, data.num_classes)
    variables = draw(jax.eval_shape(init, jax.random.key(0), data.example), seed)
    shown = trained.batches(data, data.train_images, size=128, count=128)
    move = jax.jit(lambda variables, x: {**variables, **network.train(variables, x)[1]})
    for _ in range(60):  # a momentum of 0.9 forgets where it began
        variables = move(variables, shown[0])
    return trained.Trained(*cj.fold_batch_norm(network.apply, variables, data.example), data)


def compare(model: str, network: trained.Trained, images: int, via: str) -> Row:
    """Calibrates, exports and compares a network.

    Args:
      model: its name.
      network: folded.
      images: how many test images are compared.
      via: the exporter.

    Returns:
      The row of the table.
    """
    data, started = network.data, time.monotonic()
    q = cj.quantize(network.apply, cj.quant.int8())
    shown = trained.batches(data, data.train_images, size=128, count=256)
    qv = q.calibrate(network.variables, shown)
    x = jnp.concatenate(trained.batches(data, data.test_images, size=500, count=images))
    file = cj.export.tflite(q, qv, x[:1], via=via)
    parity = cj.export.verify(file, q, qv, x)
    return Row(
        model,
        via,
        parity.samples,
        sum(layer.values for layer in parity.layers),
        sum(layer.differing for layer in parity.layers),
        parity.max_lsb,
        parity.first_divergence,
        time.monotonic() - started,
    )


def table(rows: Sequence[Row]) -> str:
    """Formats the rows for a terminal.

    Args:
      rows: of `compare`.

    Returns:
      One line a row, under a heading.

    Example:
      >>> print(table([Row('ResNet-8', 'litert', 10, 1234567, 0, 0, None, 1.0)]))
      model                    via     images          values  differing  max step  first
      ResNet-8                 litert      10       1,234,567          0         0  nowhere
    """
    lines = [
        f"{'model':<24} {'via':<6} {'images':>7} {'values':>15} {'differing':>10}"
        f" {'max step':>9}  first"
    ]
    lines += [
        f"{row.model:<24} {row.via:<6} {row.images:>7,} {row.values:>15,} {row.differing:>10,}"
        f" {row.max_step:>9}  {row.first or 'nowhere'}"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Compares and prints, each row as soon as it is there."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    images = options.IMAGES.value or 1000
    if (run.CONFIG.value is None) != (run.WORKDIR.value is None):
        raise app.UsageError("--config and --workdir go together")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
    settings = {"name": _DATA.value, "directory": _DATA_DIR.value, "train_split": "train"}
    settings |= {"test_split": "test", "shift": 0, "flip": False, "degrees": 0.0}
    data = networks.load_data(ml_collections.ConfigDict(settings))
    chosen = FULL if _FULL.value else NARROW
    if unknown := set(_ONLY.value) - set(chosen):
        raise app.UsageError(f"no network is called {sorted(unknown)}, only {list(chosen)}")
    rows = []

    def add(name: str, network: trained.Trained) -> None:
        for via in _VIA.value:
            rows.append(compare(name, network, images, via))
            if not options.JSON.value:
                print(table(rows[-1:]).splitlines()[1], flush=True)

    if not options.JSON.value:
        print(table([]), flush=True)
    if run.CONFIG.value is not None:
        add("trained", trained.load(run.CONFIG.value, run.WORKDIR.value))
    for name, (make, fields) in chosen.items():
        if not _ONLY.value or name in _ONLY.value:
            add(name, untrained(make, fields, data, _SEED.value))
    if options.JSON.value:
        print(timing.document({"rows": [row._asdict() for row in rows]}))
        return
    differing = sum(row.differing for row in rows)
    print(f"{differing:,} of {sum(row.values for row in rows):,} values differ")


if __name__ == "__main__":
    app.run(main, flags_parser=run.parse)
