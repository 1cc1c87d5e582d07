"""The optimizers. One file each: its class, its documentation and its rule in NumPy."""

from onepass.optim.adagrad import Adagrad
from onepass.optim.adam import Adam
from onepass.optim.adamw import AdamW
from onepass.optim.loss_scaler import LossScaler
from onepass.optim.optimizer import Optimizer, registry
from onepass.optim.rmsprop import RMSprop
from onepass.optim.sgd import SGD
from onepass.optim.step_info import StepInfo

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "LossScaler",
    "Optimizer",
    "RMSprop",
    "StepInfo",
    "registry",
]
