"""Signals: noted once, and told to every process at the same step."""

import os
import signal
import subprocess
import sys

import pytest

from dim_hf.distillation.interruption import heeded_signals


def test_signals_act_as_before_once_the_loop_is_over():
    before = signal.getsignal(signal.SIGINT)
    with heeded_signals() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() and signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
            signal.raise_signal(signal.SIGTERM)
            assert stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


PROGRAM = """
import pathlib, signal, sys
from accelerate import Accelerator
from dim_hf.distillation.interruption import agreed, heeded_signals

accelerator = Accelerator(cpu=True)
with heeded_signals() as stop:
    stop_all = agreed(stop, accelerator)
    for step in range(10):
        if step == 3 and accelerator.process_index == 1:
            signal.raise_signal(signal.SIGTERM)
        if stop_all():
            break
pathlib.Path(sys.argv[1], str(accelerator.process_index)).write_text(str(step))
accelerator.end_training()
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_next_step(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(program), str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["4", "4"]
