"""
What a network computes over a whole batch, over the batches of all processes together: batch norm, the standard
deviation within each class, and losses of pairs of images. Gradients pass through, twice where a penalty needs it, so
that processes which average their gradients train what one with all of their images would.
"""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F

from ..messages import listed
from ..models.discriminator_dim import ClassStd


def gather(values: torch.Tensor) -> torch.Tensor:
    """
    The rows of all processes in the order of their ranks, on each of them.

    Args:
        values (`torch.Tensor` of shape `(batch_size, ...)`): The rows of this process; the shape is the same on all.

    Returns:
        `torch.Tensor` of shape `(num_processes * batch_size, ...)`.
    """
    rank, nothing = torch.distributed.get_rank(), torch.zeros_like(values)
    # Zeros do not change what they are added to.
    parts = [values if i == rank else nothing for i in range(torch.distributed.get_world_size())]
    return all_reduce(torch.cat(parts))


def check_same(accelerator: Accelerator, settings: dict[str, Any]) -> None:
    """
    Refuses settings that differ between processes; to be called by every process.

    Raises:
        ValueError: In each of them, naming the first setting that differs and two of its values.
    """
    first, *others = gather_object([settings])
    for rank, other in enumerate(others, 1):
        for name, value in other.items():
            if value != first.get(name):
                raise ValueError(
                    f"`--{name}` is {listed([repr(first.get(name))])} in process 0 and {listed([repr(value)])} in "
                    f"process {rank}; it must be the same in all {accelerator.num_processes}."
                )


@torch.no_grad()
def make_equal(networks: Iterable[nn.Module]) -> None:
    """Gives networks on all processes the weights and buffers that they have on the first."""
    for network in networks:
        for value in network.state_dict().values():
            torch.distributed.broadcast(value, 0)


def over_all_processes(network: nn.Module) -> None:
    """Makes a network's batch norms and [`ClassStd`] use the batches of all processes; they are of equal sizes."""
    for module in network.modules():
        # State and names of the weights stay what they are.
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
        elif type(module) is ClassStd:
            module.__class__ = GlobalClassStd


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the batches of all processes, computed in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        values, processes = input.float(), torch.distributed.get_world_size()
        own_variance, own_mean = torch.var_mean(values, (0, 2, 3), correction=0)
        # By deviations from the common mean: a difference of mean squares would lose digits.
        means, variances = gather(torch.stack([own_mean, own_variance])).unflatten(0, (processes, 2)).unbind(1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        with torch.no_grad():
            count = processes * values.numel() / values.shape[1]
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        output = (values - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return output.to(input.dtype)


class GlobalClassStd(ClassStd):
    """[`ClassStd`] over the batches of all processes."""

    def forward(self, maps: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            flat = maps.float().flatten(1)
            # Sums by class: all images of all processes would take more memory and time.
            members = F.one_hot(class_labels, self.num_classes).T.float()
            counts = all_reduce(members.sum(dim=1, keepdim=True)).clamp(min=1)
            means = all_reduce(members @ flat) / counts
            variances = all_reduce(members @ (flat - means[class_labels]).square()) / counts
            return (variances + 1e-4).sqrt().mean(dim=1)[class_labels]
