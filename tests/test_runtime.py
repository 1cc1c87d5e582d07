"""Threads, processes and the floating-point environment: a good guest in any program."""

import ctypes
import ctypes.util
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest, run_reference
from onepass import _core, runtime

LARGE = 400_000
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


class TestNumberOfThreads:
    REPORT = """
import onepass as op
info = op.runtime.info()
print(info["num_threads"], info["num_threads_reason"])
"""

    def test_environment(self):
        assert python(self.REPORT, OMP_NUM_THREADS="3") == "3 OMP_NUM_THREADS"
        assert python(self.REPORT, OMP_NUM_THREADS="3,2") == "3 OMP_NUM_THREADS"
        for nonsense in ("", "zero", "0", "-1"):
            assert "OMP" not in python(self.REPORT, OMP_NUM_THREADS=nonsense)

    def test_setting_goes_before_the_environment_and_none_goes_back(self):
        code = """
import onepass as op
op.set_num_threads(5)
print(op.get_num_threads())
op.set_num_threads(None)
print(op.get_num_threads())
"""
        assert python(code, OMP_NUM_THREADS="3").split() == ["5", "3"]

    @posix
    def test_affinity(self):
        code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + self.REPORT
        assert python(code, OMP_NUM_THREADS="").startswith("1 ")

    def quota(self, tmp_path, membership, files):
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        (tmp_path / "membership").write_text(membership)
        return runtime._cgroup_quota(tmp_path / "membership", tmp_path / "cgroup")

    def test_cgroup_version_2(self, tmp_path):
        files = {
            "cpu.max": "max 100000\n",
            "a/cpu.max": "150000 100000\n",
            "a/b/cpu.max": "max 1\n",
        }
        assert self.quota(tmp_path, "0::/a/b\n", files) == 1.5
        assert self.quota(tmp_path, "0::/\n", files) is None
        assert self.quota(tmp_path, "0::/../not/visible\n", {"cpu.max": "50000 100000"}) == 0.5

    def test_cgroup_version_1(self, tmp_path):
        files = {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}
        assert self.quota(tmp_path, "4:memory:/m\n1:cpu,cpuacct:/x\n0::/\n", files) == 2.5
        unlimited = {"cpu/y/cpu.cfs_quota_us": "-1\n", "cpu/y/cpu.cfs_period_us": "100000\n"}
        assert self.quota(tmp_path, "1:cpu:/y\n", unlimited) is None

    def test_no_cgroups(self, tmp_path):
        assert runtime._cgroup_quota(tmp_path / "none", tmp_path) is None


def test_info_says_what_runs():
    info = op.runtime.info()
    assert info["version"] == op.__version__
    assert info["isa"] == _core.isa
    assert info["isas"][info["isa"]] is True
    assert info["num_threads"] == op.get_num_threads()
    assert "-ffp-contract=off" in info["flags"]
    assert not {"-ffast-math", "-Ofast"} & set(info["flags"].split())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
            "model name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 18\n",
            "AMD EPYC (AuthenticAMD, family 25, model 17)",
        ),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n",
            " (implementer 0x41, part 0xd0c)",
        ),
        ("", ""),
        (None, ""),
    ],
)
def test_processor_by_vendor_family_and_model(lines, expected, tmp_path):
    """Where the system does not say, the architecture."""
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    machine = "" if "AMD" in expected else platform.processor() or platform.machine()
    assert runtime._cpu(tmp_path / "cpuinfo") == machine + expected
    assert op.runtime.info()["cpu"]


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*JAX is multithreaded:RuntimeWarning")  # of an earlier test
def test_a_forked_child_steps_serial_and_finishes(optimizer):
    """Only the parent has helper threads to wait for."""
    grad = np.ones(LARGE)
    params = np.zeros(LARGE)
    opt = optimizer(params)
    opt.step(grad, num_threads=4)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            opt.step(grad, num_threads=4)
            serial = (
                op.runtime.info()["num_threads_reason"] == "serial, because this process was forked"
            )
            expected = run_reference(optimizer, {}, np.zeros(LARGE), [grad, grad])[0]
            code = 0 if serial and params.tobytes() == expected.tobytes() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked child hangs")
    opt.step(grad, num_threads=4)  # and the parent goes on


def test_the_gil_is_released_in_a_large_step():
    """While a long step runs in another thread, this one goes on counting."""
    param, grad = np.zeros(20_000_000, np.float32), np.ones(20_000_000, np.float32)
    opt = op.SGD(param)
    opt.step(grad)
    started, counts = threading.Event(), []

    def work():
        started.set()
        opt.step(grad, num_threads=1)
        counts.append(count)

    count = 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to let go: only the step itself may
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        before = count
        while not counts:
            count += 1
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counts[0] > before


def test_different_optimizers_step_from_different_threads(case):
    cls, settings = case
    grads = [np.random.default_rng(i).normal(size=50_001) for i in range(8)]
    params = [np.ones(50_001) for _ in grads]
    errors = []

    def work(param, grad):
        try:
            opt = cls(param, **settings)
            for _ in range(3):
                opt.step(grad, num_threads=2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(params, grads, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for param, grad in zip(params, grads, strict=True):
        assert_same_bits(param, run_reference(cls, settings, np.ones(50_001), [grad] * 3)[0])


def test_one_bound_optimizer_steps_in_one_thread_at_a_time():
    """A second thread gets an error, and the first one its whole steps."""
    w, g = np.ones(300_000), np.ones(300_000)
    opt = op.SGD(w, lr=1.0, grads=g)
    refused, steps = [], 40

    def work():
        for _ in range(steps):
            try:
                opt.step()
            except ValueError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) <= {"step: expected one thread at a time, got a second one"}
    done = 3 * steps - len(refused)
    assert opt.state_dict()["param_groups"][0]["step"] == done
    np.testing.assert_array_equal(w, 1 - done)


def repeat_until_interrupted(action, seconds):
    """Ctrl-C after so long, wherever it strikes."""
    main = threading.main_thread().ident
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        while True:
            action()
    timer.join()


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also in a background job, which inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
def test_an_interrupt_never_leaves_a_parameter_at_the_lookahead_point(interrupts):
    params = [np.ones(500) for _ in range(50)]
    opt = op.SGD(params, 0.1, momentum=0.9)
    opt.step([np.ones(500)] * 50)

    def look_ahead():
        with opt.lookahead():
            pass

    before = digest(opt)
    rng = np.random.default_rng(0)
    for _ in range(60):
        repeat_until_interrupted(look_ahead, rng.uniform(0.0002, 0.002))
        assert digest(opt) == before
    opt.step([np.ones(500)] * 50)


@posix
def test_an_interrupt_never_leaves_half_a_step(optimizer, interrupts):
    """SIGINT at any time: the arrays are those of a whole number of steps, the counted one."""
    params = [np.ones(60_000), np.ones(1000), np.ones(7)]
    grads = [np.full(p.shape, 0.5) for p in params]
    opt = optimizer(params)
    rng = np.random.default_rng(0)
    for _ in range(12):
        repeat_until_interrupted(lambda: opt.step(grads), rng.uniform(0.0005, 0.005))
    steps = {int(entry["step"]) for entry in opt.state_dict()["state"].values()}
    assert len(steps) == 1
    (count,) = steps
    again = [np.ones(60_000), np.ones(1000), np.ones(7)]
    replay = optimizer(again)
    for _ in range(count):
        replay.step(grads)
    assert digest(replay) == digest(opt)


@posix
def test_an_interrupt_never_leaves_half_a_whole_step(optimizer, interrupts):
    """With everything that a step can do, bound, and one gradient in three not finite."""
    everything = {"max_grad_norm": 1.0, "nonfinite": "skip", "ema_decay": 0.9}

    def make():
        grads = [np.full(60_000, 0.5), np.full(1000, 0.5), np.full(7, 0.5)]
        params = [np.ones(60_000), np.ones(1000), np.ones(7)]
        return optimizer(params, grads=grads, **everything), grads

    def step(opt, grads):
        total = opt.state_dict()["param_groups"][0]["step"] + opt.skipped_steps
        grads[2][3] = np.nan if total % 3 == 2 else 0.5
        opt.step()

    opt, grads = make()
    rng = np.random.default_rng(0)
    for _ in range(12):
        repeat_until_interrupted(lambda: step(opt, grads), rng.uniform(0.0005, 0.01))
    replay, again = make()
    group = opt.state_dict()["param_groups"][0]
    for _ in range(group["step"] + opt.skipped_steps):
        step(replay, again)
    assert replay.skipped_steps > 0
    assert digest(replay) == digest(opt)


@posix
def test_an_interrupt_never_splits_accumulation(optimizer, interrupts):
    """Whenever it strikes, what is gathered is a whole number of gradients, or none."""
    params, grads = [np.ones(60_000), np.ones(7)], [np.full(60_000, 0.5), np.full(7, 0.5)]
    opt = optimizer(params)

    def round_trip():
        opt.accumulate(grads)
        opt.accumulate(grads)
        opt.step()

    rng = np.random.default_rng(0)
    for _ in range(12):
        repeat_until_interrupted(round_trip, rng.uniform(0.0005, 0.005))
        sums = [e.get("accumulated") for e in opt.state_dict()["state"].values()]
        kept = {float(v) for array in sums if array is not None for v in (array.min(), array.max())}
        assert kept <= {0.5, 1.0}
        assert len(kept) <= 1
        opt.discard_accumulated()


def control_bits():
    """The rounding and flushing modes of this thread, without the sticky exception flags."""
    environment = (ctypes.c_uint8 * 64)()
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    assert libm.fegetenv(ctypes.byref(environment)) == 0
    mxcsr = int.from_bytes(bytes(environment)[28:32], "little")
    return mxcsr & ~0x3F


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="reads x86-64 glibc's fenv_t"
)
def test_floating_point_environment_is_untouched(case):
    cls, settings = case
    before = control_bits()
    assert before == 0x1F80, "this test must start from the default"
    param = np.ones(LARGE, np.float32)
    cls(param, **settings).step(np.full(LARGE, 1e-42, np.float32), num_threads=2)
    assert control_bits() == before


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="knows x86-64's FE_UPWARD"
)
def test_helpers_round_as_their_caller_does():
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    grad = np.random.default_rng(0).normal(size=LARGE)
    results = []
    op.SGD(np.ones(LARGE)).step(grad, num_threads=2)  # the helpers begin with the default mode
    try:
        assert libm.fesetround(0x800) == 0
        for threads in (1, 2):
            param = np.ones(LARGE)
            op.Adam(param).step(grad, num_threads=threads)
            results.append(param.tobytes())
    finally:
        libm.fesetround(0)
    assert results[0] == results[1]


def test_import_keeps_subnormals():
    code = """
import sys, warnings
before = sys.float_info.min / 2
import numpy as np, onepass as op
p = np.ones(200_000, np.float32)
op.Adam(p).step(p * 1e-3, num_threads=2)
assert before == sys.float_info.min / 2 > 0
assert np.finfo(np.float32).smallest_subnormal > 0
assert (np.full(3, 1e-45, np.float32) * np.float32(1) > 0).all()
print("kept")
"""
    assert python(code) == "kept"


def test_subnormal_parameters_keep_their_bits_in_worker_threads():
    """A flushing worker thread would make these 0."""
    tiny = np.full(LARGE, 1e-42, np.float32)
    param = tiny.copy()
    op.SGD(param, lr=0.0).step(np.ones(LARGE, np.float32), num_threads=4)
    assert_same_bits(param, tiny)


def test_import_needs_only_numpy():
    code = """
import sys
import onepass
third_party = {"sklearn", "matplotlib", "rich", "scipy", "torch", "pytest", "hypothesis"}
assert not third_party & set(sys.modules), third_party & set(sys.modules)
print("only numpy")
"""
    assert python(code) == "only numpy"


def test_headers_are_shipped():
    from pathlib import Path

    include = Path(op.get_include()) / "onepass"
    assert (include / "update.hpp").is_file()
    for rule in op._core.rules():
        assert (include / "rules" / f"{rule}.hpp").is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_loaded_stays_so(tmp_path):
    """Threads of the pool sleep in its code; here a copy's, which nobody else holds."""
    code = f"""
import _ctypes, ctypes, shutil, sys
import numpy as np, onepass
copy = shutil.copy(onepass.get_library(), {str(tmp_path)!r})
library = ctypes.CDLL(copy)
adam = library.onepass_rule(b"adam")
scalars, arrays = np.ones(64), [np.zeros({LARGE}, np.float32) for _ in range(4)]
pointer = lambda array: ctypes.c_void_p(array.ctypes.data)
param, grad, *state = map(pointer, arrays)
size = ctypes.c_size_t({LARGE})
code = library.onepass_update(
    adam, 0, 1, size, param, grad, *state, None, None, pointer(scalars), None, 4
)
_ctypes.dlclose(library._handle)
with open("/proc/self/maps") as maps:
    print(code, copy in maps.read())
"""
    assert python(code) == "0 True"
