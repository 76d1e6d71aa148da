"""Chooses how to quantize a trained network, from calibration images without labels.

No observer and no correction is best for every network. `auto` tries them one after another, keeps
what brings the outputs on images that were held out closer to the float network's, and says what it
tried. The methods themselves are in `observers` and `correction`.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.quant import correction, observers
from compressjax.quant.calibration import as_tuple
from compressjax.quant.observers import Observer
from compressjax.quant.quantize import Quantized, quantize
from compressjax.quant.spec import Spec

Error = Callable[[jax.Array, jax.Array], jax.Array]
# Values of a tensor that a histogram counts in a batch; more change nothing that can be seen.
_SAMPLES = 2**16


class Tried(NamedTuple):
    """One way of quantizing, as `auto` found it.

    Attributes:
      name: the observer and the corrections, such as `'mse + equalize'`.
      error: on the images held out; NaN where the method refused the network.
      refused: what it said, or None.
    """

    name: str
    error: float
    refused: str | None = None


class Auto(NamedTuple):
    """What `auto` chose.

    Attributes:
      q: the quantized function.
      qv: its calibrated and corrected variables.
      report: what was tried, in order; the smallest error is that of `qv`.
    """

    q: Quantized
    qv: dict[str, Any]
    report: tuple[Tried, ...]

    @property
    def chosen(self) -> Tried:
        """The entry of the report that `qv` is."""
        return min((tried for tried in self.report if tried.refused is None), key=lambda t: t.error)


def divergence(real: jax.Array, found: jax.Array) -> jax.Array:
    """Gives the Kullback-Leibler divergence of predictions from those of a float network.

    Args:
      real: logits of the float network, [..., K].
      found: logits of the quantized one, [..., K].

    Returns:
      The mean in nats, [].

    Example:
      >>> divergence(jnp.array([[0.0, 0.0]]), jnp.array([[5.0, 5.0]])).item()
      0.0
    """
    log_p, log_q = jax.nn.log_softmax(real), jax.nn.log_softmax(found)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def squared_error(real: jax.Array, found: jax.Array) -> jax.Array:
    """Gives the squared error over the square of the float network's outputs, [].

    Example:
      >>> squared_error(jnp.array([0.0, 4.0]), jnp.array([0.0, 3.0])).item()
      0.0625
    """
    return ((real - found) ** 2).sum() / jnp.maximum((real**2).sum(), jnp.finfo(real.dtype).tiny)


def usual_observers() -> dict[str, Observer]:
    """The observers that `auto` tries by default, by name.

    Example:
      >>> list(usual_observers())
      ['min-max', 'moving average', 'percentile 99.99', 'percentile 99.9', 'mse', 'entropy']
    """
    return {
        "min-max": observers.min_max(),
        "moving average": observers.moving_average(),
        "percentile 99.99": observers.percentile(99.99, samples=_SAMPLES),
        "percentile 99.9": observers.percentile(99.9, samples=_SAMPLES),
        "mse": observers.mse(samples=_SAMPLES),
        "entropy": observers.entropy(samples=_SAMPLES),
    }


def auto(
    fn: Callable[..., Any],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    spec: Spec | None = None,
    ways: Mapping[str, Observer] | None = None,
    held_out: int | None = None,
    rounding_steps: int = 0,
    error: Error = divergence,
) -> Auto:
    """Quantizes a trained network as well as its calibration images can tell, without labels.

    Every observer is tried first. With the best of them, corrections are tried in turn and kept
    where the error falls: cross-layer equalization (Nagel et al., 2019, 4.1), with it absorption of
    high biases (4.1.3), empirical bias correction (4.2), and AdaRound (Nagel et al., 2020).

    Args:
      fn: pure function `fn(variables, *args)` in evaluation mode, with batch norms folded.
      variables: its variables.
      batches: calibration inputs, each an array or a tuple of arguments; at least two.
      spec: with static activations; `int8()` if None.
      ways: the observers to try, by name; `usual_observers` if None.
      held_out: how many of the last batches decide and calibrate nothing; a quarter, at least one,
        if None.
      rounding_steps: gradient steps of AdaRound for each layer; 0 leaves it out. It is slow and,
        with 8 bits, rarely of use.
      error: of float outputs and quantized ones; the outputs are logits by default.

    Returns:
      The quantized function, its variables and the report.

    Raises:
      ValueError: if fewer than two batches are given, none is left to calibrate or to decide with,
        or no observer is given.

    Example:
      >>> fn = lambda v, x: jax.nn.relu(x @ v['a']) @ v['b']
      >>> variables = {'a': jnp.eye(2), 'b': jnp.array([[1.0, -1.0], [0.5, 2.0]])}
      >>> x = jax.random.normal(jax.random.key(0), (2, 64, 2))
      >>> found = auto(fn, variables, list(x))
      >>> len(found.report), found.chosen.error < 1e-3
      (9, True)
    """
    shown, judged = _split(batches, held_out)
    choices = usual_observers() if ways is None else dict(ways)
    if not choices:
        raise ValueError("auto was given no observers: pass at least one, as in {'mse': mse()}")
    q = quantize(fn, spec)
    score = _scorer(fn, q, variables, judged, error)
    report: list[Tried] = []
    kept = _Kept("", float("inf"), {}, variables)

    def attempt(name: str, reference: Any, make: Callable[[], dict[str, Any]]) -> None:
        nonlocal kept
        try:
            qv = make()
        except ValueError as refused:
            report.append(Tried(name, float("nan"), str(refused)))
            return
        report.append(Tried(name, score(qv)))
        if report[-1].error < kept.error:
            kept = _Kept(name, report[-1].error, qv, reference)

    for name, observer in choices.items():
        attempt(
            name, variables, functools.partial(q.calibrate, variables, shown, observer=observer)
        )
    if not kept.qv:
        raise ValueError(f"no observer gave a finite error; the first: {report[0]}")
    start, observer = kept.name, choices[kept.name]
    level: Any = variables
    for name, move in (("equalize", _equalized), ("absorb", _absorbed)):
        start = f"{start} + {name}"
        try:
            level = move(fn, level, shown)
        except ValueError as refused:
            report.append(Tried(start, float("nan"), str(refused)))
            break
        attempt(start, level, functools.partial(q.calibrate, level, shown, observer=observer))
    base = kept
    if rounding_steps:
        attempt(
            f"{base.name} + adaround",
            base.reference,
            lambda: correction.adaround(
                q, base.qv, shown, steps=rounding_steps, rng=jax.random.key(0)
            ),
        )
    last = kept
    attempt(
        f"{last.name} + bias",
        last.reference,
        lambda: correction.correct_bias(q, last.qv, shown, reference=last.reference),
    )
    return Auto(q, kept.qv, tuple(report))


class _Kept(NamedTuple):
    """The best so far, and the float variables that it approximates."""

    name: str
    error: float
    qv: dict[str, Any]
    reference: Any


def _split(batches: Iterable[Any], held_out: int | None) -> tuple[list[Any], list[Any]]:
    """The batches to calibrate with and those to decide with, as tuples of arguments."""
    if hasattr(batches, "shape"):
        raise ValueError(
            f"auto was given one array of shape {batches.shape}, expected batches, such as "
            "[images[:256], images[256:]]"
        )
    found = [as_tuple(batch) for batch in batches]
    count = max(1, len(found) // 4) if held_out is None else held_out
    if not 0 < count < len(found):
        raise ValueError(
            f"auto was given {len(found)} batches and holds out {count}: expected at least one to "
            "calibrate with and one to decide with"
        )
    return found[:-count], found[-count:]


def _scorer(
    fn: Callable[..., Any], q: Quantized, variables: Any, judged: Sequence[Any], error: Error
) -> Callable[[Any], float]:
    """Gives `score(qv)`: the mean error on the batches held out, each by its size."""
    outputs = jax.jit(fn)
    real = [outputs(variables, *args) for args in judged]

    @jax.jit
    def error_of(qv: Any, args: tuple[Any, ...], real: Any) -> jax.Array:
        errors = jax.tree.map(error, real, q.apply(qv, *args))
        return jnp.stack(jax.tree.leaves(errors)).mean()

    def score(qv: Any) -> float:
        errors = [float(error_of(qv, *pair)) for pair in zip(judged, real, strict=True)]
        sizes = [jax.tree.leaves(args)[0].shape[0] for args in judged]
        return sum(e * n for e, n in zip(errors, sizes, strict=True)) / sum(sizes)

    return score


def _equalized(fn: Callable[..., Any], variables: Any, shown: Sequence[Any]) -> Any:
    return correction.equalize(fn, variables, *shown[0], batches=shown)[1]


def _absorbed(fn: Callable[..., Any], variables: Any, shown: Sequence[Any]) -> Any:
    return correction.absorb_bias(fn, variables, shown, padded=True)
