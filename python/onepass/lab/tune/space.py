"""What is searched: the settings of a study, and how a trial chooses within them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.training import Recipe, Run

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MOMENTA = (0.5, 0.99)
"""The range of momentum, and of the first of the betas, which is one."""
LATER_BETAS = (0.9, 0.99, 0.999, 0.9999)
"""The choices for each of the other betas."""


@dataclass(frozen=True)
class Settings:
    """The settings that two studies must share for one to go on from the other."""

    data: str
    epochs: int
    optimizers: tuple[str, ...]
    """Names of contenders."""
    seed: int
    lr: tuple[float, float] = (1e-4, 1.0)
    """The range, searched on a log scale."""
    content: str | None = None
    """What tells whether the file of the data is as it was; None for those of scikit-learn."""
    layers: tuple[int, int] = (1, 10)
    """The range of the number of hidden layers."""
    units: tuple[int, ...] = (16, 32, 64, 128, 256)
    """The choices for each hidden layer by itself."""
    dropout: tuple[float, float] = (0.0, 0.5)
    """The range."""
    batch_size: tuple[int | None, ...] = (8, 16, 32, 64, 128)
    """The choices; None for all rows."""
    batch_norm: tuple[bool, ...] = (True, False)
    """The choices. There is none for a batch of one row, which has no variance."""
    state_format: tuple[str, ...] = ("float32",)
    """The choices, of `STATE_FORMATS`."""
    schedule: tuple[str, ...] = ("constant", "cosine", "one_cycle", "step_decay")
    """The choices, of `SCHEDULES`, for optimizers whose rate may have one."""
    weight_decay: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    """The choices, for optimizers that have it."""

    @property
    def recipe(self) -> Recipe:
        """The recipe that trials start from; each sets its own batch size, layers and so on."""
        return Recipe(data=self.data, epochs=self.epochs)

    def suggest(self, trial: "BaseTrial") -> tuple[Run, Recipe]:
        """Return a trial's training, its values proposed or, for one of the past, as they were."""
        contender = contenders()[trial.suggest_categorical("optimizer", self.optimizers)]
        settings: dict[str, Any] = {"lr": _suggest(trial, "lr", self.lr, log=True)}
        if contender.momentum:  # only contenders that have it
            settings["momentum"] = _suggest(trial, "momentum", MOMENTA)
        if contender.betas:
            first = _suggest(trial, "beta1", MOMENTA)
            others = (
                trial.suggest_categorical(f"beta{number}", LATER_BETAS)
                for number in range(2, len(contender.betas) + 1)
            )
            settings["betas"] = (first, *others)
        if contender.takes(weight_decay=max(self.weight_decay)):
            settings["weight_decay"] = trial.suggest_categorical("weight_decay", self.weight_decay)
        schedule = self.recipe.schedule
        if contender.is_scheduled:
            schedule = trial.suggest_categorical("schedule", self.schedule)
        batch_size: Any = trial.suggest_categorical("batch_size", self.batch_size)
        layers = range(1, trial.suggest_int("layers", *self.layers) + 1)
        recipe = replace(
            self.recipe,
            batch_size=batch_size,
            hidden=tuple(trial.suggest_categorical(f"units_{i}", self.units) for i in layers),
            dropout=_suggest(trial, "dropout", self.dropout),
            state_format=trial.suggest_categorical("state_format", self.state_format),
            schedule=schedule,
        )
        batch_norm = batch_size != 1 and trial.suggest_categorical("batch_norm", self.batch_norm)
        return Run(contender.with_settings(**settings), batch_norm, self.seed), recipe


def _suggest(
    trial: "BaseTrial", name: str, limits: tuple[float, float], *, log: bool = False
) -> float:
    """Return a number of three digits, so that the command that repeats a trial can be read."""
    low, high = limits
    return min(max(float(f"{trial.suggest_float(name, low, high, log=log):.3g}"), low), high)
