"""Code that runs while arrays are looked at, or in other threads, may spoil numbers, never memory.

Each program runs in a process of its own, since what it guards against ends the process.
"""

import subprocess
import sys

import pytest

PROGRAMS = {
    "resized inside a block": """
        w = np.zeros(4_000_000, np.float32)
        opt = op.SGD(w, lr=0.1, ema_decay=0.5)
        opt.step(np.ones_like(w))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with opt.averaged():
                w.resize(10, refcheck=False)
        assert "resized inside the block" in str(caught[0].message)
    """,
    "resized before a block": """
        w = np.zeros(4_000_000, np.float32)
        opt = op.SGD(w, lr=0.1, ema_decay=0.5)
        opt.step(np.ones_like(w))
        block = opt.averaged()
        w.resize(10, refcheck=False)
        try:
            block.__enter__()
        except ValueError as error:
            assert "resized" in str(error)
        else:
            raise AssertionError("it was entered")
    """,
    "state that another thread drops": """
        n = 3_000_000
        w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
        opt = op.Adam(w, ema_decay=0.9)
        opt.step(g)
        stop = threading.Event()

        def step():
            while not stop.is_set():
                try:
                    opt.step(g)
                except ValueError:
                    pass

        thread = threading.Thread(target=step)
        thread.start()
        for i in range(40):
            name, values = [("ema_decay", (None, 0.9)), ("state_format", ("q8", None))][i // 20]
            opt.param_groups[0][name] = values[i % 2]
            try:
                opt.state_dict()
                opt.step(g)
                opt.load_state_dict(opt.state_dict())
            except ValueError:
                pass
        stop.set()
        thread.join()
    """,
    "a gradient whose code drops state": """
        n = 3_000_000
        params = [np.zeros(n, np.float32), np.zeros(3, np.float32)]
        opt = op.SGD(params, lr=0.1, ema_decay=0.9)
        grads = [np.ones(n, np.float32), np.ones(3, np.float32)]
        opt.step(grads)

        class Hook:
            @property
            def __class__(self):
                return np.float32

            def __array__(self, dtype=None, copy=None):
                opt.param_groups[0]["ema_decay"] = None
                try:
                    opt.step(grads)
                except ValueError:
                    pass
                return np.ones(3, np.float32)

        opt.step([grads[0], Hook()])
    """,
    "a gradient whose code resizes a parameter": """
        params = [np.zeros(3_000_000, np.float32), np.zeros(3, np.float32)]
        opt = op.SGD(params, lr=0.1)

        class Hook:
            @property
            def __class__(self):
                return np.float32

            def __array__(self, dtype=None, copy=None):
                params[0].resize(10 + params[0].size % 7, refcheck=False)
                return np.ones(3, np.float32)

        try:
            opt.step([np.ones(3_000_000, np.float32), Hook()])
        except ValueError as error:
            assert "expected" in str(error)
        else:
            raise AssertionError("it stepped")
    """,
    "a free function whose gradient's code resizes its state": """
        n = 3_000_000
        w, m = np.zeros(n, np.float32), np.zeros(n, np.float32)

        class Scalar:
            @property
            def __class__(self):
                return np.float32

            def __array__(self, dtype=None, copy=None):
                m.resize(5, refcheck=False)
                return np.ones(n, np.float32)

        try:
            op.kernels.sgd(w, Scalar(), m, momentum=0.9, lr=0.1, step=1)
        except ValueError as error:
            assert "expected" in str(error)
        else:
            raise AssertionError("it stepped")
    """,
    "a parameter that no longer fits its state, twice": """
        w = np.zeros(3, np.float32)
        opt = op.Adam(w)
        opt.step(np.ones(3, np.float32))
        w.resize(1_000_000, refcheck=False)
        for _ in range(2):
            try:
                opt.step(np.ones(1_000_000, np.float32))
            except ValueError as error:
                assert "state['exp_avg']: expected the parameter's shape" in str(error)
            else:
                raise AssertionError("it stepped")
        w.resize(3, refcheck=False)
        assert opt.step(np.ones(3, np.float32)).step == 2
    """,
    "a gradient whose code resizes its own parameter": """
        n = 3_000_000
        w = np.zeros(n, np.float32)
        opt = op.SGD(w, lr=1.0)

        class Hook:
            def __array__(self, dtype=None, copy=None):
                w.resize(20 * n, refcheck=False)
                return np.ones(20 * n, np.float32)

        opt.step(Hook())  # its code runs before anything is looked at
        assert w.size == 20 * n and (w == -1).all()
    """,
    "rows whose code resizes their parameter": """
        n = 3_000_000
        w = np.zeros((n, 2), np.float32)
        opt = op.SGD(w, lr=1.0)

        class Hook:
            def __array__(self, dtype=None, copy=None):
                w.resize((20 * n, 2), refcheck=False)
                return np.ones((1, 2), np.float32)

        try:
            opt.step_rows((np.array([0]), Hook()))
        except ValueError as error:
            assert "do not change during the call" in str(error)
        else:
            raise AssertionError("it stepped")
    """,
    "a gradient whose code uses the optimizer": """
        n = 1_000_000
        params = [np.zeros(n, np.float32), np.zeros(n, np.float32)]
        opt = op.Adam(params, lr=0.1)
        ones = np.ones(n, np.float32)
        errors = []

        class Hook:
            def __array__(self, dtype=None, copy=None):
                for call in (
                    lambda: opt.step([ones, ones]),
                    lambda: opt.accumulate([ones, ones]),
                    lambda: opt.bind([ones, ones]),
                    lambda: opt.load_state_dict(opt.state_dict()),
                    lambda: opt.add_param_group({"params": np.zeros(3)}),
                    lambda: opt.discard_accumulated(),
                ):
                    try:
                        call()
                    except ValueError as error:
                        errors.append(str(error))
                grads[0] = None
                gc.collect()
                return np.ones(n, np.float32)

        grads = [Hook(), Hook()]
        assert opt.step(grads).step == 1
        assert len(errors) == 12, errors
        assert (params[0] == params[1]).all() and (params[0] < 0).all()
    """,
    "a gradient that lets go of what it returned": """
        n = 3_000_000
        w = [np.zeros(n, np.float32), np.zeros(n, np.float32)]
        opt = op.SGD(w, lr=1.0)

        class Once:
            def __array__(self, dtype=None, copy=None):
                return np.ones(n, np.float32)

        class Taken:
            array = np.ones(n, np.float32)

            def __array__(self, dtype=None, copy=None):
                array, Taken.array = Taken.array, None
                return array

        opt.step([Once(), Taken()])
        opt.step_rows({0: (np.array([0]), np.ones((1,), np.float32)), 1: Once()})
        op.kernels.sgd(w, [Once(), Once()], lr=1.0)
        assert (w[0][1:] == -2).all() and w[0][0] == -3 and (w[1] == -3).all()
    """,
    "a free function whose gradients' code moves a parameter there and back": """
        def state(n):
            return 1, (n,), np.dtype(np.float32), False, bytes(4 * n)

        w = [np.zeros(8, np.float32) for _ in range(3)]
        ones = [np.ones(8, np.float32) for _ in range(3)]
        there, between = w[1].ctypes.data, []

        class Hook:
            @property
            def __class__(self):
                return np.float32

            def __array__(self, dtype=None, copy=None):
                # NumPy hands a small block that was freed last to the next array of its size.
                w[1].__setstate__(state(16))
                if between:
                    between.clear()
                else:
                    between.append(np.zeros(8, np.float32))
                    assert between[0].ctypes.data == there
                w[1].__setstate__(state(8))
                assert (w[1].ctypes.data == there) == (not between)
                return ones.pop()

        try:
            op.kernels.sgd(w, [Hook(), Hook(), ones.pop()], lr=0.1)
        except ValueError as error:
            assert "do not change during the call" in str(error)
        else:
            raise AssertionError("it stepped")
    """,
    "a sequence that yields fewer than its length": """
        from collections.abc import Sequence

        class Liar(Sequence):
            def __len__(self):
                return 200

            def __getitem__(self, index):
                raise IndexError

        params = [np.zeros(3, np.float32) for _ in range(200)]
        opt = op.SGD(params, lr=0.1)
        for call in (opt.step, opt.accumulate, opt.bind, lambda g: op.SGD(params, grads=g)):
            try:
                call(Liar())
            except ValueError as error:
                assert "grads: expected 200 arrays, got 0" in str(error)
            else:
                raise AssertionError("it was taken")
    """,
    "gradients that a name's code empties while they are walked": """
        def zeros():
            return np.zeros(3, np.float32)

        class Name:
            def __init__(self, text):
                self.text = text

            def __hash__(self):
                return hash(self.text)

            def __eq__(self, other):
                grads.clear()
                kept.extend(object() for _ in range(100))
                return True

        kept = []
        trees = (
            lambda: [{Name("w"): zeros()}, *(zeros() for _ in range(50))],
            lambda: {"a": {Name("w"): zeros()}, "b": zeros()},
            lambda: [{Name("params"): zeros()}, {"params": zeros()}],
        )
        shapes = (
            [{"w": zeros()}, *(zeros() for _ in range(50))],
            {"a": {"w": zeros()}, "b": zeros()},
            [{"params": zeros()}, {"params": zeros()}],
        )
        for params, tree in zip(shapes, trees):
            opt = op.SGD(params, lr=0.1)
            grads = tree()
            try:
                opt.step(grads)
            except ValueError as error:
                assert "grads: expected" in str(error)
            else:
                raise AssertionError("it stepped")
    """,
    "parameters of a group that were replaced behind its back": """
        w = np.zeros(3)
        opt = op.SGD([w], lr=0.1)
        dict.__setitem__(opt.param_groups[0], "params", (w,) * 200_000)
        for call in (
            lambda: opt.add_param_group({"params": np.zeros(3)}),
            lambda: copy.deepcopy(opt),
        ):
            try:
                call()
            except ValueError as error:
                assert "param_groups: expected the parameters as they were" in str(error)
            else:
                raise AssertionError("it was taken")
    """,
    "garbage that holds an engine that was never made": """
        engine = op._core.Engine.__new__(op._core.Engine)
        garbage = [engine]
        garbage.append(garbage)
        del garbage, engine
        gc.collect()
        opt = op.SGD(np.zeros(3), lr=0.1)
        opt._engine = op._core.Engine.__new__(op._core.Engine)
        try:
            opt.step(np.ones(3))
        except TypeError as error:
            assert "was set up" in str(error)
        else:
            raise AssertionError("it stepped")
    """,
    "daemon threads that step while Python exits": """
        def background():
            w, g = np.zeros(1600, np.float32), np.ones(1600, np.float32)
            opt = op.Adam(w, grads=np.ones(1600, np.float32))
            while True:
                opt.step(g[::-1])
                opt.step()
                with op.SGD(w, ema_decay=0.5, momentum=0.9).lookahead():
                    op.kernels.sgd(w, g[::-1], lr=0.1)

        for _ in range(4):
            threading.Thread(target=background, daemon=True).start()
        time.sleep(0.2)
    """,
}
START = """
import copy, gc, threading, time, warnings
import numpy as np
import onepass as op
"""


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_no_crash(program):
    lines = program.split("\n")
    code = START + "\n".join(line[8:] for line in lines)
    repeats = 4 if "daemon" in program else 1
    children = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(repeats)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors


def test_an_exit_handler_of_the_main_thread_may_step_on():
    code = START + (
        "import atexit\n"
        "w = np.zeros(3)\n"
        "opt = op.SGD(w, lr=1.0)\n"
        "atexit.register(lambda: print(opt.step(np.ones(3)).step, w[0]))\n"
        "atexit._run_exitfuncs()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "-1.0"]
