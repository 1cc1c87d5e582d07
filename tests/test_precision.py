"""State and parameters in fewer bits: what is saved goes on to the bit, and training is as good."""

import copy
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest, format_of
from onepass import formats
from storage_cases import (
    BF16,
    SIGNS,
    N,
    dtypes,
    in_small_formats,
    kinds,
    normal,
    params_like,
    run,
)


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
        numbers = {"step", "shape", "order", *optimizer.saved_scalars, *optimizer.row.memory}
        kept = before.keys() - numbers
        assert kept == after.keys() - numbers
        names, signs = optimizer.state_names(), SIGNS[optimizer.rule]
        for name in kept:
            k, values = names.index(name), before[name]
            if optimizer.row.in_full[k]:
                assert_same_bits(after[name], values)
                continue
            if first == "q8":
                values = formats.q8_decode(values, N, signed=signs[k])
            if then == "q8":
                expected = formats.q8_encode(values.astype(np.float32), signed=signs[k])
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
        for k, name in enumerate(cls.state_names(**options)):
            if name and format_of(cls, k, state_format):
                values = saved["state"][0][name]
                q8 = formats.q8_encode(values, signed=SIGNS[cls.rule][k])
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
