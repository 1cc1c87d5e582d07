"""A step of the C interface on threads that the caller hands in: `onepass_call.parallel`."""

import ctypes
import threading
from ctypes import CFUNCTYPE, c_uint, c_void_p

import numpy as np
import pytest

import capi
import onepass as op
from helpers import assert_same_bits, fresh_state, run_reference

Work = CFUNCTYPE(None, c_void_p)
Parallel = CFUNCTYPE(None, Work, c_void_p, c_uint, c_uint)
SETTINGS = {"lr": 0.1}
SIZES = (70_001, 5, 40_003)
STEPS = 3


class Team:
    """Threads that are there for one call, as many as `most` allows."""

    def __init__(self, most):
        self.most, self.asked, self.flags = most, [], set()
        self.callback = Parallel(self.run)

    def run(self, work, data, threads, flags):
        self.asked.append(threads)
        self.flags.add(flags)
        others = [
            threading.Thread(target=work, args=(data,)) for _ in range(min(threads, self.most) - 1)
        ]
        for other in others:
            other.start()
        work(data)
        for other in others:
            other.join()


def stepped(threads, team=None):
    """The parameters after some steps."""
    rng = np.random.default_rng(1)
    params = [rng.normal(size=n).astype(np.float32) for n in SIZES]
    grads = [[rng.normal(size=n).astype(np.float32) for n in SIZES] for _ in range(STEPS)]
    kept = [fresh_state(op.AdamW, SETTINGS, param) for param in params]
    before = [param.copy() for param in params]
    for k, of_step in enumerate(grads, 1):
        step = capi.Step(op.AdamW, SETTINGS, params, of_step, kept, step=k, threads=threads)
        if team:
            step.call.parallel = ctypes.cast(team.callback, c_void_p).value
        assert step.run() == capi.OK
    return before, grads, params


@pytest.mark.parametrize("most", [1, 2, 3, 8])
@pytest.mark.parametrize("threads", [2, 3])
def test_bits_are_the_same_on_a_team(threads, most):
    """Also one that has fewer threads than were asked for, the caller alone among them, or more."""
    team = Team(most)
    before, grads, params = stepped(threads, team)
    assert set(team.asked) == {threads}
    assert team.flags == {0}
    for i, param in enumerate(params):
        expected, *_ = run_reference(op.AdamW, SETTINGS, before[i], [grad[i] for grad in grads])
        assert_same_bits(param, expected)


def test_one_thread_needs_no_team():
    team = Team(2)
    stepped(1, team)
    assert not team.asked


def test_a_team_is_for_its_call_alone():
    team = Team(2)
    stepped(2, team)
    asked = len(team.asked)
    stepped(2)
    params = [np.ones(200_000, np.float32)]
    op.AdamW(params).step([np.ones(200_000, np.float32)])
    assert len(team.asked) == asked
