"""Parameters however they are nested: each has a name of its own, and gradients mirror them."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import assert_same_bits, digest

DATA = Path(__file__).parent / "data"


def arrays_of(tree):
    if isinstance(tree, dict):
        return [array for child in tree.values() for array in arrays_of(child)]
    if isinstance(tree, list | tuple):
        return [array for child in tree for array in arrays_of(child)]
    return [tree]


def like(tree, make):
    """The same structure, of what `make` makes of each array."""
    if isinstance(tree, dict):
        return {name: like(child, make) for name, child in tree.items()}
    if isinstance(tree, list | tuple):
        return [like(child, make) for child in tree]
    return make(tree)


def keys(opt):
    return [key for group in opt.state_dict()["param_groups"] for key in group["params"]]


def layer(inputs, outputs):
    return {"w": np.ones((inputs, outputs)), "b": np.zeros(outputs)}


def test_a_list_of_layers(optimizer):
    """The commonest shape of a network written by hand."""
    layers = [layer(3, 4), layer(4, 2)]
    opt = optimizer(layers)
    assert keys(opt) == ["0.w", "0.b", "1.w", "1.b"]
    opt.step(like(layers, np.ones_like))
    assert list(opt.state_dict()["state"]) == ["0.w", "0.b", "1.w", "1.b"]
    alone = optimizer(arrays := arrays_of([layer(3, 4), layer(4, 2)]))
    alone.step([np.ones_like(array) for array in arrays])
    for array, other in zip(arrays_of(layers), arrays, strict=True):
        assert_same_bits(array, other)
    flat, views = op.pack(layers)
    assert [list(each) for each in views] == [["w", "b"], ["w", "b"]]
    assert flat.size == sum(array.size for array in arrays)


def a(size=1):
    return np.zeros(size)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (a(), [0]),
        ([a(), a()], [0, 1]),
        ([(a(), a()), [a()]], [0, 1, 2]),
        ({"w": a(), "b": a()}, ["w", "b"]),
        ({"a": {"w": a()}, "b": [a(), {"w": a()}]}, ["a.w", "b.0", "b.1.w"]),
        ([{"w": a()}], ["0.w"]),
        ([a(), {"w": a()}], ["0", "1.w"]),
        ([[{"w": a()}, a()], {"w": a()}], ["0.0.w", "0.1", "1.w"]),
        ([{"params": [a(), a()]}, {"params": {"w": a()}}], [0, 1, "w"]),
        ([{"params": [{"w": a()}, {"w": a()}]}, {"params": a()}], ["0.w", "1.w", 2]),
    ],
)
def test_keys(optimizer, params, expected):
    assert keys(optimizer(params)) == expected


# Any structure

names = st.text("abw01", min_size=1, max_size=2)
trees = st.recursive(
    st.builds(np.ones, st.integers(1, 3)),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(names, child, max_size=3),
    max_leaves=8,
).filter(lambda tree: len(arrays_of(tree)) > 0)


def changed(tree, label=""):
    """Yield the structure with one change somewhere, and how a message calls the place."""
    if isinstance(tree, dict):
        children, rebuilt, more = tree.items(), dict, [("another", a())]
    elif isinstance(tree, list):
        children, more = enumerate(tree), [(len(tree), a())]
        rebuilt = lambda pairs: [child for _, child in pairs]  # noqa: E731
    else:
        yield [tree], label
        return
    pairs = list(children)
    yield rebuilt([*pairs, *more]), label
    yield a(), label
    for i, (step, child) in enumerate(pairs):
        yield rebuilt(pairs[:i] + pairs[i + 1 :]), label
        for other, where in changed(child, f"{label}[{step!r}]"):
            yield rebuilt([*pairs[:i], (step, other), *pairs[i + 1 :]]), where


@settings(max_examples=60)
@given(tree=trees)
def test_any_structure(tree):
    opt = op.SGD(tree, momentum=0.9)
    found, arrays = keys(opt), arrays_of(tree)
    assert len(set(found)) == len(found) == len(arrays)
    for array, param in zip(arrays, opt.param_groups[0]["params"], strict=True):
        assert array is param
    opt.step(like(tree, np.ones_like))
    assert list(opt.state_dict()["state"]) == found
    file = io.BytesIO()
    opt.save(file)
    file.seek(0)
    resumed = op.SGD(like(tree, np.copy))
    resumed.load(file)
    assert digest(resumed) == digest(opt)
    for other, label in changed(like(tree, np.ones_like)):
        with pytest.raises((ValueError, TypeError), match=f"^grads{re.escape(label)}: expected "):
            opt.step(other)
    assert digest(resumed) == digest(opt)


# Before names were paths


def ramp(n):
    return np.linspace(-1, 1, n)


OLD = {
    "one-layer": (lambda: [{"w": ramp(6).reshape(2, 3), "b": ramp(3)}], ["w", "b"]),
    "mixed": (
        lambda: [
            ramp(2),
            ({"w": ramp(4)}, [ramp(3), {"layers": [ramp(5), {"b": ramp(7)}]}]),
            ramp(1),
        ],
        [0, "w", 2, "layers.0", "layers.1.b", 5],
    ),
}


def grad(array, t):
    return np.full(array.shape, float(t)) + np.arange(array.size).reshape(array.shape)


@pytest.mark.parametrize("name", OLD)
def test_files_from_before_names_were_paths_still_load(name):
    """Written by onepass 0.1.0 as it was then, after three steps; the run is repeated here."""
    make, old_keys = OLD[name]
    whole, params = make(), make()
    opt, resumed = (op.SGD(each, lr=0.125, momentum=0.5) for each in (whole, params))
    for t in (1, 2, 3):
        opt.step(like(whole, lambda array: grad(array, t)))  # noqa: B023
    with np.load(DATA / f"sgd-{name}-before-paths.npz") as file:
        header = file["header"].tobytes().decode()
    assert f'"params": {old_keys}'.replace("'", '"') in header
    resumed.load(DATA / f"sgd-{name}-before-paths.npz")
    assert digest(resumed.state_dict()) == digest(opt.state_dict())


@pytest.mark.parametrize(
    ("saved", "params"),
    [
        ({"w": a(), "b": a()}, [{"w": a(), "b": a()}, {"w": a(), "b": a()}]),
        ({"w": a()}, {"0": {"w": a()}}),
        ([{"w": a()}, {"b": a()}], [{"b": a()}, {"w": a()}]),
    ],
)
def test_names_of_another_structure_do_not_load(saved, params):
    opt = op.SGD(params, momentum=0.9)
    with pytest.raises(ValueError, match=r"^param_groups\[0\]: expected the parameters "):
        opt.load_state_dict(op.SGD(saved).state_dict())


def test_an_error_of_a_names_comparison_comes_out():
    class Name:
        def __init__(self, text):
            self.text = text

        def __hash__(self):
            return hash(self.text)

        def __eq__(self, other):
            raise ZeroDivisionError

    for params, text in (({"w": a()}, "w"), ([{"params": a()}], "params")):
        opt = op.SGD(params)
        grads = {Name(text): a()}
        with pytest.raises(ZeroDivisionError):
            opt.step(grads if text == "w" else [grads])
        assert opt.step({"w": a()} if text == "w" else [a()]).step == 1
