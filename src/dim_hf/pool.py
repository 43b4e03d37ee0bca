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
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .augmentation import draw_augmentation
from .classifiers import build_classifier
from .data import ImageData, normalise


POOL_FORMAT = 1


@dataclass(frozen=True)
class PoolRecipe:
    """
    How the networks of a pool are trained.

    Args:
        steps (`int`): Optimiser steps until a network's last snapshot.
        snapshots (`int`): Snapshots per network: its state after `steps` steps, after half as many steps per octave,
            and so on, evenly on a logarithmic scale from 16 steps.
        batch_size (`int`): Real images per step.
        learning_rate (`float`): Constant learning rate of SGD with momentum 0.9 and weight decay 5e-4.
        augmentation (`tuple[str, ...]`): See [`draw_augmentation`].
    """

    steps: int = 1000
    snapshots: int = 6
    batch_size: int = 64
    learning_rate: float = 0.01
    augmentation: tuple[str, ...] = ("shift",)

    def snapshot_steps(self) -> list[int]:
        """The steps after which a snapshot is taken, ascending; fewer than `snapshots` where they would coincide."""
        if self.snapshots == 1:
            return [self.steps]
        first = min(16, self.steps)
        ratio = (self.steps / first) ** (1 / (self.snapshots - 1))
        return sorted({round(first * ratio**i) for i in range(self.snapshots)})


def build_pool(
    names: Sequence[str],
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
        names: Classifiers, as [`build_classifier`] knows them; a name given twice is two networks.
        data: The real training images.
        seed: Seeds the weights and the order of the images; the i-th network has `seed + i`.
        cache_dir: Folder of the cache. A file is keyed by the data's fingerprint, name, seed and recipe.

    Raises:
        ValueError: If `names` is empty or holds an unknown name.
    """
    if not names:
        raise ValueError("`pool` is empty; matching needs at least one classifier.")
    pool = []
    for i, name in enumerate(names):
        path = _cache_file(name, data, recipe, seed + i, Path(cache_dir))
        if not path.exists():
            _train_snapshots(name, data, recipe, seed + i, path, device, show_progress)
        weights = load_file(path)
        for step in recipe.snapshot_steps():
            prefix = f"{step}/"
            network = build_classifier(name, data.num_classes, data.channels, data.size)
            network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
            pool.append(network.to(device).eval().requires_grad_(False))
    return pool


def _cache_file(name: str, data: ImageData, recipe: PoolRecipe, seed: int, cache_dir: Path) -> Path:
    key = json.dumps([POOL_FORMAT, data.fingerprint, name, seed, asdict(recipe)])
    return cache_dir / "pool" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _train_snapshots(
    name: str, data: ImageData, recipe: PoolRecipe, seed: int, path: Path, device: torch.device, show_progress: bool
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_classifier(name, data.num_classes, data.channels, data.size).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator(data.labels.device).manual_seed(seed)
    rng = random.Random(seed)
    stages = set(recipe.snapshot_steps())
    weights: dict[str, torch.Tensor] = {}
    for step in tqdm(range(1, recipe.steps + 1), desc=f"Pool: {name}", unit="step", disable=not show_progress):
        indices = torch.randint(len(data), (recipe.batch_size,), generator=order, device=data.labels.device)
        images, labels = data.batch(indices)
        augment = draw_augmentation(recipe.augmentation, data.size, rng)
        loss = F.cross_entropy(network(augment(normalise(images))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in stages:
            weights |= {f"{step}/{k}": v.detach().cpu().clone() for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        save_file(weights, Path(aside) / path.name)
        os.replace(Path(aside) / path.name, path)
