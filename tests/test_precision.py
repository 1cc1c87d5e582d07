"""State and parameters in fewer bits as users see them: resuming, masters, errors, quality."""

import copy
import math
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import SMALL_FORMATS, assert_same_bits, digest
from onepass import formats

BF16 = ml_dtypes.bfloat16
N = 5000
SIGNS = {rule: row["has_sign"] for rule, row in op._core.rules().items()}

dtypes = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: np.dtype(dtype).name)
in_small_formats = pytest.mark.parametrize("state_format", ["bf16", "q8"])
# A parameter's dtype and its group's settings.
KINDS = {
    "float32 with q8": (np.float32, {"state_format": "q8"}),
    "float32 with bf16": (np.float32, {"state_format": "bf16"}),
    "bfloat16 with a master": (BF16, {}),
    "float16 with a master and q8": (np.float16, {"state_format": "q8"}),
    "bfloat16 and q8, stochastic": (BF16, {"state_format": "q8", "rounding": "stochastic"}),
    "float16 and bf16, nearest": (np.float16, {"state_format": "bf16", "rounding": "nearest"}),
}
kinds = pytest.mark.parametrize(("dtype", "kept"), KINDS.values(), ids=KINDS)


def normal(rng, shape=N, dtype=np.float32):
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def params_like(rng, dtype):
    return {
        "w": np.asfortranarray(normal(rng, (90, 70), dtype)),
        "b": normal(rng, 4100, dtype),
        "few": normal(rng, 5, dtype),
        "frozen": np.ones(4096, dtype),
    }


def run(opt, steps, seed):
    """Steps of an optimizer of parameters such as the above."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        grads = {
            key: normal(rng, param.shape, param.dtype)
            for key, param in zip(("w", "b", "few"), opt.param_groups[0]["params"], strict=False)
        }
        opt.step({**grads, "frozen": None})


def bits(array):
    return array.view(f"u{array.itemsize}")


class TestCheckpoints:
    @kinds
    @pytest.mark.parametrize("through", ["dict", "file", "deepcopy", "pickle"])
    def test_resume_is_bitwise(self, optimizer, dtype, kept, through, rng, tmp_path):
        """In the midst of a sum of gradients, with an average."""
        params = params_like(rng, dtype)
        opt = optimizer(params, **kept, ema_decay=0.9, seed=3)
        run(opt, 2, seed=1)
        opt.accumulate({**dict.fromkeys(params), "b": normal(rng, 4100, dtype)})
        if through in {"dict", "file"}:
            resumed = optimizer({k: p.copy(order="K") for k, p in params.items()})
            if through == "dict":
                resumed.load_state_dict(opt.state_dict())
            else:
                opt.save(tmp_path / "run.npz")
                resumed.load(tmp_path / "run.npz")
        else:
            resumed = (
                copy.deepcopy(opt) if through == "deepcopy" else pickle.loads(pickle.dumps(opt))
            )
        assert digest(resumed) == digest(opt)
        for which in (opt, resumed):
            which.step()
            run(which, 2, seed=2)
        assert digest(resumed) == digest(opt)

    @kinds
    def test_a_dictionary_is_a_copy(self, optimizer, dtype, kept, rng):
        params = params_like(rng, dtype)
        opt = optimizer(params, **kept)
        run(opt, 1, seed=1)
        saved = opt.state_dict()
        before = digest(saved)
        twin = optimizer({k: p.copy(order="K") for k, p in params.items()}, **kept)
        twin.load_state_dict(saved)
        run(opt, 1, seed=2)
        run(twin, 1, seed=2)
        assert digest(saved) == before

    @pytest.mark.parametrize("first", [None, "bf16", "q8"])
    @pytest.mark.parametrize("then", [None, "bf16", "q8"])
    def test_a_changed_format_converts_what_is_kept(self, optimizer, first, then, rng):
        """To nearest; from there on the run is one that was loaded."""
        param = normal(rng)
        opt = optimizer(param, state_format=first)
        opt.step(normal(rng))
        before = opt.state_dict()["state"][0]
        opt.param_groups[0]["state_format"] = then
        after = opt.state_dict()["state"][0]
        kept = before.keys() - {"step", "shape", "order"}
        assert kept == after.keys() - {"step", "shape", "order"}
        signs = dict(zip(optimizer.state_names(), SIGNS[optimizer.rule], strict=True))
        for name in kept:
            values = before[name]
            if first == "q8":
                values = formats.q8_decode(values, signed=signs[name])
            if then == "q8":
                expected = formats.q8_encode(values.astype(np.float32), signed=signs[name])
            else:
                expected = values.astype(BF16 if then else np.float32)
            assert_same_bits(after[name], before[name] if first == then else expected)
        other = param.copy()
        twin = optimizer(other, state_format=then)
        twin.load_state_dict(opt.state_dict())
        grad = normal(rng)
        opt.step(grad)
        twin.step(grad)
        assert_same_bits(param, other)

    @dtypes
    def test_a_changed_rounding_brings_and_drops_the_master(self, small, rng):
        """A master begins as the parameter; without one only the parameter is left."""
        grads = [normal(rng) for _ in range(4)]
        param = normal(rng, dtype=small)
        opt = op.SGD(param, lr=0.01, rounding="nearest")
        opt.step(grads[0])
        opt.param_groups[0]["rounding"] = "master"
        wide = param.astype(np.float32)
        for grad in grads[1:3]:
            opt.step(grad)
            op.kernels.sgd(wide, grad, lr=0.01)
        assert_same_bits(opt.state_dict()["state"][0]["master"], wide)
        assert_same_bits(param, wide.astype(small))
        opt.param_groups[0]["rounding"] = "nearest"
        assert "master" not in opt.state_dict()["state"][0]
        expected = param.astype(np.float32)
        op.kernels.sgd(expected, grads[3], lr=0.01)
        opt.step(grads[3])
        assert_same_bits(param, expected.astype(small))

    @in_small_formats
    def test_a_float32_checkpoint_continues_in_fewer_bits(self, case, state_format, rng):
        """From a file of before the formats, or of PyTorch's: the group's own format stays."""
        cls, options = case
        param = normal(rng)
        opt = cls(param, **options)
        for _ in range(2):
            opt.step(normal(rng))
        saved = opt.state_dict()
        assert saved["param_groups"][0].pop("state_format") is None
        del saved["param_groups"][0]["rounding"], saved["step_options"]
        smaller = cls(param.copy(), **options, state_format=state_format)
        smaller.load_state_dict(saved)
        assert smaller.param_groups[0]["state_format"] == state_format
        entry = smaller.state_dict()["state"].get(0, {})
        for name, signed in zip(cls.state_names(**options), SIGNS[cls.rule], strict=True):
            if name:
                values = saved["state"][0][name]
                q8 = formats.q8_encode(values, signed=signed)
                assert_same_bits(entry[name], q8 if state_format == "q8" else values.astype(BF16))
        # One that says None is taken at its word, as every setting is.
        smaller.load_state_dict(opt.state_dict())
        assert digest(smaller.state_dict()) == digest(opt.state_dict())

    @in_small_formats
    def test_pytorchs_checkpoint_continues_in_fewer_bits(self, state_format, rng):
        torch = pytest.importorskip("torch")
        tensor = torch.nn.Parameter(torch.from_numpy(normal(rng)))
        theirs = torch.optim.AdamW([tensor], lr=0.1)
        for _ in range(3):
            tensor.grad = torch.from_numpy(normal(rng))
            theirs.step()
        saved = theirs.state_dict()
        state = {k: {n: v.numpy() for n, v in entry.items()} for k, entry in saved["state"].items()}
        opt = op.AdamW(tensor.detach().numpy().copy(), state_format=state_format)
        opt.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        entry = opt.state_dict()["state"][0]
        assert entry["step"] == 3
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            q8 = formats.q8_encode(state[0][name], signed=signed)
            expected = q8 if state_format == "q8" else state[0][name].astype(BF16)
            assert_same_bits(entry[name], expected)

    def test_what_is_kept_in_memorys_order_finds_its_elements_in_another(self, rng):
        """Saved beside a parameter in C order, loaded beside one in Fortran's, and the reverse."""
        start, grad = normal(rng, (80, 70)), normal(rng, (80, 70))
        for order, other in ("CF", "FC"):
            saved = op.SGD(start.copy(order=order), momentum=0.9, state_format="q8")
            saved.step(grad)
            param = start.copy(order=other)
            opt = op.SGD(param, momentum=0.9, state_format="q8")
            opt.load_state_dict(saved.state_dict())
            opt.param_groups[0]["state_format"] = None
            # Blocks differ, and so does what their smaller numbers are rounded to.
            found = opt.state_dict()["state"][0]["momentum_buffer"]
            np.testing.assert_allclose(found, grad, rtol=0.25, atol=1e-3)


class TestMasters:
    @dtypes
    def test_the_parameter_is_a_float32_run_that_is_rounded(self, case, small, rng):
        cls, options = case
        wide = normal(rng, 600).astype(small).astype(np.float32)
        param = wide.astype(small)
        opt, other = cls(param, **options), cls(wide, **options)
        for _ in range(20):
            grad = normal(rng, 600, small)
            opt.step(grad)
            other.step(grad)
            assert_same_bits(param, wide.astype(small))
        entry, expected = opt.state_dict()["state"][0], other.state_dict()["state"][0]
        assert_same_bits(entry.pop("master"), wide)
        assert digest(entry) == digest(expected)

    @dtypes
    @pytest.mark.parametrize("size", [70, N])
    def test_a_weight_that_the_user_changes_is_followed(self, optimizer, small, size, rng):
        """And it alone: the others keep what their parameter cannot hold."""
        wide = normal(rng, size).astype(small).astype(np.float32)
        param = wide.astype(small)
        opt, other = optimizer(param, lr=1e-4), optimizer(wide, lr=1e-4)
        for step in range(6):
            grad = normal(rng, size)
            opt.step(grad)
            other.step(grad)
            assert_same_bits(param, wide.astype(small))
            changed = [3, size - 1] if step % 2 else []
            param[changed] = wide[changed] = small(step - 2.5)
            master = opt.state_dict()["state"][0]["master"]
            assert_same_bits(master, wide)
        assert (wide != wide.astype(small)).any()

    @dtypes
    def test_the_average_is_shown_rounded_and_leaves_no_trace(self, optimizer, small, rng):
        param = normal(rng, dtype=small)
        wide = param.astype(np.float32)
        opt, other = (optimizer(p, ema_decay=0.5) for p in (param, wide))
        for _ in range(3):
            grad = normal(rng)
            opt.step(grad)
            other.step(grad)
        before = digest(opt)
        with opt.averaged(), other.averaged():
            assert_same_bits(param, wide.astype(small))
            param[:10] = 7  # is undone
        assert digest(opt) == before
        opt.step(grad)
        other.step(grad)
        assert_same_bits(param, wide.astype(small))

    @dtypes
    @pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
    def test_lookahead_is_shown_rounded_and_leaves_no_trace(self, small, state_format, rng):
        """At w - lr mu v, of the master w, where it is the user's, and of what v is kept as."""
        param = normal(rng, dtype=small)
        opt = op.SGD(param, lr=0.5, momentum=0.25, state_format=state_format)
        for _ in range(2):
            opt.step(normal(rng))
        param[:10] = 7
        before = digest(opt)
        entry = opt.state_dict()["state"][0]
        velocity = entry["momentum_buffer"]
        if state_format == "q8":
            velocity = formats.q8_decode(velocity, signed=True)
        expected = entry["master"] - np.float32(0.125) * velocity.astype(np.float32)
        assert (entry["master"][:10] == 7).all()
        with opt.lookahead():
            assert_same_bits(param, expected.astype(small))
        assert digest(opt) == before

    def test_a_small_rate(self):
        """2^-12 off 1 is too little for bfloat16, whose next number is 1 - 2^-8."""

        def after(steps, **kept):
            param = np.ones(N, BF16)
            opt = op.SGD(param, lr=2.0**-12, **kept)
            for _ in range(steps):
                opt.step(np.ones(N, BF16))
            return param.astype(float)

        assert (after(8) == 1).all()
        assert (after(9) == 1 - 2**-8).all()  # beyond the middle, 1 - 2^-9
        assert (after(32) == 1 - 2**-7).all()
        assert (after(32, rounding="nearest") == 1).all()
        drifted = after(32, rounding="stochastic")
        # Each step is one of 2^-8 with probability 1/16, of variance 2^-16 * 15 / 256.
        spread = 2**-8 * math.sqrt(32 * 15 / 256 / N)
        assert abs(drifted.mean() - (1 - 2**-7)) < 5 * spread
        assert len(np.unique(drifted)) > 3

    @dtypes
    def test_line_search_ends_as_one_step_of_sgd(self, small, rng):
        """Also where its trials move the weights by less than they can show."""
        search = op.line_search.best_of([1e-4, 2e-4, 3e-4, 4e-4])
        start, grad = normal(rng, dtype=small), normal(rng)
        for best in (1e-4, 4e-4):
            param, expected = start.copy(), start.copy()
            seen = iter([5.0, *(abs(eta - best) for eta in search.etas)])
            info = search(param, grad, lambda: next(seen))  # noqa: B023
            assert info.eta == best
            op.SGD(expected, lr=best).step(grad)
            assert_same_bits(param, expected)

    @dtypes
    def test_backtracking(self, small):
        """Of w**2 / 2 a step of 1 finds the minimum, one of 2 goes as far beyond."""
        param = np.array([3.0, -4.0], small)
        search = op.line_search.backtracking(eta=2.0)
        info = search(param, param.copy(), lambda: float((param.astype(float) ** 2).sum() / 2))
        assert info == (1.0, 0.0, 3)
        assert not param.any()

    @kinds
    def test_a_range_test_leaves_no_trace(self, optimizer, dtype, kept, rng):
        param = normal(rng, dtype=dtype)
        opt = optimizer(param, **kept)
        opt.step(normal(rng))
        before = digest(opt)
        found = op.search.range_test(
            opt, lambda: (float((param.astype(float) ** 2).sum()), param.copy()), steps=10
        )
        assert found.losses[0] > 0
        assert digest(opt) == before


def refusal(param, *state, **options):
    """What a free function complains of; nothing changes."""
    before = digest(param, state)
    with pytest.raises((TypeError, ValueError)) as caught:
        op.kernels.sgd(param, np.ones(300, np.float32), *state, **options)
    assert digest(param, state) == before
    return str(caught.value)


class TestErrors:
    @in_small_formats
    def test_no_format_beside_float64(self, optimizer, state_format):
        words = f"^state_format: expected None beside float64 parameters, got '{state_format}'"
        params = [np.ones(N, np.float32), np.ones(3)]
        with pytest.raises(TypeError, match=words):
            optimizer(params, state_format=state_format)
        opt = optimizer(params)
        opt.step([np.ones(N, np.float32), np.ones(3)])
        before = digest(opt)
        opt.param_groups[0]["state_format"] = state_format
        with pytest.raises(TypeError, match=words):
            opt.step([np.ones(N, np.float32), np.ones(3)])
        opt.param_groups[0]["state_format"] = None
        assert digest(opt) == before
        saved = opt.state_dict()
        saved["param_groups"][0]["state_format"] = state_format
        with pytest.raises(TypeError, match=words):
            opt.load_state_dict(saved)
        assert digest(opt) == before

    @pytest.mark.parametrize(
        ("name", "bad"),
        [("state_format", bad) for bad in ("fp8", "Q8", 8, True)]
        + [("rounding", bad) for bad in ("up", None, "Master", 1)]
        + [("seed", bad) for bad in (-1, 2**53, 0.5, "0", None, True)],
    )
    def test_unknown_names_and_seeds_out_of_range(self, optimizer, name, bad):
        words = f"^{name}: expected (one of '|an integer in \\[0, 9007199254740992\\))"
        with pytest.raises((TypeError, ValueError), match=words):
            optimizer(np.ones(3, BF16), **{name: bad})
        opt = optimizer(np.ones(3, BF16))
        opt.step(np.ones(3, BF16))
        before = digest(opt)
        saved = opt.state_dict()
        where = saved["step_options"] if name == "seed" else saved["param_groups"][0]
        where[name] = bad
        with pytest.raises((TypeError, ValueError), match=f"{name}"):
            opt.load_state_dict(saved)
        assert digest(opt) == before
        if name == "seed":
            with pytest.raises((TypeError, ValueError), match=words):
                opt.seed = bad
        else:
            opt.param_groups[0][name] = bad
            with pytest.raises((TypeError, ValueError), match=words):
                opt.step(np.ones(3, BF16))
            opt.param_groups[0][name] = optimizer(np.ones(3)).param_groups[0][name]
        assert digest(opt) == before

    def test_bf16_without_ml_dtypes_says_what_to_install(self, optimizer, monkeypatch, rng):
        def missing(name):
            raise ImportError(name)

        param = normal(rng)
        opt = optimizer(param)
        opt.step(normal(rng))
        before = digest(opt)
        monkeypatch.setattr("onepass._extras.import_module", missing)
        words = r"^needs ml_dtypes: python -m pip install 'onepass\[formats\]'$"
        with pytest.raises(ImportError, match=words):
            optimizer(param, state_format="bf16")
        opt.param_groups[0]["state_format"] = "bf16"
        with pytest.raises(ImportError, match=words):
            opt.step(normal(rng))
        opt.param_groups[0]["state_format"] = None
        assert digest(opt) == before

    def test_a_file_with_bfloat16_in_it_says_so_too(self, monkeypatch, tmp_path, rng):
        def missing(name):
            raise ImportError(name)

        opt = op.Adam(normal(rng), state_format="bf16")
        opt.step(normal(rng))
        opt.save(tmp_path / "run.npz")
        before = digest(opt)
        with monkeypatch.context() as patch:
            patch.setattr("onepass._extras.import_module", missing)
            with pytest.raises(ImportError, match="^needs ml_dtypes: python -m pip install"):
                opt.load(tmp_path / "run.npz")
        assert digest(opt) == before

    def test_all_else_does_without_ml_dtypes(self):
        code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
import onepass as op
params = [np.ones(5000, np.float32), np.ones(5000, np.float16)]
opt = op.Adam(params, state_format="q8", ema_decay=0.5)
opt.step([np.ones(5000, np.float16)] * 2)
opt.load_state_dict(opt.state_dict())
with opt.averaged():
    print((params[0] < 1).all(), (params[1] < 1).all())
"""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["True", "True"], done.stderr

    def test_a_step_that_one_group_refuses_converts_no_other(self, optimizer, rng):
        params = [normal(rng), np.ones(N)]
        opt = optimizer([{"params": [param]} for param in params])
        grads = [[normal(rng)], [np.ones(N)]]
        opt.step(grads)
        before = digest(opt)
        for group in opt.param_groups:
            group["state_format"] = "q8"
        with pytest.raises(TypeError, match="^state_format: expected None beside float64"):
            opt.step(grads)
        for group in opt.param_groups:
            group["state_format"] = None
        assert digest(opt) == before

    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda size: np.zeros(size + 1, np.uint8), ValueError, r"shape \(302,\), got \(303,"),
            (lambda size: np.zeros(size - 1, np.uint8), ValueError, r"shape \(302,\), got \(301,"),
            (lambda size: np.zeros((1, size), np.uint8), ValueError, r"got \(1, 302\)"),
            (lambda size: np.zeros(size, np.int8), TypeError, "dtype float32.*, got int8"),
            (lambda size: np.zeros(size, np.uint16), TypeError, "dtype float32.*, got uint16"),
            (lambda size: np.zeros(2 * size, np.uint8)[::2], ValueError, "a contiguous array"),
            (lambda size: np.frombuffer(bytes(size), np.uint8), ValueError, "a writable array"),
            (lambda _: np.zeros(299, BF16), ValueError, r"shape \(300,\), got \(299,\)"),
            (lambda _: np.zeros(600, BF16)[::2], ValueError, "C order, as its parameter"),
            (lambda _: np.frombuffer(bytes(600), BF16), ValueError, "a writable array"),
            (lambda _: np.zeros(300, np.float16), TypeError, "float32.*, got float16"),
        ],
    )
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_bad_state_of_a_free_function(self, make, error, words, dtype):
        param, grad, state = np.ones(300, dtype), np.ones(300, dtype), make(302)
        before = digest(param, grad, state)
        with pytest.raises(error, match=rf"^momentum_buffer: expected .*{words}"):
            op.kernels.sgd(param, grad, state, momentum=0.9, step=1)
        assert digest(param, grad, state) == before

    def test_no_format_beside_float64_in_a_free_function(self):
        for state in (np.zeros(300, BF16), np.zeros(302, np.uint8)):
            with pytest.raises(
                TypeError, match="^momentum_buffer: expected dtype float32 or float"
            ):
                op.kernels.sgd(np.ones(300), np.ones(300), state, momentum=0.9, step=1)
        with pytest.raises(TypeError, match="^grad: expected the parameter's dtype float64, got"):
            op.kernels.sgd(np.ones(300), np.ones(300, BF16))

    def test_overlapping_state_of_a_free_function(self):
        room = np.ones(400, np.float32)
        param, grad = room[:300], np.ones(300, np.float32)
        for inside in (room.view(np.uint8)[100:402], room.view(BF16)[400:700]):
            with pytest.raises(ValueError, match="expected memory of its own, got an overlap"):
                op.kernels.sgd(param, grad, inside, momentum=0.9, step=1)
        codes = np.zeros(302, np.uint8)
        with pytest.raises(ValueError, match="expected memory of its own, got the same memory"):
            op.kernels.adam(param, grad, codes, codes, step=1)
        assert (room == 1).all()
        assert not codes.any()

    def test_step_and_rounding_of_a_free_function(self):
        step = "step: expected the number of this step, from 1, got none"
        codes = np.zeros(302, np.uint8)
        assert refusal(np.ones(300, BF16)) == step
        assert refusal(np.ones(300, np.float32), codes, momentum=0.9) == step
        words = "rounding: expected 'stochastic' or 'nearest' (a function keeps no master), got "
        for rounding in ("master", "up", None, 1):
            found = refusal(np.ones(300, BF16), step=1, rounding=rounding)
            assert found == f"{words}{rounding!r}"

    @pytest.mark.parametrize("seed", [-1, 2**53, 0.5, "0", True, None, "", [], 0.0, False])
    def test_seed_of_a_free_function(self, seed):
        expected = f"seed: expected an integer in [0, 9007199254740992), got {seed!r}"
        assert refusal(np.ones(300, BF16), step=1, seed=seed) == expected

    @pytest.mark.parametrize("through", ["dict", "file"])
    def test_corrupt_block_scales(self, optimizer, through, tmp_path, rng):
        options = {"momentum": 0.9} if optimizer is op.SGD else {}
        opt = optimizer(normal(rng), **options, state_format="q8")
        opt.step(normal(rng))
        before = digest(opt)
        saved = opt.state_dict()
        name = next(filter(None, optimizer.state_names(**options)))
        saved["state"][0][name][N + 7] = 254
        with pytest.raises(ValueError, match=rf"^state\[0\]\['{name}'\]: expected block scales up"):
            if through == "dict":
                opt.load_state_dict(saved)
            else:
                op.optim._checkpoint.write(tmp_path / "run.npz", optimizer.rule, saved)
                opt.load(tmp_path / "run.npz")
        assert digest(opt) == before

    @pytest.mark.parametrize(
        ("dtype", "change", "error", "words"),
        [
            (BF16, lambda m: m[:-1], ValueError, r"expected shape \(5000,\), got \(4999,\)"),
            (BF16, lambda m: m.astype(float), TypeError, "expected dtype float32, got float64"),
            (BF16, lambda m: m.astype(BF16), TypeError, "expected dtype float32, got bfloat16"),
            (BF16, lambda m: m + np.eye(1, N, 7, dtype="f4")[0], ValueError, "once rounded"),
            (np.float16, lambda m: m * 1.01, ValueError, "once rounded"),
            (np.float32, lambda m: m, ValueError, "none beside this parameter and its rounding"),
        ],
    )
    def test_bad_masters(self, optimizer, dtype, change, error, words, rng):
        param = normal(rng, dtype=dtype)
        opt = optimizer(param)
        opt.step(normal(rng))
        saved = opt.state_dict()
        before = digest(opt)
        master = param.astype(np.float32)
        saved["state"][0]["master"] = change(saved["state"][0].get("master", master))
        with pytest.raises(error, match=rf"^state\[0\]\['master'\]: .*{words}"):
            opt.load_state_dict(saved)
        assert digest(opt) == before

    @dtypes
    def test_nan_of_any_kind_in_a_master(self, small):
        """Rounding may drop what else is in a NaN."""
        param = np.ones(3, small)
        opt = op.SGD(param, lr=1.0)
        opt.step(np.array([0x7F8ABCDE, 0xFF8ABCDE, 0x7FFFFFFF], np.uint32).view(np.float32))
        assert np.isnan(param).all()
        opt.load_state_dict(opt.state_dict())

    def test_no_master_in_a_dictionary_and_it_begins_as_the_parameter(self, optimizer, rng):
        param = normal(rng, dtype=BF16)
        opt = optimizer(param)
        opt.step(normal(rng))
        saved = opt.state_dict()
        del saved["state"][0]["master"]
        opt.load_state_dict(saved)
        assert_same_bits(opt.state_dict()["state"][0]["master"], param.astype(np.float32))

    @pytest.mark.parametrize("order", ["K", "c", 1])
    def test_a_bad_order(self, order, rng):
        opt = op.Adam(np.asfortranarray(normal(rng, (90, 70))), state_format="q8")
        opt.step(normal(rng, (90, 70)))
        saved, before = opt.state_dict(), digest(opt)
        assert saved["state"][0]["order"] == "F"
        saved["state"][0]["order"] = order
        with pytest.raises(ValueError, match=r"^state\[0\]\['order'\]: expected 'C' or 'F', got"):
            opt.load_state_dict(saved)
        assert digest(opt) == before

    def test_codes_of_another_shape(self, rng):
        opt, other = (
            op.Adam(normal(rng, shape), state_format="q8") for shape in ((90, 70), (70, 90))
        )
        opt.step(normal(rng, (90, 70)))
        before = digest(other)
        expected = r"^state\[0\]\['shape'\]: expected \[70, 90\], got \[90, 70\]"
        with pytest.raises(ValueError, match=expected):
            other.load_state_dict(opt.state_dict())
        assert digest(other) == before

    def test_a_master_without_its_rounding(self, optimizer, rng):
        param = normal(rng, dtype=BF16)
        opt = optimizer(param)
        opt.step(normal(rng))
        saved, before = opt.state_dict(), digest(opt)
        saved["param_groups"][0]["rounding"] = "nearest"
        with pytest.raises(ValueError, match=r"^state\[0\]\['master'\]: expected none beside"):
            opt.load_state_dict(saved)
        assert digest(opt) == before

    @dtypes
    def test_no_copy_beside_16_bits(self, optimizer, small):
        param = np.ones(3, small)
        with pytest.raises(TypeError, match="^copy_to: expected None beside .* not float32, got"):
            optimizer(param, copy_to=np.zeros(3, BF16))

    @dtypes
    @pytest.mark.parametrize("rounding", ["master", "nearest"])
    def test_gradients_that_make_no_sense(self, optimizer, small, rounding):
        params = [np.ones(3, np.float32), np.ones(3, small)]
        opt = optimizer(params, rounding=rounding)
        opt.step([np.ones(3, small), np.ones(3, np.float32)])
        before = digest(opt)
        for bad in (np.ones(3), np.ones(3, np.int16), np.ones(3).astype(ml_dtypes.float8_e5m2)):
            with pytest.raises(TypeError, match=rf"^grads\[1\]: .* got {bad.dtype}"):
                opt.step([np.ones(3, np.float32), bad])
            with pytest.raises(TypeError, match=rf"^grads\[1\]: .* got {bad.dtype}"):
                opt.accumulate([None, bad])
            assert digest(opt) == before
        with pytest.raises(TypeError, match=r"^grads\[1\]: .* native byte order, got >f2"):
            opt.step([np.ones(3, np.float32), np.ones(3, ">f2")])
        with pytest.raises(ValueError, match=r"grads\[0\]: .* the same memory as params\[1\]"):
            opt.step([params[1], np.ones(3, small)])
        assert digest(opt) == before


class TestQuality:
    @pytest.mark.parametrize("kept", [{"state_format": "bf16"}, {"state_format": "q8"}])
    def test_a_quadratic_ends_about_as_low(self, kept, rng):
        """With curvatures over four decades, and gradients that are noisy."""
        curvature = np.exp2(rng.uniform(-7, 7, N)).astype(np.float32)
        noise = [normal(rng) for _ in range(50)]

        def loss(**kept):
            w = np.ones(N, np.float32)
            opt = op.AdamW(w, lr=lambda step: 0.03 * (1 - step / 300), weight_decay=0.0, **kept)
            for step in range(300):
                opt.step(curvature * w + 0.1 * noise[step % 50])
            return float((curvature * w**2).sum() / 2)

        assert loss(**kept) < 1.5 * loss()

    @in_small_formats
    def test_a_mean_of_squares_decays_as_it_must(self, state_format):
        """By beta2 each step once the gradient is gone. To nearest it would stay: 1 - 0.999 of a
        number is less than half of what is between it and the next."""
        opt = op.AdamW(np.ones(2**15, np.float32), state_format=state_format)
        steps = 1000
        opt.step(np.ones(2**15, np.float32))
        for _ in range(steps):
            opt.step(np.zeros(2**15, np.float32))
        opt.param_groups[0]["state_format"] = None
        found = opt.state_dict()["state"][0]["exp_avg_sq"]
        assert found.mean() == pytest.approx(0.001 * 0.999**steps, rel=0.1)

    @in_small_formats
    def test_a_mean_of_squares_rises_as_it_must(self, state_format):
        opt = op.AdamW(np.ones(2**15, np.float32), state_format=state_format)
        for _ in range(700):
            opt.step(np.full(2**15, 0.5, np.float32))
        opt.param_groups[0]["state_format"] = None
        found = opt.state_dict()["state"][0]["exp_avg_sq"]
        assert found.mean() == pytest.approx(0.25 * (1 - 0.999**700), rel=0.1)
