"""The running averages of a training step: of the generator's weights and of the losses."""

import torch
from accelerate import Accelerator
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """
    Moves an average towards a network of the same kind, in place: weights and batch-norm statistics, which the EMA of
    diffusers leaves out.

    Args:
        decay (`float`): The share of the average that remains, in [0, 1].
    """
    current, averaged = network.state_dict(), average.state_dict()
    names = [name for name, value in averaged.items() if value.is_floating_point()]
    torch._foreach_lerp_([averaged[n] for n in names], [current[n] for n in names], 1 - decay)


class RunningMeans:
    """Means of losses since they were last read, kept on the device so that a step waits for no copy."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over all processes and resets them. NaN and infinity stay visible."""
        if not self.sums:
            return {}
        values = torch.stack([self.sums[name] / self.counts[name] for name in self.sums])
        means = accelerator.reduce(values, reduction="mean").tolist()
        named = dict(zip(self.sums, means, strict=True))
        self.sums, self.counts = {}, {}
        return named
