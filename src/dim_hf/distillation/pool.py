"""
The matching pool: classifiers at several stages of training on real images, trained once and cached.

The released code of DiM trains a fresh network for 16 steps before every generator step. A snapshot is as good a
judge at any later step as when it was taken, so here each network of the pool is trained once, kept at stages that
are spread evenly on a logarithmic scale, and drawn from at random; after that the pool costs nothing but its forward
and backward passes.
"""

import hashlib
import json
import os
import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..classifiers import build_classifier, check_classifier, local_fingerprint
from ..data import ImageData, normalise
from ..files import whole_cache_file
from ..streams.randomness import seeded
from ..weights import is_finite
from .augmentation import draw_augmentation
from .checkpointing import writing
from .pool_recipe import PoolEntry, PoolRecipe


POOL_FORMAT = 2


def build_pool(
    entries: Sequence[PoolEntry],
    data: ImageData,
    recipe: PoolRecipe,
    *,
    seed: int,
    cache_dir: str | os.PathLike,
    device: torch.device,
    show_progress: bool = True,
) -> list[nn.Module]:
    """
    Trains the networks of a pool, or reads them from the cache, and returns their snapshots, frozen and in `eval()`.

    Args:
        entries: Classifiers and their weights; a classifier given twice is two networks. Each snapshot is listed as
            often as its weight says.
        data: The real training images.
        seed: Seeds the weights and the order of the images; the second network of one name has `seed + 1`, and so on.
        cache_dir: Folder of the cache, which runs share. A file is keyed by the data's fingerprint, name, seed and
            recipe, and by what a local folder holds that a name points to.

    Raises:
        ValueError: If `entries` is empty or one is wrong, before anything is trained.
        FloatingPointError: If a network's weights become NaN or infinite; it is not cached.
        OSError: If the cache cannot be written.
    """
    if not entries:
        raise ValueError("`pool` is empty; matching needs at least one classifier.")
    for name, _ in entries:
        check_classifier(name, data.channels, data.size)
    pool = []
    for i, (name, weight) in enumerate(entries):
        own_seed = seed + [other for other, _ in entries[:i]].count(name)
        path = _cache_file(name, data, recipe, own_seed, Path(cache_dir))
        weights = _read_snapshots(path)
        if weights is None:
            _train_snapshots(name, data, recipe, own_seed, path, device, show_progress)
            weights = _read_snapshots(path) or {}
        for step in recipe.snapshot_steps():
            prefix = f"{step}/"
            network = build_classifier(name, data.num_classes, data.channels, data.size)
            network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
            pool += [network.to(device).eval().requires_grad_(False)] * weight
    return pool


def _cache_file(name: str, data: ImageData, recipe: PoolRecipe, seed: int, cache_dir: Path) -> Path:
    key = [POOL_FORMAT, data.fingerprint, name, seed, asdict(recipe)]
    if folder := local_fingerprint(name):
        key.append(folder)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_dir / "pool" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:80]}-{digest}.safetensors"


def _read_snapshots(path: Path) -> dict[str, torch.Tensor] | None:
    """The weights in a file of the cache; `None`, with a warning, if it is damaged; `None` if there is none."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("digest") == _digest(weights):
                return weights
    except (SafetensorError, OSError):
        pass
    warnings.warn(f"{path} is damaged or cannot be read; its networks are trained again.", stacklevel=2)
    return None


def _digest(weights: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _train_snapshots(
    name: str, data: ImageData, recipe: PoolRecipe, seed: int, path: Path, device: torch.device, show_progress: bool
) -> None:
    order = torch.Generator(data.labels.device).manual_seed(seed)
    rng = random.Random(seed)
    stages = set(recipe.snapshot_steps())
    weights: dict[str, torch.Tensor] = {}
    # Another seed, so that a judge with the same one does not start from the weights of a pool network.
    with seeded(random.Random(f"pool/{seed}").getrandbits(63), device):
        network = build_classifier(name, data.num_classes, data.channels, data.size).to(device).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4)
        for step in tqdm(range(1, recipe.steps + 1), desc=f"Pool: {name}", unit="step", disable=not show_progress):
            indices = torch.randint(len(data), (recipe.batch_size,), generator=order, device=data.labels.device)
            images, labels = data.batch(indices)
            augment = draw_augmentation(recipe.augmentation, data.size, rng)
            loss = F.cross_entropy(network(augment(normalise(images))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in stages:
                if not is_finite(network):
                    raise FloatingPointError(
                        f"`pool`: the weights of {name} became NaN or infinite by step {step} of its training; "
                        f"leave it out."
                    )
                weights |= {f"{step}/{k}": v.detach().cpu().clone() for k, v in network.state_dict().items()}
    with writing(path), whole_cache_file(path) as aside:
        save_file(weights, aside, metadata={"digest": _digest(weights)})
