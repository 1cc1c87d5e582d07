"""Benchmarks under pytest-benchmark, which also check what they time.

pytest bench --benchmark-only
"""

import json
import time
from dataclasses import replace
from functools import partial
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

import capi
import end_to_end
import formats
import full_step
import onepass as op
import problems
import quality
import report
import run
import sklearn_fit
import training
from onepass.lab.bench import batch_norm, contenders, plan
from onepass.lab.bench.timing import BATCH, Block, Situation, alternate
from onepass.lab.bench.workloads import OPERATIONS, WORKLOADS, Case, Workload, batches, cases
from onepass.lab.compare.contenders import Contender
from onepass.optim import SGD, Adam, AdamW

SMALL = [WORKLOADS[name] for name in ("1e3", "1e5", "1e6", "mlp")]
SMALL_BATCHES = batches((4, 64, 14, 14), (2, 256, 7, 5), (5, 512, 3, 3), (32, 1024))


@pytest.fixture(params=[case for case in cases() if not case.is_directed], ids=str)
def case(request):
    return request.param


@pytest.fixture(params=SMALL, ids=lambda workload: workload.name)
def workload(request):
    return request.param


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request):
    return request.param


@pytest.fixture(params=SMALL_BATCHES, ids=lambda batch: f"{batch.name}-{batch.layout}")
def batch(request):
    return request.param


def assert_same_bits(ours, theirs):
    assert [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


def test_step(benchmark, case, workload):
    ours, reference = contenders.Onepass(case, workload), contenders.NumPy(case, workload)
    ours.step()
    reference.step()
    assert_same_bits(ours.params, reference.params)
    for index, states in enumerate(reference.states):
        state = ours.optimizer.state_dict()["state"][index]
        names = (*case.cls.row.states, *case.cls.row.own_memory)
        for name, array in zip(names, states[: len(names)], strict=True):
            if array is not None:
                assert_same_bits([np.asarray(state[name])], [array])
    benchmark(ours.step)


MATRICES = Workload("matrices", [(48, 96), (30, 20), (8, 3, 3, 3)])


@pytest.mark.parametrize("directed", [case for case in cases() if case.is_directed], ids=str)
def test_step_of_matrices(benchmark, directed):
    assert not any(directed.takes(workload) for workload in SMALL)
    assert directed.takes(MATRICES)
    test_step(benchmark, directed, MATRICES)
    # Gradient and state twice, parameter and state written, the direction written and read.
    assert directed.arrays_moved == 9


@pytest.fixture(params=[name for name in training.SITUATIONS_OF if name in ("1e3", "mlp")])
def small(request):
    return WORKLOADS[request.param]


def test_kernel(benchmark, case, small):
    ours, reference = contenders.Kernel(case, small), contenders.NumPy(case, small)
    ours.step()
    reference.step()
    assert_same_bits(ours.params, reference.params)
    benchmark(ours.step)


COLD = [name for name, make in training.SITUATIONS.items() if not make().hot]


@pytest.mark.parametrize("situation", COLD)
def test_step_in_training(benchmark, case, situation):
    """Each call comes right after what sweeps the caches, which pytest-benchmark does not time."""
    workload, before = WORKLOADS["mlp"], training.SITUATIONS[situation]().before
    ours, reference = contenders.Onepass(case, workload), contenders.NumPy(case, workload)

    def setup():
        before()  # its result would be taken for arguments

    setup()
    ours.step()
    reference.step()
    assert_same_bits(ours.params, reference.params)
    benchmark.pedantic(ours.step, setup=setup, rounds=50)


def test_all_small_calls_are_the_same_step(case, small):
    rivals = training.rivals(case, small)
    reference = contenders.NumPy(case, small)
    reference.step()  # the first, for which the schedule has the learning rate of the others
    for name in rivals.keys() - {"np.add"}:
        rivals[name].step()
        if name in ("torch", "foreach"):
            for param, tensor in zip(reference.params, rivals[name].params, strict=True):
                np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert_same_bits(rivals[name].params, reference.params)


def test_numpy_in_place_is_the_reference_step_by_step():
    case, workload = Case(AdamW), WORKLOADS["mlp"]
    by_hand, reference = training.InPlace(case, workload), contenders.NumPy(case, workload)
    for _ in range(5):
        by_hand.step()
        reference.step()
        assert_same_bits(by_hand.params, reference.params)


def test_what_comes_before_a_call():
    done = []
    call, before = partial(done.append, "call"), partial(done.append, "before")
    for situation, batch in (
        (Situation(before, hot=False), ["before", "call"]),
        (Situation(before), ["before", *2 * ["call"]]),  # one of them warms up
        (Situation(), ["call"]),
    ):
        # Calls as long as a batch, so that a batch has one of them.
        block = Block.plan(lambda: (call(), time.sleep(2 * BATCH)), situation)
        assert block.calls == 1
        done.clear()
        block.run()
        assert done == (block.warm_up + block.batches) * batch


def test_the_table_of_small_calls():
    seconds = {"onepass": 2e-6, "bound": 1e-6, "schedule": 4e-6, "kernel": 3e-6}
    others = {"np.add": 1.5e-6, "in place": 8e-6, "torch": 2e-5, "foreach": 3e-5}
    times = {name: 3 * [value] for name, value in (seconds | others).items()}
    row = report.Row("AdamW", "1e3", "", "sweep", 1, 1000, 28000, "v3", "fused", {}, times)
    shown = report.training([row])
    assert shown.markdown().splitlines()[-1] == (
        "| 1e3 | AdamW | sweep | 2.0 | 1.0 | 4.0 | 3.0 | 2.00 | 4.00 | 8.00 | 2.00 "
        "| 10.00 fused | 15.00 |"
    )
    bare = report.training([replace(row, seconds={"onepass": [2e-6]}, torch_form=None)])
    assert bare.markdown().splitlines()[-1] == "| 1e3 | AdamW | sweep | 2.0 | - | - | - |"


def test_training_is_measured(tmp_path, capsys, monkeypatch):
    file = tmp_path / "results.json"
    options = "--table training --rule sgd --workload 1e3 1e6 --situation hot pass --seconds 1e-3"
    monkeypatch.setattr("onepass.lab.bench.timing.FEWEST_ROUNDS", 1)
    monkeypatch.setattr("sys.argv", ["run.py", *options.split(), "--markdown", "--json", str(file)])
    run.main()
    *_, first, second, third, fourth = capsys.readouterr().out.strip().splitlines()
    met = [(case, situation) for situation in ("hot", "pass") for case in map(str, cases(["sgd"]))]
    labels = [tuple(line.split(" | ")[1:3]) for line in (first, second, third, fourth)]
    assert labels == met
    rows = json.loads(file.read_text())["training"]
    assert [(row["case"], row["situation"]) for row in rows] == met
    assert all(min(times) > 0 for row in rows for times in row["seconds"].values())


def test_copy_limit_keeps_its_values(benchmark, case):
    copy = contenders.CopyLimit(case, WORKLOADS["mlp"])
    benchmark(copy.step)
    assert_same_bits(copy.params, WORKLOADS["mlp"].weights())


def skip_what_torch_has_not(case):
    if contenders.torch_form(case) is None:
        pytest.skip("PyTorch has no such class")


def test_torch_does_the_same(case):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    skip_what_torch_has_not(case)
    ours, torchs = (make(case, WORKLOADS["mlp"]) for make in (contenders.Onepass, contenders.Torch))
    for _ in range(3):
        ours.step()
        torchs.step()
    for array, tensor in zip(ours.params, torchs.params, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [c for c in cases() if c.accepts(full_step.ALL) and c.takes(WORKLOADS["mlp"])],
    ids=str,
)
def test_full_step(benchmark, case):
    ours = full_step.rivals(case, WORKLOADS["mlp"])["onepass"]
    ours.before()
    info = ours.step()
    # 0.01 each, so about 0.01 times the root of their number
    assert info.grad_norm == pytest.approx(0.01 * WORKLOADS["mlp"].elements ** 0.5, rel=0.05)
    assert not any(grad.any() for grad in ours.before.grads)
    benchmark(ours.step)


def test_torchs_full_step_does_the_same(case):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    skip_what_torch_has_not(case)
    rivals = full_step.rivals(case, WORKLOADS["mlp"])
    ours, torchs = rivals["onepass"], rivals["torch"]
    for step in range(3):
        for rival in (ours, torchs):
            ours.before()
            rival.step()
            assert not any(grad.any() for grad in ours.before.grads)
        if step == 0:  # as torch.optim.swa_utils.AveragedModel begins, and ours
            for average, values in zip(torchs.average, torchs.values, strict=True):
                average.copy_(values)
    for array, tensor in zip(ours.params, torchs.params, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=1e-6)
    with ours.optimizer.averaged():
        for array, tensor in zip(ours.params, torchs.average, strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-6)


BYTES = {"float32": 4, "bf16": 2, "f16": 2, "q8": 1 + 1 / 256}


def test_formats(case):
    """What is timed does what it says, and moves and holds the bytes that its formats have."""
    workload = WORKLOADS["1e5"]
    rivals = formats.rivals(case, workload)
    for form in (form for form in formats.FORMATS if str(form) in rivals):
        rival = rivals[str(form)]
        small = case.n_small_states
        state = small * BYTES[form.state] + 4 * (case.n_states - small)
        state += 4 * (form.rounding == "master")
        moved = 2 * (BYTES[form.params] + state) + BYTES[form.grads] + 2 * bool(form.copied)
        counted = {name: count / workload.elements for name, count in rival.bytes.items()}
        assert counted == pytest.approx({"moved": moved, "state": state}, rel=1e-3)
        (param,), (grad,) = rival.params, rival.grads
        assert param.dtype == formats.DTYPES[form.params]
        assert grad.dtype == formats.DTYPES[form.grads]
        before = param.copy()
        for _ in range(5):  # some rules wait until they have seen enough
            rival.step()
        assert (param != before).any()
        assert len(rival.copies) == bool(form.copied)
        for copy in rival.copies:
            assert copy.dtype == formats.DTYPES["bf16"]
            np.testing.assert_array_equal(copy, param.astype(copy.dtype))


def test_copy_limits_of_fewer_bytes(case):
    limits = formats.CopyLimits(case, 1000)
    limits.grad.fill(1)
    limits.of(10).step()
    for array in (limits.param, *filter(lambda array: array is not None, limits.state)):
        np.testing.assert_array_equal(array, [2] * 10 + [1] * 990)


def test_bitsandbytes_does_nearly_the_same(case):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if not (formats.eight_bit(case) and contenders.torch_form(case)):
        pytest.skip("it keeps no state of this class in 8 bits, or PyTorch lacks the class")
    workload = WORKLOADS["1e5"]
    theirs, torchs = (make(case, workload) for make in (formats.BitsAndBytes, contenders.Torch))
    for _ in range(3):
        theirs.step()
        torchs.step()
    (old,), (new,) = workload.weights(), (param.detach().numpy() for param in torchs.params)
    difference = theirs.params[0].detach().numpy() - new
    assert 0 < np.abs(difference).mean() < 0.02 * np.abs(new - old).mean()


def assert_nearly_equal(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_norm(benchmark, operation, batch):
    ours, numpys = (
        make(operation, batch.arrays()) for make in (batch_norm.Onepass, batch_norm.NumPy)
    )
    for array, other in zip(results(ours), results(numpys), strict=True):
        assert_nearly_equal(array, other)
    benchmark(ours.step)


def test_torchs_batch_norm_does_the_same(operation, batch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, torchs = (
        make(operation, batch.arrays()) for make in (batch_norm.Onepass, batch_norm.Torch)
    )
    for array, tensor in zip(results(ours), results(torchs), strict=True):
        in_layout = tensor.movedim(1, batch.axis) if tensor.ndim > 1 else tensor
        assert in_layout.is_contiguous()
        assert_nearly_equal(array, in_layout)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_batch_norm_in_16_bits_does_the_same(operation, batch, dtype):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, torchs = (
        make(operation, batch_norm.in_16_bits(batch.arrays(), dtype))
        for make in (batch_norm.Onepass, batch_norm.Torch)
    )
    for array, tensor in zip(results(ours), results(torchs), strict=True):
        in_layout = tensor.movedim(1, batch.axis) if tensor.ndim > 1 else tensor
        unit = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(
            array.astype("f"), in_layout.float().numpy(), rtol=2 * unit, atol=2 * unit
        )


def results(rival):
    """What a step returns, then the running statistics."""
    returned = rival.step()
    return [*(returned if isinstance(returned, tuple) else [returned]), *rival.running]


def test_batch_norms_copy_limit_keeps_its_values(benchmark, operation, batch):
    copy = batch_norm.CopyLimit(operation, batch.arrays())
    before = copy.values.copy()
    benchmark(copy.step)
    assert_same_bits([copy.values], [before])


def test_resnet50_is_resnet50():
    assert len(WORKLOADS["resnet50"].shapes) == 161
    assert WORKLOADS["resnet50"].elements == WORKLOADS["resnet50-flat"].elements == 25_557_032


def test_the_first_contender_takes_part_in_every_round():
    rounds = alternate({"fast": lambda: None, "slow": lambda: sum(range(100_000))}, seconds=0.1)
    assert len(rounds["fast"]) >= len(rounds["slow"]) >= 3


def test_text_asks_for_the_character_that_follows():
    rng = np.random.default_rng(1)
    text = problems.Text(rng)
    codes, characters = problems._text()
    inputs, targets = text.batch(rng)
    assert inputs.shape == (128, text.sizes[0])
    one_hot = inputs.reshape(128, -1, characters)
    np.testing.assert_array_equal(one_hot.sum(axis=2), 1)
    found = np.column_stack([one_hot.argmax(axis=2), targets])
    everything = bytes(codes.astype(np.uint8))
    assert all(bytes(row.astype(np.uint8)) in everything for row in found)


def test_texts_validation_is_its_end_and_no_batch_sees_it():
    text = problems.Text(np.random.default_rng(1))
    codes, _ = problems._text()
    targets = np.concatenate([targets for _, targets in text.validation()])
    np.testing.assert_array_equal(targets, codes[-len(targets) :])
    assert len(targets) == pytest.approx(len(codes) / 10, rel=1e-3)
    seen = len(text._train) + text.context  # characters, from the first on
    assert seen + text.context + len(targets) <= len(codes)


def test_mixed_units_loss():
    """Its gradient is that of its value; and it knows the units, which the score does not."""
    loss = problems.WeightedSquaredError(np.array([1.0, 10.0]))
    targets = np.array([[1.0, 2.0], [3.0, 6.0]])
    outputs = targets + np.diag([1.0, 2.0])
    value, grad = loss.value_and_grad(outputs, targets)
    assert value == loss.value(outputs, targets) == (1 + 400) / 4 / 2
    np.testing.assert_allclose(grad, [[1 / 4, 0], [0, 100 * 2 / 4]])
    assert loss.score(outputs, targets) == pytest.approx(((1 - 0.5 / 1) + (1 - 2 / 4)) / 2)


def test_mixed_units_gradients_differ_as_their_units_do_squared():
    rng = np.random.default_rng(1)
    problem = problems.MixedUnits(rng)
    network = quality.Network(problem.sizes, rng, problem.loss, batch_norm=False)
    _, grad = network.loss_and_grad(*problem.batch(rng))
    first_block = np.abs(grad[:256]).reshape(4, -1).mean(axis=0)  # one of each output
    assert 1e7 < first_block.max() / first_block.min() < 1e9


class Descent:
    """Gradient descent, the least that trains."""

    checks: ClassVar = SGD.checks
    row: ClassVar = SGD.row
    defaults: ClassVar = {"lr": 0.5}

    def __init__(self, params, lr, rounding):
        assert rounding == "nearest"
        self.params, self.lr = params, lr

    def step(self, grads):
        self.params -= (self.lr * grads).astype(self.params.dtype)


def test_weights_in_bfloat16_are_those_that_the_network_has():
    contender = quality.FORMATS["bf16 weights, nearest"].applied_to(Contender("", Descent, {}))
    assert contender.lr == 0.5
    weights = np.array([1 + 2**-12, 3], np.float32)  # the first is 1 in bfloat16
    optimizer = contender.optimizer(weights, lr=1.0, **contender.settings)
    assert weights.tolist() == [1, 3]
    optimizer.step(np.array([-(2**-12), 1], np.float32))
    assert weights.tolist() == [1, 2]
    assert optimizer._weights.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("form", quality.FORMATS)
def test_every_format_trains(form):
    assert np.isfinite(quality.train_once("digits", "AdamW", form, 1, steps=2).loss)


@pytest.mark.parametrize("task", quality.TASKS)
def test_a_seed_decides_everything_but_the_steps(task):
    same, again, other, longer = (
        quality.train_once(task, "AdamW", quality.REFERENCE, seed, steps).loss
        for seed, steps in ((1, 2), (1, 2), (2, 2), (1, 3))
    )
    assert same == again
    assert same not in (other, longer)


def test_quality_is_measured_seed_by_seed(tmp_path, capsys, monkeypatch):
    file = tmp_path / "results.json"
    options = "--task digits --optimizer adamw momentum --format float32 --seeds 2 --steps 2 --json"
    monkeypatch.setattr("sys.argv", ["quality.py", *options.split(), str(file)])
    quality.main()
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.count("|") == len(quality.HEADINGS) + 1
    assert [line.split(" | ")[1] for line in lines] == ["AdamW", "Momentum"]
    runs = [(r["seed"], r["optimizer"]) for r in json.loads(file.read_text())]
    assert runs == [(5, "AdamW"), (5, "Momentum"), (6, "AdamW"), (6, "Momentum")]


def test_qualitys_table():
    losses = {"float32": (1.0, 3.0), "q8 state": (1.5, 3.1), "bf16 state": (2.0, None)}
    results = [
        quality.Result("digits", "Adam", form, seed, losses[form][seed], 0.5, 0.0)
        for seed in range(2)
        for form in losses
    ]
    _, _, *lines = quality.markdown(results).splitlines()
    score, same = "0.5000 ± 0.0000", "+0.0000 ± 0.0000"
    # Of two values the deviation is their distance over the root of 2.
    assert lines == [
        f"| digits | Adam | float32 | 2.0000 ± 1.4142 |  | {score} |  |",
        f"| digits | Adam | q8 state | 2.3000 ± 1.1314 | +0.3000 ± 0.2828 | {score} | {same} |",
        "| digits | Adam | bf16 state | 2.0000 (1 diverged) | +1.0000 (1 diverged) "
        f"| {score} | {same} |",
    ]


@pytest.mark.parametrize("n", capi.SIZES)
def test_the_callers_of_c_take_the_same_step(n):
    _, *loops = capi.small_calls(n, calls=1).values()
    param, *states = expected = capi.Adam(n).arrays
    op.kernels.adam(param, np.linspace(-1, 1, n, dtype=np.float32), *states, step=1)
    for loop in loops:
        assert_same_bits(loop(), expected)


def test_rows_beside_numba_are_the_reference():
    table, width, rows = 50, 7, 20
    steps = capi.row_steps(table, width, rows)
    rng = np.random.default_rng(0)
    named = [rng.permutation(table)[:rows] for _ in range(capi.SETS)]
    grad = rng.normal(size=(rows, width)).astype(np.float32)
    expected = capi.Adam(table, width).arrays
    for index in named[:3]:
        expected = Adam.reference_step(*expected[:1], grad, *expected[1:], step=1, rows=index)[:3]
        for step in steps.values():
            assert_same_bits(step(), expected)


def test_a_table_of_c_has_a_column_for_what_is_there(capsys, monkeypatch):
    options = "--table 50 --rows 20 --width 2 --seconds 0.01"
    monkeypatch.setattr("sys.argv", ["capi.py", *options.split()])
    monkeypatch.setattr(capi, "SIZES", (8,))
    monkeypatch.setattr(capi, "numba_loops", lambda: None)
    capi.main()
    _, _, head, calls, _, rows_head, rows = capsys.readouterr().out.splitlines()
    in_c = 2 if capi.c_loop() else 0
    assert len(calls.split()) == 2 + in_c
    assert "Numba" not in head + rows_head
    assert len(rows.split()) == 2


def test_fits_of_scikit_learn(capsys, monkeypatch):
    options = "--data 220x20 --layers 3 --rounds 1"
    monkeypatch.setattr("sys.argv", ["sklearn_fit.py", *options.split()])
    sklearn_fit.main()
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["data", "layers", "dtype"]
    assert [row.split()[:3] for row in rows] == [["220x20", "3", d] for d in ("float64", "float32")]
    assert sklearn_fit.batches(np.ones(200)) == 1
    assert sklearn_fit.batches(np.ones(201)) == 2


@pytest.mark.parametrize("name", end_to_end.TRAININGS)
def test_whole_trainings_take_the_same_steps_by_hand(name):
    training = replace(end_to_end.TRAININGS[name], steps=3)
    shares = []
    ours = training.run(end_to_end.by_onepass, shares)
    theirs = training.run(end_to_end.by_hand, shares)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert all(0 < share < 1 for share in shares)


def test_gradients_of_the_physics_informed_fit():
    params, gradients = end_to_end.physics()
    c, w, b = params
    x = np.linspace(0, 1, 256)[:, None]

    def loss():
        t = np.tanh(x * w + b)
        error = (-2 * t * (1 - t * t)) @ (c * w * w) + np.pi**2 * np.sin(np.pi * x[:, 0])
        ends = np.tanh(np.array([[0.0], [1.0]]) * w + b) @ c
        return (error**2).mean() + (ends**2).sum()

    for param, grad in zip(params, gradients(0), strict=True):
        for i in (0, 17, 63):
            around = []
            for h in (1e-5, -1e-5):
                kept = param[i]
                param[i] = kept + h
                around.append(loss())
                param[i] = kept
            assert (around[0] - around[1]) / 2e-5 == pytest.approx(grad[i], rel=1e-5)


def test_the_table_of_whole_trainings(capsys, monkeypatch):
    arguments = ["end_to_end", "--training", "physics-informed fit, 64 units"]
    monkeypatch.setattr("sys.argv", [*arguments, "--threads", "1", "--seconds", "0.01"])
    monkeypatch.setitem(
        end_to_end.TRAININGS,
        arguments[-1],
        end_to_end.Training(end_to_end.physics, 2),
    )
    end_to_end.main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| physics-informed fit, 64 units | 1 |")
    assert row.count("|") == 7


def test_all_step_alike():
    """Who is compared computes the same; optax and Numba where they are installed."""
    made = plan.steppers(Workload("two", [(30, 20), (20,)]))
    for rival in made.values():
        for _ in range(3):
            rival.step()
    ours = made.pop("onepass").params
    for name, rival in made.items():
        for a, b in zip(ours, rival.params, strict=True):
            theirs = b.detach().numpy() if name == "torch" else np.asarray(b)
            np.testing.assert_allclose(a, theirs, rtol=1e-5, atol=1e-6)
