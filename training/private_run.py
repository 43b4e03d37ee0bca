"""
A run of `train_dim.py` with `--privacy_epsilon`: (epsilon, delta)-differential privacy of each training image.

The images are read once, for noisy sums of random features of each class (`dim_hf.privacy`). The generator is trained
to match these sums; neither it nor anything that is written sees an image. So there is no validation, no part is held
out, and the generator of the last step is kept. The release is kept in `output_dir/release`: a run that goes on from a
checkpoint, or from the release, never opens the images again and spends nothing more. See docs/privacy.md.
"""

import argparse
import contextlib
import copy
import json
import math
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment, set_seed
from checks import check_accelerator, check_batch_memory, check_hub
from command_line import check_processes
from filelock import FileLock
from presets import doublings, network_configs
from run_folder import check_folder, is_branch, keep_until, read_json_object
from tqdm.auto import tqdm
from train_arguments import PRIVATE_FLAGS
from validation import makes_finite_images

from dim_hf.data import ImageData, load_image_data
from dim_hf.data.folders import refuse_data_folder
from dim_hf.distillation.averages import RunningMeans, update_average
from dim_hf.distillation.checkpointing import (
    changed_settings,
    find_checkpoint,
    leave_models_to_diffusers,
    load_models,
    load_optimizers,
    read_progress,
    remove_later_checkpoints,
    save_checkpoint,
)
from dim_hf.distillation.interruption import heeded_signals
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.files import (
    append_json_line,
    check_output_dir,
    lock_output_dir,
    read_json,
    replace_text,
    whole_folder,
)
from dim_hf.hub.card import local_or_hub
from dim_hf.hub.push import prepare_repository
from dim_hf.machine import describe_threads, environment
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.pipelines.pipeline_dim import checked_names
from dim_hf.privacy import MeanMatching, PrivateStatistics, guarantee_of, release_statistics
from dim_hf.weights import is_finite, stored_form


WARMUP_STEPS = 20
# Steps between measurements of the spread of generated images, and the images of one.
SPREAD_STEPS = 250
SPREAD_IMAGES = 1500
# Settings that may differ in a continuation, because they do not change what is trained. The data set is not among
# them: once its statistics are released, there is nothing to compare another one with.
FREE_ON_RESUME = {
    "output_dir", "cache_dir", "dataloader_num_workers", "resume_from_checkpoint", "checkpointing_steps",
    "checkpoints_total_limit", "logging_steps", "push_to_hub", "hub_model_id", "hub_private_repo", "given", "privacy",
}  # fmt: skip


# What a release says of its data set, for a folder that it is copied to.
OF_DATA = (
    "dataset_name", "dataset_config_name", "train_data_dir", "revision", "train_split", "image_column", "label_column",
    "resolution",
)  # fmt: skip


def main(args: argparse.Namespace) -> None:
    # 1. Settings and folders, before an image is read.
    start = check(args)
    # 2. The private images, unless their statistics have been released; this opens them for the only time.
    source = start.released or read_images(args, start)
    lock = claim_folder(args, start)
    try:
        # 3. From here on files are written. The release spends the budget; what follows it sees nothing else.
        if isinstance(source, ImageData):
            statistics = release_once(start, source, args.privacy_epsilon, args.privacy_delta)
        else:
            statistics = source
        del source
        if start.checkpoint is None:
            # Not before: another process may have had the folder while this one read its images.
            record_beginning(start)
        networks = make_networks(args, start, statistics)
        print(describe(args, start, statistics, networks))
        train(args, start, statistics, networks)
        finish(args, start, statistics, networks)
    finally:
        lock.release()


@dataclass(frozen=True)
class Start:
    """What is known before an image is read. `progress` is what a checkpoint records beside the weights."""

    accelerator: Accelerator
    output_dir: Path
    checkpoint: Path | None
    goes_on: bool
    # The release in the folder, if it has been made.
    released: PrivateStatistics | None
    options: dict[str, Any]
    progress: dict[str, Any]


@dataclass
class Networks:
    """The generator, its optimiser, its loss, and its average, which is what is kept."""

    generator: Any
    optimizer: Any
    matching: MeanMatching
    ema_generator: DiMGenerator
    # The first one without Accelerate's wrapper.
    plain_generator: DiMGenerator

    @property
    def saved(self) -> dict[str, Any]:
        """The networks in a checkpoint, by subfolder."""
        return {"generator": self.plain_generator, "ema_generator": self.ema_generator}


def check(args: argparse.Namespace) -> Start:
    privacy = asdict(guarantee_of(args.privacy_epsilon, args.privacy_delta))
    if args.resolution is not None:
        doublings(args.resolution)
    check_hub(args)
    output_dir, resume = Path(args.output_dir), args.resume_from_checkpoint
    checkpoint, damaged = find_checkpoint(output_dir, resume) if resume else (None, [])
    if is_branch(checkpoint, output_dir):
        raise ValueError(
            f"`--resume_from_checkpoint` {resume} is of another folder; valid with `--privacy_epsilon` are latest and "
            f"the checkpoints in `--output_dir` {output_dir}."
        )
    # Accelerate's configuration may ask for another precision, which has too few digits for differences of means.
    accelerator = Accelerator(mixed_precision="no")
    check_processes(accelerator.num_processes)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"accelerate's `--num_processes` is {accelerator.num_processes}; valid with `--privacy_epsilon` is 1."
        )
    check_accelerator(accelerator, args)
    if checkpoint is None:
        refuse_data_folder(output_dir, args.dataset_name, args.train_data_dir)
    check_folder(output_dir, checkpoint, bool(resume))
    for reason in damaged:
        print(f"{reason}; going on from {checkpoint}.")
    options = {name: getattr(args, name) for name in sorted(PRIVATE_FLAGS - {"hub_token"})}
    options |= {"dataset_name": local_or_hub(args.dataset_name), "given": args.given, "privacy": privacy}
    options |= recorded_data(args, options, output_dir)
    deciding = {name: value for name, value in options.items() if name not in FREE_ON_RESUME}
    progress = {"step": 0, "seconds": 0.0, "options": deciding}
    if checkpoint:
        progress = read_progress(checkpoint, deciding)
    elif (output_dir / "options.json").exists():
        then, now = read_json_object(output_dir / "options.json"), json.loads(json.dumps(deciding))
        if changed := changed_settings({name: then.get(name) for name in now}, now):
            raise FileExistsError(
                f"`--output_dir` {output_dir} holds a run of another configuration, whose release has spent its "
                f"budget; name another. {changed}."
            )
    released = read_release(output_dir, args.privacy_epsilon, args.privacy_delta)
    if released is None and (checkpoint or (output_dir / "metrics.jsonl").exists()):
        raise FileNotFoundError(
            f"`--output_dir` {output_dir} holds a run without its release/; another release would add to the one that "
            f"was spent. Put it back, or name another folder."
        )
    return Start(accelerator, output_dir, checkpoint, bool(resume), released, options, progress)


def recorded_data(args: argparse.Namespace, options: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    """
    What the folder says of its data set, which is not opened again and may be gone by now.

    Raises:
        ValueError: If a flag contradicts a release that was copied there.
    """
    then = read_json(output_dir / "options.json")
    if isinstance(then, dict):
        # The record has an absolute path. Once the folder is gone, a relative one looks like an id of the Hub.
        path = str(Path(args.dataset_name).resolve())
        return {"dataset_name": path} if then.get("dataset_name") == path else {}
    then = read_json(output_dir / "release" / "data.json")
    if not isinstance(then, dict):
        if (output_dir / "release").exists() and not {"dataset_name", "train_data_dir"} & set(args.given):
            raise ValueError(
                f"`--dataset_name` or `--train_data_dir` must be given: {output_dir / 'release'} does not say what it "
                "is of, and the card will."
            )
        return {}
    for name in OF_DATA:
        if name in args.given and options[name] != then.get(name):
            raise ValueError(
                f"`--{name}` is {options[name]}, and {output_dir / 'release'} is of {then.get(name)}; its images are "
                "not read again, so leave the flag out."
            )
    return {name: then.get(name) for name in OF_DATA}


def read_release(output_dir: Path, epsilon: float, delta: float) -> PrivateStatistics | None:
    """
    The release in the folder of a run, `None` if there is none.

    Raises:
        ValueError: If it has another epsilon or delta.
    """
    folder = output_dir / "release"
    if folder.exists() and not (folder / "statistics.json").exists():
        raise FileExistsError(
            f"`--output_dir` {output_dir} holds a release/ that is not that of a private run; name another folder."
        )
    if not folder.exists():
        return None
    statistics = PrivateStatistics.load(folder)
    spent = statistics.guarantee.epsilon, statistics.guarantee.delta
    if spent != (epsilon, delta):
        raise ValueError(
            f"`--privacy_epsilon` {epsilon:g} and `--privacy_delta` {delta:g} are not those of the release in "
            f"{folder}, {spent[0]:g} and {spent[1]:g}. A second release adds to the first; it needs its own folder."
        )
    return statistics


def read_images(args: argparse.Namespace, start: Start) -> ImageData:
    """The private images. What is known of them is checked here, since nothing may fail between release and folder."""
    with untold():
        images = load_image_data(
            args.dataset_name,
            args.train_split,
            dataset_config_name=args.dataset_config_name,
            train_data_dir=args.train_data_dir,
            image_column=args.image_column,
            label_column=args.label_column,
            resolution=args.resolution,
            cache_dir=args.cache_dir,
            num_workers=args.dataloader_num_workers,
            revision=args.revision,
        )
    checked_names(images.class_names, images.num_classes)
    doublings(images.size)
    check_batch_memory(args.train_batch_size, images, start.accelerator.device)
    return images


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """Keeps off the terminal what tells of the images: bars their exact number, warnings what is in one of them."""
    datasets.disable_progress_bars()
    try:
        # Processes that decode read the variable where they do not inherit the filter.
        with patch_environment(pythonwarnings="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.enable_progress_bars()


def claim_folder(args: argparse.Namespace, start: Start) -> FileLock:
    """Checks disk space and access to the Hub, and locks the folder."""
    check_output_dir(start.output_dir, 2**26, start.goes_on)
    if args.push_to_hub:
        name = args.hub_model_id or start.output_dir.resolve().name
        args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
    return lock_output_dir(start.output_dir, "train_dim.py")


def record_beginning(start: Start) -> None:
    keep_until(start.output_dir, 0)
    replace_text(start.output_dir / "options.json", json.dumps(start.options, indent=2))
    replace_text(start.output_dir / "environment.json", json.dumps(environment(), indent=2))


def release_once(start: Start, images: ImageData, epsilon: float, delta: float) -> PrivateStatistics:
    """Spends the budget, and keeps the release in the folder of the run."""
    folder = start.output_dir / "release"
    if folder.exists():
        raise FileExistsError(
            f"another process has made {folder} meanwhile; go on with it by --resume_from_checkpoint latest."
        )
    statistics = release_statistics(images, epsilon, delta)
    with whole_folder(folder) as path:
        statistics.save(path)
        of_data = {name: start.options[name] for name in OF_DATA}
        replace_text(path / "data.json", json.dumps(of_data, indent=2))
    return statistics


def make_networks(args: argparse.Namespace, start: Start, statistics: PrivateStatistics) -> Networks:
    """The networks and the optimiser, prepared with Accelerate and restored from the checkpoint, if any."""
    # The initial weights are the first draw from the global generator.
    set_seed(args.seed)
    features = statistics.features
    config, _ = network_configs(args.preset, features.size, features.channels, len(statistics.class_names))
    plain = DiMGenerator(**config)
    ema_generator = copy.deepcopy(plain).to(start.accelerator.device).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(plain.parameters(), lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
    generator, optimizer = start.accelerator.prepare(plain, optimizer)
    matching = MeanMatching(statistics.means()).to(start.accelerator.device)
    start.accelerator.register_for_checkpointing(matching)
    networks = Networks(generator, optimizer, matching, ema_generator, plain)
    leave_models_to_diffusers(start.accelerator)
    if start.checkpoint:
        # Those that are damaged; see train_dim.py.
        remove_later_checkpoints(start.output_dir, start.progress["step"])
        load_optimizers(start.accelerator, start.checkpoint)
        load_models(networks.saved, start.checkpoint)
        keep_until(start.output_dir, start.progress["step"])
    return networks


def describe(args: argparse.Namespace, start: Start, statistics: PrivateStatistics, networks: Networks) -> str:
    device, features = start.accelerator.device, statistics.features
    threads = f", {describe_threads(1)}" if device.type == "cpu" else ""
    return (
        f"{statistics.guarantee.describe()}\n"
        f"taken to be public: {len(statistics.class_names)} classes and their names, images of {features.channels} x "
        f"{features.size} x {features.size}\n"
        f"{statistics.describe()}\n"
        f"generator {networks.ema_generator.num_parameters():,} parameters; {args.max_train_steps:,} steps of "
        f"matching, of {args.train_batch_size} images, on {device}{threads}"
    )


def train(args: argparse.Namespace, start: Start, statistics: PrivateStatistics, networks: Networks) -> None:
    """
    Matches the released means. Whatever is random in a step depends only on the seed and the step, so a resumed run
    continues exactly as the interrupted one would have.

    Raises:
        SystemExit: With status 130, if the run was interrupted before its last step.
    """
    accelerator, progress, steps = start.accelerator, start.progress, args.max_train_steps
    device, generator, optimizer = accelerator.device, networks.generator, networks.optimizer
    features, num_classes = statistics.features.to(device), len(statistics.class_names)
    classes_at_once = min(num_classes, args.train_batch_size)
    images_each = args.train_batch_size // classes_at_once
    noise, means = torch.Generator(device), RunningMeans()
    began = time.perf_counter() - progress["seconds"]
    generator.train()
    bar = tqdm(total=steps, initial=progress["step"], unit="step")
    with heeded_signals() as stop, bar:
        for step in range(progress["step"], steps):
            rng = random.Random(f"{args.seed}/{step}/0")
            noise.manual_seed(rng.getrandbits(63))
            if step and step % SPREAD_STEPS == 0:
                measure_spread(networks, statistics, noise)
            rate = args.learning_rate * min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            classes = torch.tensor(rng.sample(range(num_classes), classes_at_once), device=device)
            labels = classes.repeat_interleave(images_each)
            latents = torch.randn(
                len(labels), networks.ema_generator.config.latent_dim, generator=noise, device=device
            )
            images = generator(latents, labels).sample
            loss = networks.matching(features(images).unflatten(0, (classes_at_once, -1)), classes)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            means.add({"matching": loss})
            update_average(
                networks.ema_generator, networks.plain_generator, min(args.ema_decay, (1 + step) / (10 + step))
            )
            progress["step"] = step = step + 1
            bar.update()

            # What is due after this step.
            interrupted = stop()
            due_log = step % args.logging_steps == 0 or step == steps
            due_checkpoint = step % args.checkpointing_steps == 0 or step == steps or interrupted
            if not (due_log or due_checkpoint):
                continue
            progress["seconds"] = time.perf_counter() - began
            record = {f"loss/{name}": value for name, value in means.read(accelerator).items()}
            refuse_not_finite(record, networks, step)
            # Without the peak of memory, which may be that of reading the images.
            line = {"step": step, "seconds": round(progress["seconds"], 3)} | record
            append_json_line(start.output_dir / "metrics.jsonl", line)
            bar.set_postfix(loss=f"{record['loss/matching']:.4f}")
            if due_checkpoint:
                save_checkpoint(accelerator, networks.saved, start.output_dir, progress, args.checkpoints_total_limit)
                pipeline = make_pipeline(networks, statistics)
                save_sample_grid(pipeline, start.output_dir / "samples" / f"step-{step:07d}.png")
            if interrupted and step < steps:
                bar.close()
                print(
                    f"Interrupted after step {step:,} of {steps:,}; everything is saved. Go on with the same command "
                    f"and --resume_from_checkpoint latest; this does not read the images again."
                )
                raise SystemExit(130)


@torch.no_grad()
def measure_spread(networks: Networks, statistics: PrivateStatistics, noise: torch.Generator) -> None:
    """Lets the loss know how the features of images of one class vary; see [`MeanMatching`]."""
    generator = networks.ema_generator
    labels = torch.arange(SPREAD_IMAGES, device=noise.device) % len(statistics.class_names)
    features = []
    for part in labels.split(500):
        latents = torch.randn(len(part), generator.config.latent_dim, generator=noise, device=noise.device)
        features.append(statistics.features(generator(latents, part).sample))
    networks.matching.measure_spread(torch.cat(features), labels)


def refuse_not_finite(record: dict[str, float], networks: Networks, step: int) -> None:
    # A step can spoil the weights although its loss was still finite.
    if not (math.isfinite(record["loss/matching"]) and is_finite(networks.plain_generator, networks.ema_generator)):
        raise FloatingPointError(
            f"the loss or the weights became NaN or infinite by step {step}; checkpoints of earlier steps and the "
            f"release are untouched. Lower --learning_rate in a new --output_dir that holds a copy of release/."
        )


def make_pipeline(networks: Networks, statistics: PrivateStatistics) -> DiMPipeline:
    pipeline = DiMPipeline(copy.deepcopy(networks.ema_generator), id2label=dict(enumerate(statistics.class_names)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def finish(args: argparse.Namespace, start: Start, statistics: PrivateStatistics, networks: Networks) -> None:
    if not makes_finite_images(networks.ema_generator):
        raise FloatingPointError(f"generated images are NaN or infinite after step {start.progress['step']}.")
    stored_form(make_pipeline(networks, statistics), args.storage).save_pretrained(start.output_dir)
    print(
        f"Done in {start.progress['seconds']:,.0f} s. The pipeline in {start.output_dir} has "
        f"{statistics.guarantee.describe()}."
    )
    if args.push_to_hub:
        url = DiMPipeline.from_pretrained(start.output_dir).push_to_hub(
            args.hub_model_id, token=args.hub_token, private=args.hub_private_repo or None
        )
        print(f"Pushed to {args.hub_model_id}: {url}")
