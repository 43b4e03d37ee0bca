"""Noise and order as pure functions of a seed and a position, so that streams can be split and resumed."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..arguments import check_integer


_MASK = 0xFFFFFFFF
_STEP = 0x9E3779B9
# Largest shuffled epoch: its order takes 8 bytes of memory per image.
_MOST_SHUFFLED = 100_000_000


def _mix(value: Any) -> Any:
    """A 32-bit integer finaliser (two rounds of xor-shift and multiply) for an `int` or an int64 tensor."""
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK
    return value ^ (value >> 16)


def latents_at(
    seed: int,
    epoch: int | torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    latent_dim: int,
    attempt: int = 0,
) -> torch.Tensor:
    """
    Standard normal noise as a pure function of (seed, epoch, class, index, attempt): a counter-based hash and the
    Box-Muller transform, so that any image can be made in any batch and on any device.

    Args:
        seed (`int`), epoch (`int` or `torch.Tensor` of shape `(batch_size,)`): Not negative.
        labels, indices (`torch.Tensor` of shape `(batch_size,)`): Class of each image and its index there, int64.
        latent_dim (`int`): Length of each noise vector.
        attempt (`int`, *optional*, defaults to 0): Number of draws that a teacher has rejected.

    Returns:
        `torch.Tensor` of shape `(batch_size, latent_dim)`, float32, on the device of `labels`; within rounding the
        same on every device.
    """
    if labels.device.type == "mps":
        # Apple's GPUs have no float64.
        on_cpu = epoch.cpu() if isinstance(epoch, torch.Tensor) else epoch
        return latents_at(seed, on_cpu, labels.cpu(), indices.cpu(), latent_dim, attempt).to(labels.device)
    # Two keys of 32 bits: with a single one, a hundred pairs among a million images would share their noise. Values
    # that all images share are mixed as numbers, and both keys as one tensor, because launching operations costs more
    # than the operations do.
    numbers = [seed & _MASK, seed >> 32]
    parts: list[int | torch.Tensor] = [labels, indices, *([attempt] if attempt else [])]
    if isinstance(epoch, torch.Tensor):
        parts = [epoch, *parts]
    else:
        numbers.append(epoch)
    shared = [0, _MASK]
    for number in numbers:
        shared = [_mix((key + _STEP + number) & _MASK) for key in shared]
    keys = torch.stack([torch.full_like(labels, key) for key in shared])
    for part in parts:
        keys = _mix((keys + part + _STEP) & _MASK)
    # One counter per dimension: even ones for the first key, odd ones for the second.
    counters = _mix(torch.arange(2 * ((latent_dim + 1) // 2), device=labels.device)).unflatten(0, (-1, 2)).T
    first, second = _mix((keys[:, :, None] + counters[:, None]) & _MASK)
    # Half a step above 0, where the logarithm is infinite.
    radius = (-2 * ((first.double() + 0.5) / 2**32).log()).sqrt()
    angle = 2 * math.pi * (second.double() / 2**32)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :latent_dim].float()


class ShuffledOrder:
    """
    An endless sequence of permutations of `range(length)`. Any part of it depends only on the seed and its position,
    so it can be resumed and shared between processes.

    Args:
        length (`int`): Length of a permutation.
        seed (`int` or `str`): Seeds the permutations.
        device (`torch.device`): Device of the numbers.
    """

    def __init__(self, length: int, seed: int | str, device: torch.device):
        check_integer("length", length, least=1)
        self.length, self.seed, self.device = length, seed, device
        self.epochs: dict[int, torch.Tensor] = {}

    def take(self, start: int, count: int) -> torch.Tensor:
        """The `count` numbers from position `start`, as an int64 tensor of shape `(count,)`."""
        needed = range(start // self.length, (start + count - 1) // self.length + 1)
        self.epochs = {e: self.epochs[e] if e in self.epochs else self._permutation(e) for e in needed}
        return torch.cat(list(self.epochs.values()))[start % self.length :][:count]

    def _permutation(self, epoch: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(random.Random(f"{self.seed}/order/{epoch}").getrandbits(63))
        return torch.randperm(self.length, generator=rng).to(self.device, non_blocking=True)


def epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of a shuffled epoch, a permutation of `range(length)` on the CPU."""
    rng = torch.Generator().manual_seed(bits_of((seed << 24) ^ epoch))
    return torch.randperm(length, generator=rng)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generators of the CPU and of a device, which weights and dropout use, until the block ends."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        # `torch.manual_seed` would also seed other GPUs, whose generators are not put back.
        torch.default_generator.manual_seed(seed)
        if device.type not in ("cpu", "cuda"):
            torch.get_device_module(device).manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def bits_of(seed: int) -> int:
    """A seed for PyTorch's generators, which use only the last 32 bits on a CPU: larger ones are mixed into these."""
    return seed if seed <= _MASK else random.Random(seed).getrandbits(32)


def check_count(name: str, value: Any, least: int) -> None:
    """Raises a `ValueError` unless `value` is an integer in [least, 2**32)."""
    # The noise of an image takes 32 bits of its index.
    check_integer(name, value, least, most=2**32 - 1)


def check_shuffled(length: int) -> None:
    """Raises a `ValueError` if an epoch is too long to keep its order in memory."""
    if length > _MOST_SHUFFLED:
        raise ValueError(
            f"`ipc` asks for {length:,} images in an epoch; valid are at most {_MOST_SHUFFLED:,} with shuffling, as "
            "their order is kept in memory."
        )


def check_epoch(epoch: Any) -> None:
    """Raises a `ValueError` unless `epoch` is an integer in [0, 2**32)."""
    check_integer("epoch", epoch, least=0, most=2**32 - 1)
