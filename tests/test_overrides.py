"""Settings by name: groups that patterns and functions make, while gradients stay as they are.

The twin of such an optimizer has a group of its own for each array, in the arrays' order, with the
settings that were meant for it. Both are the same run, to the bit.
"""

import contextlib
import copy
import io
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, accepts, assert_same_bits, digest, moves_rows, shaped
from interrupting import at_each_place

N = 4100  # large enough for 8-bit state
SHAPES = {"w": (82, 50), "b": (3,)}
LAYERS = ("l1", "l2", "l3")


def network(rng, dtype=np.float32):
    return {
        layer: {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
        for layer in LAYERS
    }


def flat(tree):
    """Arrays by their dotted names."""
    return {f"{layer}.{name}": a for layer, names in tree.items() for name, a in names.items()}


def copied(tree):
    return {
        layer: {n: a.copy(order="K") for n, a in names.items()} for layer, names in tree.items()
    }


def settings_of(opt):
    """What each parameter's group says, by the parameter's key."""
    keys = [group["params"] for group in opt.state_dict()["param_groups"]]
    pairs = zip(keys, opt.param_groups, strict=True)
    return {
        key: {k: v for k, v in group.items() if k != "params"}
        for own, group in pairs
        for key in own
    }


def names_of(opt):
    return [group["params"] for group in opt.state_dict()["param_groups"]]


def twin_of(cls, params, by_name, **options):
    """An optimizer with a group for each array, and the settings that its name has."""
    groups = [{"params": array, **by_name(name)} for name, array in params.items()]
    return cls(groups, **options)


def assert_same_state(opt, twin):
    """The names differ, and in which group each array is."""
    own, other = opt.state_dict()["state"], twin.state_dict()["state"]
    order = [key for group in twin.state_dict()["param_groups"] for key in group["params"]]
    arrays = [a for group in twin.param_groups for a in group["params"]]
    places = {id(array): key for key, array in zip(order, arrays, strict=True)}
    for key in own:
        (index,) = [i for i, name in enumerate(opt._engine.contents()["keys"]) if name == key]
        assert digest(own[key]) == digest(other[places[id(arrays[index])]]), key
    assert len(own) == len(other)


# Settings that biases, or one layer, may have for themselves; a class takes those that it knows.
BY_NAME = (
    {"*.b": {"weight_decay": 0.5}},
    {"*.b": {"lr": 0.0}},  # rules that sum over all arrays let a group stand still
    {"*.b": {"max_grad_value": 0.05}, "l2.*": {"maximize": True, "max_grad_norm_each": 0.1}},
    {"l2.w": {"state_format": "q8"}, "*.b": {"ema_decay": 0.5}, "l3.w": {"swa_start": 2}},
    {"l2.*": {"lookahead_every": 2}, "*.b": {"cautious_weight_decay": True}},
)


def first_match(overrides, name):
    """Said once more, for patterns of the kinds that stand here."""
    for pattern, values in overrides.items():
        begin, _, end = pattern.partition("*")
        if name == pattern or ("*" in pattern and name.startswith(begin) and name.endswith(end)):
            return values
    return {}


class TestTwin:
    """An optimizer is that of such groups, in every rule and whatever surrounds a step."""

    @pytest.mark.parametrize("overrides", BY_NAME, ids=str)
    def test_every_rule(self, every_class, overrides, rng):
        if not all(accepts(every_class, values) for values in overrides.values()):
            overrides = {"*.b": {"max_grad_value": 0.05}}
        shares_all = every_class.row.sums_over_all
        if shares_all and any(k in values for values in overrides.values() for k in ("maximize",)):
            overrides = {"*.b": {"lr": 0.0}}
        tree = network(rng)
        tree = {
            layer: {n: shaped(every_class, {}, a) for n, a in names.items()}
            for layer, names in tree.items()
        }
        other = flat(copied(tree))
        options = {"max_grad_norm": 0.5, "seed": 3}
        opt = every_class(tree, overrides=overrides, **options)
        twin = twin_of(every_class, other, lambda name: first_match(overrides, name), **options)
        for number in range(4):
            grads = {
                layer: {n: rng.normal(size=a.shape).astype(a.dtype) for n, a in names.items()}
                for layer, names in tree.items()
            }
            if number == 2:
                grads["l1"]["w"] = grads["l2"]["b"] = None
            info = opt.step(grads)
            other_info = twin.step(list(flat(grads).values()))
            assert info._replace(lr=0) == other_info._replace(lr=0)
        for a, b in zip(flat(tree).values(), other.values(), strict=True):
            assert_same_bits(a, b)
        assert_same_state(opt, twin)

    def test_settings_are_those_of_the_first_pattern(self, optimizer, rng):
        tree = network(rng)
        overrides = {"l2.*": {"max_grad_value": 0.5}, "*.b": {"max_grad_value": 0.25}}
        opt = optimizer(tree, overrides=overrides)
        found = {name: own["max_grad_value"] for name, own in settings_of(opt).items()}
        assert found == {
            **{"l1.w": None, "l1.b": 0.25, "l2.w": 0.5, "l2.b": 0.5},
            **{"l3.w": None, "l3.b": 0.25},
        }
        assert names_of(opt) == [["l1.w", "l3.w"], ["l1.b", "l3.b"], ["l2.w", "l2.b"]]
        for names, group in zip(names_of(opt), opt.param_groups, strict=True):
            arrays = [flat(tree)[name] for name in names]
            assert all(a is b for a, b in zip(arrays, group["params"], strict=True))

    @settings(max_examples=40)
    @given(data=st.data())
    def test_any_structure_and_any_choice(self, data):
        """Nested as it may be, with a function that gives each array one of three settings."""
        leaf = st.integers(0, 3).map(lambda n: np.zeros((n, 2), np.float32))
        tree = data.draw(
            st.recursive(
                leaf,
                lambda inner: (
                    st.lists(inner, min_size=1, max_size=3)
                    | st.dictionaries(st.sampled_from(["a", "b.c", "*", "["]), inner, min_size=1)
                ),
                max_leaves=8,
            )
        )
        arrays, seen = [], []

        def walk(node):
            children = node.values() if isinstance(node, dict) else node
            if isinstance(node, np.ndarray):
                arrays.append(node)
            else:
                for child in children:
                    walk(child)

        walk(tree)
        choices = [{}, {"lr": 0.5}, {"weight_decay": 0.5, "maximize": True}]
        chosen = [data.draw(st.sampled_from(choices)) for _ in arrays]
        other = [array.copy() for array in arrays]

        def by_function(name, array):
            seen.append(name)
            (place,) = [i for i, own in enumerate(arrays) if own is array]
            return chosen[place] or None

        try:
            opt = op.SGD(tree, lr=0.25, momentum=0.5, overrides=by_function)
        except ValueError as error:  # {"a": {"b": ...}} beside {"a.b": ...}
            assert "expected a name of its own" in str(error)  # noqa: PT017
            return
        assert len(seen) == len(set(seen)) == len(arrays)
        keys = [str(key) for group in opt.state_dict()["param_groups"] for key in group["params"]]
        assert sorted(keys) == sorted(seen)
        groups = [{"params": a, **own} for a, own in zip(other, chosen, strict=True)]
        twin = op.SGD(groups, lr=0.25, momentum=0.5)
        for number in (1, 2):
            new = [np.full_like(array, i + number) for i, array in enumerate(arrays)]
            left = iter(new)

            def like(node, left=left):
                if isinstance(node, np.ndarray):
                    return next(left)
                if isinstance(node, dict):
                    return {name: like(child) for name, child in node.items()}
                return [like(child) for child in node]

            opt.step(like(tree))
            twin.step(new)
        for a, b in zip(arrays, other, strict=True):
            assert_same_bits(a, b)

    def test_the_norm_is_that_of_the_plain_optimizer(self, rng):
        """The order in which squares are summed is the structure's."""
        grads, norms = network(rng), []
        for overrides in (None, {"l1.w": {"lr": 0.5}, "l3.b": {"lr": 0.25}}):
            opt = RICHEST(network(rng), overrides=overrides, max_grad_norm=math.inf)
            norms.append(opt.step(grads).grad_norm)
        assert norms[0] == norms[1]

    def test_rounding_at_random_takes_the_bits_of_the_place(self):
        """So that settings of some arrays change nothing in the others."""
        results = []
        for overrides in (None, {"*.b": {"lr": 0.0}}):
            params = network(np.random.default_rng(0))
            opt = RICHEST(params, state_format="q8", overrides=overrides)
            for seed in range(3):
                opt.step(network(np.random.default_rng(seed)))
            results.append([params["l2"]["w"], *opt.state_dict()["state"]["l2.w"].values()])
        assert digest(results[0]) == digest(results[1])


OVERRIDES = {"*.b": {"weight_decay": 0.0, "lr": 0.5}, "l2.w": {"max_grad_value": 0.05}}


class TestWays:
    """However gradients come."""

    def pair(self, rng, **options):
        tree = network(rng)
        other = copied(tree)
        opt = RICHEST(tree, overrides=OVERRIDES, **options)
        twin = twin_of(RICHEST, flat(other), lambda name: first_match(OVERRIDES, name), **options)
        return opt, twin, tree, other

    def same(self, opt, twin, tree, other):
        for a, b in zip(flat(tree).values(), flat(other).values(), strict=True):
            assert_same_bits(a, b)
        assert_same_state(opt, twin)

    def test_bound_accumulated_and_cleared(self, rng):
        opt, twin, tree, other = self.pair(rng, clear_grads=True)
        for _ in range(2):
            grads = network(rng)
            twin_grads = list(flat(copied(grads)).values())
            opt.bind(grads), twin.bind(twin_grads)
            opt.accumulate(), twin.accumulate()
            assert not any(array.any() for array in flat(grads).values())
            for layer, names in network(rng).items():
                for name, values in names.items():
                    grads[layer][name][...] = values
            for own, array in zip(twin_grads, flat(grads).values(), strict=True):
                own[...] = array
            opt.accumulate(), twin.accumulate()
            opt.step(grad_scale=2), twin.step(grad_scale=2)
            self.same(opt, twin, tree, other)

    def test_tuples_other_mappings_and_other_arrays(self, rng):
        import types

        opt, twin, tree, other = self.pair(rng)
        grads = network(rng)

        class Foreign:
            def __init__(self, array):
                self.array = array

            def __array__(self, dtype=None, copy=None):
                return self.array

        proxy = types.MappingProxyType(
            {layer: {n: Foreign(a) for n, a in names.items()} for layer, names in grads.items()}
        )
        opt.step(proxy), twin.step(list(flat(grads).values()))
        self.same(opt, twin, tree, other)

    def test_rows(self, every_class, rng):
        if not moves_rows(every_class, {}) or not accepts(every_class, {"max_grad_value": 0.05}):
            return
        tables = {"a": np.ones((5, 2)), "b": np.ones((4, 2)), "c": np.ones((3, 2))}
        other = {name: array.copy() for name, array in tables.items()}
        overrides = {"b": {"max_grad_value": 0.05}}
        opt = every_class(tables, overrides=overrides)
        twin = twin_of(every_class, other, lambda name: overrides.get(name, {}))
        rows = np.array([2, 0, 2])
        for _ in range(2):
            values = {name: rng.normal(size=(3, 2)) for name in "abc"}
            opt.step_rows({name: (rows, values[name]) for name in "cba"})
            twin.step_rows({i: (rows, values[name]) for i, name in enumerate("abc")})
        for name, table in tables.items():
            assert_same_bits(table, other[name])
        assert (tables["b"][[1, 3]] == 1).all()

    def test_copies_in_fewer_bits(self, rng):
        tree = network(rng)
        narrow = {layer: {"w": np.zeros(SHAPES["w"], np.float16), "b": None} for layer in LAYERS}
        opt = RICHEST(tree, overrides=OVERRIDES, copy_to=narrow)
        for _ in range(2):
            for layer in LAYERS:
                assert_same_bits(narrow[layer]["w"], tree[layer]["w"].astype(np.float16))
            opt.step(network(rng))

    def test_a_master_for_some(self, rng):
        tree = {name: rng.normal(size=N).astype(ml_dtypes.bfloat16) for name in ("a", "b", "c")}
        opt = RICHEST(tree, overrides={"b": {"rounding": "nearest"}})
        opt.step({name: np.ones(N, np.float32) for name in tree})
        has_master = {name: "master" in entry for name, entry in opt.state_dict()["state"].items()}
        assert has_master == {"a": True, "b": False, "c": True}


def test_decay_of_matrices_alone():
    """Gradients of 0, a rate of 0.1, a decay of 0.1: w becomes 0.99, and b stays 1."""
    for how in (
        {"weight_decay": {"*.w": 0.1, "*.b": 0.0}},
        {"weight_decay": 0.1, "overrides": {"*.b": {"weight_decay": 0.0}}},
        {"weight_decay": 0.1, "overrides": op.no_decay_1d},
        {
            "weight_decay": 0.1,
            "overrides": lambda _, w: {} if w.ndim > 1 else {"weight_decay": 0},
        },
    ):
        params = {layer: {"w": np.ones((2, 2)), "b": np.ones(2)} for layer in ("l1", "l2")}
        grads = {layer: {n: np.zeros_like(a) for n, a in p.items()} for layer, p in params.items()}
        opt = op.AdamW(params, lr=0.1, **how)
        opt.step(grads)
        for layer in params.values():
            assert (layer["w"] == 0.99).all()
            assert (layer["b"] == 1).all()
        assert names_of(opt) == [["l1.w", "l2.w"], ["l1.b", "l2.b"]]


class TestNames:
    def test_of_a_sequence_and_of_one_array(self, optimizer):
        seen = []
        for params in ([np.ones(2), np.ones(3), [np.ones(1)]], np.ones(2)):
            optimizer(params, overrides=lambda name, array: seen.append((name, array.shape)))
        assert seen == [("0", (2,)), ("1", (3,)), ("2", (1,)), ("0", (2,))]
        opt = optimizer([np.ones(2), np.ones(3), np.ones(1)], overrides={"1": {"maximize": True}})
        assert names_of(opt) == [[0, 2], [1]]

    def test_a_star_matches_dots_and_case_counts(self, optimizer):
        params = {"A": {"b": {"w": np.ones(1)}}, "a": {"w": np.ones(1)}}
        opt = optimizer(params, overrides={"A*w": {"maximize": True}})
        assert names_of(opt) == [["a.w"], ["A.b.w"]]
        opt = optimizer(params, overrides={"[ab].?": {"maximize": True}})
        assert names_of(opt) == [["A.b.w"], ["a.w"]]

    def test_a_pattern_that_matches_nothing(self, optimizer, rng):
        expected = r"^overrides\['\*\.c'\]: expected a match among the names l1\.w, l1\.b, "
        with pytest.raises(ValueError, match=expected):
            optimizer(network(rng), overrides={"*.b": {"maximize": True}, "*.c": {"lr": 0.5}})
        many = {f"layer{i}": np.ones(1) for i in range(20)}
        with pytest.raises(ValueError, match=r"layer7, \.\.\., got none$"):
            optimizer(many, overrides={"b": {"lr": 0.5}})
        with pytest.raises(ValueError, match=r"^maximize\['\*\.c'\]: expected a match among the n"):
            optimizer(network(rng), maximize={"*.c": True})

    def test_a_pattern_behind_another_may_match_no_more(self, optimizer, rng):
        overrides = {"*": {"maximize": True}, "*.b": {"maximize": False}}
        opt = optimizer(network(rng), overrides=overrides)
        assert all(own["maximize"] for own in settings_of(opt).values())


class TestSeveral:
    def test_the_first_that_names_a_setting_counts(self, optimizer):
        params = {"w": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
        opt = optimizer(
            params,
            max_grad_value=8.0,
            overrides=[
                {"b": {"max_grad_value": 1.0}},
                None,
                lambda name, _: {"max_grad_value": 2.0, "maximize": True} if name != "w" else None,
                [{"c": {"maximize": False, "max_grad_norm_each": 4.0}}],
            ],
        )
        found = {
            name: (own["max_grad_value"], own["maximize"], own["max_grad_norm_each"])
            for name, own in settings_of(opt).items()
        }
        assert found == {
            "w": (8.0, False, None),
            "b": (1.0, True, None),
            "c": (2.0, True, 4.0),
        }

    def test_nothing_is_nothing(self, optimizer, rng):
        plain = optimizer(network(rng))
        for overrides in (None, {}, [], (), [None, {}], {"*": {}}, lambda *_: None, lambda *_: {}):
            opt = optimizer(network(rng), overrides=overrides)
            assert names_of(opt) == names_of(plain)
            assert settings_of(opt) == settings_of(plain)

    def test_groups_are_of_what_is_overridden(self):
        """Whatever the others have: so a checkpoint's groups do not depend on it."""
        params = {"a": np.ones(1), "b": np.ones(1), "c": np.ones(1), "d": np.ones(1)}
        overrides = {"b": {"lr": 0.5}, "c": {"lr": 0.25}, "d": {"lr": 0.5}}
        for lr in (0.5, 0.25, 0.1):
            opt = op.SGD(params, lr=lr, overrides=overrides)
            assert names_of(opt) == [["a"], ["b", "d"], ["c"]]
        assert names_of(op.SGD(params, overrides={"*": {"lr": 0.5}})) == [["a", "b", "c", "d"]]

    def test_schedules_that_are_equal_are_one_group(self):
        params = {"a": np.ones(1), "b": np.ones(1)}
        cosine = op.schedules.cosine
        opt = op.SGD(params, overrides=lambda *_: {"lr": cosine(0.5, steps=10)})
        assert names_of(opt) == [["a", "b"]]
        # One with a memory is no other, and functions are never compared.
        for make in (lambda: op.schedules.ReduceOnPlateau(0.5), lambda: lambda _: 0.5):
            opt = op.SGD(params, overrides=lambda *_, make=make: {"lr": make()})
            assert names_of(opt) == [["a"], ["b"]]
            one = make()
            opt = op.SGD(params, overrides=lambda *_, one=one: {"lr": one})
            assert names_of(opt) == [["a", "b"]]

    def test_a_schedule_that_has_no_hash(self):
        class Unhashable:
            __hash__ = None

            def __call__(self, _):
                return 0.5

        params = {"a": np.ones(1), "b": np.ones(1)}
        lr = op.schedules.warmup(2, then=Unhashable())
        opt = op.SGD(params, overrides=lambda *_: {"lr": lr})
        assert names_of(opt) == [["a", "b"]]
        assert repr(opt)


class TestAValueByName:
    def test_others_have_the_default_of_the_class(self, every_class):
        params = {n: shaped(every_class, {}, np.ones(4, np.float32)) for n in ("a", "b", "c")}
        opt = every_class(params, max_grad_value={"b": 0.5}, maximize={"a": True, "*": False})
        found = {n: (own["max_grad_value"], own["maximize"]) for n, own in settings_of(opt).items()}
        assert found == {"a": (None, True), "b": (0.5, False), "c": (None, False)}
        opt = every_class(params, lr={"b": 0.125})
        default = every_class.defaults["lr"]
        found = {name: own["lr"] for name, own in settings_of(opt).items()}
        assert found == {"a": default, "b": 0.125, "c": default}

    def test_overrides_count_first(self):
        params = {"a": np.ones(1), "b": np.ones(1), "c": np.ones(1)}
        opt = op.SGD(
            params,
            lr={"a": 0.5, "b": 0.25},
            overrides={"b": {"lr": 0.125}, "a": {"maximize": True}},
        )
        found = {name: (own["lr"], own["maximize"]) for name, own in settings_of(opt).items()}
        assert found == {
            "a": (0.5, True),
            "b": (0.125, False),
            "c": (op.SGD.defaults["lr"], False),
        }

    def test_a_schedule_may_be_one(self):
        params = {"a": np.zeros(1), "b": np.zeros(1)}
        opt = op.SGD(params, lr={"a": lambda step: 1.0 + step, "b": 0.5})
        for _ in range(2):
            opt.step({"a": -np.ones(1), "b": -np.ones(1)})
        assert (params["a"][0], params["b"][0]) == (3.0, 1.0)

    def test_errors_name_the_pattern(self, optimizer, rng):
        for how, words in {
            "lr": r"lr\['\*\.b'\]: expected a finite number",
            "maximize": r"maximize\['\*\.b'\]: expected True or False",
            "state_format": r"state_format\['\*\.b'\]: expected one of",
        }.items():
            with pytest.raises((TypeError, ValueError), match=f"^{words}"):
                optimizer(network(rng), **{how: {"*.b": -1}})
        with pytest.raises(TypeError, match="^lr: expected patterns that are strings, got 3"):
            optimizer(network(rng), lr={3: 0.5})


class TestGroups:
    def test_overrides_of_all_count_within_each(self, optimizer):
        a, b, c, d = (np.ones(n) for n in (1, 2, 3, 4))
        groups = [
            {"params": {"a": a, "x.b": b}, "max_grad_value": 1.0},
            {"params": {"c": c, "y.b": d}, "max_grad_value": 2.0},
        ]
        opt = optimizer(groups, overrides={"*.b": {"max_grad_value": 4.0}})
        assert names_of(opt) == [["a"], ["x.b"], ["c"], ["y.b"]]
        found = {name: own["max_grad_value"] for name, own in settings_of(opt).items()}
        assert found == {"a": 1.0, "x.b": 4.0, "c": 2.0, "y.b": 4.0}
        grads = [{"a": -np.ones(1), "x.b": -np.ones(2)}, {"c": -np.ones(3), "y.b": -np.ones(4)}]
        opt.step(grads)
        opt.step([{"params": tree} for tree in grads])
        assert {entry["step"] for entry in opt.state_dict()["state"].values()} <= {2}

    def test_a_group_has_its_own_which_count_first(self, optimizer):
        names = {"w": np.ones(1), "b": np.ones(1)}
        more = {"v": np.ones(1), "c": np.ones(1)}
        opt = optimizer(
            [
                {
                    "params": names,
                    "overrides": {"b": {"max_grad_value": 1.0}},
                    "maximize": {"b": True},
                },
                {"params": more},
            ],
            max_grad_norm_each={"b": 3.0, "v": 4.0},
            overrides={"[bc]": {"max_grad_value": 2.0, "maximize": False}},
        )
        found = {
            name: (own["max_grad_value"], own["maximize"], own["max_grad_norm_each"])
            for name, own in settings_of(opt).items()
        }
        assert found == {
            "w": (None, False, None),
            "b": (1.0, False, 3.0),
            "v": (None, False, 4.0),
            "c": (2.0, False, None),
        }

    def test_its_patterns_are_about_its_names(self, optimizer):
        groups = [{"params": {"a": np.ones(1)}, "overrides": {"b": {"lr": 0.5}}}]
        groups.append({"params": {"b": np.ones(1)}})
        with pytest.raises(
            ValueError, match=r"^overrides\['b'\]: expected a match among the names a"
        ):
            optimizer(groups)
        opt = optimizer(groups[1:], overrides=op.no_decay_1d, max_grad_value={"b": 1.0})
        assert settings_of(opt)["b"]["max_grad_value"] == 1.0

    def test_a_setting_of_a_group_takes_the_place_of_one_by_name(self, optimizer):
        groups = [
            {"params": {"a": np.ones(1)}, "max_grad_value": 8.0},
            {"params": {"b": np.ones(1)}},
        ]
        opt = optimizer(groups, max_grad_value={"*": 4.0})
        found = {name: own["max_grad_value"] for name, own in settings_of(opt).items()}
        assert found == {"a": 8.0, "b": 4.0}

    def test_one_that_is_added(self, optimizer):
        """It is as if the optimizer had been made with it, but its names need not match."""
        options = {
            "overrides": {"*.b": {"max_grad_value": 1.0}},
            "max_grad_norm_each": {"*.w": 2.0},
        }
        new = {"params": {"z.c": np.ones(2), "z.b": np.ones(1)}, "overrides": {"z.c": {"lr": 0.0}}}
        old = {"a.w": np.ones(3), "a.b": np.ones(2)}
        opt = optimizer(old, **options)
        opt.add_param_group(copy.deepcopy(new))
        twin = optimizer([{"params": copy.deepcopy(old)}, copy.deepcopy(new)], **options)
        assert names_of(opt) == [["a.w"], ["a.b"], ["z.c"], ["z.b"]]
        assert settings_of(opt) == settings_of(twin)
        grads = [{"a.w": np.ones(3), "a.b": np.ones(2)}, {"z.c": np.ones(2), "z.b": np.ones(1)}]
        assert opt.step(grads) == twin.step(grads)
        assert digest(opt) == digest(twin)
        opt.add_param_group({"params": [np.ones(1)]})
        opt.step([*grads, [np.ones(1)]])
        with pytest.raises(TypeError, match=r"^params\[3\]\['params'\]\['w'\]: expected a NumPy"):
            opt.add_param_group({"params": {"w": 1.0}})
        before = digest(opt)
        with pytest.raises(
            ValueError, match=r"^overrides\['q'\]: expected a match among the names w,"
        ):
            opt.add_param_group(
                {"params": {"w": np.ones(1), "v": np.ones(1)}, "overrides": {"q": {"lr": 0.5}}}
            )
        assert digest(opt) == before

    def test_functions_that_use_the_optimizer_while_a_group_is_added(self, optimizer):
        """A step counts; another group does not."""
        opt = optimizer({"a": np.ones(2)})

        def steps(name, array):
            opt.step({"a": np.ones(2)})

        opt.add_param_group({"params": {"b": np.ones(1)}, "overrides": steps})
        assert opt.step([{"a": np.ones(2)}, {"b": np.ones(1)}]).step == 2

        def adds(name, array):
            opt.add_param_group({"params": {"c": np.ones(1)}})

        with pytest.raises(ValueError, match="^param_group: expected overrides that leave"):
            opt.add_param_group({"params": {"d": np.ones(1)}, "overrides": adds})
        assert names_of(opt) == [["a"], ["b"], ["c"]]

    def test_an_interrupt_while_one_is_added(self):
        ends, runs = [], []

        def run():
            opt = RICHEST({"w": np.ones(2), "b": np.ones(1)}, overrides={"b": {"lr": 0.5}})
            opt.step({"w": np.ones(2), "b": np.ones(1)})
            runs.append(opt)
            group = {"params": {"v": np.ones(2), "c": np.ones(1)}, "overrides": {"c": {"lr": 0.25}}}
            return lambda: opt.add_param_group(group)

        for added in (False, True):
            call = run()
            if added:
                call()
            ends.append((digest(runs[-1]), repr(runs[-1])))
        for where, _ in at_each_place(run):
            assert (digest(runs[-1]), repr(runs[-1])) in ends, where


BAD = {
    "no mapping": ("*.b", TypeError, "overrides: expected a mapping of patterns to settings"),
    "a number": (3, TypeError, "overrides: expected a mapping of patterns to settings"),
    "no pattern": ({1: {}}, TypeError, "overrides: expected patterns that are strings, got 1"),
    "no settings": ({"w": 0.5}, TypeError, r"overrides\['w'\]: expected a mapping of settings"),
    "a value": ({"w": {"lr": -1}}, ValueError, r"overrides\['w'\]\['lr'\]: expected a finite num"),
    "a kind": ({"w": {"lr": "a"}}, TypeError, r"overrides\['w'\]\['lr'\]: expected a finite num"),
    "a name": ({"w": {"lrr": 1}}, TypeError, r"overrides\['w'\]\['lrr'\]: expected one of the hyp"),
    "of the whole": (
        {"w": {"max_grad_norm": 1.0}},
        TypeError,
        r"overrides\['w'\]\['max_grad_norm'\]: expected one of the hyperparameters",
    ),
    "params": ({"w": {"params": []}}, TypeError, r"overrides\['w'\]\['params'\]: expected one"),
    "no schedule": (
        {"w": {"state_format": abs}},
        TypeError,
        r"overrides\['w'\]\['state_format'\]: expected a value \(no schedule here\)",
    ),
    "a scale": (
        {"w": {"lr_scale": -1.0}},
        ValueError,
        r"overrides\['w'\]\['lr_scale'\]: expected a finite number >= 0, got -1\.0",
    ),
    "a function's": (
        lambda *_: 0.5,
        TypeError,
        r"overrides\('w'\): expected a mapping of settings, got 0\.5",
    ),
    "a function's value": (
        lambda *_: {"lr": -1},
        ValueError,
        r"overrides\('w'\)\['lr'\]: expected a finite number",
    ),
    "in a sequence": (
        [None, {"w": {"lr": -1}}],
        ValueError,
        r"overrides\[1\]\['w'\]\['lr'\]: expected a finite number",
    ),
    "not together": (
        {"w": {"ema_decay": 0.5, "swa_start": 2}},
        ValueError,
        "overrides: for 'w', swa_start: expected None with ema_decay",
    ),
    "not with the others": (
        {"w": {"ema_warmup": True}},
        ValueError,
        "overrides: for 'w', ema_warmup: expected False without ema_decay",
    ),
}


@pytest.mark.parametrize(("overrides", "error", "words"), BAD.values(), ids=BAD)
def test_what_is_refused(optimizer, overrides, error, words):
    params = {"w": np.ones(2), "b": np.ones(1)}
    with pytest.raises(error, match=f"^{words}"):
        optimizer(params, overrides=overrides)
    opt = optimizer({"v": np.ones(2)}, ema_decay=None)
    opt.step({"v": np.ones(2)})
    before = digest(opt), repr(opt)
    with pytest.raises(error, match=f"^{words}"):
        opt.add_param_group({"params": params, "overrides": overrides})
    assert (digest(opt), repr(opt)) == before


def test_what_is_no_array_is_said_to_be_none(optimizer):
    with pytest.raises(TypeError, match=r"^params\['w'\]: expected a NumPy array"):
        optimizer({"w": [1.0, 2.0].__iter__, "b": np.ones(1)}, overrides=op.no_decay_1d)


def test_what_a_function_raises_comes_out(optimizer):
    with pytest.raises(ZeroDivisionError):
        optimizer(np.ones(1), overrides=lambda *_: 1 / 0)


def test_the_mapping_may_change_afterwards(optimizer):
    overrides = {"*.b": {"max_grad_value": 1.0}}
    opt = optimizer({"x.b": np.ones(1)}, overrides=overrides)
    overrides["*.b"]["max_grad_value"] = 2.0
    opt.add_param_group({"params": {"y.b": np.ones(1)}})
    assert [group["max_grad_value"] for group in opt.param_groups] == [1.0, 1.0]


def test_settings_change_between_steps_for_one_group_alone():
    params = {"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}
    opt = op.SGD(params, lr=1.0, overrides={"b": {"lr": 2.0}})
    opt.param_groups[1]["lr"] = 4.0
    opt.step({name: -np.ones(1) for name in params})
    opt.param_groups[0]["lr"] = 0.5
    opt.step({name: -np.ones(1) for name in params})
    assert [array[0] for array in params.values()] == [1.5, 8.0, 1.5]


class TestCheckpoints:
    def run(self, rng, start=None, **options):
        tree = start or network(rng)
        overrides = [op.no_decay_1d, {"l2.w": {"state_format": "q8", "ema_decay": 0.5}}]
        return tree, RICHEST(tree, overrides=overrides, weight_decay=0.1, **options)

    @pytest.mark.parametrize("way", ["dictionary", "file", "pickle", "deepcopy"])
    def test_a_run_goes_on_to_the_bit(self, rng, way):
        tree, opt = self.run(rng)
        opt.step(network(rng))
        opt.param_groups[1]["lr"] = 0.5
        opt.accumulate(network(rng))
        if way in ("dictionary", "file"):
            other, resumed = self.run(rng, copied(tree))
            file = io.BytesIO()
            opt.save(file)
            file.seek(0)
            if way == "file":
                resumed.load(file)
            else:
                resumed.load_state_dict(opt.state_dict())
        elif way == "pickle":
            other, resumed = pickle.loads(pickle.dumps((tree, opt)))
        else:
            other, resumed = copy.deepcopy((tree, opt))
        assert digest(opt) == digest(resumed)
        assert repr(opt) == repr(resumed)
        opt.step(), resumed.step()
        grads = network(rng)
        opt.step(grads), resumed.step(grads)
        assert digest(tree, opt) == digest(other, resumed)
        more = {"params": {"m.w": np.ones((2, 2)), "m.b": np.ones(2)}}
        for each in (opt, resumed):
            each.add_param_group(copy.deepcopy(more))
        assert repr(opt) == repr(resumed)

    def test_into_other_groups(self, rng):
        _, opt = self.run(rng)
        opt.step(network(rng))
        saved = opt.state_dict()
        other = RICHEST(network(rng), overrides={"*.b": {"lr": 0.5}})
        with pytest.raises(
            ValueError,
            match=r"^param_groups: expected 2 groups \(settings by name make groups too\), got 3",
        ):
            other.load_state_dict(saved)
        other = RICHEST(network(rng), overrides={"l1.*": {"lr": 0.5}, "l2.*": {"lr": 0.25}})
        before = digest(other)
        expected = (
            r"^param_groups\[0\]: expected the parameters \['l3\.w', 'l3\.b'\] \(groups as th"
        )
        with pytest.raises(ValueError, match=expected):
            other.load_state_dict(saved)
        assert digest(other) == before

    def test_into_other_groups_of_the_same_numbers(self, optimizer):
        """Arrays without names are told apart by their places."""
        overrides = {"0": {"maximize": True}, "2": {"maximize": True}}
        opt = optimizer([np.ones(2) for _ in range(4)], overrides=overrides)
        opt.step([np.ones(2)] * 4)
        assert names_of(opt) == [[1, 3], [0, 2]]
        other = optimizer([{"params": [np.ones(2)] * 0 + [np.ones(2), np.ones(2)]} for _ in "ab"])
        expected = r"^param_groups\[0\]: expected the parameters \[0, 1\] \(groups as they were"
        with pytest.raises(ValueError, match=expected):
            other.load_state_dict(opt.state_dict())
        other.step([[np.ones(2)] * 2] * 2)
        with pytest.raises(
            ValueError, match=r"^param_groups\[0\]: expected the parameters \[1, 3\]"
        ):
            opt.load_state_dict(other.state_dict())
        twin = optimizer([np.ones(2) for _ in range(4)], overrides=overrides)
        twin.load_state_dict(opt.state_dict())
        assert digest(twin.state_dict()) == digest(opt.state_dict())

    def test_groups_of_pytorch_are_read_one_by_one(self, rng):
        torch = pytest.importorskip("torch")
        start = [rng.normal(size=shape) for shape in ((2, 3), (3,), (3, 1), (1,))]
        theirs = [torch.tensor(array, requires_grad=True) for array in start]
        groups = [
            {"params": theirs[0::2], "weight_decay": 0.5},
            {"params": theirs[1::2], "weight_decay": 0.0},
        ]
        other = torch.optim.AdamW(groups, lr=0.1)
        ours = [array.copy() for array in start]
        opt = op.AdamW(ours, lr=0.1, weight_decay=0.5, overrides=op.no_decay_1d)

        def step(*which):
            grads = [rng.normal(size=array.shape) for array in start]
            for tensor, grad in zip(theirs, grads, strict=True):
                tensor.grad = torch.tensor(grad)
            other.step()
            for each in which:
                each.step(grads)

        step()
        for array, tensor in zip(ours, theirs, strict=True):
            array[...] = tensor.detach().numpy()
        saved = other.state_dict()
        state = {
            key: {name: value.numpy() for name, value in entry.items()}
            for key, entry in saved["state"].items()
        }
        opt.load_state_dict({**saved, "state": state})
        for _ in range(3):
            step(opt)
        for array, tensor in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-12)

    def test_a_copy_adds_groups_as_its_original_does(self):
        """Though the first group has a rate of its own, or the schedule is part of another."""
        lr = op.schedules.cosine(0.5, steps=10)
        for overrides in ({"a": {"lr": 0.25}}, {"*": {"lr_scale": 0.5}}):
            opt = op.SGD({"a": np.ones(1), "b": np.ones(1)}, lr=lr, overrides=overrides)
            for clone in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
                clone.add_param_group({"params": {"c": np.ones(1)}})
            assert repr(clone) == repr(opt)
        groups = [{"params": np.ones(1), "lr": 0.25}, {"params": np.ones(2)}]
        clone = copy.deepcopy(op.SGD(groups, lr=lr))
        clone.add_param_group({"params": np.ones(3)})
        assert clone.param_groups[2]["lr"] == lr


class TestBlocks:
    def test_averaged(self):
        params = {"a": np.array([0.0]), "b": np.array([0.0]), "c": np.array([0.0])}
        opt = op.SGD(params, lr=1.0, overrides={"b": {"ema_decay": 0.5}})
        for _ in range(2):
            opt.step({name: np.ones(1) for name in params})
        with opt.averaged():
            assert [array[0] for array in params.values()] == [-2.0, -1.5, -2.0]
        assert [array[0] for array in params.values()] == [-2.0] * 3

    def test_the_average_of_the_rule_itself(self, every_class, rng):
        if not every_class.own_average:
            return
        known = {
            "momentum": 0.5,
            "betas": (0.5, 0.75),
            "weight_decay": 0.5,
        }  # the average's, or not
        overrides = {"b": {k: v for k, v in known.items() if k in every_class.checks}}
        params = {name: rng.normal(size=3) for name in ("a", "b", "c")}
        other = {name: array.copy() for name, array in params.items()}
        opt = every_class(params, overrides=overrides)
        alone = {n: every_class(array, **overrides.get(n, {})) for n, array in other.items()}
        for _ in range(3):
            grads = {name: rng.normal(size=3) for name in params}
            opt.step(grads)
            for name, grad in grads.items():
                alone[name].step(grad)
        with opt.averaged(), contextlib.ExitStack() as blocks:
            for each in alone.values():
                blocks.enter_context(each.averaged())
            assert digest(list(params.values())) == digest(list(other.values()))

    def test_lookahead(self):
        """Each array goes on by its own rate times its own momentum times the buffer."""
        params = {"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}
        opt = op.SGD(params, lr=1.0, momentum=0.5, overrides={"b": {"lr": 2.0, "momentum": 0.125}})
        opt.step({name: -np.full(1, 4.0) for name in params})
        with opt.lookahead():
            assert [array[0] for array in params.values()] == [6.0, 9.0, 6.0]
        with pytest.raises(ValueError, match="^momentum: expected more than 0 for lookahead"):
            op.SGD(params, momentum=0.5, overrides={"b": {"momentum": 0.0}}).lookahead()


class TestRates:
    def test_a_scale_of_a_number_and_of_a_schedule(self, optimizer):
        for lr, expected in ((0.5, 0.125), (op.schedules.step_decay(0.5, every=2), None)):
            opt = optimizer(
                {"a": np.ones(1), "b": np.ones(1)}, lr=lr, overrides={"b": {"lr_scale": 0.25}}
            )
            plain, scaled = (group["lr"] for group in opt.param_groups)
            assert plain == lr
            if expected is None:
                assert [scaled(step) for step in (0, 1, 2)] == [0.125, 0.125, 0.0625]
            else:
                assert scaled == expected

    def test_it_is_of_the_rate_that_overrides_say(self):
        params = {"a": np.ones(1), "b": np.ones(1)}
        overrides = [{"*": {"lr_scale": 0.5}}, {"b": {"lr": 0.25, "lr_scale": 8.0}}]
        opt = op.SGD(params, lr=1.0, overrides=overrides)
        assert [own["lr"] for own in settings_of(opt).values()] == [0.5, 0.125]

    def test_a_scale_of_one_is_none(self):
        lr = op.schedules.constant(0.5)
        opt = op.SGD({"a": np.ones(1), "b": np.ones(1)}, lr=lr, overrides={"b": {"lr_scale": 1}})
        assert len(opt.param_groups) == 1
        assert opt.param_groups[0]["lr"] is lr

    def test_a_scaled_schedule_moves_as_it_says(self):
        params = {"a": np.zeros(1), "b": np.zeros(1)}
        opt = op.SGD(params, lr=lambda step: 1.0 + step, overrides={"b": {"lr_scale": 0.5}})
        for _ in range(2):
            opt.step({"a": -np.ones(1), "b": -np.ones(1)})
        assert (params["a"][0], params["b"][0]) == (3.0, 1.5)
        bad = op.SGD(params, lr=lambda _: -1.0, overrides={"*": {"lr_scale": 0.5}})
        with pytest.raises(ValueError, match="^schedule: expected a finite number >= 0, got -1"):
            bad.step({"a": np.ones(1), "b": np.ones(1)})

    def test_a_schedule_that_remembers_is_saved_with_all_its_groups(self):
        def make():
            lr = op.schedules.ReduceOnPlateau(0.5)
            params = {"a": np.zeros(1), "b": np.zeros(1)}
            return lr, op.SGD(params, lr=lr, overrides={"b": {"lr_scale": 0.5}})

        lr, opt = make()
        lr.report(1.0), lr.report(2.0)
        assert [group["lr"](0) for group in opt.param_groups] == [0.25, 0.125]
        other_lr, other = make()
        other.load_state_dict(opt.state_dict())
        assert other_lr.lr == 0.25
        assert [group["lr"](0) for group in other.param_groups] == [0.25, 0.125]
        clone = copy.deepcopy(opt)
        clone.param_groups[0]["lr"].report(3.0)
        assert [group["lr"](0) for group in clone.param_groups] == [0.125, 0.0625]
        assert lr.lr == 0.25


class TestReadyMade:
    def test_no_decay_of_fewer_than_two_axes(self, every_class):
        names = {"s": (), "v": (3,), "m": (2, 2), "t": (2, 1, 2)}
        if not accepts(every_class, {"weight_decay": 0.5}):
            return
        for shape in names.values():
            decay = op.no_decay_1d("name", np.ones(shape))
            assert decay == (None if len(shape) > 1 else {"weight_decay": 0.0})
        params = {n: np.ones(shape, np.float32) for n, shape in names.items()}
        if every_class.row.is_directed(every_class.defaults):
            params = {n: array for n, array in params.items() if array.ndim > 1}
        opt = every_class(params, weight_decay=0.5, overrides=op.no_decay_1d)
        found = {name: own["weight_decay"] for name, own in settings_of(opt).items()}
        assert found == {name: 0.5 if params[name].ndim > 1 else 0.0 for name in params}

    def test_layers_from_the_bottom_to_the_top(self):
        names = ("embed.w", "pos", "block0.w", "block0.b", "block1.w", "head.w", "scale")
        params = {name: np.ones(1) for name in names}
        layers = [("embed.*", "pos"), "block0.*", "block1.*", "head.*"]
        opt = op.SGD(params, lr=1.0, overrides=op.layer_decay(0.5, layers))
        found = {name: own["lr"] for name, own in settings_of(opt).items()}
        assert found == {
            **{"embed.w": 0.125, "pos": 0.125, "block0.w": 0.25, "block0.b": 0.25},
            **{"block1.w": 0.5, "head.w": 1.0, "scale": 1.0},
        }
        assert names_of(opt)[0] == ["head.w", "scale"]

    def test_a_function_says_how_deep(self):
        depths = {"a": 2, "b": 0, "c": None, "d": np.int64(1)}
        decay = op.layer_decay(0.25, depths.get)
        opt = op.SGD({name: np.ones(1) for name in depths}, lr=1.0, overrides=decay)
        assert {n: own["lr"] for n, own in settings_of(opt).items()} == {
            **{"a": 0.0625, "b": 1.0, "c": 1.0, "d": 0.25}
        }

    def test_both_together_as_timm_has_it(self):
        """timm's param_groups_layer_decay: no decay of one axis, and a rate for each layer."""
        params = {f"blocks.{i}": {"w": np.ones((2, 2)), "b": np.ones(2)} for i in range(3)} | {
            "head": {"w": np.ones((2, 1)), "b": np.ones(1)}
        }
        layers = [*(f"blocks.{i}.*" for i in range(3)), "head.*"]
        overrides = [op.no_decay_1d, op.layer_decay(0.75, layers)]
        opt = op.AdamW(params, lr=1.0, weight_decay=0.05, overrides=overrides)
        found = settings_of(opt)
        for i, layer in enumerate(params):
            for name, decay in (("w", 0.05), ("b", 0.0)):
                own = found[f"{layer}.{name}"]
                assert (own["lr"], own["weight_decay"]) == (0.75 ** (3 - i), decay)
        assert len(opt.param_groups) == 8

    def test_they_are_pickled(self):
        overrides = [op.no_decay_1d, op.layer_decay(0.5, layers=["a", "b"])]
        opt = op.SGD({"a": np.ones(1), "b": np.ones(1)}, overrides=overrides)
        clone = pickle.loads(pickle.dumps(opt))
        for each in (opt, clone):
            each.add_param_group({"params": {"b2": np.ones(1)}})
        assert repr(clone) == repr(opt)

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ((0.0, ["a"]), ValueError, r"rate: expected a number in \(0, 1\], got 0\.0"),
            ((1.5, ["a"]), ValueError, r"rate: expected a number in \(0, 1\], got 1\.5"),
            (("a", ["a"]), TypeError, r"rate: expected a number in \(0, 1\], got 'a'"),
            ((0.5, "a*"), TypeError, "layers: expected a sequence of patterns or a function"),
            ((0.5, 3), TypeError, "layers: expected a sequence of patterns or a function, got 3"),
            ((0.5, ["a", 3]), TypeError, r"layers\[1\]: expected patterns that are strings, got 3"),
            ((0.5, ["a", ("b", 3)]), TypeError, r"layers\[1\]: expected patterns that are str"),
            (
                (0.5, ["a", "b", "a"]),
                ValueError,
                r"layers\[2\]: expected each pattern once, got 'a'",
            ),
        ],
    )
    def test_what_layer_decay_refuses(self, arguments, error, words):
        with pytest.raises(error, match=f"^{words}"):
            op.layer_decay(*arguments)

    def test_a_depth_that_is_none(self):
        for depth, error in ((-1, ValueError), (0.5, TypeError), ("top", TypeError)):
            with pytest.raises(error, match=r"^layers\('w'\): expected an integer >= 0, got "):
                op.SGD({"w": np.ones(1)}, overrides=op.layer_decay(0.5, lambda _, d=depth: d))

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(
            ValueError, match=r"^overrides\['b\*'\]: expected a match among the name"
        ):
            op.SGD({"a": np.ones(1)}, overrides=op.layer_decay(0.5, ["a", "b*"]))


def test_muon_of_matrices_and_adamw_of_the_rest():
    params = {
        "w": np.ones((4, 4), np.float32),
        "b": np.ones(4, np.float32),
        "v": np.ones((4, 2), "f4"),
    }
    grads = {name: np.full_like(array, 0.5) for name, array in params.items()}
    other = {name: array.copy() for name, array in params.items()}
    opt = op.Muon(params, lr=0.1, overrides=lambda _, a: {"use_muon": a.ndim > 1})
    twin = op.Muon(
        [
            {"params": [other["w"], other["v"]], "use_muon": True},
            {"params": other["b"], "use_muon": False},
        ],
        lr=0.1,
    )
    for _ in range(2):
        opt.step(grads)
        twin.step([[grads["w"], grads["v"]], grads["b"]])
    for name, array in params.items():
        assert_same_bits(array, other[name])


def test_repr_shows_what_came_of_it(optimizer):
    params = {"a.w": np.ones((2, 2)), "a.b": np.ones(2), "c.w": np.ones(3), "c.b": np.ones(1)}
    opt = optimizer(params, lr=0.25, overrides={"*.b": {"max_grad_value": 0.5}}, seed=3)
    lines = repr(opt).splitlines()
    assert lines[0] == f"{optimizer.__name__}("
    assert lines[1] == "    {params=2 arrays of 7 elements (a.w, c.w), max_grad_value=None},"
    assert lines[2] == "    {params=2 arrays of 3 elements (a.b, c.b), max_grad_value=0.5},"
    assert lines[3].startswith("    lr=0.25, ")
    assert lines[3].endswith(", seed=3,")
    assert lines[4:] == [")"]
    many = {f"w{i}": np.ones(1) for i in range(30)}
    opt = optimizer(many, overrides={"w2": {"max_grad_value": 0.5}})
    assert "(w0, w1, w3, w4, w5, w6, w7, w8, ...)" in repr(opt)


def test_minimize_has_one_array():
    with pytest.raises(TypeError, match="^overrides: expected no such setting of minimize"):
        op.minimize(
            lambda x: (x @ x, 2 * x), [1.0], optimizer=op.Adam, overrides={"0": {"lr": 0.5}}
        )
