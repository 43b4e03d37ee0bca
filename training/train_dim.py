"""
Distils a labelled image data set into a class-conditional generator (DiM, arXiv 2303.04707).

Phase 1 trains the generator against a discriminator. Phase 2 is the same step with the matching loss switched on: the
logits that a classifier drawn from a pool gives on a real and on a generated batch of the same labels. The base preset
has no steps of phase 2, for the reason in docs/results.md; `--max_match_steps` gives it some. What is kept is the
generator whose images train the best classifier, as scored on a part of the training images that was held out.

    accelerate launch training/train_dim.py                        # the embedded digits, minutes on a CPU
    accelerate launch training/train_dim.py --dataset_name zalando-datasets/fashion_mnist --output_dir out/fashion
    accelerate launch training/train_dim.py --dataset_name path/to/imagefolder --resolution 64 --output_dir out/mine

The output folder is the pipeline (`DiMPipeline.from_pretrained(output_dir)`) beside everything that is known of the
run: options.json, environment.json, metrics.jsonl, samples/, logs/, before_matching/ and the checkpoints.
`--push_to_hub` publishes the pipeline with a model card at the end, and nothing else of the folder.
"""

import argparse
import copy
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from checks import (
    build_networks,
    check_accelerator,
    check_args,
    check_batch_memory,
    check_classifiers,
    check_precision,
    matching_weights,
    read_config,
)
from command_line import HelpWithDefaults, given_flags, local_path, refuse_idle_flags, run_script
from presets import PRESETS, default_augmentation, network_configs
from run_folder import check_folder, check_restart, is_branch, keep_until, needed_bytes, set_pipeline
from tqdm.auto import tqdm

from dim_hf.choices import AUGMENTATIONS, CLASSIFIERS, MATCHING_LOSSES
from dim_hf.data import ImageData, holdout, load_image_data, normalise
from dim_hf.data.decoding import default_cache_dir
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.checkpointing import (
    find_checkpoint,
    leave_models_to_diffusers,
    load_models,
    read_progress,
    save_checkpoint,
)
from dim_hf.distillation.losses import (
    class_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    matching_loss,
    r1_penalty,
    wasserstein_discriminator_loss,
)
from dim_hf.distillation.pool import PoolRecipe, build_pool, split_entry
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, train_classifier
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.files import append_json_line, check_output_dir, lock_output_dir, replace_pipeline, replace_text
from dim_hf.hub.card import local_or_hub
from dim_hf.hub.push import prepare_repository
from dim_hf.machine import environment, peak_memory_mib, warn_of_slow_precision
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.models.generator_dim import STORAGE_FORMS
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import ShuffledOrder
from dim_hf.weights import is_finite, stored_form, warn_of_storage


# Settings that may differ between a run and its continuation, because they do not change what is trained. The number
# of adversarial steps is compared in place of what it was computed from.
FREE_ON_RESUME = {
    "output_dir", "report_to", "resume_from_checkpoint", "checkpointing_steps",
    "checkpoints_total_limit", "cache_dir", "dataloader_num_workers", "dataset_name", "train_data_dir", "push_to_hub",
    "hub_model_id", "hub_private_repo", "num_train_epochs", "max_train_steps", "num_match_epochs", "max_match_steps",
    "logging_steps", "validation_steps",
}  # fmt: skip
# The R1 penalty is taken in every so many steps (lazily, arXiv 1912.04958), as many times as strong.
R1_INTERVAL = 16
# Images per class and epoch of the classifier of a validation.
VALIDATION_IPC = 10
# Settings that were flags before 0.1.0, with the values that they have now; checkpoints of that time go on until 0.2.
FORMER_FLAGS = {
    "adam_epsilon": 1e-8, "adam_weight_decay": 0.0, "allow_tf32": False, "discr_adam_beta1": None,
    "discr_adam_beta2": None, "discr_adam_epsilon": 1e-8, "discr_adam_weight_decay": 0.0, "lr_scheduler": "constant",
    "lr_warmup_steps": 0, "match_weight": 1.0, "max_grad_norm": None, "pool_snapshots": 6, "r1_interval": 16,
    "use_ema": True, "validation_ipc": 10,
}  # fmt: skip
# These too, until phase 2 begins.
MATCHING_SETTINGS = {
    "match_learning_rate", "match_loss", "match_interval", "pool", "pool_steps",
}  # fmt: skip


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Distil a labelled image data set into a class-conditional generator.",
        formatter_class=HelpWithDefaults,
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_name",
        type=local_path,
        default="digits",
        help="Hub id, local folder or file, or 'digits' (embedded)",
    )
    data.add_argument("--dataset_config_name", help="configuration of the data set, where it has several")
    data.add_argument(
        "--train_data_dir", type=local_path, help="folder of images, one sub-folder per class, instead of a data set"
    )
    data.add_argument("--revision", help="revision of a data set on the Hub")
    data.add_argument("--train_split", default="train", help="the split that is trained on")
    data.add_argument("--image_column", help="found from the features unless given")
    data.add_argument("--label_column", help="found from the features unless given")
    data.add_argument("--cache_dir", type=local_path, help="where decoded images and the pool's networks are kept")
    data.add_argument("--dataloader_num_workers", type=int, help="processes that decode; default: every core; 0: none")
    data.add_argument("--resolution", type=int, help="height and width in pixels; default: that of the images")
    data.add_argument("--max_train_samples", type=int, help="train on so many images, stratified")
    data.add_argument("--validation_fraction", type=float, default=0.1, help="share of the train split held out")

    networks = parser.add_argument_group("networks")
    networks.add_argument("--preset", default="base", choices=sorted(PRESETS), help="networks and defaults below")
    networks.add_argument(
        "--generator_config", type=local_path, help="JSON file of a DiMGenerator config, over the preset's"
    )
    networks.add_argument(
        "--discriminator_config", type=local_path, help="JSON file of a DiMDiscriminator config, over the preset's"
    )

    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=local_path, default="out/digits", help="the folder of the run")
    run.add_argument("--storage", choices=STORAGE_FORMS, help="how weights are stored, and scored; default: float32")
    run.add_argument("--seed", type=int, default=0, help="of weights, noise, order, augmentation and holdout")
    run.add_argument("--train_batch_size", type=int, help="per process")
    length = run.add_mutually_exclusive_group()
    length.add_argument("--num_train_epochs", type=int, help="length of phase 1")
    length.add_argument("--max_train_steps", type=int, help="length of phase 1, instead of epochs")
    run.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of one optimiser step")
    run.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's configuration")
    run.add_argument("--logging_steps", type=int, default=50, help="steps between records of the log")
    run.add_argument("--report_to", default="tensorboard", help="a tracker that accelerate knows, 'all' or 'none'")
    run.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    run.add_argument("--checkpoints_total_limit", type=int, default=2, help="how many checkpoints are kept")
    run.add_argument("--resume_from_checkpoint", type=local_path, help="'latest', a checkpoint's name, or its path")

    adversarial = parser.add_argument_group("adversarial step")
    adversarial.add_argument("--adversarial_loss", choices=["hinge", "wgan-gp"], help="of both networks")
    adversarial.add_argument("--class_loss_weight", type=float, help="auxiliary class loss of both networks; 0: none")
    adversarial.add_argument("--r1_weight", type=float, help="R1 penalty of the discriminator; 0: none")
    adversarial.add_argument(
        "--augmentation",
        nargs="*",
        choices=AUGMENTATIONS,
        help="of real and generated images; base preset: shift where there are fewer than 10,000 images, else none",
    )
    adversarial.add_argument("--ema_decay", type=float, help="of the average of the generator's weights; 0: none")
    adversarial.add_argument("--learning_rate", type=float, help="of the generator, in phase 1")
    adversarial.add_argument("--discr_learning_rate", type=float, help="of the discriminator, in phase 1")
    adversarial.add_argument("--adam_beta1", type=float, help="of both networks' Adam")
    adversarial.add_argument("--adam_beta2", type=float, help="of both networks' Adam")

    matching = parser.add_argument_group("matching (phase 2)")
    length = matching.add_mutually_exclusive_group()
    length.add_argument("--num_match_epochs", type=int, help="length of phase 2; 0: a plain conditional GAN")
    length.add_argument("--max_match_steps", type=int, help="length of phase 2, instead of epochs")
    matching.add_argument("--match_learning_rate", type=float, help="of both networks in phase 2")
    matching.add_argument(
        "--match_loss",
        nargs="+",
        metavar="LOSS[=WEIGHT]",
        help=f"any of {', '.join(MATCHING_LOSSES)}, as in: energy=1 features=0.1",
    )
    matching.add_argument("--match_interval", type=int, help="steps from one matching loss to the next")
    matching.add_argument(
        "--pool",
        nargs="+",
        metavar="CLASSIFIER[@WEIGHT]",
        help=f"any of {', '.join(CLASSIFIERS)}, timm/<model>, transformers/<config class, hub id or folder>; one with "
        f"@2 is drawn twice as often",
    )
    matching.add_argument("--pool_steps", type=int, help="training steps of a pool network until its last snapshot")

    validation = parser.add_argument_group("validation (a short deployment, scored on the part held out of train)")
    validation.add_argument("--validation_steps", type=int, help="default: eight times in a run")
    validation.add_argument("--validation_classifier", default="convnet3", help="as in --pool")
    validation.add_argument("--validation_epochs", type=int, default=100, help="each of 10 images per class")

    hub = parser.add_argument_group("Hugging Face Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="push the pipeline with its card when it is done")
    hub.add_argument("--hub_model_id", help="repository; default: the name of the output folder, in your namespace")
    hub.add_argument("--hub_token", help="default: the token of `hf auth login` or of HF_TOKEN")
    hub.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")

    # The defaults of a preset are those of the flags, in --help too. Epochs that are asked for win over its steps.
    first = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    for name in ("preset", "num_train_epochs", "num_match_epochs"):
        first.add_argument(f"--{name}")
    given, _ = first.parse_known_args(input_args)
    defaults = dict(PRESETS.get(getattr(given, "preset", "base"), {}))
    for epochs, steps in (("num_train_epochs", "max_train_steps"), ("num_match_epochs", "max_match_steps")):
        if epochs in given:
            defaults.pop(steps, None)
    parser.set_defaults(**defaults)
    args = parser.parse_args(input_args)
    args.match_loss = args.match_loss if isinstance(args.match_loss, str) else " ".join(args.match_loss)
    idle = [
        (not args.push_to_hub, ("hub_model_id", "hub_token", "hub_private_repo"), "without `--push_to_hub`"),
    ]
    refuse_idle_flags(given_flags(parser, input_args), idle)
    return args


def make_accelerator(args: argparse.Namespace, output_dir: Path) -> Accelerator:
    """Accelerate as the settings and its own configuration have it; what it would silently ignore is refused."""
    check_precision(args.mixed_precision)
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=output_dir / "logs",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # Processes wait for the first one to decode, to train a pool and to validate, longer than usual.
            InitProcessGroupKwargs(timeout=timedelta(days=1)),
        ],
    )
    check_accelerator(accelerator, args)
    return accelerator


def main(args: argparse.Namespace) -> None:
    # 1. What settings, files and folders alone show to be wrong is refused before data is read.
    check_args(args)
    own_generator_config = read_config("generator_config", args.generator_config, DiMGenerator)
    own_discriminator_config = read_config("discriminator_config", args.discriminator_config, DiMDiscriminator)
    output_dir = Path(args.output_dir)
    accelerator = make_accelerator(args, output_dir)
    resume = args.resume_from_checkpoint
    checkpoint, damaged = find_checkpoint(output_dir, resume) if resume else (None, [])
    branched = is_branch(checkpoint, output_dir)
    goes_on = bool(resume) and not branched
    if accelerator.is_main_process:
        check_folder(output_dir, checkpoint, goes_on)
        for reason in damaged:
            print(f"{reason}; going on from {checkpoint}.")
        warn_of_slow_precision(accelerator.mixed_precision, accelerator.device)
    set_seed(args.seed)
    with accelerator.main_process_first():
        data = load_image_data(
            args.dataset_name,
            args.train_split,
            dataset_config_name=args.dataset_config_name,
            train_data_dir=args.train_data_dir,
            image_column=args.image_column,
            label_column=args.label_column,
            resolution=args.resolution,
            cache_dir=args.cache_dir,
            num_workers=args.dataloader_num_workers,
            max_samples=args.max_train_samples,
            revision=args.revision,
        )
    accelerator.print(data.describe())
    check_classifiers(args, data)
    check_batch_memory(args.train_batch_size, data)
    train, validation = (part.to(accelerator.device) for part in holdout(data, args.validation_fraction, args.seed))
    if args.augmentation is None:
        args.augmentation = default_augmentation(len(train))

    # 2. Networks, their average and their optimisers.
    generator_config, discriminator_config = network_configs(args.preset, data.size, data.channels, data.num_classes)
    discriminator_config["auxiliary"] = args.class_loss_weight > 0
    generator_config |= own_generator_config
    discriminator_config |= own_discriminator_config
    generator, discriminator = build_networks(args, generator_config, discriminator_config, data)
    if accelerator.device.type == "cpu":
        # A step takes an eighth less time (docs/results.md). What is saved has ordinary strides all the same.
        generator.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
    ema_generator = copy.deepcopy(generator).to(accelerator.device).eval().requires_grad_(False)
    # The one whose pipeline lies in the output folder; checkpoints hold it, so that the folder can follow them.
    best_generator = copy.deepcopy(ema_generator)
    generator_optimizer = torch.optim.Adam(
        generator.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
    )
    discriminator_optimizer = torch.optim.Adam(
        discriminator.parameters(),
        lr=args.discr_learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
    )

    # 3. How long it takes, in optimiser steps.
    global_batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(train) / global_batch_size)
    adversarial_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    match_steps = args.num_match_epochs * steps_per_epoch if args.max_match_steps is None else args.max_match_steps
    total_steps = adversarial_steps + match_steps
    validation_steps = args.validation_steps or math.ceil(total_steps / 8)

    options = {name: value for name, value in vars(args).items() if name != "hub_token"} | {
        "dataset_name": local_or_hub(args.dataset_name),
        "data_fingerprint": data.fingerprint,
        "generator_config": generator_config,
        "discriminator_config": discriminator_config,
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": accelerator.num_processes,
        "adversarial_steps": adversarial_steps,
    }
    deciding_options = {name: value for name, value in options.items() if name not in FREE_ON_RESUME}
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": {"accuracy": -1.0}, "options": deciding_options}
    if checkpoint:
        progress = read_progress(checkpoint, deciding_options, may_still_change)
        if progress["step"] > total_steps or (branched and progress["step"] == total_steps):
            raise ValueError(
                f"`--resume_from_checkpoint` {checkpoint} is of step {progress['step']:,}, and the run ends at step "
                f"{total_steps:,}; more steps are needed (--max_train_steps, --max_match_steps)."
            )
        if branched:
            # The best pipeline so far is that of the other run.
            progress["best"] = {"accuracy": -1.0}
    elif goes_on:
        check_restart(output_dir, deciding_options)
    if accelerator.is_main_process:
        saves = math.ceil((total_steps - progress["step"]) / args.checkpointing_steps) + branched
        needed = needed_bytes(output_dir, generator, discriminator, saves, args.checkpoints_total_limit)
        check_output_dir(output_dir, needed, goes_on)
        if args.push_to_hub:
            name = args.hub_model_id or output_dir.resolve().name
            args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
        lock = lock_output_dir(output_dir, "train_dim.py")
    accelerator.wait_for_everyone()

    # 4. From here on files are made.
    generator, discriminator, generator_optimizer, discriminator_optimizer = accelerator.prepare(
        generator, discriminator, generator_optimizer, discriminator_optimizer
    )
    plain_generator = accelerator.unwrap_model(generator)
    plain_discriminator = accelerator.unwrap_model(discriminator)
    models = {"generator": plain_generator, "discriminator": plain_discriminator, "ema_generator": ema_generator}
    leave_models_to_diffusers(accelerator)
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        load_models(models, checkpoint)
        if progress["best"]["accuracy"] >= 0:
            # Runs begun before 0.1.0 was released left it to the output folder alone; to go with 0.2.
            of_checkpoint = (checkpoint / "best_generator").is_dir()
            load_models(
                {"best_generator" if of_checkpoint else "generator": best_generator},
                checkpoint if of_checkpoint else output_dir,
            )
    if checkpoint and accelerator.is_main_process:
        # The folder becomes what it was at the checkpoint, so that its pipeline is of the settings recorded below: all
        # that may differ has decided nothing by then.
        selected = make_pipeline(best_generator, data, args.storage) if progress["best"]["accuracy"] >= 0 else None
        set_pipeline(output_dir, selected)
        if progress["step"] <= adversarial_steps:
            begun_with = (
                make_pipeline(ema_generator, data, args.storage) if progress["step"] == adversarial_steps else None
            )
            set_pipeline(output_dir / "before_matching", (selected or begun_with) if match_steps else None)
    if branched:
        # From here on the branch goes on by its own checkpoints.
        save_checkpoint(accelerator, models, output_dir, progress, args.checkpoints_total_limit)
    pool = []
    if match_steps:
        with accelerator.main_process_first():
            pool = build_pool(
                [split_entry(entry) for entry in args.pool],
                train,
                PoolRecipe(steps=args.pool_steps),
                seed=args.seed,
                cache_dir=args.cache_dir or default_cache_dir(),
                device=accelerator.device,
                show_progress=accelerator.is_main_process,
            )
    if accelerator.is_main_process:
        keep_until(output_dir, progress["step"])
        replace_text(output_dir / "options.json", json.dumps(options, indent=2))
        replace_text(output_dir / "environment.json", json.dumps(environment(), indent=2))
        if accelerator.trackers or args.report_to != "none":
            accelerator.init_trackers("train_dim", config={k: str(v) for k, v in options.items()})
    accelerator.print(
        f"{len(train):,} images of {data.num_classes} classes, {data.channels} x {data.size} x {data.size}; "
        f"{len(validation):,} held out for validation\n"
        f"generator {plain_generator.num_parameters():,} parameters, discriminator "
        f"{plain_discriminator.num_parameters():,}; preset {args.preset}\n"
        f"{adversarial_steps:,} adversarial steps, then {match_steps:,} with matching, of {global_batch_size} images, "
        f"on {accelerator.num_processes} x {accelerator.device}"
    )

    # 5. One loop. Whatever is random in a step is a function of (seed, step, process) alone, so a resumed run needs no
    # random state to go on exactly as the interrupted one would have.
    order = ShuffledOrder(len(train), args.seed, accelerator.device)
    noise = torch.Generator(accelerator.device)
    match_weights = matching_weights(args.match_loss)
    means = RunningMeans()
    started = time.perf_counter() - progress["seconds"]
    bar = tqdm(total=total_steps, initial=progress["step"], unit="step", disable=not accelerator.is_local_main_process)

    def conclude(step: int, record: dict[str, float], validating: bool, saving: bool, interrupted: bool) -> None:
        """What is due after a step: validation, a line of the log, a checkpoint."""
        matching = step > adversarial_steps
        progress["seconds"] = time.perf_counter() - started
        if validating and accelerator.is_main_process:
            if not makes_finite_images(ema_generator):
                raise not_finite("generated images", step)
            pipeline = make_pipeline(ema_generator, data, args.storage)
            full = None
            try:
                accuracy = validate(pipeline.generator, validation, args, accelerator, stop)
                if args.storage not in (None, "float32") and step == total_steps:
                    full = validate(ema_generator, validation, args, accelerator, stop)
            except ValidationInterrupted:
                # The continuation begins with it.
                progress["pending"], saving, interrupted = record, True, True
            else:
                record = record | {"validation/accuracy": accuracy}
                if full is not None:
                    record["validation/accuracy_in_float32"] = full
                    warn_of_storage(args.storage, accuracy, full, "validation accuracy")
                save_sample_grid(pipeline, output_dir / "samples" / f"step-{step:07d}.png")
                if accuracy > progress["best"]["accuracy"]:
                    progress["best"] = {"accuracy": accuracy, "step": step, "matching": matching}
                    best_generator.load_state_dict(ema_generator.state_dict())
                    replace_pipeline(pipeline, output_dir)
                    if match_steps and not matching:
                        replace_pipeline(pipeline, output_dir / "before_matching")
                bar.write(
                    f"step {step:,}: validation accuracy {accuracy:.4f} "
                    f"(best {progress['best']['accuracy']:.4f} at step {progress['best']['step']:,})"
                )
            progress["seconds"] = time.perf_counter() - started
        if accelerator.is_main_process and "pending" not in progress:
            line = {
                "step": step,
                "seconds": round(progress["seconds"], 3),
                "matching": matching,
                "peak_memory_mib": round(peak_memory_mib(accelerator.device)),
            } | record
            append_json_line(output_dir / "metrics.jsonl", line)
            accelerator.log(record, step=step)
            bar.set_postfix({name.removeprefix("loss/"): f"{value:.3g}" for name, value in record.items()})
        if saving or interrupted:
            best = {"best_generator": best_generator} if progress["best"]["accuracy"] >= 0 else {}
            save_checkpoint(accelerator, models | best, output_dir, progress, args.checkpoints_total_limit)
        if interrupted and (step < total_steps or "pending" in progress):
            bar.close()
            accelerator.end_training()
            if accelerator.is_main_process:
                lock.release()
            accelerator.print(
                f"Interrupted after step {step:,} of {total_steps:,}; everything is saved. Go on with the same "
                f"command and --resume_from_checkpoint latest."
            )
            sys.exit(130)

    with heeded_signals() as stop:
        if "pending" in progress:
            step = progress["step"]
            conclude(step, progress.pop("pending"), True, step % args.checkpointing_steps == 0, False)
        for micro_step in range(
            progress["step"] * args.gradient_accumulation_steps, total_steps * args.gradient_accumulation_steps
        ):
            step = micro_step // args.gradient_accumulation_steps
            matching = step >= adversarial_steps
            rng = random.Random(f"{args.seed}/{micro_step}/{accelerator.process_index}")
            noise.manual_seed(rng.getrandbits(63))
            for optimizer, rate in (
                (generator_optimizer, args.learning_rate),
                (discriminator_optimizer, args.discr_learning_rate),
            ):
                for group in optimizer.param_groups:
                    group["lr"] = args.match_learning_rate if matching else rate

            share = micro_step * accelerator.num_processes + accelerator.process_index
            pixels, labels = train.batch(order.take(share * args.train_batch_size, args.train_batch_size))
            images = normalise(pixels)
            latents = torch.randn(
                len(labels), plain_generator.config.latent_dim, generator=noise, device=accelerator.device
            )
            augment = draw_augmentation(args.augmentation, data.size, rng)
            losses = {}

            def critic(images: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                return plain_discriminator(images, labels).logits

            with accelerator.accumulate(generator, discriminator):
                fake_images = generator(latents, labels).sample

                # The discriminator's step.
                critic_images = torch.cat([augment(images), augment(fake_images.detach())])
                output = discriminator(critic_images, labels.repeat(2), num_batches=2)
                real_logits, fake_logits = output.logits.float().chunk(2)
                if args.adversarial_loss == "hinge":
                    losses["discriminator"] = hinge_discriminator_loss(real_logits, fake_logits)
                else:
                    mix = torch.rand(len(labels), 1, 1, 1, generator=noise, device=accelerator.device)
                    real, fake = critic_images.chunk(2)
                    losses["discriminator"] = wasserstein_discriminator_loss(real_logits, fake_logits) + 10 * (
                        gradient_penalty(critic, real, fake, mix)
                    )
                discriminator_loss = losses["discriminator"]
                if args.class_loss_weight:
                    losses["class_real"] = class_loss(output.class_logits.float().chunk(2)[0], labels)
                    discriminator_loss = discriminator_loss + args.class_loss_weight * losses["class_real"]
                if args.r1_weight and step % R1_INTERVAL == 0:
                    losses["r1"] = r1_penalty(critic, augment(images))
                    discriminator_loss = discriminator_loss + args.r1_weight * R1_INTERVAL * losses["r1"]
                accelerator.backward(discriminator_loss)
                discriminator_optimizer.step()
                discriminator_optimizer.zero_grad()

                # The generator's step, on the same images.
                plain_discriminator.requires_grad_(False)
                output = plain_discriminator(augment(fake_images), labels)
                losses["generator"] = generator_loss(output.logits.float())
                total_loss = losses["generator"]
                if args.class_loss_weight:
                    losses["class_fake"] = class_loss(output.class_logits.float(), labels)
                    total_loss = total_loss + args.class_loss_weight * losses["class_fake"]
                if matching and step % args.match_interval == 0:
                    classifier = rng.choice(pool)
                    with accelerator.autocast():
                        losses["matching"] = matching_loss(
                            match_weights, classifier, augment(images), augment(fake_images), labels
                        )
                    total_loss = total_loss + losses["matching"]
                accelerator.backward(total_loss)
                plain_discriminator.requires_grad_(True)
                generator_optimizer.step()
                generator_optimizer.zero_grad()
            means.add(losses)
            if not accelerator.sync_gradients:
                continue
            decay = min(args.ema_decay, (1 + step) / (10 + step))
            update_average(ema_generator, plain_generator, decay)
            progress["step"] = step = step + 1
            bar.update()

            # What is due after this step.
            due_log = step % args.logging_steps == 0 or step == total_steps
            due_validation = step % validation_steps == 0 or step in (adversarial_steps, total_steps)
            due_checkpoint = step % args.checkpointing_steps == 0 or step == total_steps
            if accelerator.num_processes == 1:
                interrupted = stop()
            else:
                interrupted = due_log and accelerator.reduce(torch.tensor(int(stop()), device=accelerator.device)) > 0
            if not (due_log or due_validation or due_checkpoint or interrupted):
                continue
            record = {f"loss/{name}": value for name, value in means.read(accelerator).items()}
            wrong = [name.removeprefix("loss/") for name, value in record.items() if not math.isfinite(value)]
            if wrong:
                raise not_finite(f"loss {', '.join(wrong)}", step)
            # A step can spoil weights by losses that are still numbers.
            if not is_finite(*models.values()):
                raise not_finite("weights", step)
            conclude(step, record, due_validation, due_checkpoint, bool(interrupted))
    bar.close()
    accelerator.end_training()
    if accelerator.is_main_process:
        lock.release()
        best = progress["best"]
        phase = f" ({'after' if best['matching'] else 'before'} matching)" if match_steps else ""
        print(
            f"Done in {progress['seconds']:,.0f} s. The pipeline in {output_dir} is that of step "
            f"{best['step']:,}{phase}: validation accuracy {best['accuracy']:.4f}."
        )
        if args.push_to_hub:
            url = DiMPipeline.from_pretrained(output_dir).push_to_hub(
                args.hub_model_id, token=args.hub_token, private=args.hub_private_repo or None
            )
            print(f"Pushed to {args.hub_model_id}: {url}")


def make_pipeline(generator: DiMGenerator, data: ImageData, storage: str | None) -> DiMPipeline:
    """A pipeline of a copy of the generator's present weights, as they are once they are stored."""
    pipeline = DiMPipeline(copy.deepcopy(generator), id2label=dict(enumerate(data.class_names)))
    pipeline = stored_form(pipeline, storage)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def not_finite(what: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} became NaN or infinite by step {step}; the last good checkpoint is untouched. Lower --learning_rate "
        f"or --discr_learning_rate in a new --output_dir."
    )


@torch.no_grad()
def makes_finite_images(generator: DiMGenerator) -> bool:
    """Whether the images of a generator in `eval()`, one of each class up to 64, are numbers."""
    config = generator.config
    labels = torch.arange(min(64, config.num_classes), device=generator.device)
    latents = torch.randn(len(labels), config.latent_dim, generator=torch.Generator().manual_seed(0))
    return bool(generator(latents.to(generator.device), labels).sample.isfinite().all())


class ValidationInterrupted(Exception):
    """A signal came during validation, which takes too long to wait for."""


def validate(
    generator: DiMGenerator,
    validation: ImageData,
    args: argparse.Namespace,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> float:
    """Accuracy on held-out real images of a classifier trained for a short while on generated ones."""

    def leave(epoch: int, classifier: torch.nn.Module) -> None:
        # Other processes would not know of it.
        if accelerator.num_processes == 1 and stop():
            raise ValidationInterrupted

    # The classifier needs no loss scaling: where the run is in fp16 it is trained in float32.
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "no"
    recipe = DeploymentRecipe(epochs=args.validation_epochs, mixed_precision=precision)
    stream = GeneratedStream(generator, VALIDATION_IPC, seed=args.seed, batch_size=recipe.batch_size)
    classifier = train_classifier(
        stream,
        args.validation_classifier,
        recipe,
        channels=validation.channels,
        size=validation.size,
        seed=args.seed,
        device=validation.labels.device,
        on_epoch=leave,
    )
    return evaluate_accuracy(classifier, validation)


@torch.no_grad()
def update_average(average: DiMGenerator, generator: DiMGenerator, decay: float) -> None:
    """Moves the average towards the generator: weights, and batch-norm statistics, which diffusers' EMA leaves out."""
    current, averaged = generator.state_dict(), average.state_dict()
    names = [name for name, value in averaged.items() if value.is_floating_point()]
    torch._foreach_lerp_([averaged[n] for n in names], [current[n] for n in names], 1 - decay)


def may_still_change(step: int, then: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """The settings that have decided nothing yet when a checkpoint is taken after `step` steps."""
    former = FORMER_FLAGS | {f"discr_adam_beta{i}": now[f"adam_beta{i}"] for i in (1, 2)}
    same = {name for name, value in former.items() if then.get(name) == value}
    # Nor did runs of that time record a precision of accelerate's configuration.
    if then.get("mixed_precision") is None:
        same.add("mixed_precision")
    if step > min(then.get("adversarial_steps", 0), now["adversarial_steps"]):
        return same
    return same | MATCHING_SETTINGS | {"adversarial_steps"}


class RunningMeans:
    """Means of losses since they were last read, kept on the device so that a step waits for no copy."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes; they start anew. NaN and infinity stay visible in them."""
        if not self.sums:
            return {}
        values = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        means = accelerator.reduce(values, reduction="mean").tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.sums, self.counts = {}, {}
        return named


@contextmanager
def heeded_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C or SIGTERM came; a second or a later one acts as it did before."""
    received = []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()


if __name__ == "__main__":
    run_script(
        "train_dim.py",
        lambda: main(parse_args()),
        "What was saved before is whole; --resume_from_checkpoint latest goes on from the last checkpoint.",
    )
