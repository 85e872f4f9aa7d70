"""Work shared by threads: every piece once, results in order, errors out, main thread untouched."""

import threading

import pytest
import torch

from inrfast.threads import share, together, workers


def test_every_piece_is_taken_once():
    taken = [[] for _ in range(3)]
    share(range(200), [part.append for part in taken])
    assert sorted(piece for part in taken for piece in part) == list(range(200))


def test_results_come_in_the_order_of_the_jobs():
    assert together([lambda i=i: i * i for i in range(4)]) == [0, 1, 4, 9]
    assert together([lambda: threading.current_thread()]) == [threading.current_thread()]


def test_workers_compute_on_one_thread_each_and_leave_the_caller_alone():
    before = torch.get_num_threads()
    assert together([torch.get_num_threads] * 2) == [1, 1]
    assert torch.get_num_threads() == before
    assert workers(2) is workers(2)


def test_jobs_within_jobs_run_in_place():
    assert together([lambda: together([lambda: 1, lambda: 2])] * 2) == [[1, 2], [1, 2]]


def test_an_error_stops_the_work_and_is_raised():
    done = []

    def job(piece):
        if piece == 5:
            raise RuntimeError("piece 5")
        done.append(piece)

    with pytest.raises(RuntimeError, match="piece 5"):
        share(range(10**6), [job, job])
    assert len(done) < 10**6
    share(range(4), [done.append, done.append])  # the pool still works
