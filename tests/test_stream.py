"""Parameters and state in a file: the same bits as in memory, and what damage is told by."""

import copy
import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import CASES, assert_same_bits, case_id, digest, fresh_state
from interrupting import at_each_place
from onepass import optim
from onepass._stream import stream as implementation

pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv and pwritev")

BLOCK = 16384
N = 3 * BLOCK + 4321  # chunks of one block, the last one shorter
STAGES = {
    "max_grad_norm": {"max_grad_norm": 1.0},
    "norm that is measured": {"nonfinite": "skip"},
    "max_grad_value": {"max_grad_value": 0.1},
    "ema": {"ema_decay": 0.9, "ema_warmup": True},
    "swa": {"swa_start": 2},
    "average_every": {"ema_decay": 0.9, "average_every": 2},
    "average_dtype": {"ema_decay": 0.9, "average_dtype": "float32"},
    "lookahead": {"lookahead_every": 2},
    "clear_grads": {"clear_grads": True},
}


def streams(cls, settings):
    """Whether a rule with these settings steps parts of a parameter alone."""
    row, values = cls.row, {**cls.defaults, **settings}
    whole = row.measures(values) or row.is_directed(values) or row.sums_over_all or row.factored
    return not whole


STREAMED = [case for case in CASES if streams(*case)]


@pytest.fixture
def make(tmp_path):
    """Makes streams, and closes them at the end."""
    made = []

    def make(params, rule, name="a.stream", **settings):
        settings = {"chunk": BLOCK, **settings}
        made.append(op.Stream.create(tmp_path / name, params, rule, **settings))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def normal(step=-1, n=N, dtype=np.float32):
    return np.random.default_rng(step + 1).normal(size=n).astype(dtype)


def plain(settings):
    """The settings without schedules, which a stream does not take."""
    return {name: value for name, value in settings.items() if not callable(value)}


def whole(stream):
    """Everything that a stream has."""
    names = stream._now.file.layout(0).segments
    return digest({name: stream.read(name) for name in names}, stream.completed)


class TestBits:
    @pytest.mark.parametrize("case", STREAMED, ids=case_id)
    def test_every_rule_equals_its_class_in_memory(self, case, make):
        cls, settings = case
        w = normal()
        stream = make(w, cls, **settings)
        opt = cls(w, **settings)
        for step in range(3):
            assert stream.step(normal(step)) == opt.step(normal(step))
        assert_same_bits(stream.read(), w)
        for name, state in opt.state_dict()["state"].get(0, {}).items():
            if name in cls.state_names():
                assert_same_bits(stream.read(name), state)

    @pytest.mark.parametrize("stage", STAGES)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_every_stage_equals_the_class(self, stage, dtype, make):
        w = normal(dtype=dtype)
        settings = {"lr": 0.01, "weight_decay": 0.1, **STAGES[stage]}
        stream = make(w, "adamw", **settings)
        opt = op.AdamW(w, **settings)
        for step in range(4):
            mine, theirs = normal(step, dtype=dtype), normal(step, dtype=dtype)
            info = stream.step(mine, grad_scale=4.0)
            assert info == opt.step(theirs, grad_scale=4.0)
            assert_same_bits(mine, theirs)
        assert_same_bits(stream.read(), w)
        saved = opt.state_dict()["state"][0]
        for name in ("average", "slow"):
            if name in saved:
                assert_same_bits(stream.read(name), saved[name])

    @pytest.mark.parametrize("size", [1, 100, BLOCK, 2 * BLOCK, 9 * BLOCK + 1])
    @pytest.mark.parametrize("chunk", [1, 2 * BLOCK, 100 * BLOCK])
    def test_any_size_and_chunk(self, size, chunk, make):
        w = normal(n=size)
        stream = make(w, "adam", chunk=chunk, max_grad_norm=0.5)
        opt = op.Adam(w, max_grad_norm=0.5)
        for step in range(2):
            assert stream.step(normal(step, size)) == opt.step(normal(step, size))
        assert_same_bits(stream.read(), w)

    @pytest.mark.parametrize(
        "dtype",
        [np.float32, np.float16, ml_dtypes.bfloat16],
        ids=lambda dtype: np.dtype(dtype).name,
    )
    @pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
    @pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
    def test_fewer_bits_equal_kernels_on_each_chunk(self, dtype, state_format, rounding, make):
        """Each with the seed of its chunk; the last one is small and keeps its state in float32."""
        n = 2 * BLOCK + 100
        w = normal(n=n, dtype=dtype)
        stream = make(w, "adamw", state_format=state_format, rounding=rounding, seed=9)
        kept = []
        for begin in range(0, n, BLOCK):
            part = w[begin : begin + BLOCK]
            zeros = np.zeros(part.size, np.float32)
            if state_format == "bf16" and part.size >= 4096:
                states = [zeros.astype(ml_dtypes.bfloat16) for _ in range(2)]
            elif state_format == "q8" and part.size >= 4096:
                states = [op.formats.q8_encode(zeros, signed=signed) for signed in (True, False)]
            else:
                states = [zeros.copy(), zeros.copy()]
            kept.append((part, states))
        for step in range(3):
            grads = normal(step, n, dtype)
            stream.step(grads)
            for chunk, (part, states) in enumerate(kept):
                grad = grads[chunk * BLOCK : chunk * BLOCK + part.size]
                op.kernels.adamw(
                    part, grad, *states, step=step + 1, seed=9 + chunk, rounding=rounding
                )
        assert_same_bits(stream.read(), w)

    def test_one_chunk_in_eight_bits_is_the_class(self, make):
        w = normal(n=BLOCK)
        stream = make(w, "adamw", state_format="q8", seed=3)
        opt = op.AdamW(w, state_format="q8", seed=3)
        for step in range(3):
            assert stream.step(normal(step, BLOCK)) == opt.step(normal(step, BLOCK))
        assert_same_bits(stream.read(), w)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_any_number_of_threads(self, threads, make):
        w = normal()
        stream = make(w, "adamw", max_grad_norm=1.0)
        opt = op.AdamW(w, max_grad_norm=1.0)
        info = stream.step(normal(0), num_threads=threads)
        assert info == opt.step(normal(0))
        assert_same_bits(stream.read(), w)

    @pytest.mark.parametrize("direct", [True, False])
    def test_beside_the_page_cache_and_through_it(self, direct, make):
        w = normal()
        stream = make(w, "adam", direct=direct)
        assert stream.direct in (direct, False)
        op.Adam(w).step(normal(0))
        stream.step(normal(0))
        assert_same_bits(stream.read(), w)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
    @pytest.mark.parametrize("max_grad_norm", [None, 1.0])
    @pytest.mark.parametrize("skip_grad_norm", [None, 1000.0])
    def test_what_is_not_finite(self, bad, nonfinite, max_grad_norm, skip_grad_norm, make):
        settings = {"nonfinite": nonfinite, "max_grad_norm": max_grad_norm, "clear_grads": True}
        settings["skip_grad_norm"] = skip_grad_norm
        w = normal()
        stream, opt = make(w, "adamw", **settings), op.AdamW(w, **settings)
        for step in range(3):
            mine = normal(step)
            if step == 1:
                mine[2 * BLOCK + 5] = bad
            theirs = mine.copy()
            if step == 1 and nonfinite == "raise":
                before = whole(stream)
                for each, grads in ((stream, mine), (opt, theirs)):
                    with pytest.raises(ValueError, match="grads: expected finite values"):
                        each.step(grads)
                assert whole(stream) == before
                continue
            info, expected = stream.step(mine), opt.step(theirs)
            assert digest(info[:3]) == digest(expected[:3])
            assert info[3:] == expected[3:]
            assert_same_bits(mine, theirs)
        assert_same_bits(stream.read(), w)
        assert stream.skipped_steps == opt.skipped_steps

    @pytest.mark.parametrize("max_grad_norm", [None, 1.0])
    def test_a_step_above_a_norm_is_left_out(self, max_grad_norm, make):
        settings = {"skip_grad_norm": 1000.0, "max_grad_norm": max_grad_norm, "clear_grads": True}
        w = normal()
        stream, opt = make(w, "adamw", **settings), op.AdamW(w, **settings)
        for step in range(3):
            scale = 10 if step == 1 else 1  # the norm of so many is about 230
            mine, theirs = normal(step) * scale, normal(step) * scale
            info = stream.step(mine)
            assert info == opt.step(theirs)
            assert info.skip_reason == ("grad_norm" if step == 1 else None)
            assert_same_bits(mine, theirs)
        assert_same_bits(stream.read(), w)
        assert stream.skipped_steps == opt.skipped_steps == 1

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("grad_dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    def test_gradients_of_any_dtype(self, dtype, grad_dtype, make):
        w = normal(dtype=dtype)
        stream, opt = make(w, "adam", max_grad_norm=1.0), op.Adam(w, max_grad_norm=1.0)
        assert stream.step(normal(0, dtype=grad_dtype)) == opt.step(normal(0, dtype=grad_dtype))
        assert_same_bits(stream.read(), w)

    def test_a_setting_of_one_step(self, make):
        w = normal()
        rate = op.schedules.cosine(0.1, 10)
        stream, opt = make(w, "adamw"), op.AdamW(w, lr=rate)
        for step in range(4):
            info = stream.step(normal(step), lr=rate(stream.completed))
            assert info == opt.step(normal(step))
        assert_same_bits(stream.read(), w)

    def test_gradients_from_a_function_and_parameters_too(self, make):
        w = normal()
        stream = make(lambda begin, end: w[begin:end], "adam", size=N, dtype=np.float32)
        grads = normal(0)
        stream.step(lambda begin, end: grads[begin:end].astype(np.float16))
        op.Adam(w).step(grads.astype(np.float16))
        assert_same_bits(stream.read(), w)

    def test_gradients_in_a_mapped_file(self, make, tmp_path):
        w = normal()
        grads = np.memmap(tmp_path / "grads", np.float32, "w+", shape=N)
        grads[:] = normal(0)
        stream = make(w, "adam", max_grad_norm=1.0)
        assert stream.step(grads) == op.Adam(w, max_grad_norm=1.0).step(normal(0))
        assert_same_bits(stream.read(), w)


class TestFiles:
    def test_another_process_continues(self, make, tmp_path):
        w = normal()
        stream, opt = make(w, op.NAdam, lr=0.01), op.NAdam(w, lr=0.01)
        stream.step(normal(0)), opt.step(normal(0))
        stream.close()
        program = """
            import sys
            import numpy as np
            import onepass as op
            grads = np.random.default_rng(2).normal(size=int(sys.argv[2])).astype("f4")
            with op.Stream(sys.argv[1]) as stream:
                print(stream.step(grads).step, stream)
        """
        arguments = [sys.executable, "-c", textwrap.dedent(program), stream.path, str(N)]
        found = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        assert found.split()[0] == "2"
        assert "NAdam of 53,473 float32" in found
        opt.step(normal(1))
        with op.Stream(tmp_path / "a.stream") as again:
            assert again.completed == 2
            assert again.settings["lr"] == 0.01
            assert_same_bits(again.read(), w)
            again.step(normal(2)), opt.step(normal(2))
            assert_same_bits(again.read(), w)

    def test_a_checkpoint_is_the_stream_between_two_steps(self, make, tmp_path):
        stream = make(normal(), "adamw", state_format="q8")
        stream.step(normal(0))
        then = whole(stream)
        (tmp_path / "copy").write_text("what was there is replaced")
        stream.checkpoint(tmp_path / "copy")
        stream.step(normal(1))
        after = whole(stream)
        with op.Stream(tmp_path / "copy") as other:
            assert whole(other) == then
            other.step(normal(1))
            assert whole(other) == after
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.stream", "copy"]

    def test_a_part_is_read(self, make):
        w = normal()
        stream = make(w, "adam", state_format="q8")
        for begin, end in ((0, N), (0, 0), (N, N), (5, BLOCK + 7), (BLOCK, 2 * BLOCK), (N - 1, N)):
            assert_same_bits(stream.read("param", begin, end), w[begin:end])
            assert_same_bits(stream.read("exp_avg", begin, end), np.zeros(end - begin, np.float32))
        for begin, end in ((-1, 3), (3, 2), (0, N + 1)):
            with pytest.raises(ValueError, match="begin"):
                stream.read("param", begin, end)
        with pytest.raises(ValueError, match="name: expected one of param, exp_avg, exp_avg_sq"):
            stream.read("average")

    def test_it_says_once_what_it_does_not_promise(self, make, capsys, monkeypatch):
        monkeypatch.setattr(implementation, "_told", [])
        for name in "abc":
            make(normal(), "sgd", name=name)
        said = capsys.readouterr().err
        assert said.count("checkpoint()") == 1

    def test_no_copies_in_memory(self, make):
        stream = make(normal(), "sgd")
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="checkpoint copies the file"):
                copied(stream)

    def test_a_closed_one(self, make):
        stream = make(normal(), "sgd")
        stream.close()
        stream.close()
        for call in (lambda: stream.step(normal(0)), stream.read, lambda: stream.checkpoint("x")):
            with pytest.raises(ValueError, match="expected one that is open, got a closed one"):
                call()

    def test_one_opener_at_a_time(self, make):
        stream = make(normal(), "sgd")
        with pytest.raises(ValueError, match="^path: expected a stream that is open nowhere else"):
            op.Stream(stream.path)
        stream.step(normal(0))
        stream.close()
        op.Stream(stream.path).close()


class TestDamage:
    def damaged(self, stream, change):
        stream.close()
        content = bytearray(stream.path.read_bytes())
        change(content)
        stream.path.write_bytes(content)
        return stream.path

    @pytest.mark.parametrize("place", [0, 20, 40])
    def test_the_header(self, place, make):
        def change(content):
            content[place] ^= 0xFF

        path = self.damaged(make(normal(), "adam"), change)
        with pytest.raises(ValueError, match=r"^path: expected a stream that op\.Stream\.create"):
            op.Stream(path)

    def test_one_page_of_progress_is_enough(self, make):
        """The pages are written in turn: where one is torn, the other says what was before."""
        stream = make(normal(), "adam")
        stream.step(normal(0))
        written = stream._now.progress.written

        def change(content):
            content[4096 * (1 + (written - 1) % 2) + 50] ^= 0xFF

        with op.Stream(self.damaged(stream, change)) as again:
            assert again.completed == 1

    def test_both_pages_of_progress(self, make):
        def change(content):
            content[4096 + 50] ^= 0xFF
            content[8192 + 50] ^= 0xFF

        with pytest.raises(ValueError, match="path: expected pages that say how far it is"):
            op.Stream(self.damaged(make(normal(), "adam"), change))

    def test_the_last_page_of_progress_was_a_steps(self, make):
        """What is left then says that a step was begun."""
        stream = make(normal(), "adam")
        stream.step(normal(0))
        written = stream._now.progress.written

        def change(content):
            content[4096 * (1 + written % 2) + 50] ^= 0xFF

        with pytest.raises(ValueError, match="path: expected a stream between two steps"):
            op.Stream(self.damaged(stream, change))

    @pytest.mark.parametrize("chunk", [0, 3])
    def test_a_chunk_that_is_not_of_the_last_step(self, chunk, make):
        stream = make(normal(), "adam")
        place = stream._now.file.place(chunk)
        old = os.pread(stream._now.file.file.fileno(), 4096, place)
        stream.step(normal(0))

        def change(content):
            content[place : place + 4096] = old

        with pytest.raises(ValueError, match=f"path: expected chunk {chunk} of step 1"):
            op.Stream(self.damaged(stream, change))

    def test_an_end_that_is_missing(self, make):
        def change(content):
            del content[-1:]

        with pytest.raises(ValueError, match=r"^path: expected \d+ bytes, got \d+"):
            op.Stream(self.damaged(make(normal(), "adam"), change))

    @pytest.mark.parametrize("content", [b"", b"x" * 10_000, b"\0" * 100_000])
    def test_another_file(self, content, tmp_path):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^path: expected a stream that op\.Stream\.create"):
            op.Stream(path)
        assert path.read_bytes() == content

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            op.Stream(tmp_path / "none")

    def test_a_process_that_is_killed_within_a_step(self, make, tmp_path):
        """What it leaves cannot be opened; the checkpoint before can."""
        stream = make(normal(), "adam")
        stream.step(normal(0))
        stream.checkpoint(tmp_path / "checkpoint")
        then = whole(stream)
        stream.close()
        program = """
            import os, signal, sys
            import numpy as np
            import onepass as op
            def grads(begin, end):
                if begin >= 2 * 16384:
                    os.kill(os.getpid(), signal.SIGKILL)
                return np.ones(end - begin, np.float32)
            op.Stream(sys.argv[1]).step(grads)
        """
        arguments = [sys.executable, "-c", textwrap.dedent(program), stream.path]
        assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
        with pytest.raises(ValueError, match="path: .* left within step 2 .take a checkpoint."):
            op.Stream(stream.path)
        with op.Stream(tmp_path / "checkpoint") as again:
            assert whole(again) == then

    def test_a_disk_that_fails_within_a_step(self, make, monkeypatch):
        stream = make(normal(), "adam", chunk=2 * BLOCK)
        calls = []

        def pwritev(descriptor, parts, place):
            calls.append(place)
            raise OSError(errno.EIO, "the disk fails")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", pwritev)
            with pytest.raises(OSError, match="the disk fails"):
                stream.step(normal(0))
        assert calls
        for call in (lambda: stream.step(normal(0)), stream.read):
            with pytest.raises(ValueError, match="half written"):
                call()


class TestSpace:
    def test_a_full_disk_is_an_error_before_the_first_write(self, make, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "no space")

        written = []
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        monkeypatch.setattr(os, "pwritev", lambda *given: written.append(given))
        with pytest.raises(OSError, match="no space"):
            make(normal(), "adam")
        assert not written
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
    def test_a_limit_of_the_systems(self, tmp_path):
        program = """
            import resource, signal, sys
            import numpy as np
            import onepass as op
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            op.Stream.create(sys.argv[1], np.ones(1_000_000, np.float32), "adam")
        """
        arguments = [sys.executable, "-c", textwrap.dedent(program), tmp_path / "a.stream"]
        found = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert "OSError" in found.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
    def test_more_than_memory_has_room_for(self, tmp_path):
        """A stream of 72 MB in a process that may have 30 MB more than it had before."""
        program = """
            import resource, sys
            import numpy as np
            import onepass as op
            n, chunk = 6_000_000, 1 << 16
            def ones(begin, end):
                return np.ones(end - begin, np.float32)
            op.Stream.create(sys.argv[1], ones, "adam", size=n, dtype="f4", chunk=chunk).close()
            with op.Stream(sys.argv[1]) as stream:
                stream.step(ones)  # from now on all threads are there
                used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + (30 << 20),) * 2)
                try:
                    np.empty(n * 3, np.float32)
                except MemoryError:
                    print("no room for it")
                for _ in range(2):
                    stream.step(ones)
                end = stream.read("param", n - 3, n)
            w = np.ones(3, np.float32)
            opt = op.Adam(w)
            for _ in range(3):
                opt.step(np.ones(3, np.float32))
            print((end == w).all())
        """
        arguments = [sys.executable, "-c", textwrap.dedent(program), tmp_path / "a.stream"]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        found = subprocess.run(
            arguments, capture_output=True, text=True, check=False, env=environment
        )
        assert found.stdout.split("\n")[:2] == ["no room for it", "True"], found.stderr


class TestInterrupts:
    def test_a_step_is_done_or_not_begun(self, make):
        """Wherever the calling thread is interrupted; the next step goes on from there."""
        w = normal()
        before, after = w.copy(), w.copy()
        op.SGD(after, lr=0.1).step(normal(0))
        runs = []

        def attempt():
            stream = make(w, "sgd", name=f"{len(runs)}.stream", lr=0.1)
            runs.append(stream)
            return lambda: stream.step(normal(0))

        seen = set()
        for where, _ in at_each_place(attempt):
            stream = runs[-1]
            found = stream.read()
            assert stream.completed in (0, 1), where
            assert_same_bits(found, after if stream.completed else before)
            seen.add(stream.completed)
            stream.close()
            stream.path.unlink()
        assert seen == {0, 1}

    def test_a_function_that_raises(self, make):
        """The next call steps what is left, and the result is that of one step."""
        w = normal()
        stream, opt = make(w, "adam", chunk=BLOCK), op.Adam(w)
        grads = normal(0)
        calls = []

        def fails(begin, end):
            calls.append(begin)
            if len(calls) == 3:
                raise ZeroDivisionError
            return grads[begin:end]

        with pytest.raises(ZeroDivisionError):
            stream.step(fails)
        for call in (stream.read, lambda: stream.checkpoint("x")):
            with pytest.raises(ValueError, match="expected a call of step that finishes"):
                call()
        with pytest.raises(ValueError, match="settings: expected those of the step"):
            stream.step(grads, lr=0.5)
        stepped = []

        def rest(begin, end):
            stepped.append(begin)
            return grads[begin:end]

        assert stream.step(rest).step == 1
        assert sorted(calls[:2] + stepped) == [chunk * BLOCK for chunk in range(4)]
        opt.step(grads)
        assert_same_bits(stream.read(), w)
        stream.step(normal(1)), opt.step(normal(1))
        assert_same_bits(stream.read(), w)

    def test_a_function_that_raises_and_a_process_that_ends(self, make):
        stream = make(normal(), "adam")

        def fails(begin, end):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stream.step(fails)
        stream.close()
        with pytest.raises(ValueError, match="left within step 1"):
            op.Stream(stream.path)

    def test_a_call_within_a_step(self, make):
        stream = make(normal(), "adam")
        said = []

        def grads(begin, end):
            try:
                stream.read()
            except ValueError as error:
                said.append(str(error))
            return np.zeros(end - begin, np.float32)

        stream.step(grads)
        assert set(said) == {"Stream: expected one step at a time, got a call within one"}

    def test_parameters_that_cannot_be_had(self, make, tmp_path):
        def fails(begin, end):
            if begin:
                raise ZeroDivisionError
            return np.ones(end - begin, np.float32)

        with pytest.raises(ZeroDivisionError):
            make(fails, "adam", size=N, dtype="f4")
        assert list(tmp_path.iterdir()) == []


F4 = np.ones(10, np.float32)
REFUSED = {
    "params: a list": (([1.0], "sgd"), {}, TypeError, "params: expected a flat NumPy array"),
    "params: axes": ((np.ones((2, 2)), "sgd"), {}, ValueError, r"params: .* got shape \(2, 2\)"),
    "params: none": ((np.ones(0), "sgd"), {}, ValueError, r"params: .* with elements"),
    "params: integers": ((np.ones(3, int), "sgd"), {}, TypeError, "params: expected dtype float32"),
    "params: order": ((np.ones(3, ">f4"), "sgd"), {}, TypeError, "params: expected dtype float32"),
    "size beside an array": ((F4, "sgd"), {"size": 10}, TypeError, "size, dtype: expected None"),
    "no size": ((lambda *_: F4, "sgd"), {"dtype": "f4"}, TypeError, "size, dtype: expected both"),
    "rule": ((F4, "nadamw"), {}, ValueError, "rule: expected a class or one of .*, got 'nadamw'"),
    "no rule": ((F4, 3), {}, ValueError, "rule: expected"),
    "chunk": ((F4, "sgd"), {"chunk": 0}, ValueError, "chunk: expected an integer >= 1, got 0"),
    "a schedule": ((F4, "sgd"), {"lr": lambda _: 0.1}, TypeError, "lr: expected a value .give"),
    "an unknown name": ((F4, "sgd"), {"eta": 0.1}, TypeError, "eta: .*here it is lr"),
    "a range": ((F4, "sgd"), {"lr": -1}, ValueError, "lr: expected"),
    "a master": ((F4, "sgd"), {"rounding": "master"}, ValueError, "rounding: expected 'stoch"),
    "a norm of each": ((F4, "sgd"), {"max_grad_norm_each": 1.0}, TypeError, "max_grad_norm_each:"),
    "an allocator": ((F4, "sgd"), {"state_alloc": 1}, TypeError, "state_alloc: expected"),
    "a format": ((np.ones(9), "sgd"), {"state_format": "q8"}, TypeError, "state_format: expected"),
    "the parts given": ((lambda *_: np.ones(3, "f4"), "sgd"), {"size": 9, "dtype": "f4"},
                        ValueError, r"params: expected shape \(9,\), got \(3,\)"),
    "their dtype": ((lambda *_: np.ones(9), "sgd"), {"size": 9, "dtype": "f4"}, TypeError,
                    "params: expected dtype float32, got float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_no_file(name, tmp_path):
    positional, keywords, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        op.Stream.create(tmp_path / "a.stream", *positional, **keywords)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(make, tmp_path):
    (tmp_path / "a.stream").write_text("mine")
    with pytest.raises(FileExistsError):
        make(normal(), "sgd")
    assert (tmp_path / "a.stream").read_text() == "mine"


def test_rules_that_take_more_than_a_part(every_class, tmp_path):
    """They say why; all others were tested above."""
    settings = [case for case in every_class.cases if not streams(every_class, case)]
    for case in settings:
        expected = rf"^rule: expected one that steps parts alone, got {every_class.__name__} \("
        with pytest.raises(ValueError, match=expected):
            op.Stream.create(tmp_path / "a.stream", F4, every_class, **plain(case))
    assert list(tmp_path.iterdir()) == []


def test_full_weights_in_16_bits(tmp_path):
    for cls in optim.registry.values():
        if cls.row.full_weights and streams(cls, {}):
            with pytest.raises(ValueError, match="rounding: expected 'master'"):
                op.Stream.create(tmp_path / "a.stream", F4.astype("f2"), cls)


WRONG_STEPS = {
    "a list": (lambda: [1.0], {}, TypeError, "grads: expected a flat NumPy array or a function"),
    "shape": (lambda: np.ones(3, "f4"), {}, ValueError, rf"grads: expected shape \({N},\), got"),
    "dtype": (lambda: np.ones(N, int), {}, TypeError, "grads: expected"),
    "strides": (lambda: np.ones(2 * N, "f4")[::2], {}, ValueError, "grads: expected contiguous"),
    "scale": (lambda: normal(0), {"grad_scale": 0.0}, ValueError, "grad_scale: expected"),
    "threads": (lambda: normal(0), {"num_threads": 0}, ValueError, "num_threads: expected"),
    "a schedule": (lambda: normal(0), {"lr": lambda _: 1.0}, TypeError, "lr: expected a value"),
    "a range": (lambda: normal(0), {"lr": -1.0}, ValueError, "lr: expected"),
    "state": (lambda: normal(0), {"amsgrad": True}, ValueError, "settings: expected some that use"),
    "a format": (lambda: normal(0), {"state_format": "q8"}, ValueError, "state_format: expected N"),
    "an average": (lambda: normal(0), {"ema_decay": 0.5}, ValueError, "ema_decay: expected None"),
    "pairs": (lambda: normal(0), {"betas": (0.9, lambda _: 0.9)}, TypeError, "betas: expected a v"),
    "a spike": (lambda: lambda *_: F4, {"skip_grad_norm": 1.0}, ValueError, "skip_grad_norm: "),
    "a norm": (lambda: lambda *_: F4, {"max_grad_norm": 1.0}, ValueError, "max_grad_norm: "),
    "a policy": (lambda: lambda *_: F4, {"nonfinite": "skip"}, ValueError, "nonfinite: expected"),
    "to be cleared": (lambda: np.broadcast_to(np.float32(0), (N,)), {"clear_grads": True},
                      ValueError, "grads: expected a writable array"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_a_step_that_is_refused_changes_nothing(name, make):
    grads, keywords, error, match = WRONG_STEPS[name]
    stream = make(normal(), "adam")
    before = stream.path.read_bytes()
    with pytest.raises(error, match=f"^{match}"):
        stream.step(grads(), **keywords)
    assert stream.path.read_bytes() == before
    stream.step(normal(0))


def test_parts_that_do_not_fit(make):
    stream = make(normal(), "adam")
    with pytest.raises(ValueError, match=r"^grads: expected shape \(16384,\), got \(10,\)"):
        stream.step(lambda *_: F4)
    with pytest.raises(TypeError, match="grad"):
        stream.step(lambda begin, end: np.ones(end - begin, int))
    stream.step(normal(0))  # finishes it


def test_kernels_take_a_norm_that_is_known(case, rng):
    """As measured, if it is; a larger one clips more, by the rule of clipping."""
    cls, settings = case
    if not streams(cls, settings):
        return
    kernel = getattr(op.kernels, cls.rule)
    w, grad = rng.normal(size=(2, 1000)).astype("f4")

    def after(grad, **stages):
        arrays = [w.copy(), *fresh_state(cls, settings, w)]
        info = kernel(arrays[0], grad, *arrays[1:], step=1, **settings, **stages)
        return arrays[0], info

    norm = float(np.sqrt(np.sum(grad.astype(float) ** 2)))
    measured, info = after(grad, max_grad_norm=0.5)
    known, known_info = after(grad, max_grad_norm=0.5, grad_norm=info.grad_norm)
    assert info.grad_norm == pytest.approx(norm)
    assert_same_bits(known, measured)
    assert known_info == info
    larger, larger_info = after(grad, max_grad_norm=1.0, grad_norm=4.0 - 1e-6)
    quarter, _ = after(grad / 4)  # 1 / (4 - 1e-6 + 1e-6)
    assert larger_info.clipped
    assert larger_info.grad_norm == 4.0 - 1e-6
    assert_same_bits(larger, quarter)
    unclipped, _ = after(grad, grad_norm=4.0)  # nothing goes by it
    assert_same_bits(unclipped, after(grad)[0])
    kept, kept_info = after(grad, skip_grad_norm=2 * norm, grad_norm=3 * norm)
    assert kept_info[2:] == (3 * norm, False, True, None, "grad_norm", None)
    assert_same_bits(kept, w)
    taken, taken_info = after(grad, skip_grad_norm=norm / 2, grad_norm=norm / 3)
    assert taken_info.skip_reason is None
    assert_same_bits(taken, unclipped)


def test_most_rules_can_be_streamed():
    assert len({cls for cls, _ in STREAMED}) > 2 / 3 * len(optim.registry)
