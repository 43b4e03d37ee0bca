"""What a script says of the machine."""

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dim_hf.machine import check_bfloat16, choose_precision, describe_threads, find_bfloat16_unit, usable_cores


# Where Linux tells of a container's quota of its cores' time.
QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


def test_threads_of_cores_and_how_to_get_all():
    cores = usable_cores()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        text = describe_threads()
        assert text.startswith(f"1 thread, of {cores} core")
        assert (f"--num_cpu_threads_per_process {cores}" in text and f"OMP_NUM_THREADS={cores}" in text) == (cores > 1)
        # Nothing to say where processes have all cores between them.
        assert describe_threads(cores).endswith(f"of {cores} core{'s' * (cores > 1)}")
        # Too many, as where a job is bound to fewer cores than the machine has.
        torch.set_num_threads(cores + 1)
        assert "more threads than cores" in describe_threads()
        assert f"--num_cpu_threads_per_process {cores} " in describe_threads()
        # One thread is the least, whatever the number of processes.
        torch.set_num_threads(1)
        assert describe_threads(cores + 1).endswith(f"of {cores} core{'s' * (cores > 1)}")
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_the_cores_that_a_process_is_bound_to():
    allowed, before = os.sched_getaffinity(0), usable_cores()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    # All of them, unless a container's quota leaves fewer.
    quota = next((path for path in map(Path, QUOTAS) if path.is_file()), None)
    limited = quota is not None and quota.read_text().split()[0] not in ("max", "-1")
    assert usable_cores() == before
    assert before <= len(allowed) if limited else before == len(allowed)


def test_cores_that_a_limit_takes_away(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("flags", "capability", "unit"),
    [
        ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "AVX512", "AMX"),
        ("fpu avx512f avx512_bf16", "AVX512", "AVX512-BF16"),
        ("fpu avx2 avx512f avx512bw", "AVX512", None),
        ("fpu avx2", "AVX2", None),
        # PyTorch was told to do without.
        ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "AVX2", None),
    ],
)
def test_what_multiplies_bfloat16(flags, capability, unit):
    cpuinfo = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n"
    assert find_bfloat16_unit(cpuinfo * 2, capability) == unit
    # As where there is no /proc/cpuinfo.
    assert find_bfloat16_unit("", capability) is None


@pytest.mark.parametrize(
    ("asked", "configured", "begun", "unit", "precision", "said"),
    [
        (None, None, None, None, "no", ""),
        (None, "no", None, "AMX", "bf16", "precision: bf16, since this processor has AMX; --mixed_precision no for"),
        ("no", None, None, "AMX", "no", ""),
        (None, "fp16", None, "AMX", "fp16", ""),
        ("bf16", "fp16", None, None, "bf16", ""),
        # A run goes on as it was begun, on any processor, unless a flag says otherwise.
        (None, None, "no", "AMX", "no", "precision: no, as the run was begun; here it would be bf16"),
        (None, None, "bf16", None, "bf16", "precision: bf16, as the run was begun; here it would be no"),
        (None, "no", "bf16", "AMX", "bf16", ""),
        ("bf16", None, "no", None, "bf16", "precision: bf16; the run was begun in no"),
        ("no", None, "no", "AMX", "no", ""),
    ],
)
def test_who_chooses_the_precision(monkeypatch, asked, configured, begun, unit, precision, said):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if configured:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", configured)
    found, line = choose_precision(asked, begun, unit)
    assert found == precision and line.startswith(said) and bool(line) == bool(said)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(ValueError, match="'bf16', which Tesla V100 does not compute in; valid are 'no' and, for "):
        check_bfloat16("bf16", torch.device("cuda"))
    check_bfloat16("fp16", torch.device("cuda"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for the C library of Linux")
def test_freed_memory_is_kept():
    # In a process of its own, which it changes for good. Touching fresh memory costs a page fault per 4 KiB.
    code = """
import resource, sys, torch
from dim_hf.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
before = 0
for i in range(12):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        way: int(subprocess.run([sys.executable, "-c", code, way], check=True, capture_output=True, text=True).stdout)
        for way in ("keep", "return")
    }
    pages = 10 * 64 * 2**20 // mmap.PAGESIZE
    assert faults["keep"] < pages // 4 < pages // 2 < faults["return"]
