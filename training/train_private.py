"""
Distils private images into a class-conditional generator with a guarantee: (epsilon, delta)-differential privacy of
each image.

    accelerate launch training/train_private.py --privacy_epsilon 1 --dataset_name path/to/images --output_dir out/mine

The images are read once, for noisy sums of random features of each class (`dim_hf.privacy`). The generator is trained
to match these sums and never sees an image, nor does anything that is written: there is no validation, and the
generator of the last step is kept. The release is kept in `output_dir/release`, and a run that begins again in the
same folder uses it and spends nothing more. See docs/privacy.md.
"""

import argparse

from command_line import (
    Parser,
    add_data_arguments,
    fraction,
    local_path,
    positive_float,
    positive_int,
    run_script,
    seed,
    whole_number,
)


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = Parser("Train a generator on private images with differential privacy.")
    add_data_arguments(parser, "train", "the split that holds the private images")
    parser.add_argument("--resolution", type=positive_int, help="height and width; default: that of the images")
    parser.add_argument("--output_dir", type=local_path, default="out/private", help="the folder of the run")
    parser.add_argument(
        "--privacy_epsilon", type=positive_float, required=True, help="what may be given away, below 100"
    )
    parser.add_argument("--privacy_delta", type=fraction, default=1e-5, help="chance that more is; below 1 / images")
    parser.add_argument(
        "--seed", type=seed, default=0, help="of weights and of the generator's noise; not of privacy's"
    )
    parser.add_argument("--max_train_steps", type=positive_int, default=3000, help="steps of matching")
    parser.add_argument("--train_batch_size", type=whole_number(4), default=200, help="generated images per step")
    parser.add_argument("--learning_rate", type=positive_float, default=3e-3, help="of Adam, at most")
    return parser.parse_args(input_args)


if __name__ == "__main__":
    # `--help` and a wrong flag answer before the imports below, which take seconds.
    ARGS = run_script("train_private.py", parse_args)

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import set_seed
from presets import network_configs
from tqdm.auto import tqdm

from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.files import check_output_dir, lock_output_dir, replace_pipeline, replace_text, whole_folder
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import PrivateStatistics, check_privacy, matching_distance, release_statistics


# Generated images of a class in a step, where the batch has room for as many.
IMAGES_PER_CLASS = 20
WARMUP_STEPS = 20


def main(args: argparse.Namespace) -> None:
    check_privacy(args.privacy_epsilon, args.privacy_delta)
    output_dir = Path(args.output_dir)
    release = output_dir / "release"
    check_output_dir(output_dir, needed_bytes=2**26, resuming=release.is_dir())
    lock = lock_output_dir(output_dir, "train_private.py")
    try:
        # The only line that can reach the private images; what follows gets the released statistics and no more.
        statistics = released_once(release, lambda: read_images(args), args.privacy_epsilon, args.privacy_delta)
        print(f"{statistics.guarantee.describe()}\n{statistics.describe()}")
        generator = make_generator(statistics, args.seed)
        match(statistics, generator, args.max_train_steps, args.train_batch_size, args.learning_rate, args.seed)
        save(statistics, generator, args, output_dir)
    finally:
        if lock:
            lock.release()


def read_images(args: argparse.Namespace) -> ImageData:
    return load_image_data(
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


def released_once(folder: Path, read: Callable[[], ImageData], epsilon: float, delta: float) -> PrivateStatistics:
    """
    The release in a folder. It is made there if there is none, which spends the budget.

    Raises:
        ValueError: If the release in the folder has another epsilon or delta.
    """
    if not (folder / "statistics.json").exists():
        statistics = release_statistics(read(), epsilon, delta)
        with whole_folder(folder) as path:
            statistics.save(path)
        return statistics
    statistics = PrivateStatistics.load(folder)
    spent = statistics.guarantee.epsilon, statistics.guarantee.delta
    if spent != (epsilon, delta):
        raise ValueError(
            f"`--privacy_epsilon` {epsilon:g} and `--privacy_delta` {delta:g} are not those of the release in "
            f"{folder}, {spent[0]:g} and {spent[1]:g}. A second release adds to the first; it needs its own folder."
        )
    return statistics


def make_generator(statistics: PrivateStatistics, seed: int) -> DiMGenerator:
    set_seed(seed)
    features = statistics.features
    config, _ = network_configs("tiny", features.size, features.channels, len(statistics.class_names))
    return DiMGenerator(**config)


def match(
    statistics: PrivateStatistics,
    generator: DiMGenerator,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Trains the generator to match the released means, in place."""
    targets, features = statistics.means(), statistics.features
    num_classes = len(targets)
    images_each = max(2, min(IMAGES_PER_CLASS, batch_size // 2) if num_classes > 1 else batch_size)
    classes_at_once = min(num_classes, max(1, batch_size // images_each))
    images_each = max(images_each, batch_size // classes_at_once)
    optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=(0.5, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    rng = torch.Generator().manual_seed(seed)
    generator.train()
    bar = tqdm(range(steps), unit="step")
    for step in bar:
        classes = torch.randperm(num_classes, generator=rng)[:classes_at_once]
        labels = classes.repeat_interleave(images_each)
        latents = torch.randn(len(labels), generator.config.latent_dim, generator=rng)
        images = generator(latents, labels).sample
        loss = matching_distance(features(images).unflatten(0, (len(classes), -1)), targets[classes])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 50 == 0:
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss became NaN or infinite by step {step}; lower --learning_rate.")
            bar.set_postfix(loss=f"{loss.item():.4f}")
    generator.eval()


def save(statistics: PrivateStatistics, generator: DiMGenerator, args: argparse.Namespace, output_dir: Path) -> None:
    pipeline = DiMPipeline(generator, id2label=dict(enumerate(statistics.class_names)))
    pipeline.set_progress_bar_config(disable=True)
    replace_pipeline(pipeline, output_dir)
    save_sample_grid(pipeline, output_dir / "samples" / f"step-{args.max_train_steps:07d}.png")
    options = vars(args) | {"privacy": asdict(statistics.guarantee)}
    replace_text(output_dir / "options.json", json.dumps(options, indent=2))


if __name__ == "__main__":
    run_script(
        "train_private.py",
        lambda: main(ARGS),
        "A release that was made is kept in release/; the same command goes on with it and spends nothing more.",
    )
