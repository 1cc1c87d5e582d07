"""What cannot be kept in fewer bits is refused, and nothing has changed."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest
from storage_cases import BF16, N, dtypes, in_small_formats, normal


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
            with pytest.raises((TypeError, ValueError), match=words):
                opt.param_groups[0][name] = bad
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
            (lambda size: np.zeros(size + 1, np.uint8), ValueError, r"shape \(514,\), got \(515,"),
            (lambda size: np.zeros(size - 1, np.uint8), ValueError, r"shape \(514,\), got \(513,"),
            (lambda size: np.zeros((1, size), np.uint8), ValueError, r"got \(1, 514\)"),
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
        param, grad, state = np.ones(300, dtype), np.ones(300, dtype), make(514)
        before = digest(param, grad, state)
        with pytest.raises(error, match=rf"^momentum_buffer: expected .*{words}"):
            op.kernels.sgd(param, grad, state, momentum=0.9, step=1)
        assert digest(param, grad, state) == before

    def test_no_format_beside_float64_in_a_free_function(self):
        for state in (np.zeros(300, BF16), np.zeros(514, np.uint8)):
            with pytest.raises(
                TypeError, match="^momentum_buffer: expected dtype float32 or float"
            ):
                op.kernels.sgd(np.ones(300), np.ones(300), state, momentum=0.9, step=1)

    def test_overlapping_state_of_a_free_function(self):
        room = np.ones(400, np.float32)
        param, grad = room[:300], np.ones(300, np.float32)
        for inside in (room.view(np.uint8)[100:614], room.view(BF16)[400:700]):
            with pytest.raises(ValueError, match="expected memory of its own, got an overlap"):
                op.kernels.sgd(param, grad, inside, momentum=0.9, step=1)
        codes = np.zeros(514, np.uint8)
        with pytest.raises(ValueError, match="expected memory of its own, got the same memory"):
            op.kernels.adam(param, grad, codes, codes, step=1)
        assert (room == 1).all()
        assert not codes.any()

    def test_step_and_rounding_of_a_free_function(self):
        step = "step: expected the number of this step, from 1, got none"
        codes = np.zeros(514, np.uint8)
        assert refusal(np.ones(300, BF16)) == step
        assert refusal(np.ones(300, np.float32), codes, momentum=0.9) == step
        words = "rounding: expected one of 'stochastic', 'nearest', got "
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
        saved["state"][0][name][-7] = 254
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
        for bad in (
            np.ones(3, complex),
            np.ones(3, np.int16),
            np.ones(3).astype(ml_dtypes.float8_e5m2),
        ):
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
