"""Parameters as a user structures them, flattened once, and gradients that mirror them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Node = None | list[Any] | dict[str, Any]
"""None for an array, else the nodes of a sequence or a mapping."""


@dataclass
class Leaves:
    """The arrays of one structure, in order, each with its key and how a message calls it."""

    arrays: list[Any] = field(default_factory=list)
    keys: dict[str | int, None] = field(default_factory=dict)  # in order, and quick to look up
    labels: list[str] = field(default_factory=list)


def is_sequence(value: Any) -> bool:
    """Return whether a value is taken as a sequence of parameters."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def flatten(tree: Any, leaves: Leaves, label: str = "", path: str | None = None) -> Node:
    """Append the arrays of `tree` to `leaves` and return its shape.

    `path` is the dotted name once a mapping has been entered; before that a parameter's key is
    its index.
    """
    if isinstance(tree, Mapping):
        shape: dict[str, Any] = {}
        for key, child in tree.items():
            if not isinstance(key, str):
                raise TypeError(f"params{label}: expected names that are strings, got {key!r}")
            name = key if path is None else f"{path}.{key}"
            shape[key] = flatten(child, leaves, f"{label}[{key!r}]", name)
        return shape
    if isinstance(tree, Iterator):
        tree = list(tree)
    if is_sequence(tree):
        return [
            flatten(child, leaves, f"{label}[{i}]", None if path is None else f"{path}.{i}")
            for i, child in enumerate(tree)
        ]
    key = len(leaves.arrays) if path is None else path
    if key in leaves.keys:
        raise ValueError(f"params{label}: expected a name of its own, got {key!r} again")
    leaves.keys[key] = None
    leaves.arrays.append(tree)
    leaves.labels.append(label)
    return None


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
        if isinstance(tree, Iterator):
            tree = list(tree)
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
