"""A plugin of pytest: scikit-learn's own tests meet our classes in the place of its own.

`ONEPASS_SKLEARN_STEPS` says who steps: "solvers" are the solvers' steps, natively; "optimizers" are
classes of onepass, given as ``optimizer=``, that take the same steps.
"""

import os
from functools import partial

from sklearn import neural_network

import onepass as op
import onepass.sklearn


class _Chosen:
    """Whichever the solver, an optimizer of onepass."""

    @property
    def optimizer(self):
        if self.solver == "lbfgs":
            return None
        if self.solver == "adam":
            betas = self.beta_1, self.beta_2
            return partial(op.Adam, betas=betas, eps=self.epsilon, eps_hat=True)
        nesterov = self.nesterovs_momentum and self.momentum > 0
        return partial(op.SGD, momentum=self.momentum, nesterov=nesterov, form="sutskever")

    @optimizer.setter
    def optimizer(self, _):
        pass


class ChosenClassifier(_Chosen, onepass.sklearn.MLPClassifier):
    __init__ = onepass.sklearn.MLPClassifier.__init__


class ChosenRegressor(_Chosen, onepass.sklearn.MLPRegressor):
    __init__ = onepass.sklearn.MLPRegressor.__init__


if steps := os.environ.get("ONEPASS_SKLEARN_STEPS"):
    chosen = steps == "optimizers"
    neural_network.MLPClassifier = ChosenClassifier if chosen else onepass.sklearn.MLPClassifier
    neural_network.MLPRegressor = ChosenRegressor if chosen else onepass.sklearn.MLPRegressor
    onepass.sklearn.patch()  # for the tests of the private classes
