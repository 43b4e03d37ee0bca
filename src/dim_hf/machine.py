"""The machine that a figure was measured on."""

import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch


def environment() -> dict[str, Any]:
    """Versions of the libraries, and the device."""
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads ({processor()})"
    return {
        "dim_hf": version("dim_hf"),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "accelerate": version("accelerate"),
        "datasets": version("datasets"),
        "python": platform.python_version(),
        "device": device,
    }


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_threads(processes: int = 1) -> str:
    """How many of the cores PyTorch computes on in each of some processes, and how to get all of them."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{threads} thread{'s' * (threads > 1)}" + (f" in each of {processes} processes" if processes > 1 else "")
    text += f", of {cores} core{'s' * (cores > 1)}"
    if threads * processes >= cores:
        return text
    return (
        f"{text}; for all of them: accelerate launch --num_cpu_threads_per_process {cores // processes} (or "
        f"OMP_NUM_THREADS={cores // processes})"
    )


def warn_of_slow_precision(precision: str, device: torch.device) -> None:
    """Warns if bfloat16 would be emulated, as on x86 without AVX-512, which is some 15 times slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if precision == "bf16" and device.type == "cpu" and x86 and not capability.startswith("AVX512"):
        warnings.warn(
            f"bf16 is emulated on this processor ({capability}, no AVX-512) and some 15 times slower than float32; "
            "--mixed_precision no is faster.",
            stacklevel=2,
        )


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # Only on Unix.

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if platform.system() == "Darwin" else 2**10)
