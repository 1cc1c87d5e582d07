"""Bad input: an error that names the culprit, and nothing changed."""

import math

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import digest, fresh_state, shaped
from onepass._hyperparameters import Maybe
from onepass._memory import aligned_zeros

N = 12


def good(dtype=np.float32):
    return np.linspace(1, 2, N, dtype=dtype)


def read_only():
    array = good()
    array.flags.writeable = False
    return array


def misaligned():
    return np.zeros(4 * N + 1, np.uint8)[1:].view(np.float32)


# What no array of a step may be: (make, error, words of the message).
NEVER = {
    "int": (lambda: np.arange(N), TypeError, "dtype float32.*int64"),
    "complex": (lambda: good(np.complex64), TypeError, "dtype float32.*complex64"),
    "object": (lambda: good().astype(object), TypeError, "dtype float32.*object"),
    "longdouble": (lambda: good(np.longdouble), TypeError, "dtype float32.*got float(96|128)"),
    "big-endian": (lambda: good().astype(">f4"), TypeError, "dtype float32.*>f4"),
    "structured": (lambda: np.zeros(N, [("x", "f4")]), TypeError, "dtype float32.*x"),
    "masked": (lambda: np.ma.masked_array(good(), good() > 1.5), TypeError, "masked array"),
    "list": (lambda: 1.0, TypeError, "NumPy array.*float"),
}
# What no array may be that is written.
NEVER_WRITTEN = {
    "float8": (lambda: good().astype(ml_dtypes.float8_e4m3fn), TypeError, "dtype float32.*float8"),
    "read-only": (read_only, ValueError, "writable.*read-only"),
    "sliced": (lambda: np.zeros(2 * N, np.float32)[::2], ValueError, "without gaps.*strides"),
    "reversed": (lambda: good()[::-1], ValueError, "without gaps.*strides"),
    "misaligned": (misaligned, ValueError, "aligned"),
    "stride-0": (
        lambda: np.lib.stride_tricks.as_strided(good(), (N,), (0,), writeable=True),
        ValueError,
        "without gaps.*strides",
    ),
}
BAD_PARAMS = {**NEVER, **NEVER_WRITTEN}
BAD_GRADS = {
    **NEVER,
    "other dtype": (lambda: good(np.complex64), TypeError, "dtype float32.*complex64"),
    "big-endian float16": (lambda: good().astype(">f2"), TypeError, "dtype float32.*>f2"),
    "not a float": (lambda: np.zeros(N, np.int16), TypeError, "dtype float32.*int16"),
    "longer": (lambda: np.zeros(N + 1, np.float32), ValueError, r"shape \(12,\).*\(13,\)"),
    "column": (lambda: np.zeros((N, 1), np.float32), ValueError, r"shape \(12,\).*\(12, 1\)"),
}


def cases(table):
    return pytest.mark.parametrize(("make", "error", "words"), table.values(), ids=list(table))


@cases(BAD_PARAMS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_bad_parameter(optimizer, make, error, words, position):
    params = [good(), good(), good()]
    params[position] = make()
    before = digest(params)
    with pytest.raises(error, match=rf"^params\[{position}\]: expected .*{words}"):
        optimizer(params)
    with pytest.raises(error, match=rf"^params\['p{position}'\]: expected .*{words}"):
        optimizer({f"p{i}": param for i, param in enumerate(params)})
    assert digest(params) == before


def ready(optimizer, **settings):
    """An optimizer of three parameters, in the middle of a run."""
    opt = optimizer([good(), good(), good()], **settings)
    for _ in range(2):
        opt.step([good(), None, good()])
    return opt


@cases(BAD_GRADS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_bad_gradient(optimizer, make, error, words, position):
    opt = ready(optimizer)
    grads = [good(), good(), good()]
    grads[position] = make()
    before = digest(opt, grads)
    with pytest.raises(error, match=rf"^grads\[{position}\]: expected .*{words}"):
        opt.step(grads)
    assert digest(opt, grads) == before


@cases(BAD_GRADS)
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("way", ["step", "accumulate", "bind"])
def test_bad_gradient_of_a_whole_step(optimizer, make, error, words, position, way):
    """With all that a step can do, a gradient that is bound and one that is gathered."""
    opt = optimizer(
        [good(), good(), good()],
        grads=[good(), good(), good()],
        max_grad_norm=0.1,
        max_grad_value=0.1,
        nonfinite="skip",
        ema_decay=0.9,
        clear_grads=True,
    )
    opt.step()
    if way == "accumulate":
        opt.accumulate([good(), None, good()])
    grads = [good(), good(), good()]
    grads[position] = make()
    before = digest(opt, grads, opt.skipped_steps)
    with pytest.raises(error, match=rf"^grads\[{position}\]: expected .*{words}"):
        getattr(opt, way)(grads)
    assert digest(opt, grads, opt.skipped_steps) == before
    opt.step()
    assert opt.skipped_steps == 0


def test_parameter_that_is_locked_during_a_run(optimizer):
    opt = ready(optimizer)
    opt.param_groups[0]["params"][2].flags.writeable = False
    before = digest(opt)
    with pytest.raises(ValueError, match=r"^params\[2\]: expected a writable array"):
        opt.step([good()] * 3)
    assert digest(opt) == before


@cases({**BAD_PARAMS, **{k: v for k, v in BAD_GRADS.items() if k not in NEVER}})
def test_bad_array_of_a_free_function(case, make, error, words):
    cls, options = case
    kernel = getattr(op.kernels, cls.rule)
    state = fresh_state(cls, options, good())
    arrays = {"param": good(), "grad": good()}
    arrays |= dict(zip(cls.row.states, state, strict=True))
    for name, array in arrays.items():
        is_like_param = make in [v[0] for k, v in BAD_GRADS.items() if k not in NEVER]
        is_written = make in [v[0] for v in NEVER_WRITTEN.values()]
        if array is None or (name == "param" and is_like_param) or (name == "grad" and is_written):
            continue
        bad = {**arrays, name: make()}
        before = digest(bad)
        words_here = words if name in ("param", "grad") else words.replace("without gaps", "order")
        with pytest.raises(error, match=rf"^{name}: expected .*{words_here}"):
            kernel(*bad.values(), step=1, **options)
        assert digest(bad) == before


def test_state_in_float16(case):
    """The one format of 16 bits that state is not kept in."""
    cls, options = case
    for i, array in enumerate(state := fresh_state(cls, options, good())):
        if array is not None:
            bad = [*state[:i], array.astype(np.float16), *state[i + 1 :]]
            with pytest.raises(TypeError, match="expected dtype float32.*, got float16"):
                getattr(op.kernels, cls.rule)(good(), good(), *bad, step=1, **options)


def test_state_in_another_order_than_its_parameter(case):
    cls, options = case
    param = np.zeros((3, 4), np.float32)
    state = fresh_state(cls, options, param)
    for i, array in enumerate(state):
        if array is not None:
            bad = list(state)
            bad[i] = np.asfortranarray(array)
            with pytest.raises(ValueError, match="expected C order, as its parameter has"):
                getattr(op.kernels, cls.rule)(param, param.copy(), *bad, step=1, **options)


def test_state_that_the_options_do_not_use(case):
    cls, options = case
    names = cls.row.states
    state = fresh_state(cls, options, good())
    for i, array in enumerate(state):
        if array is None:
            bad = list(state)
            bad[i] = good()
            with pytest.raises(ValueError, match=f"^{names[i]}: expected None"):
                getattr(op.kernels, cls.rule)(good(), good(), *bad, step=1, **options)
    with pytest.raises(TypeError, match="^state: expected at most"):
        getattr(op.kernels, cls.rule)(good(), good(), *state, None, step=1, **options)


class TestOverlap:
    def test_the_same_array_twice(self, optimizer):
        param = good()
        with pytest.raises(ValueError, match=r"params\[2\]: .* the same memory as params\[0\]"):
            optimizer([param, good(), param])

    def test_parameters_that_share_a_part(self, optimizer):
        room = np.zeros(2 * N, np.float32)
        with pytest.raises(ValueError, match=r"params\[.\]: .* overlap with params\[.\]"):
            optimizer([room[:N], room[N - 1 :]])
        optimizer([room[:N], room[N:]])  # side by side is fine

    def test_one_parameter_inside_another(self, optimizer):
        room = np.zeros(100, np.float32)
        with pytest.raises(ValueError, match="overlap"):
            optimizer([room, np.zeros(3, np.float32), room[40:50], room[90:].copy()])

    def test_gradient_is_the_parameter(self, optimizer):
        opt = ready(optimizer)
        params = opt.param_groups[0]["params"]
        before = digest(opt)
        with pytest.raises(ValueError, match=r"grads\[0\]: .* the same memory as params\[0\]"):
            opt.step([params[0], good(), good()])
        with pytest.raises(ValueError, match=r"grads\[2\]: .* the same memory as params\[1\]"):
            opt.step([good(), good(), params[1]])
        assert digest(opt) == before

    @pytest.mark.parametrize("shift", [-3, 3])
    def test_gradient_shares_a_part_of_a_parameter(self, optimizer, shift):
        room = np.ones(3 * N, np.float32)
        opt = optimizer([room[N : 2 * N]])
        before = digest(opt, room)
        with pytest.raises(ValueError, match=r"grads\[0\]: .* overlap with params\[0\]"):
            opt.step([room[N + shift : 2 * N + shift]])
        with pytest.raises(ValueError, match=r"grads\[0\]: .* overlap with params\[0\]"):
            opt.step([room[: 2 * N][::-2]])
        assert digest(opt, room) == before

    def test_gradients_may_share(self, optimizer):
        opt = optimizer([good(), good()])
        grad = good()
        opt.step([grad, grad])

    def test_any_two_arrays_of_a_free_function(self, case):
        cls, options = case
        arrays = [good(), good(), *fresh_state(cls, options, good())]
        present = [i for i, array in enumerate(arrays) if array is not None]
        for i in present:
            for j in present:
                if i < j:
                    bad = list(arrays)
                    bad[j] = bad[i]
                    before = digest([b for b in bad if b is not None])
                    with pytest.raises(
                        ValueError, match="expected memory of its own, got the same"
                    ):
                        getattr(op.kernels, cls.rule)(*bad, step=1, **options)
                    assert digest([b for b in bad if b is not None]) == before


class TestStructure:
    params = staticmethod(lambda: {"a": good(), "b": [good(), {"c": good()}]})

    @pytest.mark.parametrize(
        ("grads", "where"),
        [
            ({"a": good()}, "grads: expected the names"),
            ({"a": good(), "b": None}, r"grads\['b'\]: expected a sequence of 2, got NoneType"),
            ({"a": good(), "b": [good()]}, r"grads\['b'\]: expected a sequence of 2, got a seq"),
            ({"a": good(), "b": [good(), good()]}, r"grads\['b'\]\[1\]: expected the names"),
            ({"a": good(), "b": [good(), {"d": good()}]}, r"\['b'\]\[1\]: expected the names"),
            ({"a": [good()], "b": [good(), {"c": good()}]}, r"grads\['a'\]: expected a NumPy"),
            ([good(), good(), good()], "grads: expected the names"),
            (good(), "grads: expected the names"),
            (None, "grads: expected gradients, got none, and none are bound or accumulated"),
        ],
    )
    def test_gradients_that_do_not_mirror_the_parameters(self, optimizer, grads, where):
        opt = optimizer(self.params())
        before = digest(opt)
        with pytest.raises((ValueError, TypeError), match=where):
            opt.step(grads)
        assert digest(opt) == before

    def test_no_parameters(self, optimizer):
        for params in ([], {}, [{"params": []}]):
            with pytest.raises(ValueError, match="params: expected at least one array"):
                optimizer(params)

    def test_names(self, optimizer):
        with pytest.raises(TypeError, match="names that are strings or integers, got 1.5"):
            optimizer({1.5: good()})
        with pytest.raises(ValueError, match="a name of its own, got 'a.b' again"):
            optimizer({"a.b": good(), "a": {"b": good()}})
        with pytest.raises(ValueError, match="a name of its own, got 'w' again"):
            optimizer([{"params": {"w": good()}}, {"params": {"w": good()}}])


BAD_NUMBERS = [-1.0, float("nan"), -float("inf")]
TOO_LARGE = [float("inf"), 10**400]
NOT_NUMBERS = ["0.1", None, [0.1], True, 1j, np.ones(1), np.ones(2)]


class TestHyperparameters:
    def bad_values(self, optimizer):
        for name, default in optimizer.defaults.items():
            if isinstance(default, bool):
                yield from ((name, value) for value in (1, 0.0, "yes", None))
            elif isinstance(default, tuple):
                for i, each in enumerate(optimizer.checks[name].kinds):
                    kind = getattr(each, "kind", each)
                    low = kind.low - 0.1
                    if kind.above > -math.inf:
                        low = min(kind.low, kind.above) - 0.5
                    for value in [*{kind.below, kind.below + 0.5}, low, math.nan, "x"]:
                        yield name, (*default[:i], value, *default[i + 1 :])
                one = default[0]
                wrong = [one, default[:-1], (*default, one), {*default}, np.array(one), None]
                yield from ((name, value) for value in wrong)
            elif isinstance(default, str):
                yield from ((name, value) for value in ("no such", None, 1))
            else:
                check = optimizer.checks[name]
                wrong = NOT_NUMBERS
                if isinstance(check, Maybe):
                    check, wrong = check.kind, [w for w in wrong if w is not None]
                too_large = [] if getattr(check, "infinite", False) else TOO_LARGE
                signed = getattr(check, "low", 0) == -math.inf
                bad_numbers = [bad for bad in BAD_NUMBERS if not (signed and bad == -1.0)]
                yield from ((name, bad) for bad in bad_numbers + too_large + wrong)
                if getattr(check, "below", math.inf) < math.inf:
                    yield from ((name, value) for value in (check.below, check.below + 0.5))
                if getattr(check, "high", math.inf) < math.inf:
                    yield name, check.high + 0.5

    def test_out_of_range(self, every_class):
        tried, fits = 0, lambda: shaped(every_class, {}, good())
        for name, value in self.bad_values(every_class):
            params = [fits()]
            message = f"^{name}: expected "
            with pytest.raises((ValueError, TypeError), match=message):
                every_class(params, **{name: value})
            with pytest.raises((ValueError, TypeError), match=message):
                every_class([{"params": params, name: value}])
            with pytest.raises((ValueError, TypeError), match=message):
                getattr(op.kernels, every_class.rule)(fits(), fits(), step=1, **{name: value})
            tried += 1
            if np.all(value == every_class.defaults[name]):
                continue  # 0 set where False stood says nothing new
            opt = every_class(params)  # set in the middle of a run
            opt.step([fits()])
            before = digest(params, opt.state_dict())
            group = opt.param_groups[0]
            lr = 0.5 * group["lr"]
            for change in (
                lambda group=group, name=name, value=value: group.__setitem__(name, value),
                lambda group=group, both={"lr": lr, name: value}: group.update(both),
                lambda group=group, both={"lr": lr, name: value}: group.__ior__(both),
            ):
                with pytest.raises((ValueError, TypeError), match=message):
                    change()
            assert digest(params, opt.state_dict()) == before
        assert tried > 20

    def test_unknown_names(self, optimizer):
        with pytest.raises(TypeError, match="^lrr: expected one of the hyperparameters, got "):
            optimizer([{"params": [good()], "lrr": 0.1}])
        with pytest.raises(TypeError, match="lrr"):
            optimizer([good()], lrr=0.1)
        with pytest.raises(TypeError, match="^lrr: expected one of the hyperparameters"):
            getattr(op.kernels, optimizer.rule)(good(), good(), step=1, lrr=0.1)

    def test_groups_stay_what_they_were_made_of(self, optimizer):
        opt = optimizer([good()])
        (group,) = opt.param_groups
        before = dict(group)
        for change, error, words in (
            (lambda: group.update(learning_rate=5), TypeError, "learning_rate: .* unknown name"),
            (lambda: group.setdefault("learning_rate", 5), TypeError, "learning_rate: .* unknown"),
            (lambda: group.update(params=(good(),)), ValueError, "params: expected those it was"),
            (lambda: group.__delitem__("lr"), TypeError, "lr: expected to stay"),
            (lambda: group.pop("lr"), TypeError, "settings: expected to stay"),
            (group.popitem, TypeError, "settings: expected to stay"),
            (group.clear, TypeError, "settings: expected to stay"),
        ):
            with pytest.raises(error, match=f"^{words}"):
                change()
            assert dict(group) == before
        group.update(group)
        assert group.setdefault("lr", 5) == group["lr"] == before["lr"]
        for change, words in (
            (lambda groups: groups.append({}), "param_groups: expected 1 groups, got 2"),
            (
                lambda groups: groups.__setitem__(0, dict(groups[0])),
                r"param_groups\[0\]: expected the mapping it was made with",
            ),
        ):
            opt = optimizer([good()])
            change(opt.param_groups)
            with pytest.raises(ValueError, match=words):
                opt.step([good()])
            with pytest.raises(ValueError, match=words):
                opt.state_dict()

    def test_reference_step_checks_what_it_is_given(self, every_case):
        cls, options = every_case
        state = fresh_state(cls, options, good())
        with pytest.raises(TypeError, match="^lrr: expected one of the hyperparameters"):
            cls.reference_step(good(), good(), *state, lrr=1)
        wrong = [None if s is not None else good() for s in state]
        with pytest.raises(ValueError, match="expected (an array|None)"):
            cls.reference_step(good(), good(), *wrong, **options)

    def test_schedule_with_a_bad_value(self, optimizer):
        for bad in (-1.0, float("nan"), None, "x"):
            opt = optimizer([good()], lr=lambda step, bad=bad: 0.1 if step < 2 else bad)
            opt.step([good()])
            opt.step([good()])
            before = digest(opt)
            with pytest.raises((ValueError, TypeError), match="^lr: expected a finite number >= 0"):
                opt.step([good()])
            assert digest(opt) == before

    def test_schedule_where_none_may_stand(self, optimizer):
        for name, check in optimizer.checks.items():
            if not check.schedulable:
                with pytest.raises(TypeError, match=f"^{name}: expected a value"):
                    optimizer([good()], **{name: lambda _: 0.5})
        with pytest.raises(TypeError, match="^lr: expected a value"):
            getattr(op.kernels, optimizer.rule)(good(), good(), step=1, lr=lambda _: 0.1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"nesterov": True}, "^momentum: expected more than 0 for nesterov"),
            ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "^dampening: expected 0"),
            ({"nesterov": True, "momentum": 0.9, "form": "ema"}, "^form: expected "),
            ({"form": "ema", "momentum": 0.9, "dampening": 0.1}, "^dampening: expected 0"),
            ({"form": "sutskever", "momentum": 0.9, "dampening": 0.1}, "^dampening: expected 0"),
        ],
    )
    def test_settings_that_do_not_go_together(self, settings, message):
        with pytest.raises(ValueError, match=message):
            op.SGD([good()], **settings)

    @pytest.mark.parametrize("step", [0, -1, 1.0, "1", True, None])
    def test_step_of_a_free_function(self, step):
        p, g, m, v = good(), good(), good(), good()
        before = digest(p, g, m, v)
        with pytest.raises((TypeError, ValueError), match="^step: expected "):
            op.kernels.adam(p, g, m, v, step=step)
        assert digest(p, g, m, v) == before

    @pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
    def test_num_threads(self, optimizer, threads):
        opt = optimizer([good()])
        before = digest(opt)
        for call in (
            lambda: op.set_num_threads(threads),
            lambda: opt.step([good()], num_threads=threads),
            lambda: op.kernels.sgd(good(), good(), num_threads=threads),
        ):
            with pytest.raises((TypeError, ValueError), match="^num_threads: expected an integer"):
                call()
        assert digest(opt) == before


class TestLookahead:
    def run(self, **settings):
        opt = op.SGD([good(), good()], 0.1, **{"momentum": 0.9, **settings})
        opt.step([good(), good()])
        return opt

    def test_restores_to_the_bit_also_by_an_exception(self):
        opt = self.run()
        before = digest(opt)
        with opt.lookahead():
            assert digest(opt) != before
        assert digest(opt) == before
        with pytest.raises(KeyboardInterrupt), opt.lookahead():
            raise KeyboardInterrupt
        assert digest(opt) == before
        with opt.lookahead():  # and it can be entered again
            pass

    def test_nesterov_takes_a_momentum_that_starts_at_zero(self):
        opt = op.SGD([good()], 0.1, momentum=lambda step: 0.5 * (step > 0), nesterov=True)
        opt.step([good()])

    def test_misuse(self):
        opt = self.run()
        before = digest(opt)
        with pytest.raises(ValueError, match="after the"), opt.lookahead(), opt.lookahead():
            pass
        with pytest.raises(ValueError, match="after the block"), opt.lookahead():
            opt.step([good(), good()])
        with (
            pytest.raises(ValueError, match="^momentum: expected more than 0"),
            self.run(momentum=0.0).lookahead(),
        ):
            pass
        with (
            pytest.raises(ValueError, match="^nesterov: expected False"),
            self.run(nesterov=True).lookahead(),
        ):
            pass
        assert digest(opt) == before


def test_a_large_wrong_step_is_refused_before_any_thread_starts(optimizer):
    """The last of many tensors is wrong: not one element of the first has moved."""
    params = [aligned_zeros(50_000) for _ in range(4)]
    opt = optimizer(params)
    grads = [np.ones(50_000, np.float32) for _ in range(4)]
    grads[-1] = grads[-1][:-1]
    with pytest.raises(ValueError, match=r"grads\[3\]"):
        opt.step(grads)
    assert all((param == 0).all() for param in params)
    assert opt.state_dict()["state"] == {}
