"""The rules that Thinc lacks do what our classes do."""

import numpy as np
import pytest
from thinc_steps import RULES, gradients, run, weights

import onepass as op
import onepass.thinc as ours
from helpers import accepts, assert_same_bits


@pytest.mark.parametrize("name", RULES)
def test_our_rules_are_our_classes_to_the_bit(name):
    cls = getattr(op, name)
    for case in cls.cases:
        if not accepts(cls, case):
            continue
        lr, decay = case.get("lr", 0.01), case.get("weight_decay", 0.1)
        own = {n: value for n, value in case.items() if n not in ("lr", "weight_decay")}
        optimizer = getattr(ours, name)(lr, L2=decay, grad_clip=0.5, **own)
        got, want = run(optimizer, weights(), gradients(8)), weights()
        given = {"weight_decay": decay, "max_grad_norm_each": 0.5, **own}
        classes = {key: cls(want[key], lr=lr, **given) for key in want}
        for _, key, grad, lr_scale in gradients(8):
            classes[key].param_groups[0]["lr"] = lr_scale * lr
            classes[key].step(grad)
        for key, array in want.items():
            assert_same_bits(got[key], array)


def test_our_rules_are_all_that_can_be_called_for_each_array_and_are_not_thincs():
    thincs = {"Adam", "AdamW", "SGD", "RAdam"}
    other_weights = {"ASGD", "AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"}
    over_all_arrays, matrices, whole_batches = {"Prodigy"}, {"Muon"}, {"Rprop"}
    left = thincs | other_weights | over_all_arrays | matrices | whole_batches
    assert {cls.__name__ for cls in op.optim.registry.values()} - left == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_setting_of_our_rules_is_named(name):
    with pytest.raises(TypeError, match="maximize: expected"):
        getattr(ours, name)(maximize="no")
    optimizer = getattr(ours, name)(L2=-1.0)
    w = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="weight_decay: expected"):
        optimizer((1, "W"), w, w.copy())
    assert (w == 1).all()
    assert not optimizer.averages
