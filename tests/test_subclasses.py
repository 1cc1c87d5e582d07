"""Classes that users derive, and the methods as objects."""

import copy
import inspect
import pickle
import pydoc

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest
from onepass.optim import Optimizer


def ones():
    return np.ones(3)


OWN = {
    "scalars": staticmethod(dict),
    "reference": staticmethod(tuple),
    "checks": {},
    "check_together": classmethod(tuple),
}


@pytest.mark.parametrize("name", OWN)
def test_a_rule_of_its_own_is_refused(optimizer, name):
    """The kernels would go on with the old one."""
    words = f"^{name}: expected that of {optimizer.rule}, since its kernels know no other, got one"
    with pytest.raises(TypeError, match=rf"{words} of Mine's own"):
        type("Mine", (optimizer,), {name: OWN[name]})
    class_of_one = type("One", (optimizer,), {})
    from_elsewhere = type("Mixed", (), {name: OWN[name]})
    with pytest.raises(TypeError, match=rf"{words} of Three's own"):
        type("Three", (from_elsewhere, optimizer), {})
    with pytest.raises(TypeError, match=rf"{words} of Two's own"):
        type("Two", (class_of_one,), {name: OWN[name]})


class Unmade(op.SGD):
    """Its constructor forgets the one of its class."""

    def __init__(self):
        self._own = 1


CALLS = {
    "step": lambda opt: opt.step(ones()),
    "step without gradients": lambda opt: opt.step(),
    "accumulate": lambda opt: opt.accumulate(ones()),
    "discard_accumulated": lambda opt: opt.discard_accumulated(),
    "bind": lambda opt: opt.bind(ones()),
    "zero_grad": lambda opt: opt.zero_grad(),
    "add_param_group": lambda opt: opt.add_param_group({"params": ones()}),
    "averaged": lambda opt: opt.averaged(),
    "lookahead": lambda opt: opt.lookahead(),
    "state_dict": lambda opt: opt.state_dict(),
    "load_state_dict": lambda opt: opt.load_state_dict(op.SGD(ones()).state_dict()),
    "param_groups": lambda opt: opt.param_groups,
    "skipped_steps": lambda opt: opt.skipped_steps,
    "seed": lambda opt: opt.seed,
    "a new seed": lambda opt: setattr(opt, "seed", 1),
    "repr": repr,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_that_was_not_set_up_says_so(call):
    opt = Unmade()
    with pytest.raises(TypeError, match=r"^self: expected an optimizer that was set up \(__init__"):
        call(opt)
    op.SGD.__init__(opt, ones())  # and can be set up later
    assert opt.step(ones()).step == 1


def test_one_whose_constructor_failed_says_so():
    opt = op.SGD.__new__(op.SGD)
    with pytest.raises(ValueError, match="^lr: expected"):
        opt.__init__(ones(), lr=-1.0)
    with pytest.raises(TypeError, match="set up"):
        opt.step(ones())


def test_a_constructor_that_runs_again_begins_anew(optimizer):
    w, v = ones(), ones()
    opt = optimizer(w, lr=0.5)
    opt.step(ones())
    with pytest.raises(ValueError, match="^lr: expected"):
        opt.__init__(v, lr=-1.0)
    assert opt.step(ones()).step == 2
    opt.__init__(v, lr=0.25)
    info = opt.step(ones())
    assert (info.step, info.lr) == (1, 0.25)
    assert (v < 1).all()


def test_methods_can_be_overridden(optimizer):
    class Mine(optimizer):
        def step(self, grads=None, **options):
            self._steps = getattr(self, "_steps", 0) + 1
            return super().step(grads, **options)

        def accumulate(self, grads=None, **options):
            return super().accumulate(2 * grads, **options)

    w, other = ones(), ones()
    opt, twin = Mine(w), optimizer(other)
    assert opt.step(ones(), grad_scale=2.0) == twin.step(ones(), grad_scale=2.0)
    opt.accumulate(ones()), twin.accumulate(2 * ones())
    assert opt.step() == twin.step()
    assert opt._steps == 2
    assert_same_bits(w, other)
    clone = copy.deepcopy(opt)
    assert type(clone) is Mine
    assert clone._steps == 2
    assert digest(clone) == digest(opt)


def test_attributes_of_its_own(optimizer):
    class Mine(optimizer):
        scale = 1.0

        @property
        def rate(self):
            return self.param_groups[0]["lr"]

    opt = Mine(ones(), lr=0.25)
    opt.scale = 2.0
    assert (opt.rate, opt.scale, Mine.scale) == (0.25, 2.0, 1.0)
    with pytest.raises(AttributeError, match="^lr: expected it to be set in a group"):
        opt.lr = 1.0
    with pytest.raises(AttributeError):
        opt.rate = 1.0


@pytest.mark.parametrize("name", ["step", "accumulate"])
class TestNativeMethods:
    def test_signature_and_documentation(self, name):
        method = getattr(Optimizer, name)
        assert method.__name__ == name
        assert method.__qualname__ == f"Optimizer.{name}"
        assert method.__module__ == "onepass.optim.optimizer"
        assert list(inspect.signature(method).parameters)[:2] == ["self", "grads"]
        bound = getattr(op.SGD(ones()), name)
        signature = inspect.signature(bound).parameters
        assert signature["grads"].default is None
        assert signature["num_threads"].kind is inspect.Parameter.KEYWORD_ONLY
        assert "Parameters\n" in inspect.getdoc(method)
        assert inspect.getdoc(bound) == inspect.getdoc(method)
        assert name in pydoc.render_doc(Optimizer)
        assert repr(method) == f"<native function Optimizer.{name}>"

    def test_is_pickled_and_copied(self, name):
        method = getattr(Optimizer, name)
        assert pickle.loads(pickle.dumps(method)) is method
        assert copy.deepcopy(method) is method
        w = ones()
        bound = getattr(op.SGD(w, lr=1.0), name)
        for clone in (pickle.loads(pickle.dumps(bound)), copy.deepcopy(bound)):
            clone(ones())
            other = clone.__self__
            if name == "accumulate":
                other.step()
            np.testing.assert_array_equal(other.param_groups[0]["params"][0], 0)
        np.testing.assert_array_equal(w, 1)

    def test_called_by_the_class_and_by_what_is_none(self, name):
        method = getattr(Optimizer, name)
        method(op.SGD(ones()), ones())
        method(self=op.SGD(ones()), grads=ones(), num_threads=1)
        with pytest.raises(TypeError, match="^self: expected an optimizer, got int"):
            method(3, ones())
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'self'"):
            method()

    def test_arguments_that_do_not_fit(self, name):
        w = ones()
        bound = getattr(op.SGD(w), name)
        for arguments, keywords, words in (
            ((ones(), 1), {}, "takes from 1 to 2 positional arguments but 3"),
            ((ones(),), {"grads": ones()}, "multiple values for argument 'grads'"),
            ((ones(),), {"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
        ):
            with pytest.raises(TypeError, match=words):
                bound(*arguments, **keywords)
        np.testing.assert_array_equal(w, 1)


def test_a_class_from_elsewhere_may_stand_beside_it(optimizer):
    class Logged:
        def __init__(self, *args, **options):
            self._log = []
            super().__init__(*args, **options)

        def step(self, *args, **options):
            info = super().step(*args, **options)
            self._log.append(info.step)
            return info

    class Mine(Logged, optimizer):
        pass

    opt = Mine(ones(), lr=0.5)
    opt.step(ones()), opt.step(ones())
    assert opt._log == [1, 2]
    with pytest.raises(TypeError):
        type("Two", (op.SGD, op.Adam), {})(ones())
