"""What a user sees: structures, groups, schedules, records."""

import copy
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, entry_names, fresh_state, kept_names, run_reference, shaped
from onepass._memory import address


def ones(*shape):
    return np.ones(shape, np.float32)


def test_structures_share_one_path(optimizer, rng):
    """However the same arrays are structured, they take the same steps."""
    starts = [rng.normal(size=s) for s in [(3, 4), (4,), (), (0,)]]
    grads = [rng.normal(size=s) for s in [(3, 4), (4,), (), (0,)]]

    def tree(kind, a):
        return {
            "list": list(a),
            "tuple": tuple(a),
            "mapping": dict(zip("abcd", a, strict=True)),
            "nested": {"layer": {"w": a[0], "b": a[1]}, "rest": [a[2], (a[3],)]},
            "nested list": [[a[0], a[1]], {"c": a[2], "d": a[3]}],
            "groups": [{"params": [a[0], a[1]]}, {"params": {"c": a[2], "d": a[3]}}],
            "generator": iter(a),
        }[kind]

    keys = {
        "list": [0, 1, 2],
        "tuple": [0, 1, 2],
        "mapping": ["a", "b", "c"],
        "nested": ["layer.w", "layer.b", "rest.0"],
        "nested list": ["0.0", "0.1", "1.c"],
        "groups": [0, 1, "c"],
        "generator": [0, 1, 2],
    }
    for kind, expected_keys in keys.items():
        params = [np.array(s) for s in starts]
        opt = optimizer(tree(kind, params))
        for _ in range(2):
            opt.step(tree(kind, grads))
        for param, start, grad in zip(params, starts, grads, strict=True):
            assert_same_bits(param, run_reference(optimizer, {}, start, [grad, grad])[0])
        assert list(opt.state_dict()["state"])[:3] == expected_keys


def test_gradients_of_groups_may_leave_out_the_word_params(optimizer):
    params = [ones(3), ones(2), ones(1)]
    opt = optimizer([{"params": params[:2]}, {"params": params[2]}])
    opt.step([[ones(3), ones(2)], ones(1)])
    opt.step([{"params": [ones(3), ones(2)]}, {"params": ones(1)}])
    assert all((param < 1).all() for param in params)


def test_one_array(optimizer):
    param = ones(5)
    opt = optimizer(param)
    opt.step(ones(5))
    assert (param < 1).all()
    assert list(opt.state_dict()["state"]) == [0]


def test_scalar_gradient_of_a_0d_parameter(optimizer):
    param = np.array(1.0)
    opt = optimizer(param)
    opt.step(param * 2)  # NumPy makes this a scalar, not an array
    assert_same_bits(param, run_reference(optimizer, {}, np.array(1.0), [np.array(2.0)])[0])


def test_none_leaves_a_parameter_its_state_and_its_step_alone(optimizer, rng):
    starts = [rng.normal(size=4) for _ in range(3)]
    grads = [[rng.normal(size=4) for _ in range(3)] for _ in range(4)]
    params = [s.copy() for s in starts]
    opt = optimizer({"a": params[0], "b": params[1], "c": params[2]})
    seen = [[], [], []]
    for t, grad in enumerate(grads):
        given = [grad[0], grad[1] if t % 2 else None, None]
        opt.step(dict(zip("abc", given, strict=True)))
        for i, g in enumerate(given):
            if g is not None:
                seen[i].append(g)
    state = opt.state_dict()["state"]
    for i, (param, start) in enumerate(zip(params, starts, strict=True)):
        assert_same_bits(param, run_reference(optimizer, {}, start, seen[i])[0])
    assert {key: entry["step"] for key, entry in state.items()} == {"a": 4, "b": 2}
    info = opt.step({"a": None, "b": None, "c": None})
    assert info.step == 5
    assert {k: e["step"] for k, e in opt.state_dict()["state"].items()} == {"a": 4, "b": 2}


def test_groups_have_settings_of_their_own(optimizer, rng):
    starts = [rng.normal(size=6) for _ in range(2)]
    params = [s.copy() for s in starts]
    grad = rng.normal(size=6)
    opt = optimizer(
        [{"params": params[0]}, {"params": params[1], "lr": 0.5, "weight_decay": 0.25}], lr=0.1
    )
    opt.step([grad, grad])
    for param, start, settings in zip(
        params, starts, [{"lr": 0.1}, {"lr": 0.5, "weight_decay": 0.25}], strict=True
    ):
        assert_same_bits(param, run_reference(optimizer, settings, start, [grad])[0])


def test_schedules_receive_the_completed_steps(optimizer, rng):
    grads = [rng.normal(size=6) for _ in range(4)]
    start = rng.normal(size=6)
    param, asked = start.copy(), []

    def lr(step):
        asked.append(step)
        return 0.1 / (1 + step)

    opt = optimizer(param, lr=lr, weight_decay=lambda step: 0.01 * step)
    infos = [opt.step(grad) for grad in grads]
    assert asked == [0, 1, 2, 3]
    assert [info.lr for info in infos] == [0.1, 0.05, 0.1 / 3, 0.025]
    arrays = (start, *fresh_state(optimizer, {}, start))
    for t, grad in enumerate(grads):
        settings = {"lr": 0.1 / (1 + t), "weight_decay": 0.01 * t}
        arrays = optimizer.reference_step(arrays[0], grad, *arrays[1:], step=t + 1, **settings)
    assert_same_bits(param, arrays[0])


def test_schedule_of_momentum_that_starts_at_zero(rng):
    """The buffer is there from the start, and remembers."""
    for form in ("heavy_ball", "sutskever", "ema"):
        param = np.array([1.0])
        opt = op.SGD(param, 0.1, momentum=lambda step: 0.0 if step < 2 else 0.5, form=form)
        w, v = 1.0, 0.0
        for step in range(5):
            mu = 0.0 if step < 2 else 0.5
            gain, rate = {"heavy_ball": (1, 0.1), "sutskever": (0.1, 1), "ema": (1 - mu, 0.1)}[form]
            v = mu * v + gain * (step + 1)
            w -= rate * v
            opt.step(np.array([float(step + 1)]))
        np.testing.assert_allclose(param, [w], rtol=1e-14)


def test_settings_changed_in_the_middle_of_a_run(case, rng):
    """Options may come and go; state they have used stays for when they come back."""
    cls, settings = case
    param = rng.normal(size=20)
    start, grads = param.copy(), [rng.normal(size=20) for _ in range(3)]
    opt = cls(param)
    opt.param_groups[0].update(settings)
    for grad in grads:
        opt.step(grad)
    if not any(cls.row.start_values({**cls.defaults, **settings})):
        assert_same_bits(param, run_reference(cls, settings, start, grads)[0])
    assert list(opt.state_dict()["state"][0]) == entry_names(cls, settings)
    opt.param_groups[0].update(cls.defaults)
    opt.step(grads[0])
    assert set(entry_names(cls, settings)) <= set(opt.state_dict()["state"][0])


def test_a_users_subclass_keeps_the_rule(optimizer):
    class Mine(optimizer):
        pass

    param, other = ones(3), ones(3)
    Mine(param).step(ones(3))
    optimizer(other).step(ones(3))
    assert_same_bits(param, other)
    assert op.optim.registry[optimizer.rule] is optimizer


def test_step_reports(optimizer):
    opt = optimizer([ones(3)], lr=0.25)
    assert opt.step([ones(3)]) == op.StepInfo(step=1, lr=0.25)
    info = opt.step([ones(3)])
    assert (info.step, info.lr) == (2, 0.25)


def test_repr(optimizer):
    assert repr(optimizer([ones(3), ones(2, 2)], lr=0.25)).startswith(
        f"{optimizer.__name__}(params=2 arrays of 7 elements, lr=0.25, "
    )
    groups = [{"params": ones(3)}, {"params": ones(2), "lr": abs}]
    text = repr(optimizer(groups))
    assert "params=1 arrays of 3 elements" in text
    assert "lr=abs" in text


def test_memmap_and_subclasses_are_updated_in_place(optimizer, tmp_path, rng):
    class Sub(np.ndarray):
        pass

    start, grad = rng.normal(size=30), rng.normal(size=30)
    file = np.memmap(tmp_path / "w", np.float64, "w+", shape=(30,))
    file[:] = start
    sub = start.copy().view(Sub)
    opt = optimizer([file, sub])
    opt.step([grad, grad.view(Sub)])
    expected = run_reference(optimizer, {}, start, [grad])[0]
    assert_same_bits(file, expected)
    assert_same_bits(np.asarray(sub), expected)
    file.flush()
    assert_same_bits(np.fromfile(tmp_path / "w"), expected)


def test_fortran_order_keeps_its_elements(case, rng):
    cls, settings = case
    start = np.asfortranarray(rng.normal(size=(5, 7, 3)))
    grad = rng.normal(size=(5, 7, 3))
    param = start.copy(order="K")
    opt = cls(param, **settings)
    opt.step(grad)
    expected = run_reference(cls, settings, start, [grad])
    assert_same_bits(param, expected[0])
    for name, array in zip(
        kept_names(cls, settings), [a for a in expected[1:] if a is not None], strict=True
    ):
        assert_same_bits(opt.state_dict()["state"][0][name], array)


def test_state_lies_at_the_parameters_own_offset(case):
    cls, settings = case
    room = np.zeros(1000, np.float32)
    for start in range(16):
        opt = cls(room[start : start + 100], **settings)
        for array in opt._coming()[0]:
            if array is not None:
                assert address(array) % 64 == address(room[start:]) % 64


def test_copies_and_pickles_go_their_own_way(case, rng):
    cls, settings = case
    grads = [rng.normal(size=9) for _ in range(4)]
    param = rng.normal(size=9)
    opt = cls(param, **settings)
    for grad in grads[:2]:
        opt.step(grad)
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for grad in grads[2:]:
        for each in (opt, *twins):
            each.step(grad)
    for twin in twins:
        (other,) = twin.param_groups[0]["params"]
        assert other is not param
        assert_same_bits(other, param)


def test_free_function_needs_no_step_where_it_does_not_matter():
    p, q = ones(3), ones(3)
    op.kernels.sgd(p, ones(3), lr=0.5)
    assert_same_bits(p, np.full(3, 0.5, np.float32))
    op.kernels.rmsprop(q, ones(3), np.zeros(3, np.float32))
    assert (q < 1).all()


def test_signatures_of_the_free_functions(optimizer):
    import inspect

    kernel = getattr(op.kernels, optimizer.rule)
    signature = inspect.signature(kernel).parameters
    positional = [n for n, p in signature.items() if p.kind is p.POSITIONAL_ONLY]
    assert positional == ["param", "grad", *optimizer.row.states, *optimizer.row.memory]
    keywords = {n: p.default for n, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    shared = {
        **{"step": None, "rounding": "stochastic", "seed": 0, "num_threads": None},
        **{"grad_scale": 1.0, "max_grad_norm": None, "grad_norm": None},
        **{"skip_grad_norm": None, "nonfinite": "propagate"},
        **{"max_grad_value": None, "clear_grads": False, "average": None, "averaged": None},
        **{"ema_decay": None, "ema_warmup": False, "swa_start": None},
        **{"average_every": 1, "average_dtype": "float64"},
        **{"cautious_weight_decay": False, "max_grad_norm_each": None},
        **{"lookahead_every": None, "lookahead_weight": 0.5, "slow": None, "rows": None},
    }
    taken = inspect.signature(optimizer).parameters
    own = {name: value for name, value in optimizer.defaults.items() if name in taken}
    assert keywords == {**shared, **own}
    assert kernel.__name__ in op.kernels.__all__


def bowl(w):
    scale = np.array([1.0, 10.0])
    return 0.5 * (scale * w**2).sum(), scale * w


def rosenbrock(w):
    x, y = w
    grad = [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2, np.array(grad)


@pytest.mark.parametrize("surface", [bowl, rosenbrock])
def test_every_class_goes_down_hill(every_case, surface):
    """With the best of a few learning rates a fifth of the loss is left after 500 steps."""
    cls, settings = every_case
    start = np.array([-1.2, 1.0])

    def end(lr):
        w = start.copy()
        param = shaped(cls, settings, w)
        opt = cls(param, **{**settings, "lr": lr, "weight_decay": 0.0})
        sign = -1.0 if settings.get("maximize") else 1.0
        for _ in range(500):
            opt.step(sign * surface(w)[1].reshape(param.shape))
        return surface(w)[0]

    with np.errstate(all="ignore"):  # a rate may be too high
        assert any(end(lr) < 0.2 * surface(start)[0] for lr in (1e-2, 1e-1, 1e-3, 1.0))


def test_step_reports_the_first_groups_rate(optimizer):
    opt = optimizer([{"params": ones(2), "lr": 0.5}, {"params": ones(3)}], lr=0.125)
    assert opt.step([ones(2), ones(3)]).lr == 0.5


def test_lookahead_uses_each_groups_settings_and_the_coming_steps_schedule():
    w = [np.array([8.0]), np.array([8.0]), np.array([8.0])]
    groups = [
        {"params": w[0], "momentum": 0.5},
        {"params": w[1], "momentum": 0.25, "form": "sutskever"},
        {"params": w[2], "momentum": lambda step: 0.5 * step},
    ]
    opt = op.SGD(groups, lr=lambda step: 0.5 / (1 + step))
    opt.step([np.array([4.0])] * 3)
    # All are at 8 - 0.5 * 4 = 6. The coming step has lr 0.25, and 0.5 for the last momentum.
    with opt.lookahead():
        # lr * mu * v with v = 4; mu * u with u = lr * g = 2; lr * mu * v again
        assert [float(p[0]) for p in w] == [6 - 0.25 * 0.5 * 4, 6 - 0.25 * 2, 6 - 0.25 * 0.5 * 4]
    assert [float(p[0]) for p in w] == [6, 6, 6]
