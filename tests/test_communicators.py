"""Tests of the communicators of threads that other tests take in the place of MPI's."""

import numpy as np
import pytest

from communicators import Communicator, on_ranks, outcomes


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_what_is_sent_arrives(size):
    def body(comm: Communicator) -> None:
        counts = [rank % 3 for rank in range(size)]
        own = np.full(counts[comm.rank], comm.rank, np.uint16)
        gathered = np.zeros(sum(counts), np.uint16)
        comm.Allgatherv(own, [gathered, counts])
        expected = np.repeat(np.arange(size), counts)
        np.testing.assert_array_equal(gathered, expected)
        begin = sum(counts[: comm.rank])
        in_place = np.full(sum(counts), 99, np.uint16)
        in_place[begin : begin + counts[comm.rank]] = comm.rank
        comm.Allgatherv(None, [in_place, (counts, None)])
        np.testing.assert_array_equal(in_place, expected)

        rows = np.empty((size, 2))
        comm.Allgather(np.array([comm.rank, -1.0]), rows)
        np.testing.assert_array_equal(rows[:, 0], np.arange(size))

        sent = np.repeat(np.arange(size) + 10 * comm.rank, counts)
        received = np.empty(size * counts[comm.rank], sent.dtype)
        comm.Alltoallv([sent, (counts, None)], [received, ([counts[comm.rank]] * size, None)])
        np.testing.assert_array_equal(
            received, np.repeat(comm.rank + 10 * np.arange(size), counts[comm.rank])
        )

    on_ranks(size, body)


def test_a_rank_that_fails_ends_the_others():
    def body(comm: Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("mine")
        comm.Barrier()

    with pytest.raises(KeyError, match="mine"):
        on_ranks(3, body)
    assert not any(result is None for result in outcomes(3, body))


def test_ranks_that_send_what_nobody_receives_are_found():
    def body(comm: Communicator) -> None:
        comm.Allgatherv(np.zeros(1 + comm.rank), [np.zeros(2), [1, 1]])

    with pytest.raises(AssertionError, match="another number"):
        on_ranks(2, body)
