# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Word vectors by skip-gram with negative sampling, in a loop without the GIL.

It shows the functions fetched from the installed onepass, `update_rows` on an embedding table with
Adagrad, and how gradients of the same row are added up first, as `update_rows` asks.

    export CFLAGS="-I$(python -c 'import onepass as op; print(op.get_include())')"
    cythonize -i skipgram.pyx
    python -c "import skipgram; skipgram.main('README.md')"
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from libc.math cimport exp, log
from libc.stdint cimport int32_t, int64_t


cdef extern from "onepass/capi.h":
    const int32_t ONEPASS_F32, ONEPASS_OK, ONEPASS_SCALARS, ONEPASS_SETTINGS
    ctypedef struct onepass_api:
        const char *(*message)(int32_t code) nogil
        int32_t (*rule)(const char *name)
        int32_t (*count)(int32_t rule, int32_t what)
        int32_t (*defaults)(int32_t rule, double *settings)
        int32_t (*set)(int32_t rule, double *settings, const char *name, double value)
        int32_t (*scalars)(int32_t rule, int64_t step, const double *settings,
                           const double *memory, double *scalars) nogil
        int32_t (*update_rows)(int32_t rule, int32_t options, int32_t format, size_t n_rows,
                               size_t width, const int64_t *index, size_t n_index, void *param,
                               const void *grad, void *state0, void *state1, void *state2,
                               void *state3, const double *scalars, double *memory,
                               int32_t threads) nogil
    const onepass_api *onepass_import() except NULL

cdef const onepass_api *onepass = onepass_import()


cdef Py_ssize_t find_place(int64_t row, int64_t[::1] index, float[:, ::1] grad,
                           Py_ssize_t[::1] places, Py_ssize_t *n) noexcept nogil:
    """Return where a row's gradient is summed. A new one is behind the others, and zero."""
    cdef Py_ssize_t place = places[row]
    if place < 0:
        place = places[row] = n[0]
        index[place] = row
        grad[place] = 0
        n[0] += 1
    return place


cpdef Py_ssize_t find_gradient(const float[:, ::1] table, const int64_t[:, ::1] batch,
                               int64_t[::1] index, float[:, ::1] grad, Py_ssize_t[::1] places,
                               double[::1] loss) noexcept nogil:
    """Fill `index` with the rows of a batch, and `grad` with theirs; return how many there are.

    A row of the batch has a word, a word near it, and some that are not. All are rows of the table.
    """
    cdef Py_ssize_t i, j, k, place, other, n = 0
    cdef const float *word
    cdef const float *context
    cdef double score, p
    cdef float error
    for i in range(batch.shape[0]):
        place = find_place(batch[i, 0], index, grad, places, &n)
        word = &table[batch[i, 0], 0]
        for j in range(1, batch.shape[1]):
            other = find_place(batch[i, j], index, grad, places, &n)
            context = &table[batch[i, j], 0]
            score = 0
            for k in range(table.shape[1]):
                score += word[k] * context[k]
            p = 1 / (1 + exp(-score))
            loss[0] -= log(p if j == 1 else 1 - p)
            error = <float>(p - (j == 1))
            for k in range(table.shape[1]):
                grad[place, k] += error * context[k]
                grad[other, k] += error * word[k]
    for i in range(n):
        places[index[i]] = -1
    return n


def train(float[:, ::1] table, float[:, ::1] sums, const int64_t[:, :, ::1] batches, double lr,
          int64_t steps=0):
    """Take a step for each batch, after so many others, and return the loss of all batches."""
    if sums.shape[0] != table.shape[0] or sums.shape[1] != table.shape[1]:
        raise ValueError("sums: expected an array of the table's shape")
    if np.min(batches) < 0 or np.max(batches) >= table.shape[0]:
        raise ValueError("batches: expected rows of the table")
    cdef int32_t rule = onepass.rule(b"adagrad"), code = ONEPASS_OK
    cdef double[::1] settings = np.empty(onepass.count(rule, ONEPASS_SETTINGS))
    cdef double[::1] scalars = np.empty(onepass.count(rule, ONEPASS_SCALARS))
    cdef double[::1] loss = np.zeros(1)
    cdef Py_ssize_t i, n, most = min(table.shape[0], batches.shape[1] * batches.shape[2])
    cdef int64_t[::1] index = np.empty(most, np.int64)
    cdef float[:, ::1] grad = np.empty((most, table.shape[1]), np.float32)
    cdef Py_ssize_t[::1] places = np.full(table.shape[0], -1, np.intp)
    onepass.defaults(rule, &settings[0])
    onepass.set(rule, &settings[0], b"lr", lr)
    with nogil:
        for i in range(batches.shape[0]):
            n = find_gradient(table, batches[i], index, grad, places, loss)
            onepass.scalars(rule, steps + i + 1, &settings[0], NULL, &scalars[0])
            code = onepass.update_rows(rule, 0, ONEPASS_F32, table.shape[0], table.shape[1],
                                       &index[0], n, &table[0, 0], &grad[0, 0], &sums[0, 0],
                                       NULL, NULL, NULL, &scalars[0], NULL, 1)
            if code != ONEPASS_OK:
                break
    if code != ONEPASS_OK:
        raise ValueError(onepass.message(code).decode())
    return loss[0]


def read_batches(text, size=256, window=3, negatives=5, seed=0):
    """Return the words that occur twice, and batches of rows: a word, one near it, and others.

    A word's row as a neighbour is as many behind its own as there are words.
    """
    rng = np.random.default_rng(seed)
    counts = Counter(re.findall("[a-z]+", text.lower()))
    words = [word for word, count in counts.items() if count > 1]
    numbers = {word: i for i, word in enumerate(words)}
    found = [numbers[w] for w in re.findall("[a-z]+", text.lower()) if w in numbers]
    rows = np.array(found, np.int64)
    pairs = [np.stack([rows[d:], rows[:-d]], axis=1) for d in range(1, window + 1)]
    pairs = np.concatenate([*pairs, *(pair[:, ::-1] for pair in pairs)])
    pairs = rng.permutation(pairs)[: len(pairs) // size * size]
    often = np.array([counts[word] for word in words]) ** 0.75
    others = rng.choice(len(words), (len(pairs), negatives), p=often / often.sum())
    batches = np.concatenate([pairs, others], axis=1)
    batches[:, 1:] += len(words)
    return words, batches.reshape(-1, size, 2 + negatives)


def initial_table(n_words, width=32):
    """Return small random vectors for words, and zeros for words as neighbours."""
    table = np.zeros((2 * n_words, width), np.float32)
    table[:n_words] = np.random.default_rng(0).uniform(-0.5, 0.5, (n_words, width)) / width
    return table


def main(path, epochs=10, lr=0.2):
    words, batches = read_batches(Path(path).read_text(encoding="utf-8"))
    table = initial_table(len(words))
    sums = np.zeros_like(table)
    for epoch in range(epochs):
        loss = train(table, sums, batches, lr, steps=epoch * len(batches))
        print(f"epoch {epoch}: loss {loss / batches[..., 0].size:.3f}")
    vectors = table[: len(words)]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for word in words[:10]:
        near = np.argsort(-(vectors @ vectors[words.index(word)]))[1:5]
        print(f"{word}: {', '.join(words[i] for i in near)}")
