"""What the course says of these paths, each as a measurement."""

from onepass.lab.surface.claims.adaptive import (
    Arrival,
    Moved,
    adam_beside_rmsprop,
    effective_rates,
    first_steps_on_sparse,
)
from onepass.lab.surface.claims.guessing import Guess, guesses
from onepass.lab.surface.claims.momentum import (
    Reached,
    UTurn,
    losses_in_a_valley,
    losses_of_stochastic_steps,
    steps_across_the_plateau,
    u_turns,
)
from onepass.lab.surface.claims.rates import (
    Cost,
    Crossing,
    high_rates_on_the_plateau,
    line_searches_beside_plain_descent,
)

__all__ = [
    "Arrival",
    "Cost",
    "Crossing",
    "Guess",
    "Moved",
    "Reached",
    "UTurn",
    "adam_beside_rmsprop",
    "effective_rates",
    "first_steps_on_sparse",
    "guesses",
    "high_rates_on_the_plateau",
    "line_searches_beside_plain_descent",
    "losses_in_a_valley",
    "losses_of_stochastic_steps",
    "steps_across_the_plateau",
    "u_turns",
]
