"""Convolutions whose gradient penalties are fast."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


Sides = tuple[int, int]


class PenalisedConv2d(nn.Conv2d):
    """
    `nn.Conv2d` of one group with zero padding, for networks with a gradient penalty: within rounding the same values,
    gradients and gradients of a penalty.

    PyTorch differentiates the gradient of a convolution by its weight with a convolution whose kernel is as large as
    the maps. That derivative is the weight's gradient of an ordinary convolution, which takes half of the time.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """As `nn.Conv2d`."""
        # A second derivative is needed only behind a first one of the maps, and compiled code has none.
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and maps.requires_grad):
            return super().forward(maps)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(maps.device.type):
            dtype = torch.get_autocast_dtype(maps.device.type)
            maps, weight = maps.to(dtype), weight.to(dtype)
            bias = bias.to(dtype) if bias is not None else None
        sides = (self.stride, self.padding, self.dilation)
        link = _ToWeight.apply(weight, bias, maps.detach(), *sides)
        return _ToMaps.apply(maps, weight, bias, link, *sides)


class _ToMaps(torch.autograd.Function):
    """The convolution. Its gradient reaches the maps from here, and the weight through `link`."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        link: torch.Tensor,
        *sides: Sides,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.sides = maps.shape, sides
        stride, padding, dilation = sides
        return nn.functional.conv2d(maps, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_maps = _GradientOfMaps.apply(upstream, weight, ctx.shape, *ctx.sides)
        return of_maps, None, None, upstream, None, None, None


class _ToWeight(torch.autograd.Function):
    """The gradients of the weight and the bias, in a node apart: a penalty does not want them and omits it."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, maps: torch.Tensor, *sides: Sides
    ) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.bias_sizes, ctx.sides = None if bias is None else list(bias.shape), sides
        stride, padding, dilation = sides
        size = [
            (maps.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        # In the shape of the output, as its gradient will be, and the memory of one number.
        return weight.new_zeros(()).expand(len(maps), len(weight), *size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        _, of_weight, of_bias = _gradients(upstream, maps, weight, ctx.sides, of_maps=False, bias_sizes=ctx.bias_sizes)
        return of_weight, of_bias, None, None, None, None


class _GradientOfMaps(torch.autograd.Function):
    """The gradient of the maps, which a penalty differentiates once more."""

    @staticmethod
    def forward(
        ctx: Any, upstream: torch.Tensor, weight: torch.Tensor, shape: torch.Size, *sides: Sides
    ) -> torch.Tensor:
        ctx.save_for_backward(upstream, weight)
        ctx.sides = sides
        return _gradients(upstream, upstream.new_empty(()).expand(shape), weight, sides, of_maps=True)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, change: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream, weight = ctx.saved_tensors
        of_upstream = nn.functional.conv2d(change, weight, None, *ctx.sides)
        of_weight = _gradients(upstream, change, weight, ctx.sides, of_maps=False)[1]
        return of_upstream, of_weight, None, None, None, None


def _gradients(
    upstream: torch.Tensor,
    maps: torch.Tensor,
    weight: torch.Tensor,
    sides: tuple[Sides, ...],
    *,
    of_maps: bool,
    bias_sizes: list[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of the maps only, or those of the weight and, with `bias_sizes`, of the bias."""
    stride, padding, dilation = sides
    mask = [of_maps, not of_maps, bias_sizes is not None]
    return torch.ops.aten.convolution_backward(
        upstream, maps, weight, bias_sizes, stride, padding, dilation, False, (0, 0), 1, mask
    )
