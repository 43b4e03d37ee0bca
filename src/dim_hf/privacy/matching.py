"""The loss with which a generator matches released statistics."""

import torch
from torch import nn


# Share of a running mean that remains in a step.
MOMENTUM = 0.9
# Directions of the features whose spread is known, and the spread (a variance) at which a difference counts half.
RANK = 400
RIDGE = 3e-4


class MeanMatching(nn.Module):
    """
    Matches the mean features of generated images with the released ones (maximum mean discrepancy), with two changes:

    - The mean of the few images of a step lies far from that of the generator by chance. So it is a running mean over
      steps that is compared; the gradient goes through the images of the present one.
    - A difference counts for less in directions in which images of one class differ much anyway, as in Fisher's
      discriminant (and the test of arXiv 0804.1026): by `RIDGE / (RIDGE + variance)`. The variances are those of
      generated images, see [`measure_spread`], so they cost no privacy. Until they are measured all count the same.

    What changes is in buffers, to be saved with a checkpoint.

    Args:
        targets (`torch.Tensor` of shape `(num_classes, width)`): Released means.
    """

    def __init__(self, targets: torch.Tensor):
        super().__init__()
        rank = min(RANK, targets.shape[1])
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("means", torch.zeros_like(targets))
        self.register_buffer("steps", targets.new_zeros(len(targets), 1))
        self.register_buffer("directions", targets.new_zeros(rank, targets.shape[1]))
        self.register_buffer("variances", targets.new_zeros(rank))
        self.targets: torch.Tensor
        self.means: torch.Tensor
        self.steps: torch.Tensor
        self.directions: torch.Tensor
        self.variances: torch.Tensor

    @torch.no_grad()
    def measure_spread(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """
        Measures in which directions the features of images of one class differ most, and how much.

        Args:
            features (`torch.Tensor` of shape `(images, width)`): Of generated images.
            labels (`torch.Tensor` of shape `(images,)`): Their classes.
        """
        groups, sizes = labels.unique(return_inverse=True, return_counts=True)[1:]
        means = features.new_zeros(len(sizes), features.shape[1]).index_add_(0, groups, features) / sizes[:, None]
        features = features - means[groups]
        # The eigenvectors of the covariance, by way of the smaller matrix of inner products of images.
        variances, weights = torch.linalg.eigh(features @ features.T / len(features))
        variances, weights = variances[-len(self.variances) :], weights[:, -len(self.variances) :]
        self.variances.zero_()
        self.directions.zero_()
        kept = len(variances)
        self.variances[:kept] = variances.clamp(min=0)
        lengths = (len(features) * variances).clamp(min=1e-9).sqrt()
        self.directions[:kept] = weights.T @ features / lengths[:, None]

    def weighted(self, gaps: torch.Tensor) -> torch.Tensor:
        """`RIDGE * (RIDGE + covariance)^-1` times each row."""
        shares = self.variances / (self.variances + RIDGE)
        return gaps - (gaps @ self.directions.T * shares) @ self.directions

    def forward(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(len(classes), images, width)`): Of generated images.
            classes (`torch.Tensor`): Distinct labels.

        Returns:
            The squared distance of the running means, averaged over `classes`, unweighted. Its gradient is that of the
            weighted distance, as if the running means moved with the present ones.
        """
        now = features.mean(dim=1)
        with torch.no_grad():
            steps = self.steps[classes]
            # The plain mean of the first steps.
            kept = (steps / (steps + 1)).clamp(max=MOMENTUM)
            self.means[classes] = torch.lerp(now, self.means[classes], kept)
            self.steps[classes] = steps + 1
            gaps = self.means[classes] - self.targets[classes]
            pull = 2 * self.weighted(gaps)
        return (gaps.square().sum(dim=1) + (pull * (now - now.detach())).sum(dim=1)).mean()
