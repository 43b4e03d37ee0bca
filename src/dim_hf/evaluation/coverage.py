"""How much of a real data set generated images cover, and how faithful they are, in the features of a classifier."""

from collections.abc import Iterable

import torch
from torch import nn

from ..classifiers import logits_and_features


# Rows whose distances to all others are in memory at once.
ROWS = 1000


@torch.no_grad()
def last_features(classifier: nn.Module, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """
    The outputs of a classifier's last feature layer for images.

    Args:
        classifier: As [`build_classifier`] makes it, in `eval()`, trained on real images.
        batches: Images `(batch_size, channels, size, size)` in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(n, dim)`: float32, on the CPU.
    """
    rows = []
    for images in batches:
        _, features = logits_and_features(classifier, images)
        rows.append(list(features.values())[-1].flatten(1).float().cpu())
    return torch.cat(rows)


def recall(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 5) -> float:
    """
    The share of real images that lie within reach of a generated one: variety (arXiv 1904.06991, eq. 2).

    Args:
        real (`torch.Tensor` of shape `(n, dim)`): Features of real images, of one class.
        generated (`torch.Tensor` of shape `(m, dim)`): Features of generated images of that class.
        neighbours (`int`, *optional*, defaults to 5):
            A generated image reaches as far as its `neighbours`-th nearest generated one.
    """
    reach = _reach(generated, neighbours)
    reached = torch.cat([(torch.cdist(part, generated) <= reach).any(dim=1) for part in real.split(ROWS)])
    return reached.float().mean().item()


def density(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 5) -> float:
    """
    How many real images reach a generated one, over the number expected of real ones: faithfulness (arXiv 2002.09797,
    eq. 3). About 1 for images drawn from the same distribution; it may be larger.

    Args:
        real, generated, neighbours: As in [`recall`].
    """
    reach = _reach(real, neighbours)
    reached_by = torch.cat([(torch.cdist(part, real) <= reach).sum(dim=1) for part in generated.split(ROWS)])
    return (reached_by.float() / neighbours).mean().item()


def _reach(features: torch.Tensor, neighbours: int) -> torch.Tensor:
    """The distance from each row to its `neighbours`-th nearest other row, of shape `(n,)`."""
    if not 1 <= neighbours < len(features):
        raise ValueError(
            f"`neighbours` is {neighbours}; valid for {len(features)} images is 1 to {len(features) - 1}."
        )
    # The nearest row of all is the row itself.
    return torch.cat(
        [torch.cdist(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(ROWS)]
    )
