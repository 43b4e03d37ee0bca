"""Training with the weights that will be stored: rounded in forward and backward, exact in the optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..models import DiMGenerator
from ..models.generator_dim import dequantise, quantise


@contextmanager
def rounded_weights(generator: DiMGenerator, storage: str) -> Iterator[None]:
    """
    Inside, the generator's weights are those that a file of this `storage` gives back, but for biases and norms, which
    are not rounded to float16; afterwards they are the exact ones again. Gradients taken inside are those of the
    rounded weights, and an optimiser that steps afterwards applies them to the exact ones: the straight-through
    estimator (arXiv 1308.3432).

    Args:
        generator ([`DiMGenerator`]): Forward and backward pass must both lie inside.
        storage (`str`): `"int8"` to `"int2"`.
    """
    bits = int(storage.removeprefix("int"))
    exact = {name: weight.data for name, weight in generator.named_parameters()}
    for name, weight in generator.named_parameters():
        if weight.ndim > 1:
            by_channel = generator.channels_first(name, weight.data)
            rounded = dequantise(*quantise(by_channel.flatten(1), bits), bits).reshape(by_channel.shape)
            # In the memory layout of the exact ones, which the convolutions are chosen for.
            weight.data = torch.empty_like(weight.data).copy_(generator.channels_first(name, rounded))
    try:
        yield
    finally:
        for name, weight in generator.named_parameters():
            weight.data = exact[name]
