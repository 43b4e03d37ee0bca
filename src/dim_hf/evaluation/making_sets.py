"""The files of the fixed sets of an evaluation: intact ones are reused, the rest are made."""

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ..classifiers import local_fingerprint
from ..data import ImageData
from ..distillation.pool import POOL_FORMAT, build_pool
from ..distillation.pool_recipe import PoolEntry, PoolRecipe
from ..weights import weights_digest
from .fixed_sets import LATENTS_FORMAT, choose_latents, latents_settings, load_latents, optimise_latents, save_latents
from .results import EVALUATION_FORMAT
from .sources import LatentsOf


@dataclass(frozen=True)
class SetsRecipe:
    """
    Which sets are made, and how.

    Args:
        selections (`Sequence[str]`): Any of `SELECTIONS`.
        latent_steps (`Sequence[int]`): Steps of optimising the latents; a set of each selection for each number.
        candidates (`int`): Samples per image that k-means or herding keeps.
        pool (`Sequence[PoolEntry]`): Networks that latents are optimised for; the last one chooses.
        pool_steps (`int`): Training steps of each.
    """

    selections: Sequence[str]
    latent_steps: Sequence[int]
    candidates: int
    pool: Sequence[PoolEntry]
    pool_steps: int


def make_fixed_sets(
    recipe: SetsRecipe,
    pipeline: DiffusionPipeline,
    train: ImageData,
    accelerator: Accelerator,
    folder: Path,
    *,
    ipcs: Sequence[int],
    seeds: Sequence[int],
    cache_dir: Path,
) -> dict[tuple[str, int, int, int], Path]:
    """
    Makes the file of latents of each selection, ipc, seed and number of steps. Earlier files are reused unless they
    are damaged. Every process must call this; they share the work.
    """
    paths: dict[tuple[str, int, int, int], Path] = {}
    # What is missing of each selection, ipc and seed: its latents are chosen once, whatever the steps that follow.
    missing: dict[tuple[str, int, int], list[tuple[Path, dict[str, Any]]]] = {}
    config = pipeline.generator.config
    for selection, ipc, seed, steps in itertools.product(recipe.selections, ipcs, seeds, recipe.latent_steps):
        settings = {"weights": weights_digest(pipeline), "selection": selection, "ipc": ipc, "seed": seed}
        settings["format"] = EVALUATION_FORMAT
        if selection != "random":
            settings["candidates"] = recipe.candidates
        if selection != "random" or steps:
            settings |= {
                "pool": [str(entry) for entry in recipe.pool],
                "pool_steps": recipe.pool_steps,
                "data": train.fingerprint,
            }
            settings |= {"latent_steps": steps, "pool_format": POOL_FORMAT}
            if steps:
                settings |= {"latents_format": LATENTS_FORMAT, "mixed_precision": accelerator.mixed_precision}
            networks = [name for name, _ in recipe.pool]
            if local := {name: content for name in networks if (content := local_fingerprint(name))}:
                settings["local"] = local
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        path = folder / f"{selection}-ipc{ipc}-seed{seed}-{digest}.safetensors"
        paths[selection, steps, ipc, seed] = path
        damage = what_is_wrong(path, (ipc * config.num_classes, config.latent_dim)) if path.exists() else "missing"
        if damage:
            missing.setdefault((selection, ipc, seed), []).append((path, settings))
        if path.exists() and damage:
            accelerator.print(f"{damage} It is made anew.")
    accelerator.wait_for_everyone()
    pool = []
    if any("pool" in settings for sets in missing.values() for _, settings in sets):
        with accelerator.main_process_first():
            pool = build_pool(
                recipe.pool,
                train,
                PoolRecipe(steps=recipe.pool_steps),
                seed=0,
                cache_dir=cache_dir,
                device=accelerator.device,
                show_progress=accelerator.is_main_process,
            )
    generator, teacher = pipeline.generator, pool[-1] if pool else None
    mine = list(missing.items())[accelerator.process_index :: accelerator.num_processes]
    progress = accelerator.is_main_process
    for (selection, ipc, seed), sets in tqdm(mine, unit="set", disable=not progress):
        start = time.perf_counter()
        latents, labels = choose_latents(
            generator, ipc, selection, seed=seed, candidates=recipe.candidates, teacher=teacher
        )
        choosing = time.perf_counter() - start
        for path, settings in sets:
            start, moved = time.perf_counter(), latents
            if steps := settings.get("latent_steps"):
                moved = optimise_latents(
                    generator,
                    latents,
                    labels,
                    train,
                    pool,
                    steps,
                    seed=seed,
                    mixed_precision=accelerator.mixed_precision,
                    progress=progress,
                )
            seconds = round(choosing + time.perf_counter() - start, 1)
            save_latents(path, moved, labels, settings | {"seconds": seconds})
    accelerator.wait_for_everyone()
    return paths


def sets_by_name(paths: Mapping[tuple[str, int, int, int], Path], ipc: int) -> dict[str, LatentsOf]:
    """The sets of an ipc by the names of their rows; each is read from its file for the seed of a row."""

    def read(selection: str, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return load_latents(paths[selection, steps, ipc, seed])

    return {
        f"fixed set, {selection}" + (f", {steps} latent steps" if steps else ""): partial(read, selection, steps)
        for selection, steps, own_ipc, _ in paths
        if own_ipc == ipc
    }


def what_is_wrong(path: Path, shape: tuple[int, int]) -> str:
    """Why a file does not hold latents of the shape `(n, latent_dim)`, as a sentence; empty if it does."""
    try:
        latents, _ = load_latents(path)
        latents_settings(path)
    except ValueError as error:
        return str(error)
    return "" if latents.shape == shape else f"{path} holds latents {tuple(latents.shape)} where {shape} are due."


def describe_times(sets: Mapping[tuple[str, int, int, int], Path]) -> str:
    """The time that fixed sets took to make, as recorded in their files, averaged over the seeds."""
    times: dict[tuple[str, int], dict[int, list[float]]] = {}
    for (selection, steps, ipc, _), path in sets.items():
        times.setdefault((selection, steps), {}).setdefault(ipc, []).append(latents_settings(path)["seconds"])
    return "; ".join(
        f"{selection}{f', {steps} latent steps' if steps else ''} "
        + ", ".join(f"{statistics.mean(own):,.1f} at ipc {ipc}" for ipc, own in by_ipc.items())
        for (selection, steps), by_ipc in times.items()
    )
