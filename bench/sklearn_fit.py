"""Times `fit` of scikit-learn's MLPClassifier, with its own steps and with onepass.sklearn's.

python bench/sklearn_fit.py                            solver="adam"; half a minute
python bench/sklearn_fit.py --solver sgd --layers 512x512 --rounds 9

Both take turns, on one thread, and what is taken is the CPU's time: others that are at work on the
machine stretch it less than that of the clock. "fit" is how many times as long scikit-learn's
takes, "steps" how many times as long its steps alone take, "share" the part that these have of its
fit, and of ours.
"""

import argparse
import os
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time

import numpy as np
from sklearn import neural_network
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

import onepass as op
import onepass.sklearn

DATA = ("digits", "20000x200")
LAYERS = ("100", "512x512")
BATCHES = 50
"""Of 200 samples, which a fit takes, in whole epochs: it begins and ends besides."""
STEPS = 20
"""Of which the time is taken together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", nargs="*", default=DATA, help="digits, or rows x columns")
    parser.add_argument("--layers", nargs="*", default=LAYERS, help="sizes of the hidden layers")
    parser.add_argument("--solver", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    op.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.2f}; solver={options.solver!r}, one thread, CPU's seconds")
    print("data        layers     dtype      fit   ours  ratio    steps     share")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for data in options.data:
            for layers in options.layers:
                for dtype in (np.float64, np.float32):
                    samples = load(data, dtype)
                    settings = {
                        "hidden_layer_sizes": tuple(map(int, layers.split("x"))),
                        "solver": options.solver,
                        "max_iter": max(BATCHES // batches(samples[0]), 1),
                        "random_state": 0,
                    }
                    row = compare(*samples, settings, options.rounds)
                    print(f"{data:11} {layers:10} {np.dtype(dtype).name:8}{row}", flush=True)


def load(data: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    if data == "digits":
        images, labels = load_digits(return_X_y=True)
        return (images / 16).astype(dtype), labels
    rows, columns = map(int, data.split("x"))
    informative = {"n_informative": 20, "n_redundant": 0, "n_classes": 10}
    x, labels = make_classification(rows, columns, **informative, random_state=0)
    return x.astype(dtype), labels


def batches(x: np.ndarray) -> int:
    """Return how many there are in an epoch."""
    return -(-len(x) // 200)


def compare(x: np.ndarray, labels: np.ndarray, settings: dict, rounds: int) -> str:
    """Return a row's columns: medians, and medians of each round's ratio."""
    owners = neural_network, onepass.sklearn
    networks = [owner.MLPClassifier(**settings).fit(x, labels) for owner in owners]
    theirs, ours = turns([partial(n.fit, x, labels) for n in networks], rounds)
    their_steps, our_steps = turns([partial(step, *arrays(n)) for n in networks], 3 * rounds)
    count = batches(x) * settings["max_iter"] / STEPS
    shares = [
        count * median(taken) / median(whole)
        for taken, whole in ((their_steps, theirs), (our_steps, ours))
    ]
    return (
        f"{median(theirs):7.3f}{median(ours):7.3f}{ratio(theirs, ours):7.2f}"
        f"{ratio(their_steps, our_steps):9.1f}{shares[0]:6.0%} ->{shares[1]:3.0%}"
    )


def turns(contenders: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each one's rounds."""
    taken: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, seconds in zip(contenders, taken, strict=True):
            start = process_time()
            contender()
            seconds.append(process_time() - start)
    return taken


def ratio(theirs: list[float], ours: list[float]) -> float:
    return median(a / b for a, b in zip(theirs, ours, strict=True))


def arrays(network):
    """Return a fitted optimizer, weights and gradients: which, does not matter to the time."""
    weights = [w.copy() for w in network.coefs_ + network.intercepts_]
    return network._optimizer, weights, [w.copy() for w in weights]


def step(optimizer, weights, grads) -> None:
    for _ in range(STEPS):
        optimizer.update_params(weights, grads)


if __name__ == "__main__":
    main()
