"""What a narrow student gains from a teacher, by loss, from its own family and from another.

    python -m experiments.bench.distillation --config=experiments/configs/cifar10_vgg16.py \
        --workdir=runs/cifar10_vgg16 --student_seeds=0,1,2

trains the config's network and fine-tunes it (the folders are those of `network_slimming`, which
may be done already), then a student with a part of its width: alone, and with each loss. With
`--other_config` and `--other_workdir`, a second teacher of another architecture teaches the same
student; it is what `experiments.run --until=train` leaves. Every training has its own folder and a
run that was stopped goes on; other epochs, rates or temperatures need another workdir.

Features are taken after the last activation of each size that student and teacher share, in one
pass. A feature loss is added to the cross-entropy with the labels, so a row shows what it does by
itself. Its weight is written beside it in `losses` and was not tuned: a bad row between families
says something only where the same row within the family is good. Hints are trained beside the
student, not before it.
"""

import functools
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging
from ml_collections import config_flags

from compressjax import distill, training
from compressjax import graph as graphs
from experiments import fitting, networks, run
from experiments.bench import options, timing, trained

_PART = flags.DEFINE_float("student_part", 0.25, "Of the teacher's width.", 0.01, 1.0)
_SEEDS = flags.DEFINE_list("student_seeds", ["0", "1", "2"], "Seeds of every row.")
_LOSSES = flags.DEFINE_list("losses", [], "Rows beside `alone`; all of them if empty.")
_ATTENTION = flags.DEFINE_float(
    "attention_weight", 1000.0, "Of attention maps beside the labels; less for small maps.", 0.0
)
_OTHER = config_flags.DEFINE_config_file("other_config", None, "Of another family's teacher.")
_OTHER_WORKDIR = flags.DEFINE_string("other_workdir", None, "Where that teacher is or will be.")
_ALONE = "alone"

Maps = dict[int, jax.Array]


class Said(NamedTuple):
    """What a loss compares.

    Attributes:
      logits: [B, K].
      maps: [B, H, W, C] by H, widest first.
      hint: the student's middle map in the teacher's channels; the teacher's own for the teacher.
    """

    logits: jax.Array
    maps: Maps
    hint: jax.Array


class Teacher(NamedTuple):
    """A trained network that teaches."""

    apply: networks.Apply
    variables: networks.Variables


Loss = Callable[[Said, Said, jax.Array], jax.Array]


def _labels(student: Said, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(student.logits, labels)


def _over_maps(
    loss: Callable[[jax.Array, jax.Array], jax.Array], student: Said, teacher: Said
) -> jax.Array:
    return functools.reduce(
        jnp.add, [loss(student.maps[size], teacher.maps[size]) for size in student.maps]
    )


def _last(said: Said) -> jax.Array:
    return said.maps[min(said.maps)]


def _relational(student: Said, teacher: Said) -> jax.Array:
    inside = [_last(said).mean((1, 2)) for said in (student, teacher)]
    return 25.0 * distill.relational_distance(*inside) + 50.0 * distill.relational_angle(*inside)


def losses() -> dict[str, Loss]:
    """Gives the rows that have a teacher.

    Returns:
      `(student, teacher, labels [B]) -> loss [B]` by name.
    """
    heat = options.TEMPERATURE.value
    attention, selectivity = distill.attention_transfer, distill.neuron_selectivity
    return {
        "hinton": lambda s, t, labels: distill.hinton(
            s.logits, t.logits, labels, temperature=heat, alpha=options.ALPHA.value
        ),
        "decoupled": lambda s, t, labels: (
            _labels(s, labels) + distill.decoupled(s.logits, t.logits, labels, temperature=heat)
        ),
        "logits_regression": lambda s, t, labels: (
            _labels(s, labels) + distill.logits_regression(s.logits, t.logits)
        ),
        "fitnets": lambda s, t, labels: _labels(s, labels) + 2.0 * distill.hint(s.hint, t.hint),
        "attention": lambda s, t, labels: (
            _labels(s, labels) + _ATTENTION.value * _over_maps(attention, s, t)
        ),
        "similarity": lambda s, t, labels: (
            _labels(s, labels) + 3000.0 * distill.similarity(_last(s), _last(t))
        ),
        "relational": lambda s, t, labels: _labels(s, labels) + _relational(s, t),
        "selectivity": lambda s, t, labels: (
            _labels(s, labels) + 50.0 * _over_maps(selectivity, s, t)
        ),
    }


def places(fn: Callable[..., Any], variables: Any, x: jax.Array) -> dict[int, str]:
    """Finds the last activation of each size.

    Args:
      fn: `(variables, x) -> outputs`.
      variables: its variables.
      x: an example, [1, H, W, C].

    Returns:
      Names of operations by the height of their maps.
    """
    shapes = jax.eval_shape(lambda v, x: graphs.capturing(fn, "relu*")(v, x)[1], variables, x)
    return {shape.shape[1]: name for name, shape in shapes.items() if len(shape.shape) == 4}


def lesson(
    student: networks.Network,
    start: networks.Variables,
    teacher: Teacher,
    x: jax.Array,
    rng: jax.Array,
    loss: Loss,
) -> tuple[training.loop.LossFn, networks.Variables]:
    """Makes a student's loss with a teacher, and what it trains.

    Args:
      student: in both modes.
      start: its variables.
      teacher: who teaches it.
      x: an example, [1, H, W, C].
      rng: draws the adapter of the hint.
      loss: one of `losses`.

    Returns:
      A loss for `training.make_epoch` and its variables: `params` holds the student's and the
      adapter's.

    Raises:
      ValueError: if student and teacher share no size of maps.
    """
    of_student, of_teacher = (
        places(student.train, start, x),
        places(teacher.apply, teacher.variables, x),
    )
    sizes = sorted(set(of_student) & set(of_teacher), reverse=True)
    if not sizes:
        raise ValueError(
            f"the student's activations have heights {sorted(of_student)} and the teacher's "
            f"{sorted(of_teacher)}: none is shared; choose networks that halve their input alike"
        )
    middle = sizes[len(sizes) // 2]
    look = graphs.capturing(student.train, [of_student[size] for size in sizes])
    teach = graphs.capturing(teacher.apply, [of_teacher[size] for size in sizes])
    shapes = [
        jax.eval_shape(lambda v, x, f=f: f(v, x)[1], v, x)[at[middle]].shape
        for f, v, at in ((look, start, of_student), (teach, teacher.variables, of_teacher))
    ]

    def forward(variables: Any, x: jax.Array, rng: jax.Array) -> tuple[Said, Any]:
        inner = {**variables, "params": variables["params"]["student"]}
        (logits, statistics), inside = look(inner, x)
        maps = {size: inside[of_student[size]] for size in sizes}
        hint = distill.adapt(variables["params"]["adapter"], maps[middle])
        return Said(logits, maps, hint), {**variables, **statistics}

    def taught(x: jax.Array) -> Said:
        logits, inside = teach(teacher.variables, x)
        maps = {size: inside[of_teacher[size]] for size in sizes}
        return Said(logits, maps, maps[middle])

    loss_fn = training.distilled(forward, taught, loss, logits=lambda said: said.logits)
    params = {"student": start["params"], "adapter": distill.init_adapter(rng, *shapes)}
    return loss_fn, {**start, "params": params}


def teachers(config: Any, workdir: pathlib.Path, data: networks.Data) -> dict[str, Teacher]:
    """Trains the teachers, or loads them where that is done.

    Args:
      config: of the same family's teacher.
      workdir: gets its folders.
      data: both splits.

    Returns:
      The config's own network as `same`, and the other config's, if there is one, as `other`.
    """
    same = trained.tuned(config, workdir, data)
    found = {"same": Teacher(same.network.apply, same.variables)}
    if _OTHER.value is not None:
        other = trained.dense(_OTHER.value, _OTHER_WORKDIR.value)
        found["other"] = Teacher(other.network.apply, other.variables)
    return found


def measure(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains every row with every seed.

    Args:
      config: of an experiment, whose model has an option `multiplier`.
      workdir: gets a folder for each training run.

    Returns:
      Accuracies of teachers by name, and of students by row in the order of the seeds.

    Raises:
      ValueError: if a row is asked for that there is not.
    """
    known, wanted = losses(), _LOSSES.value or list(losses())
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"--losses has {unknown}; there are {list(known)}")
    data = networks.load_data(config.data)
    from_whom = teachers(config, workdir, data)
    narrow = config.model.copy_and_resolve_references()
    with narrow.unlocked():
        narrow.options.multiplier = _PART.value * narrow.options.get("multiplier", 1.0)
    student, init = networks.dense(narrow, data.num_classes)
    rows: dict[str, tuple[Loss, Teacher] | None] = {_ALONE: None} | {
        f"{loss} from {who}": (known[loss], from_whom[who]) for who in from_whom for loss in wanted
    }
    found: dict[str, list[float]] = {}
    seeded = config.copy_and_resolve_references()
    for seed in map(int, _SEEDS.value):
        seeded.seed = seed
        start = jax.jit(init)(fitting.key(seeded, "init"), data.example)
        for name, taught in rows.items():
            loss_fn, variables = training.supervised(student.forward), start
            if taught is not None:
                loss, teacher = taught
                rng = fitting.key(seeded, "adapter")
                loss_fn, variables = lesson(student, start, teacher, data.example, rng, loss)
            variables = trained.by_momentum(
                seeded,
                workdir / f"student_{_PART.value:g}_{name.replace(' ', '_')}_{seed}",
                data=data,
                loss_fn=loss_fn,
                variables=variables,
                epochs=options.TRAIN_EPOCHS.value,
                rate=options.TRAIN_RATE.value,
            )
            if taught is not None:
                variables = {**variables, "params": variables["params"]["student"]}
            score = fitting.scored(data, student.apply, variables).accuracy
            found.setdefault(name, []).append(score)
            logging.info("%s, seed %d: %.4f", name, seed, score)
    of_teachers = {
        who: fitting.scored(data, teacher.apply, teacher.variables).accuracy
        for who, teacher in from_whom.items()
    }
    return {"seeds": list(map(int, _SEEDS.value)), "teachers": of_teachers, "students": found}


def summary(accuracies: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Sums up a row.

    Args:
      accuracies: by seed.
      alone: of the student alone, by the same seeds.

    Returns:
      Mean and standard deviation (0 for one seed) of the accuracy and of the gain, seed by seed.

    Example:
      >>> summary([0.5, 0.75], [0.25, 0.5])['gain']
      0.25
    """
    gains = [one - other for one, other in zip(accuracies, alone, strict=True)]
    return {
        "mean": statistics.mean(accuracies),
        "spread": _spread(accuracies),
        "gain": statistics.mean(gains),
        "gain_spread": _spread(gains),
    }


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (_OTHER.value is None) != (_OTHER_WORKDIR.value is None):
        raise app.UsageError("--other_config and --other_workdir go together")
    found = measure(run.CONFIG.value, pathlib.Path(run.WORKDIR.value))
    alone = found["students"][_ALONE]
    rows = {name: summary(values, alone) for name, values in found["students"].items()}
    if options.JSON.value:
        print(timing.document({**found, "rows": rows}))
        return
    said = ", ".join(f"{who} {100 * value:.2f} %" for who, value in found["teachers"].items())
    print(f"teachers: {said}; student x{_PART.value:g}, {options.TRAIN_EPOCHS.value} epochs")
    print(f"{'':<28} accuracy, %      gain over the student alone, points; {len(alone)} seeds")
    for name, row in rows.items():
        print(
            f"{name:<28} {100 * row['mean']:6.2f} +- {100 * row['spread']:.2f}"
            f"  {100 * row['gain']:+6.2f} +- {100 * row['gain_spread']:.2f}"
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=run.parse)
