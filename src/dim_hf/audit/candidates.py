"""The images of an audit: members and non-members, canaries, and the random halves that shadow runs are trained on."""

import hashlib
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
        groups (`torch.Tensor` of shape `(len(data),)`): 3 times the class, and 0, 1 or 2 for the part.
        firsts (`torch.Tensor` of shape `(len(data),)`):
            The position of the first image of the same group that is equal in every pixel.
    """

    data: ImageData
    num_train: int
    num_held_out: int
    canaries: tuple[str, ...]
    groups: torch.Tensor
    firsts: torch.Tensor

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
    groups = 3 * data.labels
    groups[len(train) :] += 1
    groups[len(train) + len(rest) :] += 1
    first_of: dict[tuple[int, bytes], int] = {}
    digests = (hashlib.sha256(image.tobytes()).digest() for image in data.stored.numpy())
    firsts = [first_of.setdefault(key, i) for i, key in enumerate(zip(groups.tolist(), digests, strict=True))]
    canaries = ("mislabelled",) * count + ("rare",) * count
    return Union(data, len(train), len(rest), canaries, groups, torch.tensor(firsts))


def half(union: Union, shadow: int, seed: int) -> torch.Tensor:
    """
    The positions that a shadow run is trained on, in ascending order: half of the different images of each class and
    part, with all their copies. A run without an image whose copy it saw would hide what the image gives away. Runs 2k
    and 2k + 1 have complementary halves, so an even number of runs has each image in half of them.

    Args:
        shadow (`int`): Number of the run, from 0.
        seed (`int`): Of the audit.
    """
    rng = torch.Generator().manual_seed(random.Random(f"halves/{seed}/{shadow // 2}").getrandbits(63))
    # Of a class and part with an odd number of images, either run may have one more.
    chosen = torch.zeros(len(union.data), dtype=torch.bool)
    for members in _different(union):
        extra = int(torch.randint(2, (), generator=rng))
        order = members[torch.randperm(len(members), generator=rng)]
        chosen[order[: (len(members) + extra) // 2]] = True
    return torch.nonzero(chosen[union.firsts] == (shadow % 2 == 0)).squeeze(1)


def smallest_half(union: Union) -> torch.Tensor:
    """The least number of images of each class in any [`half`], of shape `(num_classes,)`."""
    copies = torch.bincount(union.firsts, minlength=len(union.data))
    least = torch.zeros(union.data.num_classes, dtype=torch.int64)
    for members in _different(union):
        least[union.data.labels[members[0]]] += copies[members].sort().values[: len(members) // 2].sum()
    return least


def _different(union: Union) -> list[torch.Tensor]:
    """The positions of the different images of each class and part."""
    different = union.firsts == torch.arange(len(union.firsts))
    groups = union.groups.unique().tolist()
    return [torch.nonzero(different & (union.groups == group)).squeeze(1) for group in groups]


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
