# SPDX-License-Identifier: MIT
"""One program writes, several read the same at the same time, and nothing of it becomes a file: pipes, with copies in between."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Work = Callable[[int, Callable[[], None]], Any]
"""Runs a program to its end. It is given the descriptor of the program's end of a pipe, and a function to call now and then, which raises
`Stopped` when the program is to be ended."""

_BLOCK = 1 << 20


class Stopped(Exception):
    """The result of this program isn't needed any more."""


@dataclass
class Outcome:
    """What became of a program: what its `Work` returned, or raised."""

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


def run(write: Work, read: Sequence[Work]) -> tuple[Outcome, list[Outcome]]:
    """Run one writer and all readers side by side; what became of them. On an exception (Ctrl-C) they are ended first.

    All go as fast as the slowest reader. A reader that ends early is left out from then on; without any the writer is stopped.
    """
    stop, done = threading.Event(), []

    def work() -> None:
        outcome = Outcome()
        try:
            outcome.value = _side_by_side(write, read, stop)
        except BaseException as error:
            outcome.error = error
        done.append(outcome)

    # Signals reach the main thread alone. It takes no lock while the others run: an exception between the taking of a lock and what gives it back keeps it for good.
    thread = threading.Thread(target=work)
    try:
        thread.start()
        while not done:
            time.sleep(0.02)
    finally:
        stop.set()
        while not done and thread.ident is not None:
            time.sleep(0.02)
        if thread.ident is not None:
            thread.join()
    if done[0].error is not None:
        raise done[0].error
    return done[0].value


def _side_by_side(write: Work, read: Sequence[Work], stop: threading.Event) -> tuple[Outcome, list[Outcome]]:
    outcomes = [Outcome() for _ in range(1 + len(read))]
    pipes = [os.pipe() for _ in outcomes]
    ours = [pipes[0][0], *(end for _, end in pipes[1:])]
    theirs = [pipes[0][1], *(end for end, _ in pipes[1:])]

    def check() -> None:
        if stop.is_set():
            raise Stopped

    def work(call: Work, descriptor: int, outcome: Outcome) -> None:
        start = time.monotonic()
        try:
            check()
            outcome.value = call(descriptor, check)
        except BaseException as error:  # it is the caller's to judge
            outcome.error = error
        finally:
            outcome.seconds = time.monotonic() - start
            os.close(descriptor)  # the program has ended: only now can the other end of the pipe see it

    threads = [threading.Thread(target=work, args=job) for job in zip((write, *read), theirs, outcomes)]
    copier = threading.Thread(target=_copy, args=(ours[0], ours[1:]))
    for thread in (*threads, copier):
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    for thread in (threads[0], copier):
        thread.join()
    return outcomes[0], outcomes[1:]


def _copy(source: int, targets: Sequence[int]) -> None:
    """All of `source` into each of `targets`, which are closed at its end, each as soon as nobody reads it."""
    left = list(targets)
    try:
        while left and (block := os.read(source, _BLOCK)):
            for target in list(left):
                rest = memoryview(block)
                try:
                    while rest:
                        rest = rest[os.write(target, rest) :]
                except BrokenPipeError:
                    os.close(target)
                    left.remove(target)
    finally:
        for descriptor in (source, *left):
            os.close(descriptor)
