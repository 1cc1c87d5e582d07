"""Arithmetic whose overflows and underflows are results, not errors."""

import numpy as np

quiet = np.errstate(all="ignore")
"""Decorates what computes in NumPy, so that no result depends on the caller's `numpy.seterr`.

Not what calls a function of the user's: whose errors are the user's to choose.
"""
