"""Times whole trainings, with Adam as one writes it in NumPy and with onepass's.

python bench/end_to_end.py                     the table of docs/what-it-buys.md; some minutes
python bench/end_to_end.py --seconds 1 --threads 1 --training "digits, 64-128-64-10"

Both take turns and take the same steps on the same batches; all but the step is the same code. The
share is the part of the training that is spent in steps. BLAS and onepass have as many threads.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from time import perf_counter

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

import onepass as op
import onepass.sklearn
import sklearn_fit
from onepass.lab.bench.timing import alternate
from onepass.lab.compare.losses import CrossEntropy
from onepass.lab.compare.network import Network

LR = 1e-3

Arrays = list[np.ndarray]
Step = Callable[[Arrays], object]
Gradients = Callable[[int], Arrays]
"""Of a batch, by its number, where the parameters are."""


def by_hand(params: Arrays, lr: float = LR) -> Step:
    """Adam as its paper has it, in the usual ten lines."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    averages = [np.zeros_like(param) for param in params]
    squares = [np.zeros_like(param) for param in params]
    count = 0

    def step(grads: Arrays) -> None:
        nonlocal count
        count += 1
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            averages[i] = beta1 * averages[i] + (1 - beta1) * grad
            squares[i] = beta2 * squares[i] + (1 - beta2) * grad**2
            average = averages[i] / (1 - beta1**count)
            square = squares[i] / (1 - beta2**count)
            param -= lr * average / (np.sqrt(square) + eps)  # noqa: PLW2901 (into the array)

    return step


def by_onepass(params: Arrays, lr: float = LR) -> Step:
    return op.Adam(params, lr).step


@dataclass(frozen=True)
class Training:
    """A loop of a user: so many steps from the same first weights."""

    start: Callable[[], tuple[Arrays, Gradients]]
    steps: int

    def run(self, make: Callable[[Arrays], Step], shares: list[float]) -> Arrays:
        """Train, return the weights, and add the steps' share of the time to the list."""
        begin, spent = perf_counter(), 0.0
        params, gradients = self.start()
        step = make(params)
        for number in range(self.steps):
            grads = gradients(number)
            before = perf_counter()
            step(grads)
            spent += perf_counter() - before
        shares.append(spent / (perf_counter() - begin))
        return params


def network(sizes: Sequence[int], rows: int) -> Callable[[], tuple[Arrays, Gradients]]:
    """Return the start of a network of ReLUs with softmax, on batches of so many rows of noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8 * rows, sizes[0]), np.float32)
    labels = rng.integers(sizes[-1], size=len(x))

    def start() -> tuple[Arrays, Gradients]:
        made = Network(sizes, np.random.default_rng(1), CrossEntropy(), batch_norm=False)

        def gradients(number: int) -> Arrays:
            batch = slice(number % 8 * rows, (number % 8 + 1) * rows)
            made.loss_and_grad(x[batch], labels[batch])
            return made.grad_arrays

        return made.arrays, gradients

    return start


FEATURES, ROWS, WORDS = 200_000, 64, 100


@cache
def texts() -> sparse.csr_array:
    """Return 64 batches of rows in which 100 of 200,000 features are not 0, as hashed words are."""
    rng = np.random.default_rng(0)
    index = rng.integers(FEATURES, size=64 * ROWS * WORDS)
    shape = 64 * ROWS, FEATURES
    return sparse.csr_array((np.ones(index.size), index, np.arange(shape[0] + 1) * WORDS), shape)


def logistic() -> tuple[Arrays, Gradients]:
    """Return the start of a logistic regression."""
    x = texts()
    y = np.random.default_rng(1).integers(2, size=x.shape[0])
    w = np.zeros(FEATURES)

    def gradients(number: int) -> Arrays:
        batch = slice(number % 64 * ROWS, (number % 64 + 1) * ROWS)
        part = x[batch]
        return [part.T @ (1 / (1 + np.exp(-(part @ w))) - y[batch]) / ROWS]

    return [w], gradients


def physics() -> tuple[Arrays, Gradients]:
    """Return the start of a fit of u'' = f with u(0) = u(1) = 0 by 64 units of tanh, by hand."""
    rng = np.random.default_rng(0)
    c, w, b = rng.normal(size=64) / 8, 4 * rng.normal(size=64), rng.normal(size=64)
    x = np.linspace(0, 1, 256)[:, None]
    f = -(np.pi**2) * np.sin(np.pi * x[:, 0])
    ends = np.array([[0.0], [1.0]])

    def gradients(_: int) -> Arrays:
        t = np.tanh(x * w + b)
        s = 1 - t * t
        second, third = -2 * t * s, s * (6 * t * t - 2)  # derivatives of tanh
        error = 2 * (second @ (c * w * w) - f) / len(x)
        by_c, by_b = (error @ second) * w * w, (error @ third) * c * w * w
        by_w = 2 * c * w * (error @ second) + c * w * w * ((error * x[:, 0]) @ third)
        t = np.tanh(ends * w + b)
        error = 2 * (t @ c)
        by_t = error @ (1 - t * t) * c
        return [by_c + error @ t, by_w + (error * ends[:, 0]) @ (1 - t * t) * c, by_b + by_t]

    return [c, w, b], gradients


TRAININGS: Mapping[str, Training] = {
    "network 64-128-64-10, 64 rows": Training(network((64, 128, 64, 10), 64), 300),
    "network 784-512-512-10, 64 rows": Training(network((784, 512, 512, 10), 64), 30),
    "network 784-512-512-10, 2,048 rows": Training(network((784, 512, 512, 10), 2048), 6),
    "logistic regression, 200,000 features": Training(logistic, 64),
    "physics-informed fit, 64 units": Training(physics, 300),
}
SKLEARN = "`MLPClassifier`, (512, 512), float32"


def main() -> None:
    names = (*TRAININGS, SKLEARN)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--training", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.2f}; NumPy {np.__version__}, onepass {op.__version__}\n")
    print("| training | threads | by hand, ms | onepass, ms | times as fast | steps' share |")
    print("| --- | --: | --: | --: | --: | --- |")
    for name in options.training:
        for threads in options.threads:
            op.set_num_threads(threads)
            with threadpool_limits(threads):
                print(row(name, threads, options.seconds), flush=True)


def row(name: str, threads: int, seconds: float) -> str:
    shares: tuple[list[float], list[float]] = ([], [])
    if name == SKLEARN:
        theirs, ours = map(fit, (MLPClassifier, onepass.sklearn.MLPClassifier))
    else:
        run = TRAININGS[name].run
        theirs, ours = partial(run, by_hand, shares[0]), partial(run, by_onepass, shares[1])
    times = alternate({"by hand": theirs, "onepass": ours}, seconds)
    ratio = median(a / b for a, b in zip(*times.values(), strict=False))
    taken = " | ".join(f"{median(each) * 1e3:,.0f}" for each in times.values())
    share = " to ".join(f"{median(each):.0%}" for each in shares if each) or "-"
    return f"| {name} | {threads} | {taken} | {ratio:.2f} | {share} |"


def fit(cls: type[MLPClassifier]) -> Callable[[], object]:
    """Return a fit of scikit-learn's network to the digits, five times over the data."""
    x, labels = sklearn_fit.load("digits", np.float32)
    made = cls(hidden_layer_sizes=(512, 512), max_iter=5, random_state=0)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            made.fit(x, labels)

    return run


if __name__ == "__main__":
    main()
