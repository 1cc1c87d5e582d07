"""What the pictures share: logarithmic axes that lose nothing, and lines that can be told apart."""

import math
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepass.lab._picture import COLOURS, LogScale, new_figure, styles


def drawn(scale):
    """Its axis, and what is written on it."""
    axes = new_figure(2, 2).subplots()
    scale.draw(axes)
    return axes, [text.get_text() for text in axes.texts]


class TestLogScale:
    def test_what_fits_is_drawn_as_it_is(self):
        scale = LogScale([[1.0, 10.0], 100.0])
        values = [1.0, 10.0, 100.0, math.nan]
        np.testing.assert_array_equal(scale.fit(values), values)
        axes, words = drawn(scale)
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < 1
        assert high > 100
        assert words == []

    @pytest.mark.parametrize("zero", [0.0, -0.0])
    def test_a_zero_is_shown_below_all_others(self, zero):
        scale = LogScale([zero, 1.0, 100.0])
        axes, words = drawn(scale)
        assert axes.get_ylim()[0] < scale.fit(zero) < 1
        assert words == ["0"]

    def test_what_is_cut_is_said(self):
        scale = LogScale([0.0, 1e-20, 1.0, 5.0, 1e30], top=100.0, bottom=1e-12)
        axes, words = drawn(scale)
        low, high = axes.get_ylim()
        assert low < scale.fit(0.0) == scale.fit(1e-20) < 1e-12
        assert scale.fit(1e30) == 1e30 > high > 5
        assert words == ["< 1e-12", f"cut above {high:.1g}"]

    @pytest.mark.parametrize("values", [[], [0.0], [math.nan, math.inf], [1e-300], [1e300, 1e308]])
    def test_whatever_there_is(self, values):
        axes, _ = drawn(LogScale(values))
        axes.figure.draw_without_rendering()

    @settings(max_examples=40)  # each makes a figure, the first one slowly
    @given(
        st.lists(st.floats(0, allow_infinity=False)),
        st.floats(1e-20, 1e20),
        st.floats(1e-20, 1e20),
    )
    def test_every_value_has_a_place(self, values, top, bottom):
        """In the axis, or above it if it is above the limit or beside one that floats set."""
        scale = LogScale([values], top=top, bottom=bottom)
        axes, words = drawn(scale)
        low, high = axes.get_ylim()
        fitted = scale.fit(values)
        assert (fitted > low).all()
        outside = fitted > high
        assert (np.array(values)[outside] > min(top, 1e250)).all()
        assert outside.any() <= any(word.startswith("cut above") for word in words)
        changed = fitted != np.array(values)
        assert len(set(fitted[changed])) <= 1
        assert changed.any() == any(word == "0" or word.startswith("< ") for word in words)


def test_lines_of_many_rules_differ():
    assert len(set(islice(styles(), 4 * len(COLOURS)))) == 4 * len(COLOURS)


LIBRARY = """
import os, sys
import numpy as np
import onepass as op
found = op.search.learning_rate(lambda lr: (lr - 0.1) ** 2)
curve = op.search.RangeTest(np.array([0.1, 1.0]), np.ones(2), np.ones(2), False)
before = dict(os.environ)
op.ema.picture(np.arange(5.0), 0.5, sys.argv[1])
found.picture(sys.argv[1])
curve.picture(sys.argv[1])
assert dict(os.environ) == before
import matplotlib
print(matplotlib.get_backend())
"""


@pytest.mark.parametrize(
    ("backend", "later"),
    [("no-such-backend", "agg"), ("svg", "svg")],
)
def test_the_library_needs_no_backend_and_takes_none_away(backend, later, tmp_path):
    """matplotlib >= 3.9 refuses an unknown MPLBACKEND at import; a known one stays in force."""
    environment = {**os.environ, "MPLBACKEND": backend}
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        environment.pop(display, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIBRARY, tmp_path / "picture.png"],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().lower() == later
    assert (tmp_path / "picture.png").exists()
