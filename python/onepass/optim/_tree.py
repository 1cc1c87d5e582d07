"""Parameters as a user structures them, flattened once, and gradients that mirror them."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

Node = None | list[Any] | dict[str | int, Any]
"""None for an array, else the nodes of a sequence or a mapping."""

_Path = tuple[str | int, ...]
"""The names and indices on the way to an array."""

_Found = tuple[_Path, bool, Any]
"""An array, the way to it, and whether there is a name on it, which may be an integer too."""


@dataclass
class Leaves:
    """The arrays of a structure, in order, each with its key, its label in messages, its group."""

    arrays: list[Any] = field(default_factory=list)
    keys: dict[str | int, None] = field(default_factory=dict)  # in order, and quick to look up
    labels: list[str] = field(default_factory=list)
    group_of: list[int] = field(default_factory=list)


def is_sequence(value: Any) -> bool:
    """Return whether a value is taken as a sequence of parameters."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def listed(tree: Any, label: str) -> Any:
    """Return what has an order but no indices, ``values()`` or a generator, say, as a list.

    All else is returned as it is. A message calls it `label`.
    """
    is_array = any(hasattr(type(tree), name) for name in ("__array__", "__dlpack__"))
    if isinstance(tree, Sequence | Mapping) or is_array:
        return tree
    if isinstance(tree, Set):
        expected = "a sequence, or a mapping from names"
        raise TypeError(f"{label}: expected {expected}, got {type(tree).__name__}")
    return list(tree) if isinstance(tree, Iterator | Collection) else tree


def flatten(tree: Any, leaves: Leaves, label: str = "") -> Node:
    """Append the arrays of `tree` to `leaves` and return its shape.

    An array's key is its dotted path, names and indices, where there is a mapping on the way to any
    of them; else it is the array's index among all.
    """
    found: list[_Found] = []
    shape = _walk(tree, (), found, label)
    has_names = any(has_name for _, has_name, _ in found)
    known = set(map(str, leaves.keys))  # patterns know names as text
    for path, _, array in found:
        key = ".".join(map(str, path)) if has_names else len(leaves.arrays)
        own_label = _label(label, path)
        if str(key) in known:
            raise ValueError(f"params{own_label}: expected a name of its own, got {key!r} again")
        known.add(str(key))
        leaves.keys[key] = None
        leaves.arrays.append(array)
        leaves.labels.append(own_label)
    return shape


def _walk(tree: Any, path: _Path, found: list[_Found], label: str, has_name: bool = False) -> Node:
    """Append the arrays of `tree`, each with its path, to `found`, and return its shape."""
    tree = listed(tree, f"params{_label(label, path)}")
    if isinstance(tree, Mapping):
        _check_names(tree, f"params{_label(label, path)}")
        return {
            name: _walk(child, (*path, name), found, label, True) for name, child in tree.items()
        }
    if is_sequence(tree):
        return [_walk(child, (*path, i), found, label, has_name) for i, child in enumerate(tree)]
    found.append((path, has_name, tree))
    return None


def _check_names(names: Mapping[Any, Any], label: str) -> None:
    """Raise where a name is no string and no integer, or where 0 and "0" are both names."""
    known: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str) and type(name) is not int:
            raise TypeError(f"{label}: expected names that are strings or integers, got {name!r}")
        if str(name) in known:
            expected = "one name for each key in a checkpoint"
            raise ValueError(f"{label}: expected {expected}, got {known[str(name)]!r} and {name!r}")
        known[str(name)] = name


def _label(label: str, path: _Path) -> str:
    """Return how a message calls what is at the end of a path."""
    return label + "".join(f"[{step!r}]" for step in path)


def keys_before_paths(shape: Node) -> list[str | int]:
    """Return the keys that the arrays of such a structure had when names were no paths yet.

    What stood before the first mapping on the way was left out; without one the key was the
    array's index among all. Checkpoints of that time have them.
    """
    keys: list[str | int] = []

    def walk(node: Node, path: str | None) -> None:
        if node is None:
            keys.append(len(keys) if path is None else path)
        elif isinstance(node, dict):
            for name, child in node.items():
                walk(child, str(name) if path is None else f"{path}.{name}")
        else:
            for i, child in enumerate(node):
                walk(child, None if path is None else f"{path}.{i}")

    walk(shape, None)
    return keys


def is_groups(params: Any) -> bool:
    """Return whether these are groups: mappings with a structure of their own under "params"."""
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def filled(shape: Node, leaves: Iterator[Any]) -> Any:
    """Return a structure of this shape with such leaves, which come as `flatten` met them."""
    if shape is None:
        return next(leaves)
    if isinstance(shape, dict):
        return {name: filled(child, leaves) for name, child in shape.items()}
    return [filled(child, leaves) for child in shape]


def leaves_like(shape: Node, grouped: bool, tree: Any) -> list[Any]:
    """Return the leaves of `tree` in the order in which `flatten` met the parameters.

    Where these stand in groups, the leaves may do so too.
    """
    tree = tree if shape is None else listed(tree, "grads")
    if grouped and is_groups(tree):
        tree = [group["params"] for group in tree]
    leaves: list[Any] = []
    mirror(shape, tree, leaves)
    return leaves


def mirror(shape: Node, tree: Any, out: list[Any], label: str = "") -> None:
    """Append to `out` the leaves of `tree`, in the order in which `flatten` met the parameters."""
    if shape is None:
        out.append(tree)
    elif isinstance(shape, dict):
        if not isinstance(tree, Mapping) or tree.keys() != shape.keys():
            raise ValueError(f"grads{label}: expected the names {list(shape)}, got {_kind(tree)}")
        if _holds_arrays_only(shape.values()):
            out.extend(map(tree.__getitem__, shape))
            return
        for key, child in shape.items():
            mirror(child, tree[key], out, f"{label}[{key!r}]")
    else:
        tree = listed(tree, f"grads{label}")
        if not is_sequence(tree) or len(tree) != len(shape):
            expected = f"a sequence of {len(shape)}"
            raise ValueError(f"grads{label}: expected {expected}, got {_kind(tree)}")
        if _holds_arrays_only(shape):
            out.extend(tree)
            return
        for i, child in enumerate(shape):
            mirror(child, tree[i], out, f"{label}[{i}]")


def _holds_arrays_only(nodes: Collection[Node]) -> bool:
    """Return whether there is no structure below: the usual case, and many times as fast."""
    return list(nodes).count(None) == len(nodes)


def _kind(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"the names {list(tree)}"
    if is_sequence(tree):
        return f"a sequence of {len(tree)}"
    return type(tree).__name__
