"""Numbers in fewer bits, by the definitions: which there are, how they round, by which random bits.

This is about the NumPy side, `onepass.formats`; test_storage.py holds the kernels against it.
"""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers import SMALL_FORMATS, assert_same_bits
from onepass import formats
from storage_cases import blocks_of

BLOCK = 256
MOST_BITS = 2**20 - 1
# By whether numbers have a sign: the largest of all scales, and that of what is not finite.
SCALES = {True: 235, False: 223}
NOT_FINITE = {True: 251, False: 255}

signs = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
dtypes = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: np.dtype(dtype).name)


def grid(scale, signed):
    """What each of the 256 codes stands for in a block with this scale, in double."""
    code = np.arange(256)
    mantissa = code % 8 / 8
    if signed:
        exponent = code % 128 // 8
        magnitude = np.ldexp(np.ldexp(1 + mantissa, exponent) - 1, scale - 108 - 15)
        return np.where(code < 128, magnitude, -magnitude)
    exponent = scale - 127 + code // 8
    # The smallest block's are those of subnormal floats.
    return np.where(exponent > -127, np.ldexp(1 + mantissa, exponent), np.ldexp(mantissa, -126))


def all_codes(signed):
    """Blocks of all codes, one for each scale."""
    scales = np.arange(SCALES[signed] + 1)
    values = np.array([grid(scale, signed) for scale in scales])
    return blocks_of(np.arange(256), scales), values.astype(np.float32).reshape(-1)


def coded(values, signed, bits=None):
    """What values become in 8 bits."""
    codes = formats.q8_encode(values, signed=signed, bits=bits)
    return formats.q8_decode(codes, values.size, signed=signed)


def exponent_of(largest, signed):
    """The exponent that a block's numbers count down from."""
    exponent = math.frexp(largest)[1] - 1 if largest else -200
    is_close = largest >= 1.75 * 2.0**exponent if signed else largest > 1.875 * 2.0**exponent
    return max(exponent + is_close, -108 if signed else -96)


class TestEightBits:
    @signs
    def test_every_code_of_every_scale(self, signed):
        codes, values = all_codes(signed)
        assert_same_bits(formats.q8_decode(codes, values.size, signed=signed), values)

    @signs
    def test_element_64k_plus_i_stands_in_byte_k_of_word_i(self, signed):
        """In the codes alone; behind those of all blocks are the scales."""
        values = np.zeros(300, np.float32)
        for element, byte in ((0, 0), (1, 4), (63, 252), (64, 1), (70, 25), (255, 255), (299, 428)):
            values[:] = 0
            values[element] = 1
            codes = formats.q8_encode(values, signed=signed)
            assert codes.size == 2 * 257
            assert np.flatnonzero(codes[:512]).tolist() == [byte]

    @signs
    @pytest.mark.parametrize("bits", [None, 0, MOST_BITS, "random"])
    def test_what_is_on_the_grid_stays(self, signed, bits, rng):
        """But for the largest codes with a sign: with those the block's exponent is one more."""
        codes, values = all_codes(signed)
        if signed:
            elements = np.arange(256)
            codes = blocks_of(elements - (elements % 128 == 127), np.arange(SCALES[signed] + 1))
            values = formats.q8_decode(codes, values.size, signed=signed)
        if bits is not None:
            bits = rng.integers(0, 2**20, values.size) if bits == "random" else bits
            bits = np.broadcast_to(np.uint32(bits), values.shape)
        np.testing.assert_array_equal(formats.q8_encode(values, signed=signed, bits=bits), codes)

    @signs
    def test_the_scale_is_that_of_the_largest(self, signed):
        """One more where rounding up what is added to could leave the range."""
        limit = np.float32(1.75 if signed else 1.875)
        near = [np.nextafter(limit, np.float32(0)), limit, np.nextafter(limit, np.float32(2))]
        for exponent in (-140, -109, -108, -96, -95, 0, 126):
            for largest in [1.0, 1.5, *near]:
                value = np.array([largest * 2.0**exponent, 2.0**-149], np.float32)
                scale = exponent_of(float(value[0]), signed) + (108 if signed else 96)
                assert formats.q8_encode(-value if signed else value, signed=signed)[-1] == scale

    @signs
    def test_blocks_of_zeros_and_of_what_is_not_finite(self, signed):
        for bad in (np.inf, np.nan, 2.0**128 * (15.5 / 16)):  # and of what has no scale
            values = np.zeros(3 * BLOCK + 5, np.float32)
            values[BLOCK + 7] = bad
            values[-1] = 1
            found = coded(values, signed)
            assert not found[:BLOCK].any()
            assert np.isnan(found[BLOCK : 2 * BLOCK]).all()
            assert not found[2 * BLOCK : 3 * BLOCK].any()
            assert np.isfinite(found[3 * BLOCK :]).all()

    def test_zeros_keep_their_sign(self):
        values = np.array([0.0, -0.0, 1.0], np.float32)
        found = coded(values, signed=True)
        assert_same_bits(found[:2], values[:2])

    @signs
    def test_any_finite_numbers_move_no_further_than_is_said(self, signed):
        check_any_block(signed)

    @signs
    def test_without_bits_to_the_nearest(self, signed, rng):
        """But for what lies in the middle, as a float that has been added to."""
        values = np.exp2(rng.uniform(-40, 0, (50, BLOCK))).astype(np.float32)
        values[:, 0] = 1
        if signed:
            values *= rng.choice([-1, 1], values.shape)
        found = coded(values, signed)
        exact = values.reshape(-1, 1).astype(float)
        distances = np.abs(exact - grid(108 if signed else 96, signed)).min(axis=1)
        moved = np.abs(exact[:, 0] - found)
        tolerance = 2.0**-23 * (np.abs(exact[:, 0]) + 2.0**-15) if signed else 0
        assert (moved <= distances + tolerance).all()

    @signs
    def test_order_is_memorys(self, signed, rng):
        values = np.abs(rng.normal(size=(30, 40))).astype(np.float32)
        codes = formats.q8_encode(values, signed=signed)
        transposed = np.asfortranarray(values.T)
        assert_same_bits(formats.q8_encode(transposed, signed=signed), codes)

    def test_the_last_block_is_filled_up(self):
        for size in range(600):
            codes = formats.q8_encode(np.ones(size, np.float32), signed=True)
            assert codes.size == formats.q8_size(size) == math.ceil(size / 256) * 257
            assert np.count_nonzero(codes[: codes.size // 257 * 256]) == size
            assert formats.q8_decode(codes, size, signed=True).size == size

    @signs
    def test_check_of_scales(self, signed):
        codes = np.zeros(3 * 257, np.uint8)
        for scale in range(256):
            codes[-2] = scale
            if scale <= SCALES[signed] or scale == NOT_FINITE[signed]:
                formats.q8_check(codes, signed=signed)
                continue
            scales = f"up to {SCALES[signed]}, or {NOT_FINITE[signed]}"
            words = f"^expected block scales {scales}, got {scale} for block 1$"
            with pytest.raises(ValueError, match=words):
                formats.q8_check(codes, signed=signed)


def spread(seed, size, largest, binades):
    """Numbers of so many binades below an exponent."""
    rng = np.random.default_rng(seed)
    magnitude = np.exp2(largest - binades * rng.random(size)) * (rng.random(size) > 0.1)
    return (magnitude * rng.choice([-1, 1], size)).astype(np.float32).view(np.uint32)


blocks = st.one_of(
    hnp.arrays(np.uint32, st.integers(1, 600)),
    st.builds(
        spread,
        st.integers(0, 999),
        st.integers(1, 600),
        st.floats(-149, 127.99),
        st.floats(0, 60),
    ),
)


def check_any_block(signed):
    @given(unsigned=blocks, seed=st.integers(0, 999))
    @example(unsigned=np.array([0x7F700001, 1], np.uint32), seed=0)
    @example(unsigned=np.array([0x7F700000, 1], np.uint32), seed=0)
    @example(unsigned=np.array([0x7F5FFFFF, 1, 0x7F5FFFFE], np.uint32), seed=0)
    @example(unsigned=np.array([0x3FDFFFFF, 0x2000, 0, 0x80000000], np.uint32), seed=0)
    @example(unsigned=np.array([1, 2, 2**23, 0], np.uint32), seed=0)
    @settings(max_examples=150)
    def check(unsigned, seed):
        values = (unsigned if signed else unsigned & 0x7FFFFFFF).view(np.float32)
        random = np.random.default_rng(seed).integers(0, 2**20, values.size, np.uint32)
        for bits in (None, random, np.full(values.size, MOST_BITS, np.uint32)):
            codes = formats.q8_encode(values, signed=signed, bits=bits)
            formats.q8_check(codes, signed=signed)
            found = formats.q8_decode(codes, values.size, signed=signed)
            for begin in range(0, values.size, BLOCK):
                check_block(values[begin : begin + BLOCK], found[begin : begin + BLOCK], signed)

    check()


def check_block(before, after, signed):
    with np.errstate(invalid="ignore"):  # NaN that signal
        exact, largest = before.astype(float), float(np.abs(before).max())
    finite = math.isfinite(largest)
    exponent = exponent_of(largest, signed) if finite else 128
    if exponent == 128:
        assert np.isnan(after).all()
        return
    assert (np.signbit(before) == np.signbit(after)).all() or not signed
    moved = np.abs(exact - after)
    if signed:
        first = 2.0 ** (exponent - 15)
        assert (moved <= (np.abs(exact) + first) / 8).all()
        assert np.abs(after).max() <= 1.875 * 2.0**exponent
        return
    first = 2.0 ** (exponent - 31)
    if exponent == -96:
        assert (moved <= np.maximum(exact / 8, 2.0**-129)).all()
        return
    assert (moved[exact >= first] <= exact[exact >= first] / 8).all()
    assert (after[exact < first] == first).all()
    assert after.max() <= 1.875 * 2.0**exponent


# Stochastic rounding

NUMBERS = {
    "q8": [0.95, 0.3, -0.3, 2**-13.3, 1.6 * 2**-14, -(2**-15.2), 2**-18.5, 2**-30],
    "q8 unsigned": [0.95, 0.3, 2**-13.3, 2**-25.7, 2**-30.8],
    "bfloat16": [1.003, -1.003, 3e38, 1e-37, -3e-39, 1e-40],
    "float16": [1.0003, -0.1, 60_001.0, 2**-13.99, 2**-14.5, -(2**-17.2), 2**-26],
}
# The bits of the mantissa, the exponent of the smallest number that is not subnormal, and for 8
# bits with a sign what numbers are less by; the block's largest is 1.
PRECISION = {
    "q8": (3, -15, 2.0**-15),
    "q8 unsigned": (3, -31, 0.0),
    "bfloat16": (7, -126, 0.0),
    "float16": (10, -14, 0.0),
}
ROUNDED = [(name, number) for name, numbers in NUMBERS.items() for number in numbers]


def neighbours(number, name):
    """The format's next numbers toward 0 and away from it."""
    mantissa, lowest, less = PRECISION[name]
    more = abs(number) + less
    step = 2.0 ** (max(math.frexp(more)[1] - 1, lowest) - mantissa)
    ends = np.array([math.floor(more / step), math.ceil(more / step)]) * step - less
    return np.copysign(ends, number)


def rounded(number, name, bits):
    values = np.full(bits.size, number, np.float32)
    if name.startswith("q8"):
        signed = name == "q8"
        values[::BLOCK] = 1
        found = coded(values, signed, bits)
        return np.delete(found, np.arange(0, found.size, BLOCK))
    return formats.narrow(values, np.dtype(name), bits).astype(np.float32)


@pytest.mark.parametrize(("name", "number"), ROUNDED)
def test_rounding_is_to_a_neighbour_as_often_as_the_other_is_far(name, number):
    """So the mean is the number. The rates' errors are those of independent bits."""
    number = float(np.float32(number))
    low, high = neighbours(number, name)
    draws = [
        rounded(number, name, formats.random_bits(seed, step, array=3, size=2048))
        for seed in range(64)
        for step in (1, 2)
    ]
    found = np.concatenate(draws).astype(float)
    assert low != high
    assert set(np.unique(found)) == {low, high}
    share = (number - low) / (high - low)
    # The last of 13 bits (float16), where only so many are used, is worth 2^-13.
    assert (
        abs((found == high).mean() - share) < 5 * np.sqrt(share * (1 - share) / found.size) + 2**-13
    )
    spread = 5 * abs(high - low) / np.sqrt(found.size)
    assert abs(found.mean() - number) < spread


@dtypes
@pytest.mark.parametrize("bits", [None, 0, MOST_BITS, "random"])
def test_all_numbers_of_16_bits_stay(small, bits, rng):
    numbers = np.arange(2**16, dtype=np.uint16).view(small)
    if bits is not None:
        bits = rng.integers(0, 2**20, numbers.size) if bits == "random" else bits
        bits = np.broadcast_to(np.uint32(bits), numbers.shape)
    with np.errstate(invalid="ignore"):  # NaN that signal
        found = formats.narrow(numbers.astype(np.float32), small, bits)
        assert_same_bits(found, numbers)  # infinities stay too, and a NaN one


@dtypes
def test_any_nan_stays_one(small, rng):
    """Also one whose mantissa has its only bits among those that are rounded off."""
    payloads = np.concatenate([[1, 0x7FFFFF], rng.integers(1, 2**23, 1000)]).astype(np.uint32)
    values = (payloads | np.uint32(0x7F800000)).view(np.float32)
    values = np.concatenate([values, -values])
    for bits in (0, MOST_BITS):
        found = formats.narrow(values, small, np.full(values.size, bits, np.uint32))
        assert np.isnan(found).all()


@dtypes
def test_beyond_the_largest_number(small):
    """An infinity is the largest one's other neighbour; what lies beyond it becomes one."""
    largest = float(ml_dtypes.finfo(small).max)
    step = 2.0**5 if small == np.float16 else 2.0**120
    values = np.float32(largest + step * np.array([0.25, 0.75]))
    for value in values:
        found = [
            formats.narrow(value[None], small, np.array([b], np.uint32))[0] for b in (0, MOST_BITS)
        ]
        assert [float(f) for f in found] == [largest, np.inf]
    if small == np.float16:
        beyond = np.array([65_536, 1e38, np.inf], np.float32)
        for bits in (0, MOST_BITS):
            found = formats.narrow(np.append(beyond, -beyond), small, np.full(6, bits, np.uint32))
            np.testing.assert_array_equal(found, [np.inf] * 3 + [-np.inf] * 3)


@dtypes
def test_any_shape_and_order(small, rng):
    values = rng.normal(size=(30, 40)).astype(np.float32)
    bits = rng.integers(0, 2**20, values.shape).astype(np.uint32)
    expected = formats.narrow(values.ravel(), small, bits.ravel()).reshape(values.shape)
    assert_same_bits(formats.narrow(values, small, bits), expected)
    assert_same_bits(
        formats.narrow(np.asfortranarray(values), small, np.asfortranarray(bits)), expected
    )
    scalar = formats.narrow(values[0, 0, ...], small, bits[0, 0, ...])
    assert_same_bits(scalar, expected[0, 0, ...])


class TestRandomBits:
    def test_split_mix_is_the_published_generator(self):
        """The first outputs for the seed 1234567, as in other implementations' tests."""
        published = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ]
        state = np.array([1234567], np.uint64)
        np.testing.assert_array_equal(formats._split_mix(state, np.arange(5)), published)

    def test_a_shorter_array_has_the_first_of_them(self):
        whole = formats.random_bits(5, 7, 3, 5000)
        assert whole.dtype == np.uint32
        for size in (0, 1, 255, 256, 257, 4999):
            np.testing.assert_array_equal(formats.random_bits(5, 7, 3, size), whole[:size])

    def test_they_are_uniform(self):
        """Chi-square of 64 classes over the seeds: 63 on average, 144 once in 10^8."""
        bits = np.array([formats.random_bits(seed, 1, 0, 300) for seed in range(4096)])
        assert bits.max() < 2**20
        for element in (0, 1, 255, 256, 299):
            for shift in (0, 7, 14):
                counts = np.bincount(bits[:, element] >> shift & 63, minlength=64)
                assert ((counts - 64) ** 2 / 64).sum() < 144

    def test_any_two_are_independent(self):
        """No bit of an element, an array, a step or a seed tells of any bit of another."""
        draws = np.array([chosen(seed) for seed in range(0, 4096, 2)])
        spins = 2.0 * (draws[:, :, None] >> np.arange(20) & 1) - 1
        spins = spins.reshape(len(draws), -1)
        correlation = spins.T @ spins / len(spins)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < 6 / np.sqrt(len(spins))


def chosen(seed):
    """Bits of few elements: of one column and row and others, other arrays, steps and a seed."""
    first = formats.random_bits(seed, 1, 0, 600)[[0, 1, 255, 256, 257, 512]]
    others = [(seed, 1, 1), (seed, 1, 2), (seed, 2, 0), (seed, 3, 1), (seed + 1, 1, 0)]
    return [*first, *(formats.random_bits(*other, 257)[i] for other in others for i in (0, 256))]
