"""What a script says of the machine."""

import os

import torch

from dim_hf.machine import describe_threads


def test_threads_of_cores_and_how_to_get_all():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        text = describe_threads()
        assert text.startswith(f"1 thread, of {cores} core")
        assert (f"--num_cpu_threads_per_process {cores}" in text and f"OMP_NUM_THREADS={cores}" in text) == (cores > 1)
        # Nothing to say where processes have all cores between them.
        assert describe_threads(cores).endswith(f"of {cores} core{'s' * (cores > 1)}")
    finally:
        torch.set_num_threads(before)
