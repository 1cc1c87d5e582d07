"""How the optimizers keep numbers in fewer bits, in NumPy: the kernels equal it bit for bit.

Random bits, which numbers are rounded by, are a function of seed, step, array and element alone:
`random_bits`. `narrow` makes 16 bits of float32, `q8_encode` 8.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from onepass._memory import aligned_zeros
from onepass._quiet import quiet
from onepass._typing import Array

Bits = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.uint8]

BLOCK = 256
"""Elements that share a scale in 8 bits, and that random bits are counted by."""

NOT_FINITE = {True: 251, False: 255}
"""The scale of a block with an infinity or a NaN in it, by whether numbers have a sign."""

_LOWEST = {True: 19, False: 31}
"""What is taken off the exponent of a block's largest number, as a float has it, for its scale."""

_BINADES = {True: 15, False: 31}
"""How far below that exponent the smallest begins."""

_HEADROOM = {True: 1 << 21, False: (1 << 20) - 1}
"""Added to the largest number's bits before its exponent is taken: none may leave the range."""


def random_bits(seed: int, step: int, array: int, size: int) -> Bits:
    """Return 20 random bits for each element of an array, as one step rounds it.

    SplitMix64 draws one number for each of the 256 columns of a block and one for each block; the
    bits of an element are those of its column XOR those of its block, so any two elements' are
    independent.

    Parameters
    ----------
    seed : int >= 0
    step : int >= 1
        The parameter's.
    array : int >= 0
        Which of the arrays that the step rounds: ``index * (n + 1) + k`` for the `k`-th of the
        `n` state arrays that the rule may have, ``k = n`` for the parameter itself, `index` being
        the parameter's place among all.
    size : int >= 0

    References
    ----------
    G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014 (SplitMix64).

    Examples
    --------
    >>> import onepass as op
    >>> bits = op.formats.random_bits(seed=0, step=1, array=0, size=100_000)
    >>> int(bits.max()) < 2**20, round(float(bits.mean() / 2**20), 2)
    (True, 0.5)
    """
    key = _split_mix(_split_mix(_uint64(seed), 0), step)
    columns = _split_mix(key, np.arange(BLOCK)) >> np.uint64(44)
    rows = _split_mix(_split_mix(~key, array), np.arange(-(-size // BLOCK))) >> np.uint64(44)
    bits = columns[None, :] ^ rows[:, None]
    return bits.reshape(-1)[:size].astype(np.uint32)


def _uint64(value: int) -> npt.NDArray[np.uint64]:
    return np.array([value], np.uint64)  # arrays wrap around without a warning


def _split_mix(state: npt.NDArray[np.uint64], index: Any) -> npt.NDArray[np.uint64]:
    """Return what the generator that began with `state` draws `index`-th, from 0."""
    z = state + (np.atleast_1d(np.asarray(index, np.uint64)) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


@quiet
def narrow(values: Array, dtype: npt.DTypeLike, bits: Bits | None = None) -> Array:
    r"""Return float32 numbers in float16 or bfloat16.

    To nearest, ties to even, as NumPy does it; or with random bits, one for each element,
    stochastically: of the two neighbours :math:`a \le x \le b`, :math:`b` with probability
    :math:`(x - a) / (b - a)`, so that the mean is :math:`x`. As many of an element's bits decide as
    are rounded off, the lowest.

    Parameters
    ----------
    values : ndarray of float32
    dtype : float16 or ml_dtypes.bfloat16
    bits : ndarray of uint32, optional
        Of the shape of `values`; from `random_bits`.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> tenths = np.full(10_000, 0.1, np.float32)  # float16 has 0.09998 and 0.10004
    >>> bits = op.formats.random_bits(seed=0, step=1, array=0, size=tenths.size)
    >>> round(float(op.formats.narrow(tenths, np.float16)[0]), 5)
    0.09998
    >>> round(float(op.formats.narrow(tenths, np.float16, bits).astype(float).mean()), 5)
    0.1
    """
    if bits is None:
        return np.asarray(values.astype(dtype))
    unsigned = values.view(np.uint32)
    magnitude, sign = unsigned & 0x7FFFFFFF, unsigned >> 16 & 0x8000
    if np.dtype(dtype) == np.float16:
        # Adding 2^-14 puts a subnormal number's last bit where a normal one has it.
        shifted = (magnitude.view(np.float32) + np.float32(2**-14)).view(np.uint32)
        is_small = magnitude < 113 << 23
        exact = np.where(is_small, shifted - (113 << 23), magnitude - (112 << 23))
        rounded = (exact + (bits & 0x1FFF)) >> 13
        special = np.where(magnitude > 0x7F800000, 0x7E00, 0x7C00)
        found = np.where(magnitude >= 143 << 23, special, rounded)
    else:
        is_nan = magnitude > 0x7F800000
        found = np.where(is_nan, magnitude | 0x400000, magnitude + (bits & 0xFFFF)) >> 16
    return np.asarray((found | sign).astype(np.uint16).view(dtype))


@quiet
def q8_encode(values: Array, *, signed: bool, bits: Bits | None = None) -> Codes:
    r"""Return numbers in 8 bits each and a scale of 8 bits for each block of 256.

    A code is a small float of 3 bits of mantissa, whose exponent counts down from that of the
    block's largest number, :math:`2^E`. Without a sign it has 5 bits of exponent; code
    :math:`8e + m` stands for

    .. math:: 2^{E - 31 + e} (1 + m / 8),

    and what is smaller than code 0 becomes that: 0 is kept only in a block without normal floats
    above :math:`2^{-96}`, whose codes below 8 are subnormal floats. With a sign it has 4, and
    stands for

    .. math:: \pm 2^{E - 15} \left(2^e (1 + m / 8) - 1\right),

    evenly spaced about 0 and exponentially further up. :math:`E` is one more where the largest
    number is close to the next power of two (above 1.875, with a sign from 1.75 on), and not less
    than -96 (with a sign -108).

    A number between two neighbours becomes one of them: stochastically, the upper one of
    :math:`a \le x \le b` with probability :math:`(x - a) / (b - a)`, or without `bits` the nearer.
    They are apart by at most :math:`x / 8`, with a sign by :math:`(|x| + 2^{E - 15}) / 8`.

    An infinity or a NaN makes NaN of its block, and so does a number whose :math:`E` would be 128.

    Parameters
    ----------
    values : ndarray of float32
        Taken in the order that they have in memory; not negative unless `signed`.
    signed : bool
    bits : ndarray of uint32, optional
        From `random_bits`, one for each element in memory's order.

    Returns
    -------
    ndarray of uint8, shape (257 * ceil(size / 256),)
        The codes, the sign in the highest bit, then the scales. The last block is filled up with
        zeros; codes stand in words of four, element :math:`64k + i` of a block in byte `k` of its
        word `i`.

    Notes
    -----
    Differs from bitsandbytes, whose map is a table of 256 values for a float32 maximum of each
    block, and which rounds to nearest.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> codes = op.formats.q8_encode(np.array([1.0, -0.3, 0.001], np.float32), signed=True)
    >>> codes.size
    257
    >>> [round(float(x), 4) for x in op.formats.q8_decode(codes, 3, signed=True)]
    [1.0, -0.3125, 0.0009]
    """
    flat = values.ravel(order="K")
    blocks = -(-flat.size // BLOCK)
    unsigned = np.zeros((blocks, BLOCK), np.uint32)
    unsigned.reshape(-1)[: flat.size] = flat.view(np.uint32)
    rounding = np.full((blocks, BLOCK), 1 << 19, np.uint32)
    if bits is not None:
        rounding.reshape(-1)[: flat.size] = bits
    magnitude = unsigned & 0x7FFFFFFF
    exponents = (magnitude.max(axis=1, initial=0) + _HEADROOM[signed]) >> 23
    finite = exponents < 255
    scales = np.maximum(np.where(finite, exponents, 0), _LOWEST[signed]) - _LOWEST[signed]
    first = _first(scales.astype(np.uint8), signed)
    if signed:
        shifted = magnitude.view(np.float32) + first.view(np.float32)
        codes = ((shifted.view(np.uint32) + rounding) >> 20) - (first >> 20)
        codes |= unsigned >> 24 & 0x80
    else:
        codes = (np.maximum(magnitude, first) - first + rounding) >> 20
    scales[~finite], codes[~finite] = NOT_FINITE[signed], 0 if signed else 1
    encoded = aligned_zeros(q8_size(flat.size), np.uint8)
    words = codes.reshape(-1, 4, BLOCK // 4).swapaxes(1, 2)
    encoded[: words.size], encoded[words.size :] = words.reshape(-1), scales
    return encoded


@quiet
def q8_decode(codes: Codes, size: int, *, signed: bool) -> Array:
    """Return the numbers that `q8_encode` has encoded, as a vector of float32.

    Parameters
    ----------
    codes : ndarray of uint8, shape (257 * ceil(size / 256),)
        The codes, then the scales.
    size : int
        How many numbers there are.
    signed : bool
    """
    words, scales = _split(codes)
    elements = words.reshape(-1, BLOCK // 4, 4).swapaxes(1, 2).reshape(-1, BLOCK).astype(np.uint32)
    first = _first(scales, signed)
    if not signed:
        return ((elements << 20) + first).view(np.float32).reshape(-1)[:size]
    found = (((elements & 0x7F) << 20) + first).view(np.float32) - first.view(np.float32)
    return (found.view(np.uint32) | (elements & 0x80) << 24).view(np.float32).reshape(-1)[:size]


def q8_size(elements: int) -> int:
    """Return how many bytes so many numbers take, codes and scales."""
    return (BLOCK + 1) * -(-elements // BLOCK)


def q8_check(codes: Codes, *, signed: bool) -> None:
    """Raise ValueError where a block's scale is none that `q8_encode` makes."""
    _, scales = _split(codes)
    most = 254 - _LOWEST[signed]
    bad = np.flatnonzero((scales > most) & (scales != NOT_FINITE[signed]))
    if bad.size:
        got = f"{scales[bad[0]]} for block {bad[0]}"
        expected = f"block scales up to {most}, or {NOT_FINITE[signed]}"
        raise ValueError(f"expected {expected}, got {got}")


def _split(codes: Codes) -> tuple[Codes, Codes]:
    """Return the words that codes stand in, and the scales behind them."""
    end = codes.size // (BLOCK + 1) * BLOCK
    return codes[:end], codes[end:]


def _first(scales: Codes, signed: bool) -> Bits:
    """Return the bits of the float that each block's codes count from, as a column."""
    exponents = scales.astype(np.uint32) + (_LOWEST[signed] - _BINADES[signed])
    return (exponents << np.uint32(23))[:, None]
