"""A layout of the digits in the plane, in the manner of UMAP, in one compiled loop without Python.

It shows the functions called by nopython code, which Numba keeps in its cache: the second run does
not compile.

    python layout.py
"""

import ctypes

import llvmlite.binding
import numba
import numpy as np
from numba import types
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import onepass as op

# Compiled code finds the functions by their names, and so does code from the cache. Their
# parameters are numbers and addresses; the address 0 is an array that is not there.
llvmlite.binding.load_library_permanently(op.get_library())
pointer, number = types.uintp, types.int32
onepass_scalars = types.ExternalFunction(
    "onepass_scalars", number(number, types.int64, pointer, pointer, pointer)
)
onepass_update = types.ExternalFunction(
    "onepass_update", number(number, number, number, types.uintp, *[pointer] * 8, number)
)
ONEPASS_F32, ONEPASS_SETTINGS, ONEPASS_SCALARS = 1, 1, 4


def find_rule(name, **changed):
    """Return a rule's number, its settings, and room for the numbers of a step.

    Another version of onepass may number its rules and settings otherwise, so compiled code takes
    the numbers as arguments: what is a constant for Numba stays in the cache.
    """
    library = ctypes.CDLL(op.get_library())
    rule = library.onepass_rule(name.encode())
    settings = np.empty(library.onepass_count(rule, ONEPASS_SETTINGS))
    library.onepass_defaults(rule, settings.ctypes.data_as(ctypes.c_void_p))
    for key, value in changed.items():
        to = settings.ctypes.data_as(ctypes.c_void_p)
        if library.onepass_set(rule, to, key.encode(), ctypes.c_double(value)):
            raise TypeError(f"{name} has no setting {key}")
    return rule, settings, np.empty(library.onepass_count(rule, ONEPASS_SCALARS))


@numba.njit(cache=True)
def find_gradient(places, edges, rng, grad):
    """Write the gradient: neighbours attract each other, and five others repel each point."""
    grad[:] = 0
    for i, j in edges:
        x, y = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
        pull = 2 / (1 + x * x + y * y)
        grad[i, 0] += pull * x
        grad[i, 1] += pull * y
        grad[j, 0] -= pull * x
        grad[j, 1] -= pull * y
        for k in rng.integers(0, len(places), 5):
            x, y = places[i, 0] - places[k, 0], places[i, 1] - places[k, 1]
            square = x * x + y * y
            push = 2 / ((0.01 + square) * (1 + square))
            grad[i, 0] -= push * x
            grad[i, 1] -= push * y


@numba.njit(cache=True)
def train(places, edges, rng, epochs, rule, settings, scalars):
    """Take Adam's steps in place, and return a code."""
    grad = np.empty_like(places)
    exp_avg, exp_avg_sq = np.zeros_like(places), np.zeros_like(places)
    for epoch in range(epochs):
        find_gradient(places, edges, rng, grad)
        onepass_scalars(rule, epoch + 1, settings.ctypes.data, 0, scalars.ctypes.data)
        arrays = places.ctypes.data, grad.ctypes.data, exp_avg.ctypes.data, exp_avg_sq.ctypes.data
        code = onepass_update(
            rule, 0, ONEPASS_F32, places.size, *arrays, 0, 0, scalars.ctypes.data, 0, 1
        )
        if code != 0:
            return code
    return 0


def neighbours_of(points, k=10):
    """Return pairs of neighbours."""
    near = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    return np.stack([np.repeat(np.arange(len(points)), k), near.ravel()], axis=1)


def begin():
    """Return the digits' labels, random places in the plane, neighbours, and the random numbers."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    places = rng.normal(size=(len(images), 2)).astype(np.float32)
    return labels, places, neighbours_of(images), rng


def main(epochs=100):
    labels, places, edges, rng = begin()
    code = train(places, edges, rng, epochs, *find_rule("adam", lr=0.2))
    assert code == 0, code
    here, nearest = neighbours_of(places, k=1).T
    print(f"next to the same digit: {np.mean(labels[here] == labels[nearest]):.1%}")
    hits, misses = train.stats.cache_hits, train.stats.cache_misses
    print(f"compiled: {sum(misses.values())}, from the cache: {sum(hits.values())}")


if __name__ == "__main__":
    main()
