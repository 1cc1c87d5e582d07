"""Times a step with and without `stats=True`, hot, and after something has taken the caches.

python bench/step_stats.py                     AdamW on three networks, float32
python bench/step_stats.py --threads 2 --optimizer lamb
"""

import argparse
import os
from functools import partial
from statistics import median

import numpy as np

import onepass as op
from onepass.lab.bench.timing import HOT, Situation, alternate

NETWORKS = {
    "10 arrays, 17 k": (8192, 128, 128, 128, 8192, 64, 64, 64, 640, 10),
    "6 arrays, 1 M": (500_000, 1000, 400_000, 1000, 100_000, 1000),
    "12 arrays, 25 M": (2048 * 2048, 2048) * 6,
}
"""Elements of the arrays."""
SWEPT = 16_000_000
"""Elements of float32 that a sweep reads and writes: more than any cache has."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--optimizer", default="adamw", choices=list(op.optim.registry))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each line")
    options = parser.parse_args()
    op.set_num_threads(options.threads)
    caches = np.zeros(SWEPT, np.float32)
    situations = {
        "hot": HOT,
        "cold": Situation(before=partial(np.add, caches, 1, out=caches), hot=False),
    }
    print(f"load {os.getloadavg()[0]:.2f}; {options.optimizer}, {options.threads} threads, float32")
    for network, sizes in NETWORKS.items():
        rng = np.random.default_rng(0)
        params, grads = (
            [rng.normal(size=size).astype(np.float32) for size in sizes] for _ in range(2)
        )
        opt = op.optim.registry[options.optimizer](params, lr=1e-6)
        steps = {
            "without": partial(opt.step, grads),
            "with": partial(opt.step, grads, stats=True),
        }
        for name, situation in situations.items():
            times = alternate(steps, options.seconds, situation)
            without, watched = (median(times[way]) * 1e6 for way in steps)
            print(
                f"{network:16} {name:5} {without:9,.0f} us, with stats {watched:9,.0f} us, "
                f"{watched / without:.2f} times"
            )


if __name__ == "__main__":
    main()
