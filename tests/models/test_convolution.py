"""Convolutions and norms of the discriminator: those of PyTorch, within rounding, to the second derivative."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dim_hf.distillation.losses import gradient_penalty
from dim_hf.models import DiMDiscriminator
from dim_hf.models.convolution import PenalisedConv2d
from dim_hf.models.discriminator_dim import MapsNorm


LAYERS = {"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2, "padding": 1}, {
    "kernel_size": 4, "stride": 2, "padding": 1, "bias": False
}, {"kernel_size": 3, "dilation": 2}  # fmt: skip


def derivatives(first: nn.Module, second: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The output, its gradients, and those of a gradient penalty."""
    critic = nn.Sequential(first, nn.Softplus(), second, nn.Softplus()).double()
    weights = list(critic.parameters())
    points = images.clone().requires_grad_(True)
    output = critic(points)
    plain = torch.autograd.grad(output.square().sum(), [points, *weights])
    mix = torch.linspace(0, 1, len(images), dtype=torch.float64).view(-1, 1, 1, 1)
    penalty = gradient_penalty(lambda maps: critic(maps).sum(dim=(1, 2, 3)), images, images.flip(0), mix)
    # The last bias is only in the values, not in the first derivative.
    return [output, *plain, penalty, *torch.autograd.grad(penalty, weights)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
def test_convolution_is_that_of_pytorch_to_the_second_derivative(layer, layout):
    torch.manual_seed(0)
    expected = nn.Conv2d(2, 3, **layer), nn.Conv2d(3, 4, **layer)
    own = PenalisedConv2d(2, 3, **layer), PenalisedConv2d(3, 4, **layer)
    for mine, other in zip(own, expected, strict=True):
        mine.load_state_dict(other.state_dict())
        mine.to(memory_format=layout)
    images = torch.randn(3, 2, 12, 10, dtype=torch.float64).to(memory_format=layout)
    for mine, other in zip(derivatives(*own, images), derivatives(*expected, images), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_maps_norm_is_that_of_pytorch_and_keeps_the_layout():
    torch.manual_seed(0)
    expected, own = nn.LayerNorm([3, 4, 6]), MapsNorm([3, 4, 6])
    for values in expected.parameters():
        nn.init.normal_(values)
    own.load_state_dict(expected.state_dict())
    images = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    rows, last = (images.to(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last))
    for mine, other in zip(derivatives(own, own, last), derivatives(expected, expected, rows), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    assert own(last).is_contiguous(memory_format=torch.channels_last) and own(rows).is_contiguous()


class Kernels(TorchDispatchMode):
    """Notes the sizes of the kernels of all convolutions, and how often a weight's gradient is taken."""

    def __init__(self):
        super().__init__()
        self.sizes, self.weight_gradients = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.sizes.add(tuple(args[1].shape[2:]))
        if func is torch.ops.aten.convolution_backward.default:
            self.weight_gradients += args[-1][1]
        return func(*args, **(kwargs or {}))


def test_a_penalty_takes_ordinary_convolutions_only():
    # Of PyTorch's own layers it takes some whose kernels are as large as the maps, and that takes twice as long.
    network = DiMDiscriminator(3, 16, 1, (4, 4), (1, 0), downsample_input=False, kernel_size=3, norm="layer")
    images, labels = torch.randn(2, 1, 16, 16), torch.tensor([0, 2])
    with Kernels() as first:
        penalty = gradient_penalty(
            lambda maps: network(maps, labels).logits, images, images.flip(0), torch.rand(2, 1, 1, 1)
        )
    assert (first.sizes, first.weight_gradients) == ({(3, 3)}, 0)
    with Kernels() as second:
        penalty.backward()
    # Each of the three weights shapes the values and their gradient.
    assert (second.sizes, second.weight_gradients) == ({(3, 3)}, 6)
    assert all(weight.grad is not None for weight in network.features.parameters())


def test_under_autocast_it_computes_in_bfloat16():
    layer = PenalisedConv2d(1, 2, 3, padding=1)
    images = torch.randn(1, 1, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert images.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
