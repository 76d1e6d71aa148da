"""A cut as data: which positions of which variables are kept, and all that is cut by them.

`shrink` decides; here its decision is applied to variables, to checkpoints and optimizer states of
the same shapes, and to functions of the same variables.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import graph as graphs
from compressjax import tree
from compressjax.graph.channels import Group
from compressjax.graph.narrow import narrow
from compressjax.graph.units import Axes, kept_shape, take

Keep = Mapping[str, Axes]  # for each path that is cut, one boolean mask an axis, True = kept


def keep_masks(
    graph: graphs.Graph, found: Mapping[str, Group], choice: Mapping[str, np.ndarray]
) -> dict[str, Axes]:
    """Gives the keep masks of the variables that lose something.

    Args:
      graph: the whole function's.
      found: its groups by name.
      choice: for each group, `[C]` booleans, True = kept.

    Returns:
      For each path that is cut, one boolean mask an axis.

    Example:
      >>> from compressjax.graph.channels import couple, groups
      >>> variables = {'a': np.ones((1, 3), 'f'), 'b': np.ones((3, 1), 'f')}
      >>> graph = graphs.trace(lambda v, x: x @ v['a'] @ v['b'], variables, np.ones((1, 1), 'f'))
      >>> (group,) = groups(graph, couple(graph, {}))
      >>> keep = keep_masks(graph, {'a': group}, {'a': np.array([True, False, True])})
      >>> keep['b']
      (array([ True, False,  True]), array([ True]))
    """
    masks: dict[str, Axes] = {}
    for name, group in found.items():
        if choice[name].all():
            continue
        for member in group.members:
            mine = member.channel >= 0
            axes = masks.setdefault(member.path, whole(graph, member.path))
            axes[member.axis][mine] = choice[name][member.channel[mine]]
    return masks


def whole(graph: graphs.Graph, path: str) -> Axes:
    """Gives masks that keep all of a variable.

    Args:
      graph: the graph.
      path: the variable's path.

    Returns:
      One mask an axis, all True.

    Example:
      >>> graph = graphs.trace(lambda v, x: x * v['a'], {'a': np.ones(2, 'f')}, np.ones(2, 'f'))
      >>> whole(graph, 'a')
      (array([ True,  True]),)
    """
    return tuple(np.ones(size, bool) for size in graph.variables[path].shape)


def cut(variables: Any, keep: Keep) -> Any:
    """Takes what is kept of each variable.

    Args:
      variables: pytree of arrays, at the whole shapes.
      keep: the masks.

    Returns:
      The same tree with smaller arrays; on one device nothing is compiled for it.

    Raises:
      ValueError: if a path is missing or has another shape.

    Example:
      >>> cut({'a': np.arange(3)}, {'a': (np.array([True, False, True]),)})
      {'a': array([0, 2])}
    """
    _check(variables, keep)
    return tree.map_with_path(
        lambda path, leaf: _cut(leaf, keep[path]) if path in keep else leaf, variables
    )


def masked(variables: Any, keep: Keep) -> Any:
    """Sets all that is cut to zero, at the whole shapes.

    Args:
      variables: pytree of arrays, at the whole shapes.
      keep: the masks.

    Returns:
      The same tree with zeros at the positions that are cut.

    Raises:
      ValueError: if a path is missing or has another shape.

    Example:
      >>> masked({'a': np.arange(1, 4)}, {'a': (np.array([True, False, True]),)})
      {'a': array([1, 0, 3])}
    """
    _check(variables, keep)

    def zero(path: str, leaf: Any) -> Any:
        if path not in keep:
            return leaf
        numpy = np if isinstance(leaf, np.ndarray) else jnp
        for axis, mask in enumerate(keep[path]):
            shape = [-1 if i == axis else 1 for i in range(len(keep[path]))]
            leaf = numpy.where(mask.reshape(shape), leaf, numpy.zeros((), leaf.dtype))
        return leaf

    return tree.map_with_path(zero, variables)


def cut_state(state: Any, params: Any, keep: Keep) -> Any:
    """Takes what is kept of an optimizer's state.

    An array belongs to a parameter if its path ends in that parameter's and it has its shape, as in
    all states that mirror the parameters: moments, masks, moving averages, gathered evidence.

    Args:
      state: the state, of the whole parameters.
      params: the whole parameters it was made for, arrays or shapes.
      keep: the masks, by the paths that `params` has.

    Returns:
      The state with every array that belongs to a parameter cut as that parameter is.

    Raises:
      ValueError: if the parameters do not fit the masks, or an array that belongs to a parameter
        that is cut has another shape (a factored moment), so that nobody knows how to cut it.

    Example:
      >>> import optax
      >>> tx, params = optax.adam(0.1), {'a': jnp.arange(3.0)}
      >>> keep = {'a': (np.array([True, False, True]),)}
      >>> cut_state(tx.init(params), params, keep)[0].mu['a'].shape
      (2,)
    """
    _check(params, keep)
    known = sorted(tree.paths(params), key=len, reverse=True)  # the longest that fits counts

    def mine(path: str, leaf: Any) -> Any:
        owner = next((name for name in known if f"/{path}".endswith(f"/{name}")), None)
        if owner is None or owner not in keep or np.size(leaf) == 1:
            return leaf
        expected = tuple(map(len, keep[owner]))
        if np.shape(leaf) != expected:
            raise ValueError(
                f"the state {path} has shape {np.shape(leaf)} and belongs to {owner} of shape "
                f"{expected}: it cannot be cut alike; make a new state with tx.init"
            )
        return _cut(leaf, keep[owner])

    return tree.map_with_path(mine, state)


def narrowed(fn: Callable[..., Any], keep: Keep, *, gather: bool = False) -> Callable[..., Any]:
    """Makes a function over smaller variables; what it is at each shape is worked out once.

    Args:
      fn: a function of variables of which some are cut.
      keep: the masks.
      gather: whether norms may read fewer channels than there are.

    Returns:
      `apply(variables, *args)`. It raises ValueError if the variables do not have the cut shapes,
      or if the function does not allow the cut.

    Example:
      >>> keep = {'a': (np.array([True, False, True]),)}
      >>> apply = narrowed(lambda v, x: (x * v['a']).sum(), keep)
      >>> float(apply({'a': np.ones(2, 'f')}, np.float32(2)))
      4.0
    """
    prepared = graphs.Retrace(
        fn, lambda graph: narrow(graph, keep, gather=gather), keep_custom=False
    )

    def apply(variables: Any, *args: Any) -> Any:
        return prepared(_widened(variables, keep), *args)(variables, *args)

    return apply


def _check(variables: Any, keep: Keep) -> None:
    found = tree.paths(variables)
    if missing := [path for path in keep if path not in found]:
        raise ValueError(f"variables do not fit: missing {', '.join(missing[:4])}")
    for path, masks in keep.items():
        expected = tuple(map(len, masks))
        if np.shape(found[path]) != expected:
            raise ValueError(
                f"variables do not fit: {path} has shape {np.shape(found[path])}, expected "
                f"{expected}; give variables of the whole function, not of the shrunk one"
            )


def _cut(leaf: Any, masks: Axes) -> Any:
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return take(leaf, masks)
    if len(leaf.sharding.device_set) > 1:
        return take(leaf, masks)
    return jax.device_put(take(np.asarray(leaf), masks), leaf.sharding)


def _widened(variables: Any, keep: Keep) -> Any:
    """The shapes that variables had before they were cut."""
    found = tree.paths(variables)
    if missing := [path for path in keep if path not in found]:
        raise ValueError(f"variables do not fit: missing {', '.join(missing[:4])}")

    def widen(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        shape = np.shape(leaf)
        if path in keep:
            expected = kept_shape(keep[path])
            if shape != expected:
                raise ValueError(
                    f"variables do not fit: {path} has shape {shape}, expected {expected}; give "
                    "the variables of the shrunk function, not the original ones"
                )
            shape = tuple(map(len, keep[path]))
        return jax.ShapeDtypeStruct(shape, jax.dtypes.result_type(leaf))

    return tree.map_with_path(widen, variables)
