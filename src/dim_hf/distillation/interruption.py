"""Signals that ask a run to end, heeded where it can be left without losing work."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator


@contextmanager
def heeded_signals() -> Iterator[Callable[[], bool]]:
    """
    Gives a function that tells whether Ctrl-C or SIGTERM was received; a second one has its usual effect. One that the
    process ignores, as Ctrl-C in the background of a shell script, stays ignored.
    """
    received = []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()


def agreed(stop: Callable[[], bool], accelerator: Accelerator) -> Callable[[], bool]:
    """
    A function that tells every process, at the same step, whether a signal came to any of them.

    With several processes all must call it equally often, and it answers for the call before, so that a GPU need not
    finish the step that has just been launched.
    """
    if accelerator.num_processes == 1:
        return stop
    flags = [torch.zeros((), device=accelerator.device)]

    def any_stopped() -> bool:
        flags.append(accelerator.reduce(torch.full((), float(stop()), device=accelerator.device)))
        return bool(flags.pop(0) > 0)

    return any_stopped
