"""Where a setting lives, and what those who come from other libraries are told."""

import numpy as np
import pytest

import onepass as op
from helpers import digest
from onepass import optim
from onepass.optim import _foreign, _settings

HYPERPARAMETERS = {name for cls in optim.registry.values() for name in cls.checks}


class TestAttributes:
    def test_those_of_the_optimizer_can_be_set(self, optimizer):
        opt = optimizer(np.ones(3))
        for name, value in {
            **_settings.DEFAULTS,
            "max_grad_norm": 2.0,
            "nonfinite": "skip",
        }.items():
            setattr(opt, name, value)
            assert getattr(opt, name) == value

    def test_a_setting_of_a_group_says_where_it_lives(self, optimizer):
        opt = optimizer(np.ones(3))
        before = digest(opt)
        for name in optimizer.group_checks:
            with pytest.raises(AttributeError, match=rf"^{name}: .*param_groups\[0\]\['{name}'\]"):
                setattr(opt, name, 0.5)
        assert digest(opt) == before

    def test_any_other_name_is_an_error(self, optimizer):
        opt = optimizer(np.ones(3))
        for name in {"lrr", *_foreign.NAMES} - set(optimizer.group_checks):
            with pytest.raises(AttributeError, match=f"^{name}: expected one of the attributes"):
                setattr(opt, name, 0.5)
        assert callable(opt.zero_grad)

    def test_a_subclass_may_have_its_own(self, optimizer):
        class Mine(optimizer):
            tag = None

        opt = Mine(np.ones(3))
        opt.tag = "a"
        assert opt.tag == "a"
        with pytest.raises(AttributeError):
            opt.tagg = "b"


class TestKeywords:
    def test_the_message_lists_all_that_are_known(self, optimizer):
        with pytest.raises(TypeError, match="^lrr: expected one of the hyperparameters") as caught:
            optimizer(np.ones(3), lrr=0.1)
        known = {*optimizer.checks, *optim._settings.StepOptions.__annotations__}
        listed = str(caught.value).split("; they are ")[1]
        assert known == set(listed.split(", "))

    def test_names_of_other_libraries_say_what_they_are_called_here(self, optimizer):
        for name, here in _foreign.NAMES.items():
            if name in optimizer.checks:
                continue
            for call in (
                lambda name=name: optimizer(np.ones(3), **{name: 0.5}),
                lambda name=name: optimizer([{"params": np.ones(3), name: 0.5}]),
                lambda name=name: getattr(op.kernels, optimizer.rule)(
                    np.ones(3), np.ones(3), step=1, **{name: 0.5}
                ),
            ):
                with pytest.raises(TypeError, match=f"^{name}: ") as caught:
                    call()
                has_it = any(name in cls.checks for cls in optim.registry.values())
                assert has_it or f"unknown name (here it is {here}); they are" in str(caught.value)

    def test_what_another_class_has(self, optimizer):
        for name in HYPERPARAMETERS - set(optimizer.checks):
            owners = [cls.__name__ for cls in optim.registry.values() if name in cls.checks]
            with pytest.raises(TypeError, match=rf"[( ]{', '.join(owners)} ha(s|ve) {name}\)"):
                optimizer(np.ones(3), **{name: 0.5})

    @pytest.mark.parametrize(
        ("cls", "name", "words"),
        [
            (op.SGD, "nestrov", "perhaps nesterov"),
            (op.Adam, "amsgard", "perhaps amsgrad"),
            (op.Adam, "LR", "perhaps lr"),
            (op.Adam, "nestrov", "perhaps nesterov: LARS, Muon, SGD have it"),
            (op.SGD, "learning_rte", "perhaps learning_rate: here it is lr"),
            (op.Adam, "beta1", "here it is betas; Adafactor has beta1"),
            (op.SGD, "clip_grad_norm", "here it is max_grad_norm"),
            (op.SGD, "warmup", "here it is lr, which takes a schedule: op.schedules.warmup"),
        ],
    )
    def test_what_is_meant_comes_before_the_list(self, cls, name, words):
        with pytest.raises(TypeError) as caught:
            cls(np.ones(3), **{name: 0.5})
        start = f"{name}: expected one of the hyperparameters, got an unknown name ({words}); they"
        assert str(caught.value).startswith(start)

    def test_a_name_like_no_other_has_no_hint(self):
        with pytest.raises(TypeError, match="got an unknown name; they are lr, "):
            op.Adam(np.ones(3), xyz=0.5)

    def test_a_setting_of_a_group_has_the_same_message(self):
        opt = op.Adam(np.ones(3))
        for name, words in (
            ("learning_rate", "here it is lr"),
            ("amsgard", "perhaps amsgrad"),
            ("max_grad_norm", "the optimizer as a whole has max_grad_norm"),
        ):
            with pytest.raises(TypeError, match=rf"^{name}: expected .* name \({words}\); they"):
                opt.param_groups[0][name] = 0.5

    def test_what_they_are_called_here_exists(self):
        """The first word of each is a setting, a class, an argument, a method, or "nothing"."""
        known = {*HYPERPARAMETERS, *optim._settings.StepOptions.__annotations__}
        known |= {cls.__name__ for cls in optim.registry.values()}
        known |= {"grad_scale", "accumulate", "nothing:"}
        for name, here in _foreign.NAMES.items():
            assert here.split()[0].rstrip(",") in known, name


class TestZeroGrad:
    def test_it_zeroes_the_bound_gradients(self, optimizer):
        grads = {"w": np.ones((2, 3)), "b": np.ones(2), "frozen": None}
        opt = optimizer({"w": np.zeros((2, 3)), "b": np.zeros(2), "frozen": np.zeros(2)})
        opt.bind(grads)
        opt.step()
        before = digest(opt)
        opt.zero_grad()
        assert not grads["w"].any()
        assert not grads["b"].any()
        assert digest(opt) == before

    def test_none_are_bound(self, optimizer):
        with pytest.raises(TypeError, match="^zero_grad: expected gradients that are bound"):
            optimizer(np.ones(3)).zero_grad()

    def test_all_or_none(self, optimizer):
        grads = [np.ones(2), np.ones(3)]
        opt = optimizer([np.ones(2), np.ones(3)], grads=grads)
        grads[1].flags.writeable = False
        with pytest.raises(ValueError, match=r"^grads\[1\]: expected a writable array"):
            opt.zero_grad()
        assert grads[0].all()
