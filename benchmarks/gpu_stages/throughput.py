"""Stage 3: steps, generation and the feed of a classifier, in images per second."""

import time
from typing import Any

import torch
from feed import MemoryStream
from presets import network_configs

from dim_hf.evaluation.judges import DeploymentRecipe, Stream
from dim_hf.machine import peak_memory_mib
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream

from .report import Bench, trained_classifier
from .step import DTYPES, R1_INTERVAL, WAYS, Feed, convolution_rate, rates, step_flops, timed


def throughput(bench: Bench) -> None:
    attempt, args = bench.report.attempt, bench.args
    rows = [("base", size, args.precision) for size in args.batch_sizes]
    rows += [("paper", size, args.precision) for size in args.paper_batch_sizes]
    if args.precision != "no":
        rows.append(("base", args.batch_sizes[0], "no"))
    for preset, size, precision in rows:
        name, own = f"{preset}, {size}, {precision}", (bench, preset, size, precision)
        attempt("throughput", f"convolutions, {name}", convolutions, *own)
        for way in ("as train_dim.py", "tuned", "graph"):
            attempt("throughput", f"step, {name}, {way}", step_rate, *own, way, needs_cuda=WAYS[way].graph)
    for dtype in dict.fromkeys(("no", args.precision)):
        attempt("throughput", f"generation, {dtype}", generation, bench, DTYPES[dtype])
    attempt("throughput", "feed of a ConvNet-3", feed_ratio, bench)
    # Last, because compiling takes longest; it needs a compiler that a machine may lack.
    for preset, size, precision in rows[:1] + [row for row in rows if row[0] == "paper"][:1]:
        for way in ("compiled", "compiled graph"):
            row, own = f"step, {preset}, {size}, {precision}, {way}", (bench, preset, size, precision)
            attempt("throughput", row, step_rate, *own, way, needs_cuda=True, optional=True)


def convolutions(bench: Bench, preset: str, batch_size: int, precision: str) -> dict[str, float]:
    run = bench.run(preset, precision, "tuned")
    batch, _ = Feed(run, bench.train, batch_size).draw(0)
    found = convolution_rate(run, batch, DTYPES[precision], bench.args.row_seconds * 4)
    found["flops_of_step"] = step_flops(run, batch)
    found["gigaflop_per_image"] = round(found["flops_of_step"] / batch_size / 1e9, 5)
    bench.convolutions[preset, batch_size, precision] = found
    return found


def step_rate(bench: Bench, preset: str, batch_size: int, precision: str, way: str) -> dict[str, Any]:
    """
    Images per second of a step with everything that belongs to it, beside what its operations would take at the rate
    of the convolutions by themselves. R1, a second derivative, is timed apart.
    """
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run, seconds = bench.run(preset, precision, way), bench.args.row_seconds
    feed = Feed(run, bench.train, batch_size)
    if WAYS[way].graph:
        run.capture(feed.draw(0)[0])
    number = iter(range(10**9))
    plain = timed(lambda: feed.advance(next(number), with_r1=False), bench.device, seconds)
    result: dict[str, Any] = rates(plain, batch_size)
    per_step = sorted(plain)[len(plain) // 2]
    if found := bench.convolutions.get((preset, batch_size, precision)):
        result["share_of_convolution_rate"] = round(found["flops_of_step"] / found["flop_per_second"] / per_step, 4)
        result["teraflop_per_second"] = round(found["flops_of_step"] / per_step / 1e12, 3)
    if run.settings["r1_weight"]:
        with_r1 = sorted(timed(lambda: feed.advance(next(number), with_r1=True), bench.device, seconds / 2))
        mean = ((R1_INTERVAL - 1) * per_step + with_r1[len(with_r1) // 2]) / R1_INTERVAL
        result["r1_step_over_plain"] = round(with_r1[len(with_r1) // 2] / per_step, 2)
        result["images_per_second_in_training"] = round(batch_size / mean, 1)
    result["peak_memory_mib"] = round(peak_memory_mib(bench.device))
    return result


def generation(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """Images per second that stay on the device, as a stream's do, and that come to the host, as a pipeline's do."""
    torch.backends.cudnn.benchmark = False
    generator = DiMGenerator(**network_configs("base", *bench.shape)[0]).to(bench.device, dtype)
    pipeline = DiMPipeline(generator)
    pipeline.set_progress_bar_config(disable=True)
    size, classes = max(bench.args.batch_sizes), bench.train.num_classes
    ipc = max(1, 4 * size // classes)
    stream = GeneratedStream(pipeline, ipc, 0, size)
    epochs = iter(range(10**9))
    seconds = bench.args.row_seconds
    made = timed(lambda: list(stream.batches(next(epochs))), bench.device, seconds)
    fetched = timed(lambda: pipeline(ipc=ipc, batch_size=size, output_type="pt"), bench.device, seconds)
    return {"stream": rates(made, ipc * classes), "pipeline_to_host": rates(fetched, ipc * classes)}


def feed_ratio(bench: Bench) -> dict[str, Any]:
    """A ConvNet-3's step fed by `GeneratedStream` over one fed with the same batches in memory, alternated."""
    torch.backends.cudnn.benchmark = False
    generator = DiMGenerator(**network_configs("base", *bench.shape)[0]).to(bench.device)
    stream = GeneratedStream(generator, 50, 0, 64)
    memory = MemoryStream(stream)
    precision = "bf16" if bench.args.precision == "bf16" else "no"

    def seconds_per_step(source: Stream, epochs: int) -> float:
        recipe = DeploymentRecipe(epochs=epochs, mixed_precision=precision)
        start = time.perf_counter()
        trained_classifier(bench, source, recipe)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / (epochs * source.steps_per_epoch)

    seconds_per_step(stream, 1)
    once = seconds_per_step(memory, 1)
    epochs = max(1, round(bench.args.row_seconds / 2 / (once * stream.steps_per_epoch)))
    pairs = [(seconds_per_step(memory, epochs), seconds_per_step(stream, epochs)) for _ in range(5)]
    ratios = sorted(fed / kept for kept, fed in pairs)
    return {
        "precision": precision,
        "milliseconds_per_step_from_memory": round(1000 * sorted(kept for kept, _ in pairs)[2], 4),
        "ratio": round(ratios[2], 4),
        "lowest_ratio": round(ratios[0], 4),
        "highest_ratio": round(ratios[-1], 4),
    }
