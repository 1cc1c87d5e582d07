"""Muon: two native passes with NumPy's matrix products between them, and AdamW in other groups."""

import copy
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest, set_in_place
from interrupting import at_each_place
from test_stages import EVERYTHING, check_run
from test_storage import BF16, STATE_FORMATS
from test_storage import check_run as check_formats

ADAMW = {"use_muon": False}
# More than a block of the sums, tall, wide, of one row, with more than two dimensions, empty.
SHAPES = [(60, 280), (40, 7), (1, 9), (6, 2, 3, 3), (5, 0), (1, 1)]


def matrices(rng, dtype=np.float32, shapes=SHAPES, order="C"):
    return [
        np.asarray(rng.normal(size=shape), order=order).astype(dtype, order="K") for shape in shapes
    ]


class TestBits:
    @pytest.mark.parametrize("stages", EVERYTHING.values(), ids=EVERYTHING)
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_whole_steps_are_the_references(self, stages, order, dtype, rng):
        start, *steps = (matrices(rng, dtype, order=order) for _ in range(4))
        check_run(op.Muon, stages, start, steps, grad_scale=2.0, threads=3)

    @pytest.mark.parametrize("state_format", STATE_FORMATS)
    @pytest.mark.parametrize(
        ("small", "rounding"),
        [(np.float32, "master"), (np.float16, "master"), (BF16, "stochastic"), (BF16, "nearest")],
    )
    def test_in_every_format(self, state_format, small, rounding, rng):
        options = {"state_format": state_format, "rounding": rounding, "ema_decay": 0.9}
        groups = [(w, options) for w in matrices(rng, small)]
        groups.append((rng.normal(size=5000).astype(small), {**options, **ADAMW}))
        steps = [[rng.normal(size=w.shape).astype(small) for w, _ in groups] for _ in range(2)]
        check_formats(op.Muon, groups, steps, {"max_grad_norm": 1.0}, threads=4)

    def test_any_number_of_threads(self, rng):
        (start,), (grad,) = (matrices(rng, shapes=[(300, 700)]) for _ in range(2))
        ends = []
        for threads in (1, 2, 3, 4):
            w = start.copy()
            op.Muon(w, 0.1).step(grad, num_threads=threads)
            ends.append(digest(w))
        assert len(set(ends)) == 1

    @pytest.mark.parametrize("form", ["list", "strided", "bfloat16"])
    def test_gradients_that_lie_otherwise(self, form, rng):
        w, grad = matrices(rng, shapes=[(40, 60)] * 2)
        if form == "bfloat16":
            grad = grad.astype(BF16)
        expected = w.copy()
        op.Muon(expected, 0.1).step(grad.astype(np.float32))
        given = np.repeat(grad, 2, axis=1)[:, ::2] if form == "strided" else grad
        opt = op.Muon([w] if form == "list" else w, 0.1)
        opt.step([given] if form == "list" else given)
        assert_same_bits(w, expected)

    def test_the_order_in_memory_is_not_the_matrix(self, rng):
        """The norm alone is summed in another order."""
        for shape in [(40, 7), (7, 40), (6, 2, 3, 3)]:
            (start,), grads = matrices(rng, float, [shape]), matrices(rng, float, [shape] * 3)
            w, v = start.copy("C"), start.copy("F")
            a, b = op.Muon(w, 0.1), op.Muon(v, 0.1)
            for grad in grads:
                a.step(grad)
                b.step(np.asfortranarray(grad))
            np.testing.assert_allclose(v, w, rtol=1e-12, atol=1e-13)

    def test_more_dimensions_are_the_first_and_the_rest(self, rng):
        """pytorch_optimizer#372: the ratio was the kernel's."""
        (start,), grads = (
            matrices(rng, shapes=[(64, 3, 2, 2)]),
            matrices(rng, shapes=[(64, 12)] * 3),
        )
        w, flat = start.copy(), start.reshape(64, 12).copy()
        a, b = op.Muon(w, 0.1), op.Muon(flat, 0.1)
        for grad in grads:
            a.step(grad.reshape(w.shape))
            b.step(grad)
        assert_same_bits(w.reshape(flat.shape), flat)


class TestAdamW:
    def test_a_group_of_its_own_is_adamw_to_the_bit(self, dtype, rng):
        start = [rng.normal(size=shape).astype(dtype) for shape in [(300,), (), (4, 5), (0,)]]
        settings = {"lr": 0.01, "weight_decay": 0.3}
        ours, theirs = ([w.copy() for w in start] for _ in range(2))
        opt = op.Muon(ours, **settings, **ADAMW, adam_betas=(0.8, 0.9), adam_eps=1e-3)
        adamw = op.AdamW(theirs, **settings, betas=(0.8, 0.9), eps=1e-3)
        for _ in range(66):  # one of them flushes
            grads = [np.asarray(rng.normal(size=w.shape)).astype(dtype) for w in start]
            opt.step(grads)
            adamw.step(grads)
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)
        for a, b in zip(
            opt.state_dict()["state"].values(), adamw.state_dict()["state"].values(), strict=True
        ):
            assert a.keys() == b.keys()
            assert digest(a) == digest(b)

    def test_both_in_one_step_with_one_norm(self, rng):
        """As two optimizers whose gradients were clipped by the norm of all."""
        w, b = rng.normal(size=(6, 4)), rng.normal(size=4)
        v, c = w.copy(), b.copy()
        opt = op.Muon([{"params": w}, {"params": b, "lr": 0.01, **ADAMW}], max_grad_norm=0.5)
        muon, adamw = op.Muon(v), op.AdamW(c, 0.01, weight_decay=0.1)
        for _ in range(4):
            grads = [rng.normal(size=(6, 4)), rng.normal(size=4)]
            info = opt.step(grads)
            norm = np.sqrt(sum(np.square(g).sum() for g in grads))
            assert info.grad_norm == pytest.approx(norm, rel=1e-14)
            muon.step(grads[0], grad_scale=(norm + 1e-6) / 0.5)
            adamw.step(grads[1], grad_scale=(norm + 1e-6) / 0.5)
        np.testing.assert_allclose(w, v, rtol=1e-12)
        np.testing.assert_allclose(b, c, rtol=1e-12)

    def test_a_group_may_change_sides(self, rng, tmp_path):
        """What the other side has kept waits; a checkpoint has both."""
        w, grads = rng.normal(size=(5, 6)), rng.normal(size=(6, 5, 6))
        opt = op.Muon(w)
        for step, grad in enumerate(grads):
            opt.param_groups[0]["use_muon"] = step % 3 != 1
            opt.step(grad)
            opt.save(tmp_path / "run.npz")
            before = digest(opt)
            opt = op.Muon(w)
            opt.load(tmp_path / "run.npz")
            assert digest(opt) == before
        names = {"step", "momentum_buffer", "exp_avg", "exp_avg_sq"}
        assert opt.state_dict()["state"][0].keys() == names


class TestWhatIsNoMatrix:
    """pytorch#166209."""

    def test_is_refused_with_a_way_out(self):
        words = (
            r"expected at least 2 dimensions with use_muon=True .others, .* use_muon=False., got"
        )
        params = [np.ones((2, 2)), np.ones((3, 1)), np.ones((2, 1)), np.ones(11)]
        with pytest.raises(ValueError, match=rf"^params\[3\]: {words} shape \(11,\)$"):
            op.Muon(params)
        with pytest.raises(ValueError, match=rf"^params\['b'\]: {words} shape \(\)$"):
            op.Muon({"w": np.ones((2, 2)), "b": np.array(1.0)})
        with pytest.raises(ValueError, match=rf"^params\[1\]\['params'\]: {words}"):
            op.Muon([{"params": np.ones(2), **ADAMW}, {"params": np.ones(2)}])
        with pytest.raises(ValueError, match=rf"^param\[1\]: {words} shape \(3,\)$"):
            arrays = [[np.ones((1, 1)), np.ones(3)] for _ in range(3)]
            op.kernels.muon(*arrays, step=1)
        with pytest.raises(ValueError, match="^param: expected at least 2 dimensions"):
            op.Muon.reference_step(np.ones(3), np.ones(3), np.zeros(3))

    def test_later_too(self):
        w, b = np.ones((2, 2)), np.ones(4)
        opt = op.Muon([{"params": w}, {"params": b, **ADAMW}])
        grads = [np.ones((2, 2)), np.ones(4)]
        opt.step(grads)
        before = digest(opt)
        with pytest.raises(ValueError, match=r"^params\[2\]\['params'\]: expected at least 2"):
            opt.add_param_group({"params": np.ones(3)})
        opt.param_groups[1]["use_muon"] = True
        with pytest.raises(ValueError, match=r"^params\[1\]\['params'\]: expected at least 2"):
            opt.step(grads)
        opt.param_groups[1]["use_muon"] = False
        assert digest(opt) == before
        set_in_place(w, "shape", (4,))
        with pytest.raises(ValueError, match=r"^params\[0\]\['params'\]: expected .*shape \(4,\)"):
            opt.step([np.ones(4), np.ones(4)])
        set_in_place(w, "shape", (2, 2))
        assert digest(opt) == before
        assert opt.step(grads).step == 2


class TestNumbers:
    def test_the_scale_of_the_gradients_is_no_matter(self):
        """Emerging-Optimizers#229: eps hides small gradients. 2^-40 is exact."""
        ends = []
        for scale in (1.0, 2.0**-40):
            w = np.ones((9, 16), np.float32)
            opt = op.Muon(w, 0.1, eps=1e-30)
            for grad in matrices(np.random.default_rng(0), shapes=[w.shape] * 3):
                opt.step(grad * np.float32(scale))
            ends.append(w)
        assert_same_bits(ends[1], ends[0])

    def test_eps_is_pytorchs_by_default(self):
        """A gradient of norm 2**-30: half of eps 2**-29 is the norm that is left."""
        steps = []
        for scale, eps in ((1.0, 2.0), (2.0**-30, 2.0**-29)):
            w = np.zeros((1, 1))
            op.Muon(w, 1.0, momentum=0.0, ns_steps=0, eps=eps).step(np.full((1, 1), scale))
            steps.append(w.item())
        assert steps == [-0.5, -0.5]
        assert op.Muon.defaults["eps"] == 1e-7

    @pytest.mark.parametrize("eps", [1e-7, 0.0, 1e-60])
    def test_gradients_of_zero_move_nothing_but_decay(self, eps, dtype):
        w = np.array([[1.0, -2.0], [0.0, 4.0]], dtype)
        expected = w * dtype(1 - 0.5 * 0.25)
        op.Muon(w, 0.5, 0.25, eps=eps).step(np.zeros_like(w))
        assert_same_bits(w, expected)

    def test_without_a_gradient_nothing_moves(self):
        """Muon#54: there the weights decay."""
        w, v = np.ones((2, 2)), np.ones((2, 2))
        opt = op.Muon([w, v], 0.5)
        assert opt.step([None, np.ones((2, 2))]).step == 1
        assert (w == 1).all()
        assert (v != 1).all()
        assert opt.state_dict()["state"].keys() == {1}

    def test_only_the_shape_of_the_spectrum_is_lost(self, rng):
        """Singular vectors stay, singular values come near 1, and the ratios are as documented."""
        grad = rng.normal(size=(32, 128))
        for shape_of, rows, columns in ((grad, 32, 128), (grad.T, 128, 32)):
            w = np.zeros(shape_of.shape)
            op.Muon(w, 1.0).step(shape_of)
            left, _, right = np.linalg.svd(shape_of, full_matrices=False)
            spectrum = left.T @ -w @ right.T / np.sqrt(max(1, rows / columns))
            values = np.diag(spectrum)
            assert (values > 0.65).all()
            assert (values < 1.15).all()
            np.testing.assert_allclose(spectrum, np.diag(values), atol=1e-12)
            v = np.zeros(shape_of.shape)
            op.Muon(v, 1.0, adjust_lr_fn="match_rms_adamw").step(shape_of)
            ratio = 0.2 * np.sqrt(128) / np.sqrt(max(1, rows / columns))
            np.testing.assert_allclose(v, ratio * w, rtol=1e-13)
            assert 0.13 < np.sqrt(np.square(v).mean()) < 0.23  # about AdamW's

    def test_pytorchs_products_in_bfloat16_are_near(self, rng):
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        for shape in [(30, 50), (50, 30), (16, 16)]:
            for settings in ({}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}):
                w = np.zeros(shape, np.float32)
                tensor = torch.nn.Parameter(torch.zeros(shape))
                opt = op.Muon(w, 1.0, weight_decay=0.0, **settings)
                theirs = torch.optim.Muon([tensor], 1.0, weight_decay=0.0, **settings)
                for _ in range(3):
                    before = w.copy()
                    with torch.no_grad():
                        tensor.copy_(torch.from_numpy(w))
                    (grad,) = matrices(rng, shapes=[shape])
                    tensor.grad = torch.from_numpy(grad.copy())
                    opt.step(grad)
                    theirs.step()
                    off = np.linalg.norm(w - tensor.detach().numpy())
                    assert 0 < off < 0.03 * np.linalg.norm(w - before)


class Run:
    """Two matrices and a vector after two steps; the same each time."""

    def __init__(self, **options):
        rng = np.random.default_rng(0)
        self.rng = rng
        self.params = [*matrices(rng, shapes=[(8, 6), (6, 8)]), rng.normal(size=5)]
        groups = [{"params": self.params[:2]}, {"params": self.params[2], **ADAMW}]
        self.opt = op.Muon(groups, 0.1, **options)
        self.grads = [
            [rng.normal(size=w.shape).astype(w.dtype) for w in self.params] for _ in range(4)
        ]
        self.step(0), self.step(1)

    def step(self, number):
        first, second, last = self.grads[number]
        return self.opt.step([[first, second], last])

    def whole(self):
        return digest(self.params, self.opt.state_dict())

    def kept(self):
        return digest(self.params, self.opt.state_dict()["state"])


class TestBetweenThePasses:
    """What goes wrong there has changed nothing."""

    def test_an_interrupt_at_every_line(self):
        after = []
        for steps in (1, 2):
            run = Run(ema_decay=0.9)
            for number in range(steps):
                run.step(2 + number)
            after.append(run.whole())
        runs = []

        def attempt():
            runs.append(Run(ema_decay=0.9))
            return lambda: runs[-1].step(2)

        places = 0
        for where, error in at_each_place(attempt):
            run = runs.pop()
            done = run.opt.param_groups is not None and run.whole() == after[0]
            assert done or isinstance(error, KeyboardInterrupt), where
            info = run.step(3 if done else 2)
            assert run.whole() == after[info.step - 3], where
            places += 1
        assert places > 20

    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, FloatingPointError])
    def test_a_product_that_fails(self, error, monkeypatch):
        run = Run()
        before, product = run.whole(), np.matmul
        for fails in (1, 7, 23):
            calls = iter(range(fails))

            def failing(*args, calls=calls, **kwargs):
                if next(calls, None) is None:
                    raise error("here")
                return product(*args, **kwargs)

            monkeypatch.setattr(np, "matmul", failing)
            with pytest.raises(error, match="here"):
                run.step(2)
            assert run.whole() == before
        monkeypatch.setattr(np, "matmul", product)
        undisturbed = Run()
        undisturbed.step(2), run.step(2)
        assert run.whole() == undisturbed.whole()

    def test_what_another_thread_might_do_meanwhile(self, monkeypatch):
        run, product = Run(), np.matmul
        before = run.whole()

        def step():
            run.step(3)

        def resize():
            run.grads[2][0].resize((600, 8), refcheck=False)

        def reshape():
            set_in_place(run.params[1], "shape", (8, 6))

        for act, words in (
            (step, "^step: expected one thread at a time"),
            (lambda: run.opt.load_state_dict(run.opt.state_dict()), "^load_state_dict: .* outside"),
            (lambda: copy.deepcopy(run.opt), "^copy: expected outside a step"),
            (reshape, "expected arrays that do not change during the call"),
            (resize, "expected arrays that do not change during the call"),
        ):
            acts = iter([act])

            def acting(*args, acts=acts, **kwargs):
                for once in acts:
                    once()
                return product(*args, **kwargs)

            monkeypatch.setattr(np, "matmul", acting)
            with pytest.raises(ValueError, match=words):
                run.step(2)
            set_in_place(run.params[1], "shape", (6, 8))
            assert run.whole() == before

    def test_a_free_function_looks_again_too(self, monkeypatch):
        w, grad, buffer = np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3))
        product = np.matmul

        def acting(*args, **kwargs):
            if buffer.size == 6:
                buffer.resize((600, 3), refcheck=False)
            return product(*args, **kwargs)

        monkeypatch.setattr(np, "matmul", acting)
        with pytest.raises(ValueError, match="expected arrays that do not change"):
            op.kernels.muon(w, grad, buffer, step=1)
        assert (w == 1).all()

    def test_a_skipped_step_takes_no_products(self, monkeypatch):
        run, kept = Run(nonfinite="skip"), Run().kept()
        run.grads[2][2][0] = np.inf
        monkeypatch.setattr(np, "matmul", None)
        assert run.step(2).skipped
        run.opt.nonfinite = "raise"
        with pytest.raises(ValueError, match=r"^grads\[1\]\['params'\]: expected finite"):
            run.step(2)
        run.opt.nonfinite = "skip"
        assert run.opt.skipped_steps == 1
        assert digest(run.params, run.opt.state_dict()["state"]) == kept

    def test_the_callers_error_state_is_no_matter(self):
        results = []
        for state in ("ignore", "raise"):
            run = Run()
            for grad in run.grads[2]:
                np.multiply(grad, 1e-30, out=grad)
            run.grads[2][0][0] = 1e30
            with np.errstate(all=state):
                run.step(2)
            results.append(run.whole())
        assert results[0] == results[1]


LIVES = {
    "plain": {},
    "scheduled": {"lr": op.schedules.step_decay(0.1, every=2), "weight_decay": 0.5},
    "clipped": {"max_grad_norm": 0.5, "max_grad_value": 0.1, "nonfinite": "skip"},
    "averaged": {"ema_decay": 0.9, "maximize": True},
    "8 bits": {"state_format": "q8", "seed": 7},
    "stochastic": {"rounding": "stochastic", "state_format": "bf16", "swa_start": 2},
    "lookahead": {"lookahead_every": 2, "max_grad_norm_each": 0.5, "ema_decay": 0.5},
    "cautious": {"cautious_weight_decay": True, "weight_decay": 0.5, "ns_steps": 3},
}


@pytest.mark.parametrize("half", [np.float32, np.float16])
@pytest.mark.parametrize("options", LIVES.values(), ids=LIVES)
def test_a_whole_life(options, half, rng, tmp_path):
    """Saved and loaded, copied, pickled, accumulated and bound: the run stays the same."""
    start = {"w": rng.normal(size=(70, 60)).astype(half), "b": rng.normal(size=9).astype("f4")}
    copies = {"w": None if half == np.float16 else np.zeros((70, 60), np.float16), "b": None}

    def make(like=start):
        params = {name: array.copy() for name, array in like.items()}
        groups = [{"params": {"w": params["w"]}}, {"params": {"b": params["b"]}, **ADAMW}]
        copied = [{name: None if a is None else a.copy()} for name, a in copies.items()]
        return params, op.Muon(groups, **{"lr": 0.1, **options}, copy_to=copied)

    params, opt = make()
    twins, twin = make()
    bound = [{name: np.zeros_like(array)} for name, array in start.items()]
    twin.bind(bound)
    for number in range(6):
        grads = [{name: rng.normal(size=a.shape).astype(a.dtype)} for name, a in start.items()]
        if number == 2:
            grads[1] = {"b": None}
        if number == 3 and options.get("nonfinite"):
            grads[0]["w"][0, 0] = np.nan
        opt.step(grads, num_threads=2)
        if number == 4:
            twin.accumulate(grads)
            twin.step()
        elif number == 2:
            twin.step(grads)
        else:
            for own, grad in zip(bound, grads, strict=True):
                for name, array in own.items():
                    array[...] = grad[name]
            twin.step()
        assert digest(params, opt.skipped_steps) == digest(twins, twin.skipped_steps)
        if op.optim._settings.averages(opt.param_groups[0]):
            before = digest(params)
            with opt.averaged():
                assert digest(params) != before or number < 2
        resumed, other = make(params)
        opt.save(tmp_path / "run.npz")
        other.load(tmp_path / "run.npz")
        if number % 2:
            params, opt = resumed, other
        else:
            opt = pickle.loads(pickle.dumps(opt))
            arrays = (array for group in opt.param_groups for array in group["params"])
            params = dict(zip("wb", arrays, strict=True))
        saved, expected = opt.state_dict(), twin.state_dict()
        assert digest(saved["state"]) == digest(expected["state"])


def test_a_group_of_matrices_joins_later(rng):
    w, more = rng.normal(size=(2, 4, 3))
    opt = op.Muon([{"params": w}], 0.1)
    opt.step([np.ones((4, 3))])
    opt.add_param_group({"params": more, "ns_steps": 2, "adjust_lr_fn": "match_rms_adamw"})
    alone = op.Muon(v := more.copy(), 0.1, ns_steps=2, adjust_lr_fn="match_rms_adamw")
    grads = rng.normal(size=(3, 4, 3))
    for grad in grads:
        opt.step([None, grad])
        alone.step(grad)
    assert_same_bits(more, v)
