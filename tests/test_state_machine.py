"""A run that is saved, loaded, copied and read at any moment is the run that is left alone.

Hypothesis drives two optimizers of each class through the same public calls. One of them is also
read, saved and loaded in between, into fresh objects; the other is left alone. They stay the same
run, to the bit.
"""

import copy
import io
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers import digest
from onepass import optim

# Large enough for 8-bit state, small, without axes, empty, and of 16 bits.
SHAPES = {"w": (65, 64), "b": (7,), "s": (), "none": (0, 3), "half": (4100,), "brain": (5,)}
DTYPES = {"half": np.float16, "brain": ml_dtypes.bfloat16}

# What a user may set in a group between steps.
CHANGES = {
    "lr": (0.1, 0.003),
    "weight_decay": (0.0, 0.1),
    "maximize": (False, True),
    "max_grad_value": (None, 0.5),
    "ema_decay": (None, 0.9, 0.5),
    "state_format": (None, "bf16", "q8"),
    "rounding": ("master", "stochastic", "nearest"),
}
OWN_CHANGES = {
    "max_grad_norm": (None, 0.7),
    "skip_grad_norm": (None, 75.0),
    "nonfinite": ("propagate", "skip"),
    "clear_grads": (False, True),
    "seed": (0, 5),
}


def changes_of(cls):
    """Those, and the class's own flags and numbers as its cases have them."""
    found = {name: {cls.defaults[name]} for name in cls.checks if name not in CHANGES}
    for case in cls.cases:
        for name, value in case.items():
            found.setdefault(name, set()).add(value)
    own = {name: tuple(sorted(values, key=repr)) for name, values in found.items()}
    return {**CHANGES, **{name: values for name, values in own.items() if len(values) > 1}}


def in_groups(arrays):
    """Every second one in the first group, the others in the second."""
    names = list(arrays)
    return [{name: arrays[name] for name in names[begin::2]} for begin in (0, 1)]


class Twins(RuleBasedStateMachine):
    """`kept` is never saved; `moved` is, and goes on in another object."""

    cls = optim.SGD

    @initialize(data=st.data())
    def make(self, data):
        rng = np.random.default_rng(data.draw(st.integers(0, 9)))
        start = {
            name: np.asarray(rng.normal(size=shape)).astype(DTYPES.get(name, np.float32))
            for name, shape in SHAPES.items()
        }
        self.rng = np.random.default_rng(1)
        self.kept = self.new(start)
        self.moved = self.new(start)

    def new(self, params):
        own = {name: param.copy() for name, param in params.items()}
        bound = {name: np.zeros_like(param) for name, param in own.items()}
        first, second = in_groups(own)
        # The first comes to two groups, of the first and the third array, and of the second.
        by_name = {"params": first, "overrides": {"s": {"max_grad_value": 0.25}}}
        opt = self.cls([by_name, {"params": second, "lr": 0.01}], lr=0.1)
        return opt, own, bound, in_groups(bound)

    def both(self, call):
        for twin in (self.kept, self.moved):
            call(*twin)

    def gradients(self, present, *, finite=True):
        grads = {}
        for name, there in zip(SHAPES, present, strict=True):
            values = np.asarray(self.rng.normal(size=SHAPES[name]))
            if not finite and values.size:
                values.reshape(-1)[0] = np.inf
            grads[name] = values.astype(DTYPES.get(name, np.float32)) if there else None
        return in_groups(grads)

    present = st.lists(st.booleans(), min_size=len(SHAPES), max_size=len(SHAPES))

    def gathered(self):
        """Whether accumulate was given something since the last step."""
        return bool({"gathered", "left_out"} & self.kept[0].state_dict()["step_options"].keys())

    @rule(present=present, finite=st.integers(0, 4))
    def step(self, present, finite):
        grads = None if self.gathered() else self.gradients(present, finite=bool(finite))
        with np.errstate(all="ignore"):
            self.both(lambda opt, *_: opt.step(copy.deepcopy(grads)))

    @rule(name=st.sampled_from(list(SHAPES)), present=st.integers(0, 4))
    def one_parameter(self, name, present):
        """Its turn in a round, or an error where the gradients of all would be needed."""
        grads = self.gradients([bool(present)] * len(SHAPES))
        grad = {**grads[0], **grads[1]}[name]
        opt = self.kept[0]
        refused = (
            opt.max_grad_norm is not None
            or opt.skip_grad_norm is not None
            or opt.nonfinite == "skip"
            or opt.row.sums_over_all
            or self.gathered()
        )

        def call(opt, *_):
            if not refused:
                opt.step_one(name, copy.deepcopy(grad))
                return
            with pytest.raises(ValueError, match="with step_one"):
                opt.step_one(name, copy.deepcopy(grad))

        with np.errstate(all="ignore"):
            self.both(call)

    @rule(present=present, finite=st.integers(0, 2))
    def accumulate(self, present, finite):
        grads = self.gradients(present, finite=bool(finite))
        added = []
        with np.errstate(all="ignore"):
            self.both(lambda opt, *_: added.append(opt.accumulate(copy.deepcopy(grads))))
        assert added[0] == added[1]

    @rule()
    def discard(self):
        self.both(lambda opt, *_: opt.discard_accumulated())

    @precondition(lambda self: not self.gathered())
    @rule()
    def bound_step(self):
        grads = self.gradients([True] * len(SHAPES))
        flat = {**grads[0], **grads[1]}

        def call(opt, params, bound, tree):
            for name, array in bound.items():
                array[...] = flat[name]
            opt.bind(tree)
            opt.step()
            opt.bind(None)

        self.both(call)

    def draw_change(self, data, group):
        """A setting of a group and another value of it, that goes with the others."""
        now, possible = self.kept[0].param_groups[group], []
        for name, values in changes_of(self.cls).items():
            for value in values:
                try:
                    self.cls._check_together({**now, name: value})
                except ValueError:
                    continue
                if value != now[name]:
                    possible.append((name, value))
        return dict([data.draw(st.sampled_from(possible))])

    @rule(data=st.data(), group=st.integers(0, 2))
    def change(self, data, group):
        change = self.draw_change(data, group)
        self.both(lambda opt, *_: opt.param_groups[group].update(change))

    @rule(data=st.data(), group=st.integers(0, 2), load=st.booleans())
    def change_and_take_back(self, data, group, load):
        """With one of them loaded in between, or in a step that raises."""
        change = self.draw_change(data, group)
        before = {name: self.kept[0].param_groups[group][name] for name in change}
        self.both(lambda opt, *_: opt.param_groups[group].update(change))
        if load:
            self.through_a_dictionary()
        else:
            with pytest.raises(ValueError, match="grads"):
                self.moved[0].step([{}, {}])
        self.both(lambda opt, *_: opt.param_groups[group].update(before))

    @rule(data=st.data())
    def change_own(self, data):
        name = data.draw(st.sampled_from(sorted(OWN_CHANGES)))
        value = data.draw(st.sampled_from(OWN_CHANGES[name]))
        self.both(lambda opt, *_: setattr(opt, name, value))

    @rule()
    def write_into_the_parameters(self):
        def call(opt, params, *_):
            for param in params.values():
                if param.size:
                    param.reshape(-1)[-1] = 0.25

        self.both(call)

    # What happens to one of them alone

    def replace(self, load):
        opt, params, bound, _ = self.moved
        fresh = self.new(params)
        load(opt, fresh[0])
        for name, array in bound.items():
            fresh[2][name][...] = array
        self.moved = fresh

    @rule()
    def through_a_dictionary(self):
        self.replace(lambda old, new: new.load_state_dict(old.state_dict()))

    @rule()
    def through_a_file(self):
        file = io.BytesIO()

        def load(old, new):
            old.save(file)
            file.seek(0)
            new.load(file)

        self.replace(load)

    @rule()
    def into_itself(self):
        opt = self.moved[0]
        opt.load_state_dict(opt.state_dict())

    @rule()
    def through_a_pickle(self):
        self.moved = pickle.loads(pickle.dumps(self.moved))

    @rule()
    def read(self):
        opt = self.moved[0]
        assert repr(opt)
        copy.deepcopy(opt).step(self.moved[3] if not self.gathered() else None)
        assert opt.skipped_steps == self.kept[0].skipped_steps

    @precondition(lambda self: any(g["ema_decay"] for g in self.kept[0].param_groups))
    @rule()
    def saved_in_a_block(self):
        opt = self.moved[0]
        with opt.averaged():
            saved = opt.state_dict()
        assert digest(saved) == digest(opt.state_dict())
        self.replace(lambda _, new: new.load_state_dict(saved))

    @invariant()
    def are_the_same_run(self):
        if hasattr(self, "kept"):
            assert digest(self.kept[1]) == digest(self.moved[1])
            assert digest(self.kept[0].state_dict()) == digest(self.moved[0].state_dict())


def test_saved_at_any_moment(optimizer):
    machine = type(f"TwinsOf{optimizer.__name__}", (Twins,), {"cls": optimizer})
    machine.TestCase.settings = settings(
        max_examples=15,
        stateful_step_count=25,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()
