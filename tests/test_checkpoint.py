"""state_dict, load_state_dict, save and load: exact, all or nothing. (test_files.py: the disk.)"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import (
    assert_same_bits,
    digest,
    entry_names,
    kept_names,
    run_reference,
    shaped,
    state_names,
)
from onepass.optim._settings import DEFAULTS, GROUP_DEFAULTS

DATA = Path(__file__).parent / "data"


def params_like(rng, dtype=np.float32):
    return {
        "w": np.asfortranarray(rng.normal(size=(4, 5)).astype(dtype)),
        "b": rng.normal(size=5).astype(dtype),
        "frozen": np.ones(2, dtype),
        "scale": np.array(1.5, dtype),
    }


def grads_like(params, rng):
    grads = {k: np.asarray(rng.normal(size=p.shape)).astype(p.dtype) for k, p in params.items()}
    return {**grads, "frozen": None}


def run(opt, params, rng, steps):
    for _ in range(steps):
        opt.step(grads_like(params, rng))


def copies(params):
    return {k: p.copy(order="K") for k, p in params.items()}


@pytest.mark.parametrize("through", ["dict", "file"])
def test_resume_is_bitwise(case, dtype, through, rng, tmp_path):
    cls, options = case
    params = params_like(rng, dtype)
    opt = cls(params, lr=lambda step: 0.1 / (1 + step), **options)
    run(opt, params, rng, 3)
    saved_params = copies(params)
    saved = opt.state_dict()
    opt.save(tmp_path / "run.npz")
    after = copies(saved_params)
    resumed = cls(after, lr=lambda step: 0.1 / (1 + step))
    if through == "dict":
        resumed.load_state_dict(saved)
    else:
        resumed.load(tmp_path / "run.npz")
    assert digest(resumed.state_dict()) == digest(saved)
    one, two = np.random.default_rng(1), np.random.default_rng(1)
    run(opt, params, one, 4)
    run(resumed, after, two, 4)
    for name, param in params.items():
        assert_same_bits(after[name], param)
    assert digest(resumed.state_dict()) == digest(opt.state_dict())


@pytest.mark.parametrize("through", ["dict", "file"])
def test_resume_with_everything_is_bitwise(case, dtype, through, rng, tmp_path):
    """Clipping, average, skips and a sum of gradients that no step has taken yet."""
    cls, options = case
    everything = {"max_grad_norm": 1.0, "nonfinite": "skip", "ema_decay": 0.9, "ema_warmup": True}
    params = params_like(rng, dtype)
    opt = cls(params, **options, **everything)
    run(opt, params, rng, 3)
    opt.step({**dict.fromkeys(params), "scale": np.array(np.nan, dtype)})
    opt.accumulate(grads_like(params, rng))
    after = copies(params)
    resumed = cls(after)
    if through == "dict":
        resumed.load_state_dict(opt.state_dict())
    else:
        opt.save(tmp_path / "run.npz")
        resumed.load(tmp_path / "run.npz")
    assert digest(resumed.state_dict()) == digest(opt.state_dict())
    assert resumed.skipped_steps == 1
    assert (resumed.max_grad_norm, resumed.nonfinite) == (1.0, "skip")
    grads = grads_like(params, rng)
    for which in (opt, resumed):
        which.accumulate(grads)
        assert which.step(grad_scale=2).clipped
        which.step(grads)
    for name, param in params.items():
        assert_same_bits(after[name], param)
    assert digest(resumed.state_dict()) == digest(opt.state_dict())


def test_gathered_gradients_are_taken_by_the_first_step_after_loading(optimizer, tmp_path):
    a, b = np.ones(3), np.ones(3)
    opt, resumed = optimizer([a, np.ones(2)]), optimizer([b, np.ones(2)])
    opt.accumulate([np.full(3, 2.0), None])  # before any step
    opt.save(tmp_path / "run.npz")
    resumed.load(tmp_path / "run.npz")
    assert digest(resumed.state_dict()) == digest(opt.state_dict())
    opt.step()
    resumed.step()
    assert_same_bits(a, b)
    assert not (b == 1).any()
    assert digest(resumed.state_dict()) == digest(opt.state_dict())


FIRST_FILES = sorted(DATA.glob("*-before-step-options.npz"))


def test_there_are_files_from_before_the_step_options():
    assert FIRST_FILES


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("path", FIRST_FILES, ids=lambda path: path.stem)
def test_files_from_before_the_step_options_still_load(path, average):
    """Written by onepass 0.1.0 as it was then, after three steps; the run is repeated here.

    Only rules of that time have one.
    """
    by_rule = {cls.rule: cls for cls in op.optim.registry.values()}
    optimizer = by_rule[path.stem.removesuffix("-before-step-options")]

    def run(opt, steps):
        for t in steps:
            opt.step({"w": np.full((2, 3), t, np.float32), "b": np.array([t, -t], float)})

    def start():
        return {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.ones(2)}

    options = {"ema_decay": 0.5, "max_grad_norm": 1e6} if average else {}
    params = start()
    whole = optimizer(params, lr=0.125)
    run(whole, (1, 2, 3))
    resumed = optimizer({k: p.copy() for k, p in params.items()}, **options)
    resumed.load(path)
    if not average:
        assert digest(resumed.state_dict()) == digest(whole.state_dict())
    run(whole, (4,))
    run(resumed, (4,))
    first = {k: p.copy() for k, p in resumed_params(resumed).items()}
    run(whole, (5,))
    run(resumed, (5,))
    for name, param in resumed_params(resumed).items():
        assert_same_bits(param, params[name])
    if average:  # it begins after the file was loaded
        with resumed.averaged():
            for name, param in resumed_params(resumed).items():
                np.testing.assert_allclose(param, (first[name] + params[name]) / 2, rtol=1e-6)


def test_a_file_with_an_average_in_float32_still_loads():
    """Written when averages had the dtype that a step computes in; all numbers are exact there."""

    def run(opt, steps):
        for t in steps:
            opt.step({k: np.full(p.shape, t, p.dtype) for k, p in params_of(opt).items()})

    def params_of(opt):
        return dict(zip("wbh", opt.param_groups[0]["params"], strict=True))

    whole = op.SGD(
        {
            "w": np.arange(-3, 3, dtype=np.float32).reshape(2, 3) / 8,
            "b": np.ones(2),
            "h": np.ones(3, np.float16),
        },
        lr=0.25,
        ema_decay=0.5,
    )
    run(whole, (1, 2, 3))
    resumed = op.SGD({k: p.copy() for k, p in params_of(whole).items()})
    resumed.load(DATA / "average-in-float32.npz")
    assert digest(resumed) == digest(whole)
    run(whole, (4, 5))
    run(resumed, (4, 5))
    assert digest(resumed) == digest(whole)


def resumed_params(opt):
    return dict(zip("wb", opt.param_groups[0]["params"], strict=True))


def test_a_parameter_that_had_no_step_when_saved_begins_as_new(case, rng):
    cls, options = case
    params = params_like(rng)
    opt = cls(params, **options)
    run(opt, params, rng, 2)
    resumed = cls(copies(params), **options)
    resumed.load_state_dict(opt.state_dict())
    grad = rng.normal(size=2).astype(np.float32)
    resumed.step({**dict.fromkeys(params), "frozen": grad})
    expected = run_reference(cls, options, np.ones(2, np.float32), [grad])
    entry = resumed.state_dict()["state"]["frozen"]
    assert entry["step"] == 1
    kept = [array for array in expected[1:] if array is not None]
    for name, array in zip(kept_names(cls, options), kept, strict=True):
        assert_same_bits(entry[name], array)


def test_layout(every_case, rng):
    cls, options = every_case
    params = {name: shaped(cls, options, param) for name, param in params_like(rng).items()}
    opt = cls(params, **options)
    assert opt.state_dict()["state"] == {}
    run(opt, params, rng, 2)
    saved = opt.state_dict()
    assert list(saved) == ["state", "param_groups", "step_options"]
    assert list(saved["state"]) == ["w", "b", "scale"]
    for key, entry in saved["state"].items():
        shape = params[key].shape
        assert list(entry) == entry_names(cls, options, shape)
        assert entry["step"] == 2
        kept = cls.row.state_shapes({**cls.defaults, **options}, shape)
        shapes = [own for own in kept if own is not None]
        for name, own in zip(state_names(cls, options, shape), shapes, strict=True):
            assert entry[name].shape == own
            assert entry[name].dtype == params[key].dtype
    (group,) = saved["param_groups"]
    assert group["params"] == ["w", "b", "frozen", "scale"]
    of_all = set(cls.row.memory) - set(cls.row.own_memory)
    assert of_all <= group.keys()
    assert {k: v for k, v in group.items() if k not in {"params", "step", *of_all}} == {
        **cls.defaults,
        **GROUP_DEFAULTS,
        **options,
    }
    assert saved["step_options"] == {**DEFAULTS, "skipped_steps": 0}


def test_state_dict_is_a_copy_and_stays_as_it_is(case, rng):
    cls, options = case
    params = params_like(rng)
    opt = cls(params, **options)
    run(opt, params, rng, 2)
    saved = opt.state_dict()
    before = digest(saved)
    twin = cls(copies(params), **options)
    twin.load_state_dict(saved)
    run(opt, params, rng, 1)
    run(twin, params, rng, 1)
    assert digest(saved) == before


def spoiled(saved, names):
    """Checkpoints with one thing wrong, and the words of the complaint."""

    def change(path, value):
        copy = {
            "state": {k: dict(v) for k, v in saved["state"].items()},
            "param_groups": [dict(g) for g in saved["param_groups"]],
            "step_options": dict(saved["step_options"]),
        }
        target = copy
        for key in path[:-1]:
            target = target[key]
        if value is KeyError:
            del target[path[-1]]
        else:
            target[path[-1]] = value
        return copy

    yield {}, "state_dict: expected the keys"
    yield [], "state_dict: expected the keys"
    yield {**saved, "extra": 1}, "state_dict: expected the keys"
    yield (
        change(["param_groups"], []),
        r"param_groups: expected 1 groups \(settings by name make groups too\), got 0",
    )
    yield change(["param_groups", 0, "lr"], -1.0), "lr: expected"
    yield change(["param_groups", 0, "lr"], float("nan")), "lr: expected"
    yield change(["param_groups", 0, "lr"], None), "expected a schedule for 'lr'"
    yield change(["param_groups", 0, "lrr"], 1.0), r"param_groups\[0\]: expected the settings lr"
    yield change(["param_groups", 0, "params"], ["w", "b", "frozen"]), "expected the parameters"
    yield change(["param_groups", 0, "params"], ["w", "b", "x", "scale"]), "expected the param"
    yield change(["param_groups", 0, "step"], -1), "step: expected a number of steps"
    yield change(["param_groups"], [5]), "param_groups: expected mappings"
    yield change(["param_groups"], None), "param_groups: expected mappings"
    yield change(["param_groups", 0, "params"], KeyError), "param_groups: expected mappings"
    yield change(["param_groups", 0, "params"], [0, 0, 1, 2]), "expected the parameters"
    yield change(["state"], []), "state: expected a mapping"
    yield change(["state", "b"], 1), "state: expected a mapping"
    yield change(["state", "b", "step"], 1e300), "expected a number of steps"
    yield change(["state", "x"], {"step": 1}), r"state: .* got also \['x'\]"
    yield change(["state", "b", "step"], -1), r"state\['b'\]\['step'\]: expected a number of steps"
    yield change(["state", "b", "step"], 1.5), r"\['step'\]: expected a number of steps"
    yield change(["state", "b", "step"], "2"), r"\['step'\]: expected a number of steps"
    yield change(["state", "b", "momentum"], np.ones(5)), r"state\['b'\]: expected the arrays"
    both = {**saved["param_groups"][0], "ema_decay": 0.9, "swa_start": 3}
    yield change(["param_groups"], [both]), "swa_start: expected None with ema_decay"
    yield change(["step_options"], 5), "step_options: expected a mapping"
    yield change(["step_options", "clip"], 5), r"step_options: expected .* got 'clip'"
    yield change(["step_options", "nonfinite"], "stop"), "nonfinite: expected one of"
    yield change(["step_options", "max_grad_norm"], 0.0), "max_grad_norm: expected a number > 0"
    yield change(["step_options", "skipped_steps"], -1), "skipped_steps: expected a number of"
    yield change(["state", "b", "accumulated"], np.ones(5)), "'accumulated'.: expected dtype"
    for name in names:
        where = rf"state\['b'\]\['{name}'\]: "
        yield change(["state", "b", name], KeyError), r"state\['b'\]: expected the arrays"
        yield change(["state", "b", name], np.ones(6, np.float32)), where + "expected shape"
        yield change(["state", "b", name], np.ones((5, 1), np.float32)), where + "expected shape"
        yield change(["state", "b", name], np.ones(5)), where + "expected dtype float32"
        yield change(["state", "b", name], "text"), where + "expected dtype"


def test_a_bad_dictionary_changes_nothing(case, rng):
    cls, options = case
    params = params_like(rng)
    opt = cls(params, **options)
    run(opt, params, rng, 2)
    saved = opt.state_dict()
    run(opt, params, rng, 1)
    before = digest(opt)
    for bad, words in spoiled(saved, state_names(cls, options)):
        with pytest.raises((ValueError, TypeError), match=words):
            opt.load_state_dict(bad)
        assert digest(opt) == before


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("average", np.ones(6, np.float32), r"\['average'\]: expected shape"),
        ("average", np.ones(6), r"\['average'\]: expected shape"),
        ("averaged", 7, r"\['averaged'\]: expected at most 2, got 7"),
        ("averaged", None, r"\['averaged'\]: expected a number of steps"),
    ],
)
def test_a_bad_average_changes_nothing(optimizer, name, value, words, rng):
    params = params_like(rng)
    opt = optimizer(params, ema_decay=0.5)
    run(opt, params, rng, 2)
    saved = opt.state_dict()
    saved["state"]["b"][name] = value
    before = digest(opt)
    with pytest.raises(ValueError, match=words):
        opt.load_state_dict(saved)
    assert digest(opt) == before


def test_a_schedule_is_missed_when_it_is_not_there(optimizer, rng):
    params = params_like(rng)
    for name in ("max_grad_norm", "max_grad_value", "ema_decay"):
        opt = optimizer(params, **{name: lambda step: 0.5 / (1 + step)})
        run(opt, params, rng, 1)
        with pytest.raises(ValueError, match=f"expected a schedule for '{name}'"):
            optimizer(copies(params), **{name: 0.1}).load_state_dict(opt.state_dict())
        twin = optimizer(copies(params), **{name: lambda _: 0.25})
        twin.load_state_dict(opt.state_dict())
        run(twin, params, rng, 1)


def test_keys_are_matched_by_name_in_any_order(optimizer, rng):
    params = params_like(rng)
    opt = optimizer(params)
    run(opt, params, rng, 2)
    shuffled = optimizer(dict(reversed(copies(params).items())))
    shuffled.load_state_dict(opt.state_dict())
    assert digest(shuffled.state_dict()["state"]["w"]) == digest(opt.state_dict()["state"]["w"])
    with pytest.raises(ValueError, match="expected the parameters"):
        optimizer({"other": params["b"]}).load_state_dict(
            optimizer({"b": params["b"]}).state_dict()
        )


def saved_run(optimizer, tmp_path, rng):
    params = params_like(rng)
    opt = optimizer(params)
    run(opt, params, rng, 2)
    path = tmp_path / "run.npz"
    opt.save(path)
    return opt, path


def test_damaged_and_foreign_files(optimizer, tmp_path, rng):
    opt, path = saved_run(optimizer, tmp_path, rng)
    whole = path.read_bytes()
    before = digest(opt)
    flipped = bytearray(whole)
    flipped[whole.index(b"header") + 200] ^= 0xFF
    np.savez(tmp_path / "foreign.npz", weights=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "pickle.npz", header=np.array([{}], object))
    header = json.dumps({"format": 99, "optimizer": optimizer.rule}).encode()
    np.savez(tmp_path / "newer.npz", header=np.frombuffer(header, np.uint8))
    files = [
        b"",
        b"not a checkpoint at all",
        whole[: len(whole) // 2],
        whole[:-1],
        whole[100:],
        bytes(flipped),
        *[(tmp_path / name).read_bytes() for name in ("foreign.npz", "array.npy", "pickle.npz")],
        (tmp_path / "newer.npz").read_bytes(),
    ]
    for content in files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^path: expected a checkpoint that save wrote, got "):
            opt.load(path)
        assert digest(opt) == before
    with pytest.raises(FileNotFoundError):
        opt.load(tmp_path / "none.npz")


@given(cut=st.integers(0, 10**6), flip=st.integers(0, 10**6))
@settings(max_examples=60)
def test_no_damage_passes_unseen(cut, flip, tmp_path_factory):
    """A file cut anywhere, or with a byte changed, is refused or loads what was saved."""
    folder = tmp_path_factory.mktemp("damage")
    opt, path = saved_run(op.Adam, folder, np.random.default_rng(0))
    whole = path.read_bytes()
    saved, before = digest(opt.state_dict()), digest(opt)
    changed = bytearray(whole)
    changed[flip % len(whole)] ^= 0x55
    for content in (whole[: cut % len(whole)], bytes(changed)):
        path.write_bytes(content)
        try:
            opt.load(path)
        except (ValueError, TypeError):
            assert digest(opt) == before
        assert digest(opt.state_dict()) == saved


def test_a_file_of_another_class(optimizer, tmp_path, rng):
    _, path = saved_run(optimizer, tmp_path, rng)
    for other in op.optim.registry.values():
        if other is not optimizer:
            params = params_like(rng)
            fresh = other({name: shaped(other, {}, param) for name, param in params.items()})
            with pytest.raises(
                ValueError,
                match=f"expected a checkpoint of {other.rule}, got one of {optimizer.rule}",
            ):
                fresh.load(path)
            assert fresh.state_dict()["state"] == {}


def test_no_pickle_in_the_file(optimizer, tmp_path, rng):
    _, path = saved_run(optimizer, tmp_path, rng)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert b"|O" not in archive.read(name)[:128]


def test_settings_of_numpys_types_are_saved(tmp_path, rng):
    opt, path = saved_run(op.Adam, tmp_path, rng)
    opt.param_groups[0]["lr"] *= np.float32(0.5)
    opt.param_groups[0]["betas"] = np.array([0.8, 0.9])
    run(opt, params_like(rng), rng, 1)
    opt.save(path)
    opt.load(path)
    assert opt.param_groups[0]["betas"] == (0.8, 0.9)


def test_resume_is_bitwise_after_an_option_came_and_went():
    def start(path=None):
        w = np.ones(3)
        opt = op.SGD(w, 0.1, momentum=0.9)
        for momentum in (0.9, 0.9, 0.0, 0.0, 0.9):
            opt.param_groups[0]["momentum"] = momentum
            if path and momentum == 0.0:
                saved = opt.state_dict()
                opt = op.SGD(w, 0.1)
                opt.load_state_dict(saved)
            opt.step(np.ones(3))
        return w

    assert_same_bits(start(path=True), start())


def test_switching_an_option_on_and_saving_before_the_next_step(tmp_path, rng):
    opt, path = saved_run(op.Adam, tmp_path, rng)
    opt.param_groups[0]["amsgrad"] = True
    opt.save(path)
    opt.load(path)
    run(opt, params_like(rng), rng, 1)
