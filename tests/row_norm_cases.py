"""The four normalisations of rows as one table: how each is called, and what its rows are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import onepass as op
from onepass.norms import reference


@dataclass(frozen=True)
class Case:
    """One of the four on an array; `setting`: its normalized_shape or its num_groups."""

    kind: str
    shape: tuple[int, ...]
    setting: Any = None

    def __str__(self):
        return f"{self.kind} {'x'.join(map(str, self.shape))} {self.setting or ''}".strip()

    @property
    def centered(self):
        return self.kind != "rms"

    @property
    def options(self):
        if self.kind in ("layer", "rms"):
            return {"normalized_shape": self.setting}
        return {"num_groups": self.setting} if self.kind == "group" else {}

    @property
    def weight_shape(self):
        return self.setting if self.kind in ("layer", "rms") else self.shape[1:2]

    @property
    def statistics_shape(self):
        if self.kind in ("layer", "rms"):
            return self.shape[: len(self.shape) - len(self.setting)]
        return (self.shape[0], self.setting or self.shape[1])

    def rows(self, x, weight, bias):
        if self.kind in ("layer", "rms"):
            return reference.rows_of(x, weight, bias)
        return reference.groups_of(x, self.setting or x.shape[1], weight, bias)

    def of_weights(self, terms):
        """The sum over all that share a weight, of a term for each element."""
        if self.kind in ("layer", "rms"):
            return terms.reshape(-1, *self.setting).sum(axis=0)
        return terms.reshape(self.shape).sum(axis=(0, *range(2, len(self.shape))))

    def forward(self, p, **options):
        """y, mean and invstd; the mean is 0 where there is none."""
        called = getattr(op, f"{self.kind}_norm")
        affine = {"weight": p["weight"], "bias": p["bias"]}
        if not self.centered:
            del affine["bias"]
        found = called(p["x"], **affine, **self.options, **options)
        return found if self.centered else (found[0], np.zeros_like(found[1]), found[1])

    def backward(self, p, **options):
        """dx, dweight and, where there is a bias, dbias."""
        called = getattr(op, f"{self.kind}_norm_backward")
        saved = {"saved_mean": p["mean"], "saved_invstd": p["invstd"]}
        if not self.centered:
            saved = {"saved_invrms": p["invstd"]}
        return called(p["dy"], p["x"], weight=p["weight"], **saved, **self.options, **options)

    def layer(self, dtype=np.float32, affine=True):
        if self.kind in ("layer", "rms"):
            cls = op.LayerNorm if self.centered else op.RMSNorm
            return cls(self.setting, elementwise_affine=affine, dtype=dtype)
        if self.kind == "group":
            return op.GroupNorm(self.setting, self.shape[1], affine=affine, dtype=dtype)
        return op.InstanceNorm(self.shape[1], affine=affine, dtype=dtype)

    def problem(self, rng, dtype, make=None):
        """The arguments of both passes; the statistics are drawn, too."""
        make = make or normal
        n = self.statistics_shape
        return {
            "x": make(rng, self.shape, dtype),
            "dy": make(rng, self.shape, dtype),
            "weight": make(rng, self.weight_shape, dtype),
            "bias": make(rng, self.weight_shape, dtype) if self.centered else np.zeros(1, dtype),
            "mean": np.asarray(exact(rng, n, np.float64) if self.centered else np.zeros(n)),
            "invstd": np.asarray(2.0 ** rng.integers(-2, 3, n)),
        }

    def bias(self, p):
        return p["bias"] if self.centered else np.zeros(self.weight_shape, p["x"].dtype)

    def expected_forward(self, p, mean=None, invstd=None):
        rows = self.rows(p["x"], p["weight"], self.bias(p))
        if mean is None:
            mean, invstd = reference.statistics(rows.x, 1e-5, centered=self.centered)
        y = reference.normalize(rows, mean.ravel(), invstd.ravel()).reshape(self.shape)
        return y, mean.reshape(self.statistics_shape), invstd.reshape(self.statistics_shape)

    def expected_backward(self, p):
        rows = self.rows(p["x"], p["weight"], self.bias(p))
        dx, *terms = reference.backward(
            p["dy"].reshape(rows.x.shape),
            rows,
            p["mean"].ravel(),
            p["invstd"].ravel(),
            centered=self.centered,
        )
        sums = [self.of_weights(t).astype(p["x"].dtype) for t in terms]
        return dx.reshape(self.shape), *sums[: 1 + self.centered]


def exact(rng, shape, dtype):
    """Quarters from -2 to 2: their sums and those of their products are exact."""
    return (rng.integers(-8, 9, shape) / 4).astype(dtype)


def normal(rng, shape, dtype):
    return rng.normal(1, 2, shape).astype(dtype)


ONE_OF_EACH = [
    Case("layer", (6, 4, 5), (5,)),
    Case("rms", (6, 4, 5), (5,)),
    Case("group", (6, 4, 5), 2),
    Case("instance", (6, 4, 5)),
]

# Rows of one element, of a few and of many; few rows and many; threads share rows, or a row.
CASES = [
    *ONE_OF_EACH,
    Case("layer", (7, 1), (1,)),
    Case("layer", (5,), (5,)),
    Case("layer", (40, 17), (17,)),
    Case("rms", (33, 3, 64), (3, 64)),
    Case("layer", (130, 513), (513,)),
    Case("rms", (130, 1024), (1024,)),
    Case("layer", (3000, 400), (400,)),  # in blocks
    Case("rms", (1100, 1200), (1200,)),
    Case("layer", (5, 2, 40, 250), (2, 40, 250)),  # in pieces
    Case("layer", (2, 50_001), (50_001,)),
    Case("rms", (1, 200_003), (200_003,)),
    Case("group", (50, 12), 3),  # a weight spread over columns
    Case("group", (7, 6, 3, 5), 3),
    Case("group", (300, 96, 15), 4),
    Case("group", (9, 12, 7, 7), 3),  # runs
    Case("group", (3, 4, 30, 31), 1),
    Case("group", (2, 4, 150, 160), 2),  # runs in parts
    Case("group", (2, 40, 33, 33), 1),  # pieces of several runs
    Case("instance", (4, 300), None),
    Case("instance", (64, 20, 3, 3), None),
    Case("instance", (5, 3, 130, 140), None),
    Case("instance", (1, 1, 300, 301), None),
]
