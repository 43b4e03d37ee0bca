"""Stage 1: whether a GPU gives the CPU's results, and a resumed run those of an uninterrupted one."""

import copy
import math
from typing import Any

import torch
from presets import network_configs

from dim_hf.data.image_data import normalise
from dim_hf.distillation.checkpointing import leave_models_to_diffusers, load_models, save_checkpoint
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.generated import GeneratedStream

from .report import Bench, check_precision, checkpoint_dir
from .step import WAYS, Feed, Run, unchanged


def equality(bench: Bench) -> None:
    attempt, cpu = bench.report.attempt, torch.device("cpu")
    count = min(32, len(bench.train))
    images = normalise(bench.train.batch(torch.arange(count, device=bench.device))[0]).cpu()
    labels = bench.train.labels[:count].cpu()
    for preset in ("base", "paper"):
        own = (preset, bench.shape, (cpu, bench.device))
        attempt("equality", f"images, {preset}", compare_images, *own, needs_cuda=True)
        attempt("equality", f"step, {preset}", compare_steps, *own, images, labels, needs_cuda=True)
    for precision in ("no", "bf16", "fp16"):
        for preset in ("base", "paper"):
            row = f"steps are finite, {preset}, {precision}"
            attempt("equality", row, finite_steps, bench, preset, precision, needs_cuda=precision == "fp16")
    attempt("equality", "resume", resume, bench)
    graph = attempt("equality", "graph", compare_graph, bench, needs_cuda=True)
    bench.graph_is_right = graph is not None and graph["passed"]


def compare_images(
    preset: str, shape: tuple[int, int, int], devices: tuple[torch.device, torch.device]
) -> dict[str, Any]:
    """The largest differences, of a range of 1, between two devices: of a pipeline's images and of a stream's."""
    torch.manual_seed(0)
    generator = DiMGenerator(**network_configs(preset, *shape)[0])
    with torch.no_grad():
        # Statistics of a batch, as training leaves them.
        generator(torch.randn(64, generator.config.latent_dim), torch.arange(64) % shape[2])
    whole, streamed, alone = [], [], []
    for device in devices:
        pipeline = DiMPipeline(copy.deepcopy(generator).to(device))
        pipeline.set_progress_bar_config(disable=True)

        def make(batch_size: int) -> torch.Tensor:
            rng = torch.Generator().manual_seed(1)
            return pipeline(ipc=8, generator=rng, output_type="pt", batch_size=batch_size).images  # noqa: B023

        whole.append(make(256))
        alone.append(make(1))
        streamed.append(next(GeneratedStream(pipeline, 4, 3, 4 * shape[2]).batches(2))[0].cpu() / 2)
    differences = {
        "pipeline": (whole[0] - whole[1]).abs().max().item(),
        "stream": (streamed[0] - streamed[1]).abs().max().item(),
        "alone_or_in_a_batch": (whole[1] - alone[1]).abs().max().item(),
    }
    return {"largest_difference": differences, "passed": max(differences.values()) <= 1e-3}


def compare_steps(
    preset: str,
    shape: tuple[int, int, int],
    devices: tuple[torch.device, torch.device],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, Any]:
    """
    The losses of one step in float32 on two devices, and by how much, of their length, the gradients of a network
    differ. Gradients are those of another step, at a learning rate of 0: the generator's come from the discriminator
    after its step, and Adam's first step is the sign of a gradient, which rounding decides where it is next to 0.
    """
    losses, gradients = [], []
    for device in devices:
        for rate_factor in (0.0, 1.0):
            run = Run(preset, shape, device, "no", WAYS["as train_dim.py"], rate_factor=rate_factor)
            rng = torch.Generator().manual_seed(0)
            latents = torch.randn(len(labels), run.plain_generator.config.latent_dim, generator=rng)
            batch = {"images": images, "labels": labels, "latents": latents}
            batch["mix"] = torch.rand(len(labels), 1, 1, 1, generator=rng)
            batch = {name: value.to(device) for name, value in batch.items()}
            own = run.step(batch, unchanged, with_r1=run.settings["r1_weight"] > 0)
            if rate_factor:
                losses.append({name: value.item() for name, value in own.items()})
                continue
            # After one step, Adam's first moment is the gradient but for a factor.
            gradients.append(
                {
                    name: torch.cat([state["exp_avg"].flatten().cpu() for state in optimizer.state.values()])
                    for name, optimizer in optimizers(run).items()
                }
            )
    distances = {name: distance(value, gradients[1][name]) for name, value in gradients[0].items()}
    near = all(abs(value - losses[1][name]) <= 1e-3 * (1 + abs(value)) for name, value in losses[0].items())
    return {
        "losses": {name: [value, losses[1][name]] for name, value in losses[0].items()},
        "gradients_differ_by": distances,
        "passed": near and max(distances.values()) <= 1e-2,
    }


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of the length of the first."""
    return ((first - second).norm() / first.norm().clamp(min=1e-30)).item()


def finite_steps(bench: Bench, preset: str, precision: str) -> dict[str, Any]:
    if precision == "bf16" and bench.device.type == "cuda":
        try:
            check_precision(precision, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
        except ValueError as error:
            return {"skipped": str(error)}
    run = bench.run(preset, precision, "as train_dim.py")
    feed = Feed(run, bench.train, min(64, min(bench.args.batch_sizes)))
    losses = [feed.advance(step) for step in range(3)]
    means = {name: torch.stack([own[name] for own in losses if name in own]).mean().item() for name in losses[0]}
    whole = all(value.isfinite().all() for model in run.models.values() for value in model.state_dict().values())
    return {"losses": means, "passed": whole and all(map(math.isfinite, means.values()))}


def weights(run: Run) -> torch.Tensor:
    """All weights of the networks and of the average, one after the other."""
    states = [model.state_dict() for model in run.models.values()]
    return torch.cat([value.detach().float().flatten().cpu() for state in states for value in state.values()])


def moments(run: Run) -> torch.Tensor:
    values = [
        value
        for optimizer in optimizers(run).values()
        for state in optimizer.state.values()
        for value in state.values()
    ]
    return torch.cat([value.detach().float().flatten().cpu() for value in values])


def resume(bench: Bench) -> dict[str, Any]:
    """
    Three steps, saved, loaded into new networks, and three more, against six at a stretch. A GPU adds some gradients
    in no fixed order, so six steps at a stretch are made twice, and how much these differ is what resuming may differ
    by.
    """
    batch_size = min(64, min(bench.args.batch_sizes))

    def stretch(run: Run, first: int, last: int) -> torch.Tensor:
        feed = Feed(run, bench.train, batch_size)
        for step in range(first, last):
            feed.advance(step)
        return weights(run)

    def fresh(seed: int) -> Run:
        run = bench.run("base", bench.args.precision, "as train_dim.py", seed=seed)
        leave_models_to_diffusers(run.accelerator)
        return run

    whole, again = (stretch(fresh(0), 0, 6) for _ in range(2))
    run = fresh(0)
    middle = stretch(run, 0, 3)
    saved = moments(run)
    folder = checkpoint_dir(bench.args).with_name(f"{checkpoint_dir(bench.args).name}-resume")
    checkpoint = save_checkpoint(run.accelerator, run.models, folder, {"step": 3, "options": {}}, 1)
    # Other weights and moments, and the order and noise of seed 0.
    run = fresh(1)
    stretch(run, 0, 1)
    run.seed = 0
    run.accelerator.load_state(str(checkpoint))
    load_models(run.models, checkpoint)
    exact = torch.equal(weights(run), middle) and torch.equal(moments(run), saved)
    update = (whole - middle).norm()
    repeated, resumed = ((other - whole).norm() / update for other in (again, stretch(run, 3, 6)))
    return {
        "loaded_to_the_last_bit": exact,
        "differs_by_of_the_update": {"repeated": repeated.item(), "resumed": resumed.item()},
        "passed": exact and resumed.item() <= max(10 * repeated.item(), 1e-4 if bench.device.type == "cuda" else 0.0),
    }


def compare_graph(bench: Bench) -> dict[str, Any]:
    """Six steps by single launches and six of which the last three are replays of a graph, on one batch."""
    batch_size = min(64, min(bench.args.batch_sizes))
    ends = []
    for way in ("tuned", "tuned", "graph"):
        run = bench.run("base", bench.args.precision, way)
        batch, _ = Feed(run, bench.train, batch_size).draw(0)
        if way == "graph":
            start = weights(run)
            run.capture(batch)
            losses = [run.replay(batch) for _ in range(3)]
        else:
            losses = [run.step(batch, unchanged, with_r1=False) for _ in range(6)]
        ends.append((weights(run), {name: value.item() for name, value in losses[-1].items()}))
    update = (ends[0][0] - start).norm()
    repeated, replayed = ((ends[i][0] - ends[0][0]).norm().item() / update.item() for i in (1, 2))
    return {
        "differs_by_of_the_update": {"repeated": repeated, "replayed": replayed},
        "losses": {name: [value, ends[2][1][name]] for name, value in ends[0][1].items()},
        "passed": replayed <= max(10 * repeated, 0.05),
    }


def optimizers(run: Run) -> dict[str, Any]:
    return {"generator": run.generator_optimizer, "discriminator": run.discriminator_optimizer}
