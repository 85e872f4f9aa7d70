"""Work shared by threads: every piece once, results in order, errors out, main thread untouched; interrupts wait."""

import signal
import threading
from contextlib import suppress

import pytest
import torch

from inrfast.threads import INTERRUPTS, interrupts_later, share, together, workers


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


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_signals_wait_for_the_end_of_a_block_and_none_is_lost(depth, failing):
    taken, before = [], {number: signal.getsignal(number) for number in INTERRUPTS}

    def nested(left):
        with interrupts_later():
            if left > 1:
                return nested(left - 1)
            for number in INTERRUPTS:
                signal.raise_signal(number)
            assert taken == []
            if failing:
                raise OSError("the block's own error")

    try:
        handlers = {number: lambda number, frame: taken.append(number) for number in INTERRUPTS}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with suppress(OSError):
            nested(depth)
        assert taken == list(INTERRUPTS)
        assert {number: signal.getsignal(number) for number in INTERRUPTS} == handlers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("failing", [False, True])
def test_an_interrupt_after_a_failed_block_is_an_interrupt(failing):
    def block():
        with interrupts_later():
            signal.raise_signal(signal.SIGINT)
            if failing:
                raise OSError("the block's own error")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
