"""Stage 4: as much training as there is time for."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from presets import default_augmentation

from dim_hf.data.image_data import ImageData
from dim_hf.distillation.checkpointing import (
    find_checkpoint,
    leave_models_to_diffusers,
    load_models,
    read_progress,
    save_checkpoint,
)
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.files import read_json_lines, replace_text
from dim_hf.machine import peak_memory_mib
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream

from .report import Bench, checkpoint_dir, trained_classifier
from .step import WAYS, Feed


def training(bench: Bench) -> None:
    bench.report.attempt("training", bench.args.preset, trained, bench)


def trained(bench: Bench) -> dict[str, Any]:
    args, device = bench.args, bench.device
    output_dir, start = Path(args.output_dir), time.time()
    way = args.way
    # As for grey images: no graph takes the shift of the preset, and it does five times as many steps.
    augmentation = default_augmentation(len(bench.train), channels=1) if args.preset == "base" else []
    no_graph = device.type != "cuda" or args.precision == "fp16" or augmentation or not bench.graph_is_right
    if WAYS[way].graph and no_graph:
        way = "tuned"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = bench.run(args.preset, args.precision, way, rate_factor=args.rate_factor, augmentation=augmentation)
    leave_models_to_diffusers(run.accelerator)
    deciding = ("preset", "batch_size", "precision", "rate_factor", "warmup_images", "ema_half_life")
    options = {name: getattr(args, name) for name in deciding} | {"data_fingerprint": bench.train.fingerprint}
    progress: dict[str, Any] = {"step": 0, "options": options}
    checkpoint = find_checkpoint(checkpoint_dir(args), "latest")[0] if args.resume else None
    if checkpoint:
        progress = read_progress(checkpoint, options)
        run.accelerator.load_state(str(checkpoint))
        load_models(run.models, checkpoint)
    feed = Feed(run, bench.train, args.batch_size)
    first = step = progress["step"]
    if checkpoint:
        # Steps after the checkpoint are done again.
        log = output_dir / "training.jsonl"
        replace_text(log, "".join(json.dumps(row) + "\n" for row in read_json_lines(log) if row["step"] <= step))
    pipeline = DiMPipeline(run.ema_generator, id2label=dict(enumerate(bench.train.class_names)))
    pipeline.set_progress_bar_config(disable=True)
    accuracies: list[dict[str, Any]] = []

    def save() -> None:
        progress["step"] = step
        save_checkpoint(run.accelerator, run.models, checkpoint_dir(args), progress, 1)
        pipeline.save_pretrained(output_dir / "pipeline")

    def validate(**more: ImageData) -> float:
        """Writes down the accuracy on the part of train that was held out; gives the seconds it took."""
        begun = time.time()
        classifier = validation_classifier(bench, run.ema_generator)
        scores = {
            name: evaluate_accuracy(classifier, data)
            for name, data in {"validation": bench.validation, **more}.items()
        }
        accuracies.append({"step": step, "seconds": round(begun - start, 1)} | scores)
        torch.backends.cudnn.benchmark = WAYS[way].cudnn_benchmark
        return time.time() - begun

    # A twentieth of the time until the first validation tells how long one takes.
    last_step_at = start + 0.95 * (bench.deadline - start)
    half, due, validated, waited = (start + last_step_at) / 2, start + 60 * args.save_minutes, False, 0.0
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    while time.time() < last_step_at or step == first:
        images = step * args.batch_size
        run.set_rates(min(1.0, (images + args.batch_size) / max(1, args.warmup_images)))
        if WAYS[way].graph and run.graph is None and step > first:
            # Its three steps to warm up count.
            run.capture(feed.draw(step)[0])
        decay = 0.5 ** (args.batch_size / min(args.ema_half_life, max(1, images // 20)))
        for name, value in feed.advance(step, ema_decay=decay).items():
            sums[name] = sums.get(name, 0.0) + value
            counts[name] = counts.get(name, 0) + 1
        step += 1
        if step % 100 == 0:
            means = {name: value.item() / counts[name] for name, value in sums.items()}
            if wrong := [name for name, value in means.items() if not math.isfinite(value)]:
                raise FloatingPointError(
                    f"loss {', '.join(wrong)} is NaN or infinite by step {step}; lower --rate_factor."
                )
            sums, counts = {}, {}
            line = {"step": step, "images": step * args.batch_size, "seconds": round(time.time() - start, 2)} | means
            with (output_dir / "training.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        now = time.time()
        if now > half and not validated:
            validated = True
            taken = validate()
            last_step_at = bench.deadline - 1.3 * taken - 0.02 * (bench.deadline - start)
            waited += taken
        if now > due:
            save()
            due, waited = time.time() + 60 * args.save_minutes, waited + time.time() - now
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.time() - start - waited
    save()
    save_sample_grid(pipeline, output_dir / "samples.png")
    validate(test=bench.test)
    return {
        "way": way,
        "steps": step,
        "images": step * args.batch_size,
        "epochs": round(step * args.batch_size / len(bench.train), 2),
        "images_per_second": round((step - first) * args.batch_size / seconds, 1),
        "training_seconds": round(seconds, 1),
        "accuracies": accuracies,
        "peak_memory_mib": round(peak_memory_mib(device)),
    }


def validation_classifier(bench: Bench, generator: DiMGenerator) -> torch.nn.Module:
    """As train_dim.py validates, by default for as many epochs as its tables: a ConvNet-3 at 10 images per class."""
    torch.backends.cudnn.benchmark = False
    precision = "bf16" if bench.args.precision == "bf16" else "no"
    recipe = DeploymentRecipe(epochs=bench.args.validation_epochs, mixed_precision=precision)
    stream = GeneratedStream(generator, 10, 0, recipe.batch_size)
    return trained_classifier(bench, stream, recipe)
