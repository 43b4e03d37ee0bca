"""
`training/train_dim.py` with the pool of DiM's released code in place of the persistent one, to compare the two.

    python benchmarks/released_pool.py --max_match_steps 500 --match_interval 1 --output_dir out/released

The flags are those of `train_dim.py`.

In every epoch a network is drawn from `--pool` and initialised anew; before every matching loss it is trained for 16
steps on real images. The pool is not saved, so a run cannot be resumed. `benchmarks/ablation.py` runs it.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, normalise
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.pool_recipe import PoolEntry, PoolRecipe


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import train_dim  # noqa: E402
from command_line import run_script  # noqa: E402


STEPS_BEFORE_EACH_LOSS = 16


class ReleasedPool(Sequence[nn.Module]):
    """Takes the place of the list that `build_pool` returns; to draw from it is to train."""

    def __init__(
        self,
        entries: Sequence[PoolEntry],
        data: ImageData,
        recipe: PoolRecipe,
        *,
        seed: int,
        device: torch.device,
        **unused: Any,
    ):
        self.entries, self.data, self.recipe, self.device = entries, data, recipe, device
        self.rng = random.Random(seed)
        self.order = torch.Generator(data.labels.device).manual_seed(seed)
        self.drawn = 0

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if self.drawn % max(1, len(self.data) // self.recipe.batch_size) == 0:
            name = self.rng.choice(self.entries).classifier
            self.network = build_classifier(name, self.data.num_classes, self.data.channels, self.data.size)
            self.network.to(self.device)
            self.optimizer = torch.optim.SGD(
                self.network.parameters(), lr=self.recipe.learning_rate, momentum=0.9, weight_decay=5e-4
            )
        self.drawn += 1
        self.network.train().requires_grad_(True)
        for _ in range(STEPS_BEFORE_EACH_LOSS):
            indices = torch.randint(
                len(self.data), (self.recipe.batch_size,), generator=self.order, device=self.data.labels.device
            )
            images, labels = self.data.batch(indices)
            augment = draw_augmentation(self.recipe.augmentation, self.data.size, self.rng)
            loss = F.cross_entropy(self.network(augment(normalise(images))), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return self.network.eval().requires_grad_(False)


if __name__ == "__main__":
    train_dim.build_pool = ReleasedPool  # type: ignore[assignment]
    run_script("released_pool.py", lambda: train_dim.main(train_dim.parse_args()), "It cannot be resumed.")
