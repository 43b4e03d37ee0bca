"""
Distils a labelled image data set into a class-conditional generator (DiM, arXiv 2303.04707).

Phase 1 trains the generator against a discriminator. Phase 2 is the same step with the matching loss switched on: a
classifier trained on real images must give generated images their own labels or, with the paper preset, the logits
that it gives real ones. Only that preset has steps of phase 2 by default, for the reason in docs/ablations.md;
`--max_match_steps` adds them. What is kept is the generator whose images train the best classifier, as scored on a
part of the training images that was held out.

    accelerate launch training/train_dim.py                        # the embedded digits, minutes on a CPU
    accelerate launch training/train_dim.py --dataset_name zalando-datasets/fashion_mnist --output_dir out/fashion
    accelerate launch training/train_dim.py --dataset_name path/to/imagefolder --resolution 64 --output_dir out/mine

The output folder holds the pipeline (`DiMPipeline.from_pretrained(output_dir)`) and everything known of the run:
options.json, environment.json, metrics.jsonl, samples/, logs/, before_matching/ and the checkpoints. `--push_to_hub`
publishes the pipeline with a model card at the end, and nothing else of the folder.
"""

from command_line import parse_before_imports, run_script
from train_arguments import parse_args


if __name__ == "__main__":
    ARGS = parse_before_imports("train_dim.py", parse_args)

import argparse
import contextlib
import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from continuation import deciding, may_still_change, recorded
from filelock import FileLock
from preparation import Data, Networks, Plan, Start, check, make_networks, make_plan, read_data
from run_folder import check_restart, keep_until, losses_at, needed_bytes, read_teacher, set_pipeline
from torch import nn
from tqdm.auto import tqdm
from validation import ValidationInterrupted, makes_finite_images, scored_part, validate

from dim_hf.data import normalise
from dim_hf.data.decoding import default_cache_dir
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.averages import RunningMeans, update_average
from dim_hf.distillation.checkpointing import (
    leave_models_to_diffusers,
    load_models,
    load_optimizers,
    read_progress,
    remove_later_checkpoints,
    save_checkpoint,
)
from dim_hf.distillation.interruption import agreed, heeded_signals
from dim_hf.distillation.losses import (
    R1_INTERVAL,
    class_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    matching_loss,
    r1_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    wasserstein_discriminator_loss,
)
from dim_hf.distillation.pool import PoolRecipe, build_pool
from dim_hf.distillation.processes import check_same, gather, make_equal, over_all_processes
from dim_hf.distillation.rounding import rounded_weights
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.files import append_json_line, check_output_dir, lock_output_dir, replace_text
from dim_hf.hub.card import local_or_hub
from dim_hf.hub.push import prepare_repository
from dim_hf.machine import describe_threads, environment, keep_freed_memory, peak_memory_mib
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.randomness import ShuffledOrder
from dim_hf.weights import is_finite, stored_form, warn_of_storage


def main(args: argparse.Namespace) -> None:
    keep_freed_memory()
    if args.privacy_epsilon is not None:
        # No line below may read private images: such a run has a loop of its own.
        import private_run

        private_run.main(args)
        return
    # 1. Settings, files and folders are checked before data is read.
    start = check(args)
    # 2. Images, networks, and how long the networks are trained.
    data = read_data(args, start.accelerator)
    networks = make_networks(args, start, data)
    plan = make_plan(args, start, data, networks)
    # 3. Where the run starts, and the folder it writes to.
    options, progress = begin_or_go_on(args, start, data, networks, plan)
    lock = claim_folder(args, start, networks, plan, progress)
    run = Run(args, start.accelerator, start.output_dir, data, networks, plan, progress)
    try:
        # 4. From here on files are written.
        load_or_prepare(run, start)
        pool = make_pool(run)
        record_beginning(run, options)
        train(run, pool)
        finish(run)
    finally:
        if lock:
            lock.release()


@dataclass(frozen=True)
class Run:
    """What the stages share. `progress` is what a checkpoint records beside the weights."""

    args: argparse.Namespace
    accelerator: Accelerator
    output_dir: Path
    data: Data
    networks: Networks
    plan: Plan
    progress: dict[str, Any]


def begin_or_go_on(
    args: argparse.Namespace, start: Start, data: Data, networks: Networks, plan: Plan
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options to record, and the progress so far: none, or that of a checkpoint with the same options."""
    options = recorded(args) | {
        "dataset_name": local_or_hub(args.dataset_name),
        "data_fingerprint": data.fingerprint,
        **networks.configs,
        "mixed_precision": start.accelerator.mixed_precision,
        "num_processes": start.accelerator.num_processes,
        "adversarial_steps": plan.adversarial_steps,
        "rounded_from": plan.rounded_from,
        "validation_epochs": plan.validation.epochs,
    }
    validation = {"ipc": plan.validation.ipc, "images": plan.validation.images}
    progress = {"step": 0, "seconds": 0.0, "best": {"accuracy": -1.0}, "options": deciding(options)}
    progress |= {"validation": validation, "ended": None}
    # Machines may differ in the data that they read and in the precision that they choose.
    check_same(start.accelerator, deciding(options))
    if start.checkpoint is None:
        if start.goes_on:
            check_restart(start.output_dir, deciding(options))
        return options, progress
    may_differ = partial(may_still_change, given=args.given, branched=start.branched)
    progress = read_progress(start.checkpoint, deciding(options), may_differ) | {"validation": validation}
    if not {"seconds", "best"} <= progress.keys():
        raise ValueError(f"`--resume_from_checkpoint` {start.checkpoint} is not a checkpoint of train_dim.py.")
    if progress["step"] > plan.total_steps or (start.branched and progress["step"] == plan.total_steps):
        raise ValueError(
            f"`--resume_from_checkpoint` {start.checkpoint} is of step {progress['step']:,}, and the run ends at step "
            f"{plan.total_steps:,}; more steps are needed (--max_train_steps, --max_match_steps)."
        )
    if start.branched:
        # The best pipeline so far is that of the other run.
        progress |= {"best": {"accuracy": -1.0}, "ended": None}
    # A longer run was interrupted at what is now its last step, and lacks the validation of a run's end. Checkpoints
    # from before this was recorded are taken to have had it if they had any.
    ended = progress.get("ended", progress["step"] if progress["best"]["accuracy"] >= 0 else None)
    if progress["step"] == plan.total_steps != ended:
        progress.setdefault("pending", losses_at(start.output_dir, progress["step"]))
    return options, progress


def claim_folder(
    args: argparse.Namespace, start: Start, networks: Networks, plan: Plan, progress: dict[str, Any]
) -> FileLock | None:
    """Checks disk space and access to the Hub, and locks the folder; only the main process gets a lock."""
    if not start.accelerator.is_main_process:
        start.accelerator.wait_for_everyone()
        return None
    output_dir, generator, discriminator = start.output_dir, networks.plain_generator, networks.plain_discriminator
    saves = math.ceil((plan.total_steps - progress["step"]) / args.checkpointing_steps) + start.branched
    needed = needed_bytes(output_dir, generator, discriminator, saves, args.checkpoints_total_limit)
    check_output_dir(output_dir, needed, start.goes_on)
    if args.push_to_hub:
        name = args.hub_model_id or output_dir.resolve().name
        args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
    lock = lock_output_dir(output_dir, "train_dim.py")
    start.accelerator.wait_for_everyone()
    return lock


def load_or_prepare(run: Run, start: Start) -> None:
    """Prepares networks and optimisers with Accelerate; restores them and the folder from a checkpoint, if any."""
    networks, plan, progress = run.networks, run.plan, run.progress
    if run.accelerator.num_processes > 1:
        over_all_processes(networks.plain_generator)
        over_all_processes(networks.plain_discriminator)
        # Accelerate sees to the other two.
        make_equal([networks.ema_generator])
    (
        networks.generator,
        networks.discriminator,
        networks.generator_optimizer,
        networks.discriminator_optimizer,
    ) = run.accelerator.prepare(
        networks.generator,
        networks.discriminator,
        networks.generator_optimizer,
        networks.discriminator_optimizer,
    )
    leave_models_to_diffusers(run.accelerator)
    if run.accelerator.is_main_process and start.goes_on:
        networks.labeler = read_teacher(run.output_dir)
        # A teacher of other images is refused now, and not when the first pipeline is saved.
        make_pipeline(run, networks.ema_generator)
    checkpoint, best = start.checkpoint, networks.best_generator
    if checkpoint is None:
        return
    if run.accelerator.is_main_process and start.goes_on:
        # Those that are damaged. Counted among the newest, they would outlive the one that this run goes on from.
        remove_later_checkpoints(run.output_dir, progress["step"])
    load_optimizers(run.accelerator, checkpoint)
    load_models(networks.saved, checkpoint)
    validated = progress["best"]["accuracy"] >= 0
    if validated:
        load_models({"best_generator": best}, checkpoint)
    if run.accelerator.is_main_process:
        # The folder's pipelines are of the settings recorded below: all that may differ has decided nothing by then.
        selected = make_pipeline(run, best) if validated else None
        set_pipeline(run.output_dir, selected)
        if progress["step"] <= plan.adversarial_steps:
            at_the_border = progress["step"] == plan.adversarial_steps
            begun_with = selected or (make_pipeline(run, networks.ema_generator) if at_the_border else None)
            set_pipeline(run.output_dir / "before_matching", begun_with if plan.match_steps else None)
    if start.branched:
        # From here on the branch goes on by its own checkpoints.
        save(run)


def make_pool(run: Run) -> Sequence[nn.Module]:
    if not run.plan.match_steps:
        return []
    with run.accelerator.main_process_first():
        pool = build_pool(
            run.args.pool,
            run.data.train,
            PoolRecipe(steps=run.args.pool_steps, snapshots=run.args.pool_snapshots),
            seed=run.args.seed,
            cache_dir=run.args.cache_dir or default_cache_dir(),
            device=run.accelerator.device,
            show_progress=run.accelerator.is_main_process,
        )
    if run.accelerator.num_processes > 1:
        # Another machine trains its own where it does not find them in the cache.
        make_equal(pool)
    return pool


def record_beginning(run: Run, options: dict[str, Any]) -> None:
    accelerator, networks, plan, train = run.accelerator, run.networks, run.plan, run.data.train
    if accelerator.is_main_process:
        # The line of a step whose validation is still to be done is written with it.
        keep_until(run.output_dir, run.progress["step"] - ("pending" in run.progress))
        # Those of a run that is over made its weights.
        if run.progress["step"] < plan.total_steps or not (run.output_dir / "options.json").is_file():
            replace_text(run.output_dir / "options.json", json.dumps(options, indent=2))
        replace_text(run.output_dir / "environment.json", json.dumps(environment(), indent=2))
        if run.args.report_to != "none":
            accelerator.init_trackers("train_dim", config={k: str(v) for k, v in options.items()})
    threads = f", {describe_threads(accelerator.num_processes)}" if accelerator.device.type == "cpu" else ""
    accelerator.print(
        f"{len(train):,} images of {train.num_classes} classes, {train.channels} x {train.size} x {train.size}; "
        f"{len(run.data.validation):,} held out\n"
        f"generator {networks.plain_generator.num_parameters():,} parameters, discriminator "
        f"{networks.plain_discriminator.num_parameters():,}; preset {run.args.preset}\n"
        f"{plan.adversarial_steps:,} adversarial steps, then {plan.match_steps:,} with matching, of "
        f"{plan.global_batch_size} images, on {accelerator.num_processes} x {accelerator.device}{threads}\n"
        f"{plan.validation}"
    )


def train(run: Run, pool: Sequence[nn.Module]) -> None:
    """
    The loop. Whatever is random in a step depends only on the seed and the step, so a resumed run needs no random
    state to continue exactly as the interrupted one would have.
    """
    args, accelerator, networks, plan, progress = run.args, run.accelerator, run.networks, run.plan, run.progress
    generator, discriminator = networks.generator, networks.discriminator
    plain_generator, plain_discriminator = networks.plain_generator, networks.plain_discriminator
    generator_optimizer, discriminator_optimizer = networks.generator_optimizer, networks.discriminator_optimizer
    images_in = run.data.train
    order = ShuffledOrder(len(images_in), args.seed, accelerator.device)
    noise = torch.Generator(accelerator.device)
    together = gather if accelerator.num_processes > 1 else lambda values: values
    means = RunningMeans()
    began = time.perf_counter() - progress["seconds"]
    bar = tqdm(
        total=plan.total_steps, initial=progress["step"], unit="step", disable=not accelerator.is_local_main_process
    )
    with heeded_signals() as stop, bar:
        stop_all = agreed(stop, accelerator)
        if "pending" in progress:
            conclude(
                run,
                progress.pop("pending"),
                validating=True,
                # In place of the checkpoint that lacks it.
                saving=True,
                interrupted=False,
                stop=stop,
                began=began,
                bar=bar,
            )
        for step in range(progress["step"], plan.total_steps):
            # What this step is made of. All processes draw the same for the whole global batch; each takes its part,
            # in as many batches as it accumulates.
            matching = step >= plan.adversarial_steps
            rng = random.Random(f"{args.seed}/{step}/0")
            noise.manual_seed(rng.getrandbits(63))
            set_rate(generator_optimizer, args.match_learning_rate if matching else args.learning_rate)
            set_rate(discriminator_optimizer, args.match_learning_rate if matching else args.discr_learning_rate)
            batches = draw_batches(run, step, order, noise)
            augment = draw_augmentation(args.augmentation, images_in.size, rng)
            classifier = rng.choice(pool) if matching and step % args.match_interval == 0 else None
            rounding: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if plan.rounded_from is not None and step >= plan.rounded_from:
                rounding = rounded_weights(plain_generator, args.storage)

            with rounding:
                # The discriminator's step.
                fakes: list[torch.Tensor] = []
                reals: list[torch.Tensor] = []
                for batch in batches:
                    losses, labels = {}, batch.labels

                    def critic(images: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                        return plain_discriminator(images, labels).logits

                    # The graph of a single batch serves the generator's step too; several would not fit in memory.
                    with torch.set_grad_enabled(len(batches) == 1):
                        fake_images = generator(batch.latents, labels).sample
                    fakes.append(fake_images)
                    with accelerator.accumulate(discriminator):
                        critic_images = torch.cat([augment(batch.images), augment(fake_images.detach())])
                        output = discriminator(critic_images, labels.repeat(2), num_batches=2)
                        real_logits, fake_logits = output.logits.float().chunk(2)
                        reals.append(real_logits.detach())
                        if args.adversarial_loss == "relativistic":
                            losses["discriminator"] = relativistic_discriminator_loss(real_logits, fake_logits)
                        elif args.adversarial_loss == "hinge":
                            losses["discriminator"] = hinge_discriminator_loss(real_logits, fake_logits)
                        else:
                            real, fake = critic_images.chunk(2)
                            losses["discriminator"] = wasserstein_discriminator_loss(real_logits, fake_logits) + 10 * (
                                gradient_penalty(critic, real, fake, batch.mix)
                            )
                        total_loss = losses["discriminator"]
                        if args.class_loss_weight:
                            losses["class_real"] = class_loss(output.class_logits.float().chunk(2)[0], labels)
                            total_loss = total_loss + args.class_loss_weight * losses["class_real"]
                        if args.r1_weight and step % R1_INTERVAL == 0:
                            losses["r1"] = r1_penalty(critic, augment(batch.images))
                            total_loss = total_loss + args.r1_weight * R1_INTERVAL * losses["r1"]
                        r2_weight = args.r1_weight if args.adversarial_loss == "relativistic" else 0.0
                        if r2_weight and step % R1_INTERVAL == R1_INTERVAL // 2:
                            losses["r2"] = r1_penalty(critic, augment(fake_images))
                            total_loss = total_loss + r2_weight * R1_INTERVAL * losses["r2"]
                        accelerator.backward(total_loss)
                    means.add(losses)
                discriminator_optimizer.step()
                discriminator_optimizer.zero_grad()

                # The generator's step, judged by the discriminator as it is now. The relativistic loss compares with
                # the logits of real images before its step, which saves a pass.
                plain_discriminator.requires_grad_(False)
                for batch, fake_images, real_logits in zip(batches, fakes, reals, strict=True):
                    losses, labels = {}, batch.labels
                    with accelerator.accumulate(generator):
                        if len(batches) > 1:
                            fake_images = generator(batch.latents, labels).sample
                        output = plain_discriminator(augment(fake_images), labels)
                        if args.adversarial_loss == "relativistic":
                            losses["generator"] = relativistic_generator_loss(real_logits, output.logits.float())
                        else:
                            losses["generator"] = generator_loss(output.logits.float())
                        total_loss = losses["generator"]
                        if args.class_loss_weight:
                            losses["class_fake"] = class_loss(output.class_logits.float(), labels)
                            total_loss = total_loss + args.class_loss_weight * losses["class_fake"]
                        if classifier is not None:
                            real = augment(batch.images)
                            with accelerator.autocast():
                                losses["matching"] = matching_loss(
                                    args.match_loss, classifier, real, augment(fake_images), labels, together
                                )
                            total_loss = total_loss + losses["matching"]
                        accelerator.backward(total_loss)
                    means.add(losses)
                plain_discriminator.requires_grad_(True)
            generator_optimizer.step()
            generator_optimizer.zero_grad()
            decay = min(args.ema_decay, (1 + step) / (10 + step))
            update_average(networks.ema_generator, plain_generator, decay)
            progress["step"] = step = step + 1
            bar.update()

            # What is due after this step.
            due_log = step % args.logging_steps == 0 or step == plan.total_steps
            due_validation = step % plan.validation.steps == 0 or step in (plan.adversarial_steps, plan.total_steps)
            due_checkpoint = step % args.checkpointing_steps == 0 or step == plan.total_steps
            interrupted = stop_all()
            if not (due_log or due_validation or due_checkpoint or interrupted):
                continue
            record = {f"loss/{name}": value for name, value in means.read(accelerator).items()}
            refuse_not_finite(record, networks, step)
            conclude(
                run,
                record,
                validating=due_validation,
                saving=due_checkpoint,
                interrupted=interrupted,
                stop=stop,
                began=began,
                bar=bar,
            )
    accelerator.end_training()


@dataclass
class Batch:
    """What a process sees at once of a step: all of its images, or a part of them with gradient accumulation."""

    images: torch.Tensor
    labels: torch.Tensor
    latents: torch.Tensor
    # Where between a real and a generated image the gradient penalty is taken.
    mix: torch.Tensor


def draw_batches(run: Run, step: int, order: ShuffledOrder, noise: torch.Generator) -> list[Batch]:
    """
    The batches of a process in a step. Latents are drawn for the global batch and images are in one order, so that it
    does not matter how they are divided.
    """
    args, accelerator, count = run.args, run.accelerator, run.plan.global_batch_size
    latent_dim = run.networks.plain_generator.config.latent_dim
    latents = torch.randn(count, latent_dim, generator=noise, device=accelerator.device)
    mix = torch.rand(count, 1, 1, 1, generator=noise, device=accelerator.device)
    batches = []
    for number in range(args.gradient_accumulation_steps):
        start = (number * accelerator.num_processes + accelerator.process_index) * args.train_batch_size
        own = slice(start, start + args.train_batch_size)
        pixels, labels = run.data.train.batch(order.take(step * count + start, args.train_batch_size))
        batches.append(Batch(normalise(pixels), labels, latents[own], mix[own]))
    return batches


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def refuse_not_finite(record: dict[str, float], networks: Networks, step: int) -> None:
    wrong = [name.removeprefix("loss/") for name, value in record.items() if not math.isfinite(value)]
    if wrong:
        raise not_finite(f"loss {', '.join(wrong)}", step)
    # A step can spoil the weights although its losses were still finite.
    if not is_finite(*networks.saved.values()):
        raise not_finite("weights", step)


def not_finite(what: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"{what} became NaN or infinite by step {step}; checkpoints of earlier steps are untouched. Lower "
        f"--learning_rate or --discr_learning_rate in a new --output_dir."
    )


def conclude(
    run: Run,
    record: dict[str, float],
    *,
    validating: bool,
    saving: bool,
    interrupted: bool,
    stop: Callable[[], bool],
    began: float,
    bar: tqdm,
) -> None:
    """
    Does what is due after a step: validation, a log record, a checkpoint.

    Raises:
        SystemExit: With status 130, if the run was interrupted before its last step.
    """
    accelerator, progress, step = run.accelerator, run.progress, run.progress["step"]
    progress["seconds"] = time.perf_counter() - began
    if validating:
        if accelerator.is_main_process:
            try:
                record = record | select(run, stop, bar)
            except ValidationInterrupted:
                # The resumed run starts with it.
                progress["pending"] = record
        pending = torch.tensor(float("pending" in progress), device=accelerator.device)
        if accelerator.reduce(pending) > 0:
            progress.setdefault("pending", record)
            interrupted = True
        elif step == run.plan.total_steps:
            progress["ended"] = step
        progress["seconds"] = time.perf_counter() - began
    if accelerator.is_main_process and "pending" not in progress:
        line = {
            "step": step,
            "seconds": round(progress["seconds"], 3),
            "matching": step > run.plan.adversarial_steps,
            "peak_memory_mib": round(peak_memory_mib(accelerator.device)),
        } | record
        append_json_line(run.output_dir / "metrics.jsonl", line)
        accelerator.log(record, step=step)
        bar.set_postfix({name.removeprefix("loss/"): f"{value:.3g}" for name, value in record.items()})
    if saving or interrupted:
        save(run)
    if interrupted and (step < run.plan.total_steps or "pending" in progress):
        bar.close()
        accelerator.end_training()
        accelerator.print(
            f"Interrupted after step {step:,} of {run.plan.total_steps:,}; everything is saved. Go on with the same "
            f"command and --resume_from_checkpoint latest."
        )
        raise SystemExit(130)


def select(run: Run, stop: Callable[[], bool], bar: tqdm) -> dict[str, float]:
    """
    Validates the averaged generator in its stored form; the best so far becomes the folder's pipeline.

    Returns:
        The scores to log.
    """
    args, networks, progress, step = run.args, run.networks, run.progress, run.progress["step"]
    if not makes_finite_images(networks.ema_generator):
        raise not_finite("generated images", step)
    pipeline = make_pipeline(run, networks.ema_generator)
    held_out, plan = scored_part(run.data.validation, run.plan.validation, args.seed), run.plan.validation
    accuracy = validate(pipeline.generator, held_out, plan, args, run.accelerator, stop)
    record = {"validation/accuracy": accuracy}
    if args.storage not in (None, "float32") and step == run.plan.total_steps:
        full = validate(networks.ema_generator, held_out, plan, args, run.accelerator, stop)
        record["validation/accuracy_in_float32"] = full
        warn_of_storage(args.storage, accuracy, full, "validation accuracy")
    save_sample_grid(pipeline, run.output_dir / "samples" / f"step-{step:07d}.png")
    if accuracy > progress["best"]["accuracy"]:
        matching = step > run.plan.adversarial_steps
        progress["best"] = {"accuracy": accuracy, "step": step, "matching": matching}
        networks.best_generator.load_state_dict(networks.ema_generator.state_dict())
        pipeline.save_pretrained(run.output_dir)
        if run.plan.match_steps and not matching:
            pipeline.save_pretrained(run.output_dir / "before_matching")
    best = progress["best"]
    bar.write(
        f"step {step:,}: validation accuracy {accuracy:.4f} (best {best['accuracy']:.4f} at step {best['step']:,})"
    )
    return record


def save(run: Run) -> None:
    best = {"best_generator": run.networks.best_generator} if run.progress["best"]["accuracy"] >= 0 else {}
    models = run.networks.saved | best
    save_checkpoint(run.accelerator, models, run.output_dir, run.progress, run.args.checkpoints_total_limit)


def make_pipeline(run: Run, generator: DiMGenerator) -> DiMPipeline:
    """A pipeline with a copy of the generator's current weights in their stored form, and the folder's teacher."""
    names = dict(enumerate(run.data.train.class_names))
    pipeline = stored_form(DiMPipeline(copy.deepcopy(generator), names, run.networks.labeler), run.args.storage)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def finish(run: Run) -> None:
    if not run.accelerator.is_main_process:
        return
    args, best = run.args, run.progress["best"]
    phase = f" ({'after' if best['matching'] else 'before'} matching)" if run.plan.match_steps else ""
    print(
        f"Done in {run.progress['seconds']:,.0f} s. The pipeline in {run.output_dir} is that of step "
        f"{best['step']:,}{phase}: validation accuracy {best['accuracy']:.4f}."
    )
    if args.push_to_hub:
        url = DiMPipeline.from_pretrained(run.output_dir).push_to_hub(
            args.hub_model_id, token=args.hub_token, private=args.hub_private_repo or None
        )
        print(f"Pushed to {args.hub_model_id}: {url}")


if __name__ == "__main__":
    run_script(
        "train_dim.py",
        lambda: main(ARGS),
        "What was saved before is whole; --resume_from_checkpoint latest goes on from the last checkpoint.",
    )
