"""
Copies: are generated images nearer to the images of the training than to images held out of it?

Had the training learnt nothing of single images, training and held-out images could be exchanged. The image nearest to
a generated one would then be one of the training as often as the training's share of all images says.
"""

from dataclasses import dataclass

import torch


PERMUTATIONS = 10_000
RESAMPLES = 2_000


@dataclass(frozen=True)
class Nearest:
    """
    The nearest images of the same class for each of some generated images.

    Args:
        train (`torch.Tensor` of shape `(n,)`), held_out (`torch.Tensor` of shape `(n,)`):
            Positions of the nearest training image and of the nearest held-out image.
        to_train (`torch.Tensor` of shape `(n,)`), to_held_out (`torch.Tensor` of shape `(n,)`):
            Distances to them, float32.
    """

    train: torch.Tensor
    held_out: torch.Tensor
    to_train: torch.Tensor
    to_held_out: torch.Tensor


def nearest_rows(
    rows: torch.Tensor, references: torch.Tensor, *, others: bool = False, block_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the reference nearest to each row.

    Args:
        rows (`torch.Tensor` of shape `(n, dim)`): float32.
        references (`torch.Tensor` of shape `(m, dim)`): float32, at least one, or two with `others`.
        others (`bool`, *optional*, defaults to `False`): Whether a reference that equals the row is passed over once,
            for rows that are references themselves.
        block_size (`int`, *optional*, defaults to 1024): Rows that are compared at once.

    Returns:
        Positions, int64 of shape `(n,)`, and root mean square differences, float32 of shape `(n,)`. The distance of
        the pair that was found is exact; among references equally far within rounding either may be found.
    """
    positions, distances = [], []
    for block in rows.split(block_size):
        squares = references.square().sum(dim=1)[None] - 2 * block @ references.T
        found = squares.topk(2 if others else 1, dim=1, largest=False).indices
        exact = (block[:, None] - references[found]).square().mean(dim=2).sqrt()
        # The row itself is the nearer of the two.
        distance, which = exact.max(dim=1) if others else exact.min(dim=1)
        positions.append(found.gather(1, which[:, None]).squeeze(1))
        distances.append(distance)
    return torch.cat(positions), torch.cat(distances)


def nearest_in_class(
    rows: torch.Tensor,
    labels: torch.Tensor,
    references: torch.Tensor,
    reference_labels: torch.Tensor,
    *,
    others: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[`nearest_rows`] among the references of the row's class, which must have one, or two with `others`."""
    positions = torch.zeros(len(rows), dtype=torch.int64)
    distances = torch.full((len(rows),), torch.inf)
    for label in labels.unique().tolist():
        of_row, of_reference = (torch.nonzero(each == label).squeeze(1) for each in (labels, reference_labels))
        found, distance = nearest_rows(rows[of_row], references[of_reference], others=others)
        positions[of_row], distances[of_row] = of_reference[found], distance
    return positions, distances


def lean(
    nearest: Nearest, labels: torch.Tensor, train_labels: torch.Tensor, held_out_labels: torch.Tensor, seed: int = 0
) -> dict[str, float | list[float]]:
    """
    How many generated images are nearer to a training image than to any held-out image of their class.

    Args:
        nearest ([`Nearest`]): Of the generated images.
        labels, train_labels, held_out_labels (`torch.Tensor`): int64; of the three sets.
        seed (`int`, *optional*, defaults to 0): Seeds permutations and resamples.

    Returns:
        `share`, `expected` if training and held-out images could be exchanged, the 95 % `interval` of the share, and
        `p`, the probability of a share as large by chance. Many generated images may have the same nearest image, so
        the interval resamples the distinct nearest images, and `p` permutes within each class which images are of the
        training.
    """
    is_train = nearest.to_train <= nearest.to_held_out
    # The nearest image of all, training images first, and how many generated images have it as theirs.
    owner = torch.where(is_train, nearest.train, nearest.held_out + len(train_labels))
    owners, counts = owner.unique(return_counts=True)
    weights = counts.double() / len(labels)
    rng = torch.Generator().manual_seed(seed)
    share, expected, p = exchange(owners, weights, train_labels, held_out_labels, rng)
    drawn = torch.randint(len(owners), (RESAMPLES, len(owners)), generator=rng)
    resampled = (weights[drawn] * (owners < len(train_labels))[drawn]).sum(dim=1) / weights[drawn].sum(dim=1)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"share": share, "expected": expected, "interval": [low, high], "p": p}


def exchange(
    owners: torch.Tensor,
    weights: torch.Tensor,
    train_labels: torch.Tensor,
    held_out_labels: torch.Tensor,
    rng: torch.Generator,
) -> tuple[float, float, float]:
    """
    How much weight the training images have among some real images, and how much they would have if training and
    held-out images could be exchanged.

    Args:
        owners (`torch.Tensor` of shape `(n,)`): Positions of distinct real images, training images first.
        weights (`torch.Tensor` of shape `(n,)`): float64.
        train_labels, held_out_labels (`torch.Tensor`): int64.
        rng (`torch.Generator`): Source of the permutations.

    Returns:
        The weight, the expected one, and the probability of a weight as large by chance.
    """
    labels = torch.cat([train_labels, held_out_labels])
    expected, by_chance = 0.0, torch.zeros(PERMUTATIONS, dtype=torch.float64)
    for label in labels[owners].unique().tolist():
        mine = torch.nonzero(labels[owners] == label).squeeze(1)
        members = int((train_labels == label).sum())
        total = int((labels == label).sum())
        expected += members / total * float(weights[mine].sum())
        # "Of the training" is dealt to these owners at random, without replacement, in all permutations at once.
        left = torch.full((PERMUTATIONS,), float(members), dtype=torch.float64)
        for taken, weight in enumerate(weights[mine].tolist()):
            dealt = torch.rand(PERMUTATIONS, generator=rng, dtype=torch.float64) * (total - taken) < left
            left -= dealt.double()
            by_chance += weight * dealt
    weight = float(weights[owners < len(train_labels)].sum())
    return weight, expected, (1 + int((by_chance >= weight - 1e-12).sum())) / (1 + PERMUTATIONS)


def authenticity(to_train: torch.Tensor, between: torch.Tensor) -> float:
    """
    The share of images that are farther from their nearest training image than that one is from its own nearest
    training image: AuthPct (arXiv 2102.08921, section 3.3), as a fraction.

    Args:
        to_train (`torch.Tensor` of shape `(n,)`): Distances to the nearest training images.
        between (`torch.Tensor` of shape `(n,)`): Distances from those to their own nearest training images.
    """
    return (to_train > between).float().mean().item()


def find_copies(
    made: torch.Tensor,
    labels: torch.Tensor,
    train: torch.Tensor,
    train_labels: torch.Tensor,
    held_out: torch.Tensor,
    held_out_labels: torch.Tensor,
    seed: int = 0,
) -> tuple[dict, Nearest]:
    """
    The figures of one kind of distance.

    Args:
        made, train, held_out (`torch.Tensor` of shape `(n, dim)`): Pixels or features, float32. Every class of `made`
            has two training images and a held-out one.
        labels, train_labels, held_out_labels (`torch.Tensor` of shape `(n,)`): int64.

    Returns:
        JSON values, and the nearest images of each row of `made`.
    """
    by_train, to_train = nearest_in_class(made, labels, train, train_labels)
    by_other, to_held_out = nearest_in_class(made, labels, held_out, held_out_labels)
    nearest = Nearest(by_train, by_other, to_train, to_held_out)
    by_held_out, from_held_out = nearest_in_class(held_out, held_out_labels, train, train_labels)
    neighbours = torch.cat([nearest.train, by_held_out]).unique()
    _, apart = nearest_in_class(train[neighbours], train_labels[neighbours], train, train_labels, others=True)
    between = torch.full((len(train),), torch.inf).index_put((neighbours,), apart)
    equal = torch.cat([by_train[to_train == 0], by_other[to_held_out == 0] + len(train)]).unique()
    ones, rng = torch.ones(len(equal), dtype=torch.float64), torch.Generator().manual_seed(seed)
    return {
        "nearer_to_training": lean(nearest, labels, train_labels, held_out_labels, seed),
        "auth_pct": authenticity(nearest.to_train, between[nearest.train]),
        "auth_pct_of_held_out": authenticity(from_held_out, between[by_held_out]),
        "equal_to_training": int((nearest.to_train == 0).sum()),
        "equal_to_held_out": int((nearest.to_held_out == 0).sum()),
        # Of the distinct images that generated ones equal.
        "equal_p": exchange(equal, ones, train_labels, held_out_labels, rng)[2],
        # Half as far from the nearest of one side as from the nearest of the other.
        "near_copies_of_training": int((2 * nearest.to_train < nearest.to_held_out).sum()),
        "near_copies_of_held_out": int((2 * nearest.to_held_out < nearest.to_train).sum()),
        "median_distance_to_training": nearest.to_train.median().item(),
        "median_distance_to_held_out": nearest.to_held_out.median().item(),
    }, nearest
