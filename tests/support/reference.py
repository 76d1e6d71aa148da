"""The oracle for cut channels: the whole function, with what reads a cut channel set to zero.

It uses nothing of the channel analysis. Which positions of a variable are left is found by cutting
variables whose entries are their own positions; the axis of a kernel that reads channels is the one
that Flax says, the last but one.
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
    numbered = jax.tree.map(
        lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape), variables
    )
    small = tree.paths(slimming.shrink(fn, numbered, *args, kept=kept).variables)
    left = {}
    for path, whole in tree.paths(variables).items():
        where = np.unravel_index(small[path].astype(int), whole.shape)
        left[path] = [np.unique(axis) for axis in where]
        assert small[path].shape == tuple(map(len, left[path])), f"{path} is not cut along its axes"
    return left


def zeroed(variables, left, inputs=None):
    """Variables in which the positions that are gone are zero along the axes that read channels.

    `inputs` names other axes than the last but one for some paths.
    """

    def zero(path, x):
        axes = (inputs or {}).get(path, (-2,) if path.endswith("kernel") else ())
        x = np.array(x)
        for axis in axes:
            keep = np.zeros(x.shape[axis], bool)
            keep[left[path][axis]] = True
            x = np.where(
                np.expand_dims(keep, [i for i in range(x.ndim) if i != axis % x.ndim]), x, 0
            )
        return x

    return tree.map_with_path(zero, variables)


def check(fn, variables, *args, inputs=None, **options):
    """Shrinks, compares with the oracle, and gives the result back."""
    options = {"round_to": 1, **options}
    shrunk = slimming.shrink(fn, variables, *args, **options)
    left = positions(fn, variables, shrunk.kept, *args)
    expected = jax.jit(fn)(zeroed(variables, left, inputs), *args)
    found = jax.jit(shrunk.apply)(shrunk.variables, *args)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    whole = jax.jit(fn)(variables, *args)
    assert np.abs(expected - whole).max() > 1e-3 * np.abs(whole).max(), "the cut changed nothing"
    return shrunk


def widths(shrunk):
    """Kept and all channels of each group, by the name of its layer."""
    return {
        name.removeprefix("params/").removesuffix("/kernel"): f"{new}/{old}"
        for name, (old, new) in shrunk.report.groups.items()
    }
