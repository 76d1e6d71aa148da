"""The oracle for cut channels: the whole function, with every variable set to zero where it is cut.

It uses nothing of the channel analysis. Which positions of a variable are left is found by cutting
variables whose entries are their own positions.
"""

import jax
import numpy as np

from compressjax import slimming, tree


def draw(shapes, seed=0):
    """Variables with nothing special about them: no zero biases, no unit scales or variances."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path.endswith("kernel"):
            return noise / np.float32(np.sqrt(max(np.prod(x.shape[:-1]), 1)))
        if path.endswith("var"):
            return 0.5 + noise**2
        return 0.3 * noise + np.float32(path.endswith("scale"))

    return tree.map_with_path(leaf, shapes)


def positions(fn, variables, kept, *args):
    """For each path and axis, which positions are left."""
    return _left(lambda v: slimming.shrink(fn, v, *args, kept=kept).variables, variables)


def _left(cut, variables):
    numbered = jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), variables)
    small = tree.paths(cut(numbered))
    left = {}
    for path, whole in tree.paths(variables).items():
        where = np.unravel_index(np.asarray(small[path]).astype(int), whole.shape)
        left[path] = [np.unique(axis) for axis in where]
        assert small[path].shape == tuple(map(len, left[path])), f"{path} is not cut along its axes"
    return left


def zeroed(variables, left):
    """Variables that are zero wherever a position is gone, along every axis of every variable."""

    def zero(path, x):
        kept = np.zeros(np.shape(x), bool)
        kept[np.ix_(*left[path])] = True
        return np.where(kept, x, np.zeros((), np.asarray(x).dtype))

    return tree.map_with_path(zero, variables)


def check(fn, variables, *args, **options):
    """Shrinks, compares with the oracle, and gives the result back."""
    options = {"round_to": 1, **options}
    shrunk = slimming.shrink(fn, variables, *args, **options)
    zeros = zeroed(variables, _left(shrunk.cut, variables))
    jax.tree.map(np.testing.assert_array_equal, shrunk.masked(variables), zeros)
    agree(fn, shrunk, variables, *args)
    return shrunk


def agree(fn, shrunk, variables, *args):
    """Asserts that a cut equals the whole function with zeros, to the precision of the outputs."""
    whole = jax.jit(fn)
    expected = jax.tree.leaves(whole(shrunk.masked(variables), *args))
    found = jax.tree.leaves(jax.jit(shrunk.apply)(shrunk.cut(variables), *args))
    changes = []
    for one, other, uncut in zip(
        found, expected, jax.tree.leaves(whole(variables, *args)), strict=True
    ):
        assert one.shape == other.shape and one.dtype == other.dtype
        largest = np.abs(other).max()
        tolerance = {"float32": 1e-5, "float64": 1e-12}[one.dtype.name]
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)
        changes.append(np.abs(other - uncut).max() / np.abs(uncut).max())
    assert max(changes) > 1e-3, "the cut changed nothing"


def in_double(tree):
    """The same numbers in double precision; whole numbers as they are."""
    return jax.tree.map(
        lambda x: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x, tree
    )


def widths(shrunk):
    """Kept and all channels of each group, by the name of its layer."""
    return {
        name.removeprefix("params/").removesuffix("/kernel"): f"{new}/{old}"
        for name, (old, new) in shrunk.report.groups.items()
    }
