"""What the tests of `minimize` share: functions to minimize."""

import numpy as np

import onepass as op
from helpers import shaped

CURVATURE, TARGET = np.array([1.0, 3.0, 0.5, 2.0]), np.array([1.0, -2.0, 3.0, 0.0])


def quadratic(x):
    """Half the squared distance to `TARGET`, in units of each element's own; of any shape."""
    curvature, target = CURVATURE.reshape(x.shape), TARGET.reshape(x.shape)
    return 0.5 * (curvature * (x - target) ** 2).sum(), curvature * (x - target)


def start_of(cls, settings=()):
    return shaped(cls, dict(settings), np.array([4.0, 1.0, -1.0, 0.5]))


def scripted(*values, grad=1.0):
    """A function of one element that has these values one after the other, whatever the point."""
    left = iter(values)
    return lambda x: (next(left), np.full_like(x, grad))


def points_of(*args, **options):
    """What `minimize` returns, and all points but the first."""
    iterates = []
    found = op.minimize(*args, callback=iterates.append, **options)
    return found, iterates
