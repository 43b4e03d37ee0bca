"""The images of an audit: members and non-members, canaries, and the random halves that shadow runs are trained on."""

import random
from dataclasses import dataclass, replace

import torch

from ..data.image_data import ImageData, stratified_order


# Of each kind of canary, and the largest share of the held-out images.
MOST_CANARIES, SHARE_OF_CANARIES = 32, 0.05


@dataclass(frozen=True)
class Union:
    """
    Training images, held-out images and canaries as one data set, in this order.

    Args:
        data ([`ImageData`]): In memory, on the CPU.
        num_train (`int`), num_held_out (`int`): Of the first two parts.
        canaries: The kind of each canary.
    """

    data: ImageData
    num_train: int
    num_held_out: int
    canaries: tuple[str, ...]

    def of_kind(self, kind: str) -> torch.Tensor:
        """The positions of the canaries of a kind."""
        first = self.num_train + self.num_held_out
        return torch.tensor([first + i for i, name in enumerate(self.canaries) if name == kind], dtype=torch.int64)


def unite(train: ImageData, held_out: ImageData, seed: int) -> Union:
    """
    Makes canaries of held-out images, which are then no longer among the others: mislabelled ones and negatives.

    Args:
        train ([`ImageData`]), held_out ([`ImageData`]): Of the same classes, size and channels.
        seed (`int`): Chooses them.
    """
    labels = held_out.labels.cpu()
    count = min(MOST_CANARIES, int(SHARE_OF_CANARIES * len(held_out))) if held_out.num_classes > 1 else 0
    order = stratified_order(labels, seed)
    mislabelled, rare, rest = order[:count], order[count : 2 * count], order[2 * count :].sort().values
    images = held_out.images.cpu()
    rng = random.Random(f"canaries/{seed}")
    wrong = [
        (label + rng.randrange(1, held_out.num_classes)) % held_out.num_classes
        for label in labels[mislabelled].tolist()
    ]
    data = replace(
        train,
        stored=torch.cat([train.images.cpu(), images[rest], images[mislabelled], 255 - images[rare]]),
        labels=torch.cat([train.labels.cpu(), labels[rest], torch.tensor(wrong, dtype=torch.int64), labels[rare]]),
        rows=None,
        origin="the images of the audit",
    )
    return Union(data, len(train), len(rest), ("mislabelled",) * count + ("rare",) * count)


def half(union: Union, shadow: int, seed: int) -> torch.Tensor:
    """
    The positions that a shadow run is trained on, in ascending order: half of the images of each class and part. Runs
    2k and 2k + 1 have complementary halves, so an even number of runs has each image in half of them.

    Args:
        shadow (`int`): Number of the run, from 0.
        seed (`int`): Of the audit.
    """
    rng = torch.Generator().manual_seed(random.Random(f"halves/{seed}/{shadow // 2}").getrandbits(63))
    part = torch.zeros(len(union.data), dtype=torch.int64)
    part[union.num_train :] = 1
    part[union.num_train + union.num_held_out :] = 2
    # Of a class and part with an odd number of images, either run may have one more.
    chosen = torch.zeros(len(part), dtype=torch.bool)
    for group in (3 * union.data.labels + part).unique().tolist():
        members = torch.nonzero(3 * union.data.labels + part == group).squeeze(1)
        extra = int(torch.randint(2, (), generator=rng))
        order = members[torch.randperm(len(members), generator=rng)]
        chosen[order[: (len(members) + extra) // 2]] = True
    return torch.nonzero(chosen == (shadow % 2 == 0)).squeeze(1)


def draw_candidates(union: Union, count: int, seed: int) -> torch.Tensor:
    """
    The positions of the images that are attacked: up to `count` training images and as many held-out ones, each
    stratified, then all canaries.
    """
    chosen = []
    for start, size in ((0, union.num_train), (union.num_train, union.num_held_out)):
        order = stratified_order(union.data.labels[start : start + size], seed)
        chosen.append(start + order[:count].sort().values)
    first = union.num_train + union.num_held_out
    return torch.cat([*chosen, torch.arange(first, len(union.data))])
