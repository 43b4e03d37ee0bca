"""The loss with which a generator matches released statistics."""

import torch


def matching_distance(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    The squared distance between the mean features of generated images and their targets (maximum mean discrepancy),
    averaged over classes; without the targets' own squared norm, which is constant. It is unbiased: the mean of a
    few images lies farther from the target than that of the generator, and that part is left out.

    Args:
        features (`torch.Tensor` of shape `(num_classes, images, width)`): Features of at least two images per class.
        targets (`torch.Tensor` of shape `(num_classes, width)`): Released means.
    """
    count = features.shape[1]
    means = features.mean(dim=1)
    # Mean inner product of two different images: that of an image with itself is left out.
    pairs = (count * means.square().sum(dim=1) - features.square().sum(dim=2).mean(dim=1)) / (count - 1)
    return (pairs - 2 * (means * targets).sum(dim=1)).mean()
