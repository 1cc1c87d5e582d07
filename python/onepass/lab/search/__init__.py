"""Choosing a learning rate before the training: a search over a few, or one ramp through all.

`learning_rate` trains for a few epochs with each rate of a grid and needs nothing but a function
from a rate to a loss. `range_test` raises the rate from step to step of a single short run.
"""

from onepass.lab.search.grid import LearningRates, Trial, learning_rate
from onepass.lab.search.ramp import RangeTest, range_test

__all__ = ["LearningRates", "RangeTest", "Trial", "learning_rate", "range_test"]
