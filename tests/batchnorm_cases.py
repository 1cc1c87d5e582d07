"""What the tests of BatchNorm share: its functions and arguments for them."""

import numpy as np

import onepass as op
from helpers import assert_same_bits
from onepass.batchnorm import reference


def affine(p):
    return {"weight": p["weight"], "bias": p["bias"]}


def statistics(p, *names):
    return {**affine(p), **dict(zip(names, (p["mean"], p["var"]), strict=True))}


FUNCTIONS = {
    "train": lambda p, **o: op.batch_norm_train(
        p["x"], **{**affine(p), **p.get("running", {}), **o}
    ),
    "infer": lambda p, **o: op.batch_norm_infer(p["x"], **statistics(p, "mean", "var"), **o),
    "backward": lambda p, **o: op.batch_norm_backward(
        p["dy"], p["x"], **statistics(p, "saved_mean", "saved_invstd"), **o
    ),
    "infer_backward": lambda p, **o: op.batch_norm_infer_backward(
        p["dy"], p["x"], **statistics(p, "mean", "var"), **o
    ),
}


def arrays(rng, shape=(6, 4, 5), dtype=np.float32, channels=4):
    return {
        "x": rng.normal(size=shape).astype(dtype),
        "dy": rng.normal(size=shape).astype(dtype),
        "weight": rng.normal(size=channels).astype(dtype),
        "bias": rng.normal(size=channels).astype(dtype),
        "mean": rng.normal(size=channels),
        "var": rng.uniform(0.5, 2, channels),
    }


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


# Channels first, last and in between; few and many of them; runs of one element, short and long.
SHAPES = [
    ((5, 3), 1),
    ((128, 200), 1),
    ((40, 1100), 1),
    ((2, 7, 1), 1),
    ((9, 2, 5), 1),
    ((64, 20, 7, 7), 1),
    ((5, 300, 7, 7), 1),
    ((16, 3, 40, 50), 1),
    ((2, 3, 150, 160), 1),
    ((3, 1, 70, 90), 1),
    ((1, 2, 300, 301), 1),
    ((8, 9, 10, 64), -1),
    ((50, 60, 3), -1),
    ((40, 50, 1), -1),
    ((33, 17, 23), 2),
    ((3, 4, 5, 6, 7), 3),
    ((6, 30, 31), 0),
    ((64, 90, 100, 5), -1),  # large: results go past the caches of most machines
    ((700, 3100), 1),
]
SHAPE_IDS = ["x".join(map(str, shape)) + f" axis {axis}" for shape, axis in SHAPES]


def exact(rng, shape, dtype):
    """Quarters from -2 to 2."""
    return (rng.integers(-8, 9, shape) / 4).astype(dtype)


def channels_last(x, axis):
    return np.moveaxis(x, axis, -1)


class Problem:
    """The arguments of a forward and a backward pass."""

    def __init__(self, rng, shape, axis, dtype, make, residual):
        n = shape[axis]
        self.axis = axis
        self.x, self.dy = make(rng, shape, dtype), make(rng, shape, dtype)
        self.residual = make(rng, shape, dtype) if residual else None
        self.weight, self.bias = rng.normal(size=n).astype(dtype), rng.normal(size=n).astype(dtype)
        self.bias[::2] = 0  # with a mean of 0, ReLU meets its edge

    def last(self, array):
        return None if array is None else channels_last(array, self.axis)

    def expected_y(self, mean, invstd, relu):
        y = reference.normalize(
            self.last(self.x),
            mean,
            invstd,
            self.weight,
            self.bias,
            relu=relu,
            residual=self.last(self.residual),
        )
        return np.moveaxis(y, -1, self.axis)

    def expected_gradients(self, mean, invstd, relu, frozen):
        dx, dweight, dbias, dresidual = reference.backward(
            self.last(self.dy),
            self.last(self.x),
            mean,
            invstd,
            self.weight,
            self.bias,
            relu=relu,
            residual=self.last(self.residual),
            frozen=frozen,
        )
        found = [np.moveaxis(dx, -1, self.axis), dweight, dbias]
        if self.residual is not None:
            found.append(np.moveaxis(dresidual, -1, self.axis))
        with np.errstate(all="ignore"):
            return [array.astype(self.x.dtype) for array in found]


def assert_gradients(problem, mean, var, *, relu, frozen, eps=1e-5, threads=(None,)):
    """The reference's to the bit, where the sums are exact, on each of these numbers of threads."""
    with np.errstate(all="ignore"):
        invstd = 1 / np.sqrt(var + eps)
    backward = op.batch_norm_infer_backward if frozen else op.batch_norm_backward
    given = {"mean": mean, "var": var, "eps": eps}
    expected = problem.expected_gradients(mean, invstd, relu, frozen)
    for num_threads in threads:
        found = backward(
            problem.dy,
            problem.x,
            **(given if frozen else {"saved_mean": mean, "saved_invstd": invstd}),
            weight=problem.weight,
            bias=problem.bias,
            axis=problem.axis,
            relu=relu,
            residual=problem.residual,
            num_threads=num_threads,
        )
        for array, other in zip(found, expected, strict=True):
            assert_same_bits(array, other)


def mean_and_variance(x, axis=1):
    n = x.shape[axis]
    mean, var = np.zeros(n), np.zeros(n)
    op.batch_norm_train(
        x,
        running_mean=mean,
        running_var=var,
        momentum=1.0,
        unbiased_running_var=False,
        axis=axis,
    )
    return mean, var
