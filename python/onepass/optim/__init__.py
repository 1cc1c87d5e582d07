"""The optimizers. One file each: its class, its documentation and its rule in NumPy."""

from onepass.optim.adabelief import AdaBelief
from onepass.optim.adadelta import Adadelta
from onepass.optim.adafactor import Adafactor
from onepass.optim.adagrad import Adagrad
from onepass.optim.adam import Adam
from onepass.optim.adamax import Adamax
from onepass.optim.adamw import AdamW
from onepass.optim.adamw_schedulefree import AdamWScheduleFree
from onepass.optim.adan import Adan
from onepass.optim.ademamix import AdEMAMix
from onepass.optim.adopt import ADOPT
from onepass.optim.asgd import ASGD
from onepass.optim.lamb import LAMB
from onepass.optim.lars import LARS
from onepass.optim.lion import Lion
from onepass.optim.loss_scaler import LossScaler
from onepass.optim.muon import Muon
from onepass.optim.nadam import NAdam
from onepass.optim.novograd import NovoGrad
from onepass.optim.optimizer import Optimizer, registry
from onepass.optim.prodigy import Prodigy
from onepass.optim.radam import RAdam
from onepass.optim.radam_schedulefree import RAdamScheduleFree
from onepass.optim.rmsprop import RMSprop
from onepass.optim.rprop import Rprop
from onepass.optim.sgd import SGD
from onepass.optim.sgd_schedulefree import SGDScheduleFree
from onepass.optim.sm3 import SM3
from onepass.optim.step_info import ParamStats, StepInfo
from onepass.optim.yogi import Yogi

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "SM3",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "Lion",
    "LossScaler",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "ParamStats",
    "Prodigy",
    "RAdam",
    "RAdamScheduleFree",
    "RMSprop",
    "Rprop",
    "SGDScheduleFree",
    "StepInfo",
    "Yogi",
    "registry",
]
