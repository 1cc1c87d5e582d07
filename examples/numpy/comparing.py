"""What the two programs share: how a host's own optimizer and ours are compared and shown."""

from statistics import median
from time import perf_counter


def median_times(*contenders, rounds):
    """Return the median seconds of each. They run in turns, so that a busy moment is for all."""
    taken = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, seconds in zip(contenders, taken, strict=True):
            start = perf_counter()
            contender()
            seconds.append(perf_counter() - start)
    return [median(seconds) for seconds in taken]


def show(name, difference, times):
    """Print a line, from the seconds of training and of 100 updates, the host's own and ours."""
    own, ours, own_updates, our_updates = times
    print(
        f"{name:<13} largest difference {difference:.0e};"
        f" training {own * 1e3:.1f} ms, ours {ours * 1e3:.1f};"
        f" an update {own_updates * 1e4:.1f} us, ours {our_updates * 1e4:.1f}"
    )
