"""What each stage does, from training a dense network to measuring the int8 file.

Every stage is a function `(config, directory, inputs) -> figures`: it reads the variables that the
stages before it saved, writes its own into its directory and returns what it measured. Which of
them run is decided in `pipeline.py`, the networks are rebuilt in `networks.py`.
"""

import dataclasses
import functools
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import compressjax as cj
from compressjax import _atomic, report, training
from experiments import fitting, networks
from experiments.fitting import Setup, scored, set_up
from experiments.networks import Data, Network, Variables
from experiments.pipeline import Figures, Results, Stage

FLOAT_FILES = {
    "train": "dense_float.tflite",
    "prune": "pruned_float.tflite",
    "shrink": "shrunk_float.tflite",
    "distil": "distilled_float.tflite",
}
INT8_FILE = "model_int8.tflite"
APP_FILE = "model_app.tflite"


def _teacher(setup: Setup, inputs: Results) -> Any:
    variables = networks.load(inputs["train"].directory, setup.like)
    return functools.partial(setup.dense.apply, variables)


def _hinton(settings: Any) -> Any:
    return functools.partial(
        cj.distill.hinton, temperature=settings.temperature, alpha=settings.alpha
    )


def _cached(config: Any, directory: pathlib.Path, setup: Setup, inputs: Results) -> fitting.Lesson:
    """What the teacher says of some views of the training images, from the disk if it is there."""
    data = setup.data
    views = training.Views(data.augment, fitting.key(config, "views"), config.distil.views)
    logits = training.cache_logits(
        setup.dense.apply,
        networks.load(inputs["train"].directory, setup.like),
        data.train_images,
        data.train_labels,
        views,
        directory=directory,
    )
    targets = training.Targets(data.train_labels, jax.device_put(logits))
    return fitting.Lesson(targets, views.draw)


def _fit(
    config: Any,
    directory: pathlib.Path,
    data: Data,
    variables: Variables,
    apply: networks.Apply,
    loss_fn: Any,
    wrap: fitting.Wrap = lambda tx, steps: tx,
    lesson: fitting.Lesson | None = None,
) -> Variables:
    """Train `variables` as the section named like the directory says, and save them."""
    name = directory.name
    variables = fitting.fit(
        config[name],
        fitting.key(config, name),
        directory,
        data,
        variables,
        apply,
        loss_fn,
        wrap,
        lesson,
    )
    networks.save(directory, variables)
    return variables


def _figures(data: Data, apply: networks.Apply, variables: Variables) -> Figures:
    score = scored(data, apply, variables)
    return {
        **networks.size_figures(apply, variables, data.example),
        "correct": score.correct,
        "total": score.total,
        "accuracy": score.accuracy,
    }


def train(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Train the dense network on the labels."""
    del inputs
    data, dense, init, _ = set_up(config)
    variables = jax.jit(init)(fitting.key(config, "init"), data.example)
    loss_fn = training.supervised(dense.forward, label_smoothing=config.train.label_smoothing)
    variables = _fit(config, directory, data, variables, dense.apply, loss_fn)
    return _figures(data, dense.apply, variables)


def prune(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Fine-tune the dense network while ever more of its small weights become zero.

    The schedule is that of Zhu and Gupta, "To prune, or not to prune", 2017.
    """
    data, dense, _, like = set_up(config)
    variables = networks.load(inputs["train"].directory, like)
    settings = config.prune

    def wrap(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        end = max(1, int(settings.until * steps))
        schedule = cj.pruning.polynomial(
            settings.sparsity, begin=0, end=end, every=max(1, end // settings.updates)
        )
        return cj.prune(tx, schedule=schedule, select=settings.select)

    loss_fn = training.supervised(dense.forward, label_smoothing=settings.label_smoothing)
    variables = _fit(config, directory, data, variables, dense.apply, loss_fn, wrap)
    return _figures(data, dense.apply, variables)


def _shrunk(config: Any, setup: Setup, inputs: Results) -> tuple[Network, Variables]:
    variables = networks.load(inputs["prune"].directory, setup.like)
    x = setup.data.example
    small, variables = networks.shrunk(setup.dense, variables, x, config.shrink)
    return networks.factorized(small, variables, x, config.factorize)


def shrink(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Cut whole channels out, and factorize what is left if asked to: no training yet."""
    setup = set_up(config)
    small, variables = _shrunk(config, setup, inputs)
    networks.save(directory, variables)
    return _figures(setup.data, small.apply, variables)


def distil(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Train the small network on what the dense one says; its zeros stay.

    With `views`, the dense network runs over that many augmented views of the data only once.
    """
    setup = set_up(config)
    small, variables = _shrunk(config, setup, inputs)
    forward, loss = networks.keeping_zeros(small.forward, variables), _hinton(config.distil)
    lesson = _cached(config, directory, setup, inputs) if config.distil.views else None
    if lesson is None:
        loss_fn = training.distilled(forward, _teacher(setup, inputs), loss)
    else:
        loss_fn = training.distilled_from_cache(forward, loss)
    variables = _fit(config, directory, setup.data, variables, small.apply, loss_fn, lesson=lesson)
    return _figures(setup.data, small.apply, variables)


class Quantized(NamedTuple):
    """The small network with batch norm folded, as floats and as int8."""

    apply: networks.Apply
    variables: Variables
    q: Any
    calibrated: Variables


def _quantized(config: Any, setup: Setup, inputs: Results) -> Quantized:
    """Fold and calibrate the distilled network."""
    data, settings = setup.data, config.quantize
    small, like = _shrunk(config, setup, inputs)
    variables = networks.load(inputs["distil"].directory, like)
    folded, variables = cj.fold_batch_norm(small.apply, variables, data.example)
    q = cj.quantize(folded, settings.spec())
    count = settings.calibration_batches * settings.batch_size
    images = jax.jit(data.prepare)(data.train_images[:count])
    batches = [
        images[start : start + settings.batch_size]
        for start in range(0, images.shape[0], settings.batch_size)
    ]
    calibrated = q.calibrate(variables, batches, observer=settings.observer())
    return Quantized(folded, variables, q, calibrated)


def quantize(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Fold batch norm, calibrate, and train on the phone's own arithmetic."""
    setup = set_up(config)
    folded, variables, q, calibrated = _quantized(config, setup, inputs)

    def observe(variables: Variables, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Variables]:
        del rng
        return q.observe(variables, x)

    forward = networks.keeping_zeros(observe, variables)
    teacher = _teacher(setup, inputs)
    loss_fn = training.distilled(forward, teacher, _hinton(config.quantize))
    calibrated_score = scored(setup.data, q.apply, calibrated)
    trained = _fit(config, directory, setup.data, calibrated, q.apply, loss_fn)
    score = scored(setup.data, q.apply, trained)
    return {
        **networks.size_figures(folded, {"params": trained["params"]}, setup.data.example),
        "calibrated_accuracy": calibrated_score.accuracy,
        "correct": score.correct,
        "total": score.total,
        "accuracy": score.accuracy,
    }


def export(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Write the .tflite of every stage: float ones to compare with, and the int8 one."""
    setup = set_up(config)
    x, via = setup.data.example, config.export.via
    small, like = _shrunk(config, setup, inputs)
    floats = {
        "train": (setup.dense.apply, setup.like),
        "prune": (setup.dense.apply, setup.like),
        "shrink": (small.apply, like),
        "distil": (small.apply, like),
    }
    figures: Figures = {}
    for stage, (apply, like) in floats.items():
        variables = networks.load(inputs[stage].directory, like)
        model = cj.export.tflite(apply, variables, x, via=via)
        figures[stage] = _write(directory / FLOAT_FILES[stage], model)
    _, _, q, calibrated = _quantized(config, setup, inputs)
    variables = networks.load(inputs["quantize"].directory, calibrated)
    for name, exporter in int8_files(config).items():
        model = cj.export.tflite(q, variables, x, via=exporter)
        figures[name] = _write(directory / name, model)
    return figures


def int8_files(config: Any) -> dict[str, str]:
    """Which int8 files a config asks for.

    Args:
      config: the whole config.

    Returns:
      The exporter of each file, by name; the file that is shipped first.
    """
    files = {INT8_FILE: config.export.via}
    if config.export.verify_both:
        other = "litert" if config.export.via == "jax2tf" else "jax2tf"
        files[f"model_int8_{other}.tflite"] = other
    return files


def _write(path: pathlib.Path, model: bytes) -> Figures:
    _atomic.write_bytes(path, model)
    size = report.coded_size(model)
    return {
        "file": path.name,
        "file_bytes": size.file_bytes,
        "gzip_bytes": size.gzip_bytes,
        "entropy_bytes": size.entropy_bytes,
        "crc32": zlib.crc32(model),
    }


def verify(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Compare LiteRT with JAX, value by value, over the whole test set."""
    del directory
    setup = set_up(config)
    _, _, q, calibrated = _quantized(config, setup, inputs)
    variables = networks.load(inputs["quantize"].directory, calibrated)
    x = jax.jit(setup.data.prepare)(setup.data.test_images)
    labels = np.asarray(setup.data.test_labels)
    figures: Figures = {}
    for name, exporter in int8_files(config).items():
        model = (inputs["export"].directory / name).read_bytes()
        parity = cj.export.verify(model, q, variables, x)
        predictions = np.argmax(cj.export.run(model, x), axis=-1)
        figures[name] = {
            "via": exporter,
            "examples": parity.samples,
            "values": sum(layer.values for layer in parity.layers),
            "differing": sum(layer.differing for layer in parity.layers),
            "max_difference": parity.max_lsb,
            "top1_agreement": parity.top1_agreement,
            "first_difference": parity.first_divergence,
            "accuracy": float(np.mean(predictions == labels)),
        }
    return figures


def package(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Write what an app takes: probabilities out, the names of the classes, and uint8 images in.

    Images that are stored as floats are normalised by the app, as the metadata says.
    """
    data = networks.load_data(config.data)
    said = cj.export.Metadata(config.title, labels=data.class_names, **config.package.to_dict())
    model = cj.export.with_softmax((inputs["export"].directory / INT8_FILE).read_bytes())
    if data.test_images.dtype == np.uint8:
        images = data.test_images
        model = cj.export.with_image_input(model, mean=255 * data.mean, std=255 * data.std)
    else:
        images = jax.jit(data.prepare)(data.test_images)
        mean, std = (tuple(np.asarray(each).tolist()) for each in (data.mean, data.std))
        said = dataclasses.replace(said, mean=mean, std=std)
    model = cj.export.with_metadata(model, said)
    probabilities = cj.export.run(model, np.asarray(images))
    correct = int(np.sum(np.argmax(probabilities, -1) == np.asarray(data.test_labels)))
    return {
        **_write(directory / APP_FILE, model),
        "correct": correct,
        "total": len(probabilities),
        "accuracy": correct / len(probabilities),
    }


def benchmark(config: Any, directory: pathlib.Path, inputs: Results) -> Figures:
    """Time every .tflite on LiteRT, one example at a time."""
    del directory
    figures: Figures = {}
    for entry in inputs["export"].figures.values():
        model = (inputs["export"].directory / entry["file"]).read_bytes()
        latency = cj.export.benchmark(model, threads=config.benchmark.threads)
        figures[entry["file"]] = {
            "p50_ms": 1e3 * latency.p50,
            "p90_ms": 1e3 * latency.p90,
            "min_ms": 1e3 * latency.min,
            "not_delegated": latency.not_delegated,
        }
    return figures


_BASE = ("seed", "data", "model")
STAGES = (
    Stage("train", train, (*_BASE, "train"), ()),
    Stage("prune", prune, (*_BASE, "prune"), ("train",)),
    Stage("shrink", shrink, (*_BASE, "shrink", "factorize"), ("prune",)),
    Stage(
        "distil", distil, (*_BASE, "shrink", "factorize", "distil"), ("train", "prune", "shrink")
    ),
    Stage(
        "quantize",
        quantize,
        (*_BASE, "shrink", "factorize", "quantize"),
        ("train", "prune", "distil"),
    ),
    Stage(
        "export",
        export,
        (*_BASE, "shrink", "factorize", "quantize", "export"),
        ("train", "prune", "shrink", "distil", "quantize"),
        version=2,
    ),
    Stage(
        "verify",
        verify,
        (*_BASE, "shrink", "factorize", "quantize", "export"),
        ("prune", "distil", "quantize", "export"),
    ),
    Stage("package", package, ("data", "title", "package"), ("export",)),
    Stage("benchmark", benchmark, ("benchmark",), ("export",)),
)
