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
import threading, time, warnings
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
