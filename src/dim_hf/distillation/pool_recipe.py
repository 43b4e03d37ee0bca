"""What a matching pool is made of. This module loads no library, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import NamedTuple

from ..messages import listed


# The most that an entry can weigh: the list of networks is as long as the weights say.
MOST_WEIGHT = 1000


class PoolEntry(NamedTuple):
    """
    A classifier of a pool; `str` gives the text that [`pool_entry`] reads.

    Args:
        classifier (`str`): Its name, as [`build_classifier`] knows it.
        weight (`int`): How often it is drawn, relative to one of weight 1.
    """

    classifier: str
    weight: int = 1

    def __str__(self) -> str:
        return self.classifier if self.weight == 1 else f"{self.classifier}@{self.weight}"


def pool_entry(text: str) -> PoolEntry:
    """
    Reads `classifier` or `classifier@weight`; whether there is such a classifier is left to `check_classifier`.

    Raises:
        ValueError: If the weight is not a whole number from 1 to 1,000.
    """
    name, at, weight = text.rpartition("@")
    if not at:
        return PoolEntry(text)
    if not weight.isdecimal() or not 1 <= int(weight[:9]) <= MOST_WEIGHT:
        raise ValueError(
            f"{listed([repr(text)])} has the weight {listed([repr(weight)])}; it must be a whole number from 1 to "
            f"{MOST_WEIGHT:,}, as in convnet3@2."
        )
    return PoolEntry(name, int(weight))


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
