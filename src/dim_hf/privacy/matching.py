"""The loss with which a generator matches released statistics."""

import torch
from torch import nn


# Share of a running mean that remains in a step.
MOMENTUM = 0.9


class MeanMatching(nn.Module):
    """
    The squared distance between the mean features of generated images and the released ones (maximum mean
    discrepancy). The mean of the few images of a step lies far from that of the generator by chance, so the distance
    is that of a running mean over steps; the gradient goes through the images of the present one. The running means
    are buffers, to be saved with a checkpoint.

    Args:
        targets (`torch.Tensor` of shape `(num_classes, width)`): Released means.
    """

    def __init__(self, targets: torch.Tensor):
        super().__init__()
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("means", torch.zeros_like(targets))
        self.register_buffer("steps", targets.new_zeros(len(targets), 1))
        self.targets: torch.Tensor
        self.means: torch.Tensor
        self.steps: torch.Tensor

    def forward(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(len(classes), images, width)`): Of generated images.
            classes (`torch.Tensor`): Distinct labels.

        Returns:
            The distance, averaged over `classes`.
        """
        now = features.mean(dim=1)
        with torch.no_grad():
            steps = self.steps[classes]
            # The plain mean of the first steps.
            kept = (steps / (steps + 1)).clamp(max=MOMENTUM)
            self.means[classes] = torch.lerp(now, self.means[classes], kept)
            self.steps[classes] = steps + 1
            gaps = self.means[classes] - self.targets[classes]
        # Of value zero, with the gradient of the squared distance as if the running mean moved with this one.
        pull = 2 * (gaps * (now - now.detach())).sum(dim=1)
        return (gaps.square().sum(dim=1) + pull).mean()
