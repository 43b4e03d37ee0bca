"""The machine: what a figure was measured on, its cores and threads, memory and precision."""

import ctypes
import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from accelerate.utils import parse_flag_from_env


def environment() -> dict[str, Any]:
    """Versions of the libraries, and the device."""
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        threads = torch.get_num_threads()
        device = f"CPU, {threads} thread{'s' * (threads > 1)} ({processor()})"
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


def usable_cores() -> int:
    """
    How many cores this process may use: in a job that is bound to some of them, or a container with a quota of their
    time, fewer than there are.
    """
    return joblib.cpu_count()


def describe_threads(processes: int = 1) -> str:
    """The threads of each of some processes, and the cores; where there are too few or too many, how to change it."""
    threads = torch.get_num_threads()
    cores = usable_cores()
    text = f"{threads} thread{'s' * (threads > 1)}" + (f" in each of {processes} processes" if processes > 1 else "")
    text += f", of {cores} core{'s' * (cores > 1)}"
    share = max(cores // processes, 1)
    if threads == share:
        return text
    # Threads that wait for a core hold up all the others: two on one core are many times slower than one.
    why = "for all of them" if threads < share else "more threads than cores are many times slower"
    return f"{text}; {why}: accelerate launch --num_cpu_threads_per_process {share} (or OMP_NUM_THREADS={share})"


def choose_precision(asked: str | None, begun: str | None = None, unit: str | None = None) -> tuple[str | None, str]:
    """
    The precision of a script's networks. A flag decides; then a configuration of accelerate that asks for one; then
    the run that goes on; then, on a CPU, whether the processor multiplies bfloat16.

    Args:
        asked (`str`, *optional*): What `--mixed_precision` says.
        begun (`str`, *optional*): The precision of the run that goes on.
        unit (`str`, *optional*): See [`bfloat16_unit`].

    Returns:
        The precision as `Accelerator` takes it, and a line for the user, which is empty where it is as expected.
    """
    # `accelerate launch` says "no" where nobody asked for anything.
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    asked = asked or (configured if configured != "no" else None)
    usual = "bf16" if unit else "no"
    if asked:
        changed = begun is not None and begun != asked
        return asked, f"precision: {asked}; the run was begun in {begun}" if changed else ""
    if begun is not None:
        return begun, f"precision: {begun}, as the run was begun; here it would be {usual}" if begun != usual else ""
    if unit:
        return usual, f"precision: bf16, since this processor has {unit}; --mixed_precision no for float32"
    return usual, ""


def bfloat16_unit() -> str | None:
    """What multiplies bfloat16 where networks are on a CPU: `"AMX"`, `"AVX512-BF16"`, or `None` if nothing does."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    info = Path("/proc/cpuinfo")
    return find_bfloat16_unit(info.read_text() if info.exists() else "", torch.backends.cpu.get_cpu_capability())


def find_bfloat16_unit(cpuinfo: str, capability: str) -> str | None:
    """[`bfloat16_unit`] by the content of /proc/cpuinfo and by the instructions that PyTorch may use."""
    flags = next((line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    if not capability.startswith("AVX512"):
        return None
    return "AMX" if "amx_bf16" in flags else "AVX512-BF16" if "avx512_bf16" in flags else None


def check_bfloat16(precision: str, device: torch.device, argument: str = "mixed_precision") -> None:
    """
    Warns if bfloat16 would be emulated on a CPU, as on x86 without AVX-512, some 15 times slower than float32.

    Args:
        argument (`str`, *optional*, defaults to `"mixed_precision"`): The flag for the precision.

    Raises:
        ValueError: If it would be on a GPU.
    """
    if precision != "bf16":
        return
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"`--{argument}` is 'bf16', which {torch.cuda.get_device_name(device)} does not compute in; valid "
            "are 'no' and, for training, 'fp16'."
        )
    capability = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if device.type == "cpu" and x86 and not capability.startswith("AVX512"):
        warnings.warn(
            f"bf16 is emulated on this processor ({capability}, no AVX-512) and some 15 times slower than float32; "
            f"--{argument} no is faster.",
            stacklevel=2,
        )


def keep_freed_memory() -> None:
    """
    Lets this process keep the memory of tensors that are gone, as PyTorch does on a GPU, for those of the next step.

    The C library of Linux returns large blocks to the system, which fills them with zeros before it gives them out
    again. Elsewhere this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h.
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)
        library.mallopt(-1, 2**31 - 1)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if platform.system() == "Windows":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # Only on Unix.

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if platform.system() == "Darwin" else 2**10)
