"""The second oracle: PyTorch's classes of the same names, and their checkpoints."""

import inspect

import numpy as np
import pytest

import onepass as op
from helpers import CASES, case_id, entry_names, kept_names, shaped, state_names

torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
pytestmark = pytest.mark.usefixtures("torch_in_float64")


def torch_class(cls):
    return getattr(torch.optim, cls.__name__, None)


def torch_has(cls, settings):
    theirs = torch_class(cls)
    return theirs is not None and all(
        name in inspect.signature(theirs.__init__).parameters for name in settings
    )


# Every case whose options PyTorch has too.
SHARED = [pytest.param(case, id=case_id(case)) for case in CASES if torch_has(*case)]
SCHEDULED = [param for param in SHARED if param.values[0][0].checks["lr"].schedulable]


def as_numpy(state_dict):
    """PyTorch's state dictionary with its tensors as arrays."""
    state = {
        key: {name: v.numpy() if torch.is_tensor(v) else v for name, v in entry.items()}
        for key, entry in state_dict["state"].items()
    }
    return {"state": state, "param_groups": state_dict["param_groups"]}


def twins(cls, settings, dtype, rng, lr=0.01):
    start = [rng.normal(size=shape).astype(dtype) for shape in [(7, 5), (11,), (), (2, 3, 4)]]
    start = [shaped(cls, settings, p) for p in start]
    if cls.row.is_directed({**cls.defaults, **settings}):  # PyTorch's takes matrices only
        start = [p.reshape(len(p), -1) for p in start]
    params = [np.array(p) for p in start]
    tensors = [torch.nn.Parameter(torch.from_numpy(np.array(p))) for p in start]
    plain = {"foreach": False} if torch_has(cls, ["foreach"]) else {}
    theirs = torch_class(cls)(tensors, lr, **plain, **settings)
    return params, tensors, cls(params, lr, **settings), theirs


def step_both(params, tensors, opt, torch_opt, rng):
    grads = [np.asarray(rng.normal(size=p.shape)).astype(p.dtype) for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    opt.step(grads)
    torch_opt.step()


def assert_same_path(params, tensors, opt, torch_opt, rng, steps):
    for step in range(1, steps + 1):
        step_both(params, tensors, opt, torch_opt, rng)
        for param, tensor in zip(params, tensors, strict=True):
            assert_alike(param, tensor.detach().numpy(), step)


def assert_alike(actual, expected, steps):
    # Each step rounds a few times in either library; the values here are of the order of 1.
    eps = np.finfo(actual.dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=8 * eps * steps, atol=8 * eps * steps)


@pytest.mark.parametrize("settings", SHARED)
def test_same_path(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    assert_same_path(*both, rng, steps=100)
    params, _, opt, torch_opt = both
    ours, theirs = opt.state_dict()["state"], as_numpy(torch_opt.state_dict())["state"]
    for key, entry in ours.items():
        assert list(entry) == entry_names(cls, options, params[key].shape)
        assert theirs.get(key, {}).keys() <= entry.keys()  # their SGD may have none
        for name in (*cls.saved_scalars, *kept_names(cls, options, params[key].shape)):
            assert_alike(np.asarray(entry[name]), theirs[key][name], 100)


@pytest.mark.parametrize("settings", SHARED)
def test_their_checkpoint_continues_here(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    _, tensors, _, torch_opt = both
    params = [t.detach().numpy().copy() for t in tensors]
    opt = cls(params, lr=0.5)  # the checkpoint's settings take over
    opt.load_state_dict(as_numpy(torch_opt.state_dict()))
    assert opt.param_groups[0]["lr"] == 0.01
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


@pytest.mark.parametrize("settings", SCHEDULED)
def test_a_schedule_continues_where_their_run_stopped(settings, rng):
    """Their SGD keeps no count of its steps; with momentum its buffer tells of one at least."""
    cls, options = settings
    both = twins(cls, options, np.float64, rng)
    for _ in range(5):
        step_both(*both, rng)
    params, _, _, torch_opt = both
    asked = []
    opt = cls(params, lr=lambda step: asked.append(step) or 0.01, **options)
    saved = as_numpy(torch_opt.state_dict())
    opt.load_state_dict(saved)
    opt.step([np.zeros_like(p) for p in params])
    entry = saved["state"].get(0, {})
    assert asked == [5 if "step" in entry else int(bool(state_names(cls, options)))]


@pytest.mark.parametrize("settings", SHARED)
def test_our_checkpoint_continues_there(settings, dtype, rng):
    cls, options = settings
    both = twins(cls, options, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    params, _, opt, _ = both
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    torch_opt = torch_class(cls)(tensors, **options)
    saved = opt.state_dict()
    state = {
        key: {n: torch.as_tensor(v if n != "step" else float(v)) for n, v in entry.items()}
        for key, entry in saved["state"].items()
    }
    groups = [{**torch_opt.param_groups[0], **saved["param_groups"][0]}]
    torch_opt.load_state_dict({"state": state, "param_groups": groups})
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


@pytest.mark.parametrize("optimizer", [*filter(torch_class, op.optim.registry.values())])
def test_the_defaults_are_theirs(optimizer):
    theirs = inspect.signature(torch_class(optimizer).__init__).parameters
    for name, value in optimizer.defaults.items():
        if name in theirs:
            assert value == theirs[name].default, name


@pytest.mark.parametrize("cls", [op.Adam, op.AdamW])
def test_their_adamw_continues_in_either_class(cls, dtype, rng):
    both = twins(op.AdamW, {"weight_decay": 0.3}, dtype, rng)
    for _ in range(5):
        step_both(*both, rng)
    _, tensors, _, torch_opt = both
    params = [t.detach().numpy().copy() for t in tensors]
    opt = cls(params)
    opt.load_state_dict(as_numpy(torch_opt.state_dict()))
    assert opt.param_groups[0]["decoupled_weight_decay"] is True
    assert_same_path(params, tensors, opt, torch_opt, rng, steps=5)


def test_their_adam_is_not_taken_for_adamw(rng):
    """Its decay is coupled; in PyTorch the same call turns it into the decoupled one."""
    tensor = torch.nn.Parameter(torch.ones(3))
    tensor.grad = torch.ones(3)
    torch_opt = torch.optim.Adam([tensor])
    torch_opt.step()
    with pytest.raises(ValueError, match="^decoupled_weight_decay: expected True"):
        op.AdamW([np.ones(3, np.float32)]).load_state_dict(as_numpy(torch_opt.state_dict()))


def test_groups_hold_what_theirs_hold():
    """Which decay it is stands in the groups of both classes, as in PyTorch's."""
    for name in ("Adam", "AdamW"):
        (theirs,) = getattr(torch.optim, name)([torch.ones(3)]).param_groups
        (ours,) = getattr(op, name)([np.ones(3)]).param_groups
        assert ours["decoupled_weight_decay"] is theirs["decoupled_weight_decay"]


# PyTorch's optimizers that take sparse gradients, and which of ours each is on the rows it names.
SPARSE = {
    "SparseAdam": (torch.optim.SparseAdam, op.Adam, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "Adagrad": (torch.optim.Adagrad, op.Adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-3}),
    "SGD": (torch.optim.SGD, op.SGD, {}),
}


@pytest.fixture
def one_thread():
    """PyTorch's threads wait for each other many times a step of sparse gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sparse(index, values, shape):
    indices = torch.from_numpy(index)[None]
    return torch.sparse_coo_tensor(indices, torch.from_numpy(values), shape, check_invariants=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # PyTorch's own code
@pytest.mark.parametrize(("theirs", "ours", "settings"), SPARSE.values(), ids=SPARSE)
def test_rows(theirs, ours, settings, dtype, rng):
    """Some rows are named twice, some never; one step names none."""
    table = rng.normal(size=(40, 7)).astype(dtype)
    tensor = torch.nn.Parameter(torch.from_numpy(table.copy()))
    eps_hat = {"eps_hat": True} if ours is op.Adam else {}
    opt, torch_opt = ours(table, 0.01, **settings, **eps_hat), theirs([tensor], 0.01, **settings)
    start = table.copy()
    named = set()
    for step in range(1, 101):
        index = rng.integers(0, 30, size=0 if step == 50 else 12)
        named |= set(index.tolist())
        values = rng.normal(size=(len(index), 7)).astype(dtype)
        tensor.grad = sparse(index, values, table.shape)
        torch_opt.step()
        opt.step_rows((index, values))
        assert_alike(table, tensor.detach().numpy(), step)
    assert named == set(range(30))
    np.testing.assert_array_equal(table[30:], start[30:])
    saved, theirs_saved = opt.state_dict()["state"], as_numpy(torch_opt.state_dict())["state"]
    for name, array in theirs_saved.get(0, {}).items():
        if array is not None:
            assert_alike(np.asarray(saved[0][name], dtype), array, 100)


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_of_sparse_adam(rng):
    """It lacks what SparseAdam does not have: those settings stay."""
    settings = {"betas": (0.8, 0.95), "eps": 1e-3}
    table = rng.normal(size=(40, 7))
    tensor = torch.nn.Parameter(torch.from_numpy(table))  # of the same memory
    torch_opt = torch.optim.SparseAdam([tensor], 0.01, **settings)
    opt = op.Adam(np.array(table), 0.5, eps_hat=True)
    for step in range(1, 11):
        index, values = rng.integers(0, 30, size=12), rng.normal(size=(12, 7))
        tensor.grad = sparse(index, values, table.shape)
        if step == 6:
            own = table.copy()
            opt = op.Adam(own, 0.5, eps_hat=True)
            opt.load_state_dict(as_numpy(torch_opt.state_dict()))
        torch_opt.step()
        if step > 5:
            opt.step_rows((index, values))
            assert_alike(own, table, step)
