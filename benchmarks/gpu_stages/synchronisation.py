"""Stage 2: whether a step makes the host wait, and which kernels take the time."""

import time
from typing import Any

import torch

from .report import Bench
from .step import R1_INTERVAL, Feed


def synchronisation(bench: Bench) -> None:
    attempt, args = bench.report.attempt, bench.args
    for preset, batch_size in (("base", args.batch_sizes[0]), ("paper", args.paper_batch_sizes[0])):
        for precision in dict.fromkeys(("no", args.precision)):
            if precision == "fp16":
                continue  # Its gradient scaler asks the device whether a step is to be skipped.
            row, own = f"steps, {preset}, {precision}", (bench, preset, batch_size, precision)
            attempt("synchronisation", row, steps_without_waiting, *own, needs_cuda=True)
        attempt("synchronisation", f"profile, {preset}", profile, bench, preset, batch_size)


def steps_without_waiting(bench: Bench, preset: str, batch_size: int, precision: str) -> dict[str, Any]:
    feed = Feed(bench.run(preset, precision, "as train_dim.py"), bench.train, batch_size)
    for step in range(3):
        feed.advance(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(R1_INTERVAL, R1_INTERVAL + 20):
            feed.advance(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 20, "passed": True}


def profile(bench: Bench, preset: str, batch_size: int, steps: int = 10) -> dict[str, Any]:
    """The kernels (on a CPU, the operations) that take most of the time of a step without R1."""
    cuda = bench.device.type == "cuda"
    feed = Feed(bench.run(preset, bench.args.precision, "as train_dim.py"), bench.train, batch_size)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        for step in range(5):
            feed.advance(step, with_r1=False)
        torch.cuda.synchronize()
    else:
        steps = 2
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        for step in range(steps):
            feed.advance(step, with_r1=False)
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    times = []
    for event in profiler.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device == cuda and not event.is_user_annotation:
            own = event.self_device_time_total if cuda else event.self_cpu_time_total
            times.append((own / 1000 / steps, event.count / steps, event.key[:90]))
    total = sum(own for own, _, _ in times)
    return {
        "batch_size": batch_size,
        "milliseconds_per_step": round(1000 * wall / steps, 3),
        "milliseconds_in_kernels": round(total, 3),
        "launches_per_step": round(sum(calls for _, calls, _ in times), 1),
        "kernels": [
            {"name": name, "calls": calls, "milliseconds": round(own, 4), "share": round(own / total, 4)}
            for own, calls, name in sorted(times, reverse=True)[:20]
        ],
    }
