"""BatchNorm of a batch that comes in pieces: the statistics and gradients of the whole batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from batchnorm_cases import FUNCTIONS, Problem, exact, mean_and_variance
from helpers import FORMATS, assert_same_bits, digest
from onepass.batchnorm import GradientSums, Moments


def whole_moments(pieces, **options):
    return op.batch_norm_merge([op.batch_norm_moments(piece, **options) for piece in pieces])


def statistics(moments):
    """The mean and 1 / the standard deviation."""
    none = np.zeros((0, len(moments.center)))
    return op.batch_norm_normalize(none, moments)[1:]


def forward(problem, pieces, start, options):
    """What each piece becomes; the first one moves the running statistics."""
    moments = whole_moments([piece["x"] for piece in pieces], axis=problem.axis)
    results = []
    for k, piece in enumerate(pieces):
        running = dict(zip(("running_mean", "running_var"), start, strict=True)) if k == 0 else {}
        options = {**options, "axis": problem.axis, "residual": piece["residual"]}
        results.append(op.batch_norm_normalize(piece["x"], moments, **options, **running))
    return results


def backward(problem, pieces, mean, invstd, options):
    options = {**options, "axis": problem.axis, "saved_mean": mean, "saved_invstd": invstd}
    sums = op.batch_norm_merge(
        [
            op.batch_norm_gradient_sums(
                piece["dy"], piece["x"], residual=piece["residual"], **options
            )
            for piece in pieces
        ]
    )
    gradients = [
        op.batch_norm_input_gradient(
            piece["dy"], piece["x"], sums, residual=piece["residual"], **options
        )
        for piece in pieces
    ]
    return sums, gradients


def cut(problem, cuts, along):
    names = ("x", "dy", "residual")
    parts = {
        name: np.split(array, cuts, along)
        if (array := getattr(problem, name)) is not None
        else None
        for name in names
    }
    return [
        {
            name: None if part is None else np.ascontiguousarray(part[k])
            for name, part in parts.items()
        }
        for k in range(len(cuts) + 1)
    ]


LAYOUTS = [
    ((24, 5), 1),
    ((24, 3, 7), 1),
    ((24, 4, 9, 5), 1),
    ((24, 9, 5, 4), -1),
    ((24, 2, 300), 1),
]


@settings(max_examples=60)
@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(FORMATS),
    cuts=st.lists(st.integers(0, 24), max_size=6).map(sorted),
    threads=st.sampled_from([1, 3]),
    relu=st.booleans(),
    rows=st.integers(2, 24),
    seed=st.integers(0, 2**32),
)
def test_any_cut_gives_the_bits_of_the_whole_where_sums_are_exact(
    layout, dtype, cuts, threads, relu, rows, seed
):
    """Pieces with one row and with none included."""
    rest, axis = layout
    rng = np.random.default_rng(seed)
    problem = Problem(rng, (rows, *rest), axis, dtype, exact, residual=relu)
    pieces = cut(problem, [min(place, rows) for place in cuts], 0)
    given = {"weight": problem.weight, "bias": problem.bias, "relu": relu, "num_threads": threads}
    start = [abs(rng.normal(size=problem.weight.shape)).astype(dtype) for _ in range(2)]
    running = [array.copy() for array in start]
    options = {**given, "axis": axis, "residual": problem.residual}
    y, mean, invstd = op.batch_norm_train(
        problem.x, running_mean=running[0], running_var=running[1], **options
    )
    found = forward(problem, pieces, start, given)
    assert_same_bits(np.concatenate([piece[0] for piece in found]), y)
    for _, *saved in found:
        assert_same_bits(saved[0], mean)
        assert_same_bits(saved[1], invstd)
    for one, other in zip(start, running, strict=True):
        assert_same_bits(one, other)

    mean = exact(rng, len(mean), np.float64)  # the products with it are exact, too
    expected = op.batch_norm_backward(
        problem.dy, problem.x, saved_mean=mean, saved_invstd=invstd, **options
    )
    sums, gradients = backward(problem, pieces, mean, invstd, given)
    if not relu:
        gradients = [(dx,) for dx in gradients]
    for k, other in enumerate(expected[:1] + expected[3:]):
        assert_same_bits(np.concatenate([piece[k] for piece in gradients]), other)
    assert_same_bits((sums.product * invstd).astype(dtype), expected[1])
    assert_same_bits(sums.sum.astype(dtype), expected[2])


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("cuts", [[1], [1, 2, 3], [500], [0, 7, 7, 900]], ids=str)
def test_any_data_in_pieces(rng, dtype, offset, cuts):
    x = (rng.normal(size=(1000, 3, 4)) + offset).astype(dtype)
    moments = whole_moments(np.split(x, cuts))
    mean, invstd = statistics(moments)
    expected_mean, expected_var = mean_and_variance(x)
    np.testing.assert_allclose(mean, expected_mean, rtol=4e-16, atol=1e-15)
    np.testing.assert_allclose(invstd, 1 / np.sqrt(expected_var + 1e-5), rtol=1e-13)
    if dtype == np.float32:
        found = [op.batch_norm_normalize(piece, moments)[0] for piece in np.split(x, cuts)]
        assert_same_bits(np.concatenate(found), op.batch_norm_train(x)[0])


def test_the_moments_are_their_definition():
    x = np.array([[1.0], [2.0], [4.0], [9.0]])
    count, center, total, square = op.batch_norm_moments(x)
    assert count == 4
    assert center == x.mean()  # of up to 16 first values
    assert total == (x - center).sum()
    assert square == ((x - center) ** 2).sum()
    one = op.batch_norm_moments(x[:1])
    assert [one.count, *one.center, *one.sum, *one.square] == [1, 1, 0, 0]
    none = op.batch_norm_moments(x[:0])
    assert [none.count, *none.center, *none.sum, *none.square] == [0, 0, 0, 0]


@pytest.mark.parametrize("far", [1e6, -1e8])
def test_a_first_piece_far_from_the_others(rng, far):
    """Sums about its center alone would lose eight digits or more."""
    x = rng.normal(size=(100_000, 2)).astype(np.float32)
    x[0] = far
    _, invstd = statistics(whole_moments([x[:1], x[1:40_000], x[40_000:]]))
    exactly = x[:, 0].astype(np.longdouble)
    var = ((exactly - exactly.mean()) ** 2).mean()
    assert 1 / invstd[0] ** 2 - 1e-5 == pytest.approx(float(var), rel=1e-12)


def test_statistics_over_accumulated_micro_batches(rng):
    """The few lines that the documentation shows: the gradients are those of the whole batch."""
    x, dy = rng.normal(size=(2, 12, 4, 5))
    weight, bias = rng.normal(size=(2, 4))
    y, mean, invstd = op.batch_norm_train(x, weight=weight, bias=bias)
    expected = op.batch_norm_backward(
        dy, x, saved_mean=mean, saved_invstd=invstd, weight=weight, bias=bias
    )
    micro = np.split(x, 3), np.split(dy, 3)

    moments = op.batch_norm_merge([op.batch_norm_moments(part) for part in micro[0]])
    ys, saved = [], {}
    for part in micro[0]:
        out, saved["saved_mean"], saved["saved_invstd"] = op.batch_norm_normalize(
            part, moments, weight=weight, bias=bias
        )
        ys.append(out)
    sums = op.batch_norm_merge(
        [
            op.batch_norm_gradient_sums(g, part, **saved)
            for g, part in zip(*micro[::-1], strict=True)
        ]
    )
    dxs = [
        op.batch_norm_input_gradient(g, part, sums, **saved, weight=weight)
        for g, part in zip(*micro[::-1], strict=True)
    ]
    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(np.concatenate(ys), y, **close)
    np.testing.assert_allclose(np.concatenate(dxs), expected[0], **close)
    np.testing.assert_allclose(sums.product * invstd, expected[1], **close)
    np.testing.assert_allclose(sums.sum, expected[2], **close)


def test_what_is_not_finite_shows(rng, dtype):
    x = rng.normal(size=(8, 3)).astype(dtype)
    x[5, 1] = np.inf
    moments = whole_moments([x[:4], x[4:]])
    y, *_ = op.batch_norm_normalize(x, moments)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()
    running = np.zeros(3), np.ones(3)
    options = {"running_mean": running[0], "running_var": running[1], "nonfinite": "skip"}
    op.batch_norm_normalize(x, moments, **options)
    assert digest(running) == digest((np.zeros(3), np.ones(3)))


# Errors

GOOD = Moments(4, np.zeros(3), np.zeros(3), np.ones(3))
SUMS = GradientSums(4, np.zeros(3), np.ones(3))
BAD_PIECES = {
    "nothing": ([], TypeError, "pieces: expected Moments, or GradientSums, at least one, got none"),
    "tuples": ([tuple(GOOD)], TypeError, "pieces: expected Moments.*got tuple"),
    "both": ([GOOD, SUMS], TypeError, "pieces: expected Moments.*got GradientSums, Moments"),
    "channels": (
        [GOOD, Moments(4, *np.zeros((3, 2)))],
        ValueError,
        "pieces: expected as many channels in each, got shapes",
    ),
}


@pytest.mark.parametrize("case", BAD_PIECES)
def test_pieces_that_do_not_merge(case):
    pieces, error, message = BAD_PIECES[case]
    with pytest.raises(error, match=f"^{message}"):
        op.batch_norm_merge(pieces)


BAD_MOMENTS = {
    "a tuple": (tuple(GOOD), TypeError, "moments: expected Moments, got tuple"),
    "one value": (
        GOOD._replace(count=1),
        ValueError,
        "moments.count: expected more than one value per channel in all pieces together, got 1",
    ),
    "a negative count": (GOOD._replace(count=-1), ValueError, r"moments.count: expected a number"),
    "a float count": (GOOD._replace(count=4.0), TypeError, "moments.count: expected an integer"),
    "channels": (
        GOOD._replace(sum=np.zeros(2)),
        ValueError,
        r"moments.sum: expected shape \(3,\)",
    ),
    "a list": (GOOD._replace(square=[1.0] * 3), TypeError, "moments.square: expected a NumPy arr"),
    "complex": (GOOD._replace(center=np.zeros(3, complex)), TypeError, "moments.center: expected"),
}


@pytest.mark.parametrize("case", BAD_MOMENTS)
def test_bad_moments_change_nothing(rng, case):
    moments, error, message = BAD_MOMENTS[case]
    x, out = rng.normal(size=(8, 3)), np.full((8, 3), 7.0)
    running = np.zeros(3), np.ones(3)
    with pytest.raises(error, match=f"^{message}"):
        op.batch_norm_normalize(
            x, moments, out=out, running_mean=running[0], running_var=running[1]
        )
    assert (out == 7).all()
    assert digest(running) == digest((np.zeros(3), np.ones(3)))


@pytest.mark.parametrize(
    ("sums", "error", "message"),
    [
        (tuple(SUMS), TypeError, "sums: expected GradientSums, got tuple"),
        (SUMS._replace(product=np.zeros(4)), ValueError, r"sums.product: expected shape \(3,\)"),
        (SUMS._replace(count=True), TypeError, "sums.count: expected an integer"),
    ],
)
def test_bad_sums_change_nothing(rng, sums, error, message):
    x, out = rng.normal(size=(8, 3)), np.full((8, 3), 7.0)
    with pytest.raises(error, match=f"^{message}"):
        op.batch_norm_input_gradient(
            x, x, sums, saved_mean=np.zeros(3), saved_invstd=np.ones(3), out=out
        )
    assert (out == 7).all()


def test_out_must_not_overlap_with_the_moments(rng):
    buffer = np.ones((8, 3))
    moments = GOOD._replace(center=buffer[2])
    with pytest.raises(ValueError, match=r"^out: expected memory of its own.*moments\.center"):
        op.batch_norm_normalize(rng.normal(size=(8, 3)), moments, out=buffer)
    assert (buffer == 1).all()


def test_the_arguments_stay_as_they_are(rng):
    x = [rng.normal(size=(4, 3)) for _ in range(3)]
    pieces = [op.batch_norm_moments(part) for part in x]
    before = digest(x, pieces)
    merged = op.batch_norm_merge(pieces)
    for array in merged[1:]:
        array[:] = 7
    alone = op.batch_norm_merge(pieces[:1])
    for array in alone[1:]:
        array[:] = 7
    assert digest(x, pieces) == before


def test_both_halves_are_the_function(rng, dtype):
    """One piece is the whole batch."""
    p = {
        "x": rng.normal(size=(40, 3, 7)).astype(dtype),
        "dy": rng.normal(size=(40, 3, 7)).astype(dtype),
        "weight": rng.normal(size=3).astype(dtype),
        "bias": rng.normal(size=3).astype(dtype),
    }
    y, mean, invstd = FUNCTIONS["train"](p)
    affine = {"weight": p["weight"], "bias": p["bias"]}
    found = op.batch_norm_normalize(p["x"], op.batch_norm_moments(p["x"]), **affine)
    assert digest(found) == digest((y, mean, invstd))
    saved = {"saved_mean": mean, "saved_invstd": invstd, **affine}
    sums = op.batch_norm_gradient_sums(p["dy"], p["x"], **saved)
    dx, dweight, dbias = op.batch_norm_backward(p["dy"], p["x"], **saved)
    assert_same_bits(op.batch_norm_input_gradient(p["dy"], p["x"], sums, **saved), dx)
    assert_same_bits((sums.product * invstd).astype(dtype), dweight)
    assert_same_bits(sums.sum.astype(dtype), dbias)
