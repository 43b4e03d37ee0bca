"""Noise and order: pure functions, standard normal, keys that do not collide."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.streams.randomness import ShuffledOrder, bits_of, epoch_order, latents_at


CPU = torch.device("cpu")
EXPECTED_NOISE = [[0.02699, -2.17563, 0.126277], [0.313613, -0.50661, 1.292124]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), count=st.integers(1, 40), dim=st.integers(1, 9))
def test_noise_of_an_image_does_not_depend_on_the_others(seed, epoch, count, dim):
    labels, indices = torch.randint(5, (count,)), torch.randint(1000, (count,))
    together = latents_at(seed, epoch, labels, indices, dim)
    assert together.shape == (count, dim) and together.isfinite().all()
    order = torch.randperm(count)
    assert torch.equal(latents_at(seed, epoch, labels[order], indices[order], dim), together[order])
    for i in range(count):
        assert torch.equal(latents_at(seed, epoch, labels[i : i + 1], indices[i : i + 1], dim)[0], together[i])


def test_a_fixed_value_keeps_streams_reproducible():
    noise = latents_at(0, 0, torch.tensor([0, 1]), torch.tensor([0, 0]), 3)
    assert torch.allclose(noise, torch.tensor(EXPECTED_NOISE), atol=1e-5)


def test_noise_is_standard_normal():
    noise = latents_at(7, 3, torch.arange(10).repeat(500), torch.arange(5000), 64).double().flatten()
    assert noise.mean().abs() < 0.01
    assert noise.var() == pytest.approx(1, abs=0.01)
    assert (noise**3).mean().abs() < 0.03
    assert (noise**4).mean() == pytest.approx(3, abs=0.06)
    assert noise.abs().max() > 4


def test_no_two_images_of_a_long_stream_have_the_same_noise():
    # A hash of 32 bits would give some ten pairs of equal images here.
    labels, indices = torch.arange(10).repeat_interleave(30), torch.arange(30).repeat(10)
    noise = torch.cat([latents_at(0, epoch, labels, indices, 4)[:, :2] for epoch in range(1000)])
    assert noise.contiguous().view(torch.int64).unique().numel() == len(noise)


@pytest.mark.parametrize("key", ["seed", "epoch", "label", "index", "dimension"])
def test_neighbouring_keys_are_independent(key):
    labels, indices = torch.zeros(4000, dtype=torch.int64), torch.arange(4000)
    first = latents_at(0, 0, labels, indices, 16)
    second = {
        "seed": lambda: latents_at(1, 0, labels, indices, 16),
        "epoch": lambda: latents_at(0, 1, labels, indices, 16),
        "label": lambda: latents_at(0, 0, labels + 1, indices, 16),
        "index": lambda: latents_at(0, 0, labels, indices + 1, 16),
        "dimension": lambda: first.roll(1, dims=1),
    }[key]()
    correlation = (first * second).mean().abs()
    assert correlation < 0.02 and not torch.equal(first, second)
    assert ((first**2 - 1) * (second**2 - 1)).mean().abs() < 0.04


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 12), start=st.integers(0, 50), count=st.integers(1, 30))
def test_any_stretch_of_an_order_is_the_same_from_anywhere(length, start, count):
    stretch = ShuffledOrder(length, 3, CPU).take(start, count)
    assert stretch.tolist() == ShuffledOrder(length, 3, CPU).take(0, start + count)[start:].tolist()
    whole = ShuffledOrder(length, 3, CPU).take(0, 4 * length)
    for part in whole.split(length):
        assert sorted(part.tolist()) == list(range(length))


def test_seeds_beyond_32_bits_have_orders_of_their_own():
    orders = {
        tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 7, 256, 2**40, 2**63 - 1) for epoch in (0, 3)
    }
    assert len(orders) == 10
    assert bits_of(5) == 5 and 0 <= bits_of(2**32) < 2**32 and bits_of(2**32) != bits_of(2**33)
