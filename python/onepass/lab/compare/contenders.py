"""Who takes part: every optimizer class, and the course's forms of SGD."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onepass.lab._spelling import check_names, spelt
from onepass.optim import (
    ADOPT,
    ASGD,
    LAMB,
    LARS,
    SGD,
    SM3,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdamWScheduleFree,
    Adan,
    AdEMAMix,
    Lion,
    Muon,
    NAdam,
    NovoGrad,
    Optimizer,
    Prodigy,
    RAdam,
    RAdamScheduleFree,
    RMSprop,
    Rprop,
    SGDScheduleFree,
    Yogi,
    registry,
)


@dataclass(frozen=True, eq=False)
class Contender:
    """An optimizer with its settings, under the name that the report gives it."""

    name: str
    optimizer: type[Optimizer]
    settings: Mapping[str, Any]
    """The settings that differ from the class's defaults."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The settings that were given with the name."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters, defaults included."""
        return {**self.optimizer.defaults, **self.settings}

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.hyperparameters["lr"])

    @property
    def momentum(self) -> float | None:
        """Its `momentum`, None where it has none, or 0."""
        return self.hyperparameters.get("momentum") or None

    @property
    def betas(self) -> tuple[float, ...]:
        """The decay rates of its averages, where they are called `betas`; else none."""
        return tuple(self.hyperparameters.get("betas", ()))

    @property
    def is_scheduled(self) -> bool:
        """Whether its rate may be a schedule. Rprop's may not: it sizes the first step alone."""
        return self.optimizer.checks["lr"].schedulable

    def check(self, **more: Any) -> None:
        """Raise ValueError where its optimizer refuses the settings, or these besides."""
        self.optimizer(np.ones((2, 2), np.float32), **{**self.settings, **more})

    def takes(self, **settings: Any) -> bool:
        """Return whether it may have these settings: they are tried, so no rule has to say so."""
        try:
            self.check(**settings)
        except (ValueError, TypeError):  # too many, or none of its hyperparameters
            return False
        return True

    def with_settings(self, **settings: Any) -> "Contender":
        """Return the same contender with other values of these settings."""
        return replace(self, settings={**self.settings, **settings})

    def with_lr(self, lr: float) -> "Contender":
        """Return the same contender with another learning rate."""
        return self.with_settings(lr=lr)


# Each learning rate is the one of 1, 2 and 5 times a power of ten that reaches 95 % validation
# accuracy on the digits in the fewest steps, on average over the seeds 1 to 4, without BatchNorm,
# clipping or a schedule. The rates are the same with these, and on other data, so that runs differ
# in nothing else.
_CONTENDERS = (
    Contender("SGD", SGD, {"lr": 0.5}),
    Contender("Momentum", SGD, {"lr": 0.05, "momentum": 0.9}),
    Contender("Nesterov", SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    Contender("Adagrad", Adagrad, {"lr": 0.05}),
    Contender("RMSprop", RMSprop, {"lr": 0.005}),
    Contender("Adam", Adam, {"lr": 0.005}),
    Contender("AdamW", AdamW, {"lr": 0.005}),
    Contender("Adadelta", Adadelta, {"lr": 2.0}),
    Contender("Adamax", Adamax, {"lr": 0.02}),
    Contender("NAdam", NAdam, {"lr": 0.005}),
    Contender("RAdam", RAdam, {"lr": 0.1}),
    # Of 0.005, 0.01, 0.02 and 0.05 the largest step that is best too: signs of single batches would
    # let the steps grow to 50.
    Contender("Rprop", Rprop, {"lr": 0.01, "step_sizes": (1e-6, 0.05)}),
    Contender("Lion", Lion, {"lr": 0.002}),
    Contender("AdEMAMix", AdEMAMix, {"lr": 0.005}),
    Contender("AdaBelief", AdaBelief, {"lr": 0.05}),
    Contender("ADOPT", ADOPT, {"lr": 0.005}),
    Contender("Yogi", Yogi, {"lr": 0.005}),
    Contender("Adan", Adan, {"lr": 0.01}),
    Contender("ASGD", ASGD, {"lr": 0.5}),
    Contender("LARS", LARS, {"lr": 5.0, "momentum": 0.9, "always_adapt": True}),
    Contender("LAMB", LAMB, {"lr": 0.01}),
    Contender("NovoGrad", NovoGrad, {"lr": 0.02}),
    Contender("Adafactor", Adafactor, {"lr": 0.02}),
    Contender("SM3", SM3, {"lr": 0.1}),
    Contender("Prodigy", Prodigy, {"lr": 1.0}),
    # With the ratio that lets one rate fit AdamW too, which steps the biases.
    Contender("Muon", Muon, {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"}),
    Contender("SGDScheduleFree", SGDScheduleFree, {"lr": 1.0}),
    Contender("AdamWScheduleFree", AdamWScheduleFree, {"lr": 0.01}),
    Contender("RAdamScheduleFree", RAdamScheduleFree, {"lr": 0.1}),
)


def contender(text: str) -> Contender:
    """Return a contender by its name, or by its name with settings behind it.

    Raises
    ------
    ValueError, TypeError
        For settings that its class has not, or refuses.
    """
    named = spelt(text)
    base = contenders()[named.name]
    check_names(named, base.hyperparameters)
    made = replace(base.with_settings(**named.settings), name=text, given=named.settings)
    made.check()
    return made


def contenders() -> dict[str, Contender]:
    """Return all contenders by name: the table's, then the classes it lacks as they come."""
    table = {contender.name: contender for contender in _CONTENDERS}
    for cls in registry.values():
        table.setdefault(cls.__name__, Contender(cls.__name__, cls, {}))
    return table
