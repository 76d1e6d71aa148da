"""Ranks by variational Bayes: what of a kernel stands out of noise, with nothing to tune.

`rank.energy` is the neighbour that has to be told how much may go; here the noise of each layer is
estimated from its own singular values.
"""

import dataclasses
import math

import numpy as np
import scipy.optimize

from compressjax.lowrank.methods.base import Ranks
from compressjax.lowrank.rank import Case, Rule, cheaper, check_multiple, each, rounded


def vbmf(*, round_to: int = 1) -> Rule:
    """Keeps the ranks that empirical variational Bayes finds in each layer.

    Nakajima et al., "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
    Factorization" (2013); Kim et al., "Compression of Deep Convolutional Neural Networks for Fast
    and Low Power Mobile Applications" (2016), on using it for both sides of Tucker-2. It looks at
    kernels alone, also where there are moments: its noise is one of weights. The spectrum of a
    grouped layer is the root mean square over groups. A layer that would not cost less stays whole.

    Args:
      round_to: ranks go up to a multiple of this, where the layer has as many.

    Returns:
      The rule; at least one rank stays.

    Raises:
      ValueError: if `round_to` is under 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import compressjax as cj
      >>> rng = np.random.default_rng(0)
      >>> w = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(40, 30))
      >>> fn = lambda v, x: x @ v['w']
      >>> found = cj.factorize(fn, {'w': jnp.asarray(w)}, jnp.ones((1, 40)), rank=vbmf())
      >>> found.ranks
      {'w': (3,)}
    """
    check_multiple(round_to)

    def chosen(case: Case) -> Ranks | None:
        spectra = dataclasses.replace(case, moments=None).spectra
        size = case.weights[0].size
        ranks = []
        for values, limit in zip(spectra, case.limits, strict=True):
            alone = values / math.sqrt(case.layer.groups)
            found = max(1, relevant(alone, (limit, size // limit)))
            ranks.append(rounded(found, limit, round_to))
        return cheaper(case, tuple(ranks))

    return each(chosen)


def relevant(values: np.ndarray, shape: tuple[int, int]) -> int:
    """Counts the singular values of a matrix that stand out of its noise.

    Args:
      values: singular values, falling; all that are not 0.
      shape: of the matrix.

    Returns:
      The rank of the empirical variational Bayes solution, noise variance estimated; it may be 0.

    Example:
      >>> noise = np.random.default_rng(0).normal(size=(30, 60))
      >>> low = noise + 5 * np.outer(np.ones(30), np.ones(60))
      >>> [relevant(np.linalg.svd(m, compute_uv=False), m.shape) for m in (noise, low)]
      [0, 1]
    """
    rows, columns = sorted(shape)
    squares = np.square(np.asarray(values, np.float64)[:rows])
    if not squares.sum():
        return 0
    alpha, threshold = rows / columns, _threshold(rows / columns)
    # The noise variance lies between that of the values which cannot all be signal, and of all.
    rest = squares[min(math.ceil(rows / (1 + alpha)) - 1, len(squares) - 1) :]
    high = squares.sum() / (rows * columns)
    low = max(rest[0] / (columns * threshold), rest.mean() / columns, 1e-12 * high)
    if low >= high:
        return int(np.sum(squares > columns * high * threshold))
    found = scipy.optimize.minimize_scalar(
        lambda log: free_energy(squares / (columns * math.exp(log)), alpha),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
    )
    return int(np.sum(squares > columns * math.exp(found.x) * threshold))


def _threshold(alpha: float) -> float:
    """Of `square / (columns * noise variance)`, above which a value is kept."""
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def free_energy(x: np.ndarray, alpha: float) -> float:
    """The free energy of a matrix as a function of its noise.

    Args:
      x: squared singular values, divided by the longer side and the variance of the noise; as many
        as the shorter side has.
      alpha: shorter side by longer side.

    Returns:
      The part that depends on the variance, by half the longer side.

    Example:
      >>> round(free_energy(np.array([1.0, 1.0]), 0.5), 6)
      2.0
    """
    x = np.maximum(x, 1e-300)
    kept = x[x > _threshold(alpha)]
    shifted = kept - (1 + alpha)
    tau = (shifted + np.sqrt(np.square(shifted) - 4 * alpha)) / 2
    gain = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return float(np.sum(x - np.log(x)) + np.sum(gain))
