"""Names for the leaves of a pytree, and ways to select leaves by name.

Every other module speaks of a variable by its path, the keys that lead to it joined by `/`
(`params/Dense_0/kernel`). This module is the only place that makes, matches and undoes such paths.
"""

import difflib
import fnmatch
import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

PyTree = Any


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def path_name(key_path: Sequence[Any]) -> str:
    """Joins the keys of a JAX key path into a path.

    Args:
      key_path: the keys that `jax.tree_util.tree_flatten_with_path` gives for one leaf.

    Returns:
      The path, such as `params/Dense_0/kernel`.

    Example:
      >>> [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path({'a': [1, 2]})]
      ['a/0', 'a/1']
    """
    return "/".join(_key_name(key) for key in key_path)


def paths(tree: PyTree) -> dict[str, Any]:
    """Lists the leaves of a tree by path, in the tree's own order.

    Args:
      tree: any pytree.

    Returns:
      A dictionary from path to leaf.

    Example:
      >>> paths({'params': {'Dense_0': {'kernel': 1, 'bias': 2}}})
      {'params/Dense_0/bias': 2, 'params/Dense_0/kernel': 1}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Builds nested dictionaries from paths: the inverse of `paths` for trees of dictionaries.

    Args:
      leaves: a mapping from path to leaf.

    Returns:
      Nested dictionaries.

    Raises:
      ValueError: if one path is a prefix of another, so that a leaf would also be a branch.

    Example:
      >>> from_paths({'params/a/kernel': 1, 'params/a/bias': 2})
      {'params': {'a': {'kernel': 1, 'bias': 2}}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} goes through a leaf at {parent!r}; paths must not nest")
        if last in node:
            raise ValueError(f"{path!r} is both a leaf and a branch; paths must not nest")
        node[last] = leaf
    return tree


def map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps a function of path and leaves over trees of one structure.

    Args:
      function: called as `function(path, leaf, *rest_leaves)`.
      tree: the tree whose structure the result has.
      *rest: trees of which `tree` is a prefix.

    Returns:
      A tree like `tree`.

    Example:
      >>> map_with_path(lambda path, x: f'{path}={x}', {'a': {'b': 1}})
      {'a': {'b': 'a/b=1'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def replace(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """Copies a tree with some leaves replaced.

    Args:
      tree: any pytree.
      leaves: new leaves by path.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: if a path is not in the tree.

    Example:
      >>> replace({'a': 1, 'b': 2}, {'b': 3})
      {'a': 1, 'b': 3}
    """
    known = paths(tree)
    for path in leaves:
        if path not in known:
            match(glob.escape(path), known, what="replacement")
    return map_with_path(lambda path, leaf: leaves.get(path, leaf), tree)


def match(patterns: str | Iterable[str], candidates: Iterable[str], *, what: str) -> list[str]:
    """Selects paths by globs; a glob that selects nothing is an error.

    Args:
      patterns: one glob or several, as `fnmatch` reads them; `*` also crosses `/`, and a leading
        `**/` also matches at the root.
      candidates: the paths to select from.
      what: what the patterns are, for the error message (`'select'`, `'protect'`).

    Returns:
      The selected paths, in the order of `candidates`.

    Raises:
      ValueError: if a glob matches none of the paths; the message lists near misses.

    Example:
      >>> match('**/kernel', ['params/a/kernel', 'params/a/bias'], what='select')
      ['params/a/kernel']
    """
    names = list(candidates)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        forms = {pattern, pattern.removeprefix("**/")}
        found = [name for name in names if any(fnmatch.fnmatchcase(name, form) for form in forms)]
        if not found:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"{what} pattern {pattern!r} matches none of the {len(names)} paths; "
                f"near misses: {', '.join(near) if near else 'none, there are no paths'}. "
                "Use * for any part of a path, as in **/kernel."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def assign(
    rules: Mapping[str, Any] | Iterable[tuple[str, Any]],
    candidates: Iterable[str],
    *,
    what: str,
    default: Any = None,
) -> dict[str, Any]:
    """Gives every path the value of the first rule that matches it.

    Args:
      rules: globs, as `match` reads them, with their values, in order.
      candidates: the paths.
      what: what the rules are, for the error message.
      default: the value of paths that no rule matches.

    Returns:
      The value of each path, in the order of `candidates`.

    Raises:
      ValueError: if a glob matches none of the paths.

    Example:
      >>> assign({'**/first/*': 8, '**/kernel': 4}, ['first/kernel', 'b/kernel'], what='bits')
      {'first/kernel': 8, 'b/kernel': 4}
    """
    found = dict.fromkeys(candidates, default)
    free = set(found)
    for pattern, value in rules.items() if isinstance(rules, Mapping) else rules:
        for path in match(pattern, found, what=what):
            if path in free:
                found[path] = value
                free.discard(path)
    return found


def size(tree: PyTree) -> int:
    """Counts the elements of all leaves.

    Args:
      tree: a pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The number of elements.

    Example:
      >>> size({'a': jax.numpy.zeros((2, 3)), 'b': jax.numpy.zeros(4)})
      10
    """
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Counts the bytes of all leaves.

    Args:
      tree: a pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The number of bytes.

    Example:
      >>> num_bytes({'a': jax.numpy.zeros((2, 3), 'float32')})
      24
    """
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
