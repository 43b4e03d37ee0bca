"""Streams: noise as a pure function, even batches, real images without repetition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.data import ImageData
from dim_hf.models import DiMGenerator
from dim_hf.streaming import GeneratedStream, RealStream, ShuffledOrder, WholeSetStream, latents_at


CPU = torch.device("cpu")
EXPECTED_NOISE = [[0.02699, -2.17563, 0.126277], [0.313613, -0.50661, 1.292124]]


def numbered(counts):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.arange(len(labels)).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return ImageData(images, labels, tuple(str(n) for n in range(len(counts))), "numbered")


def rows(images):
    """Which images of `numbered` these are."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return DiMGenerator(3, 8, 1, 6, 4, (8,), (0,))


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


def test_a_fixed_value_so_that_streams_stay_what_they_were():
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


def test_an_epoch_has_ipc_images_of_every_class_in_even_batches(generator):
    stream = GeneratedStream(generator, ipc=7, seed=0, batch_size=8)
    batches = list(stream.batches(0))
    assert stream.steps_per_epoch == len(batches) == 3
    assert [len(labels) for _, labels in batches] == [7, 7, 7]
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [7, 7, 7]
    assert all(images.shape == (7, 1, 8, 8) and images.abs().max() <= 1 for images, _ in batches)


def test_images_do_not_depend_on_the_batch_size(generator):
    def epoch(batch_size):
        batches = list(GeneratedStream(generator, 5, 3, batch_size).batches(2))
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    images, labels = epoch(15)
    for batch_size in (1, 4, 100):
        others, other_labels = epoch(batch_size)
        assert torch.equal(labels, other_labels)
        assert torch.allclose(images, others, atol=1e-6)


def test_epochs_seeds_and_orders_differ_and_repeat(generator):
    def first(seed, epoch):
        return next(GeneratedStream(generator, 5, seed, 15).batches(epoch))

    assert torch.equal(first(0, 0)[0], first(0, 0)[0])
    assert not torch.equal(first(0, 0)[0], first(0, 1)[0])
    assert not torch.equal(first(0, 0)[1], first(0, 1)[1])
    assert not torch.equal(first(0, 0)[0], first(1, 0)[0])


def test_generation_keeps_no_gradients_and_lets_others_have_them(generator):
    for images, _ in GeneratedStream(generator, 2, 0, 3).batches(0):
        assert not images.requires_grad and torch.is_grad_enabled()
    assert not generator.training


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), ipc=st.integers(1, 12), batch=st.integers(1, 20))
def test_real_images_come_again_only_when_their_class_is_used_up(counts, ipc, batch):
    data = numbered(counts)
    stream = RealStream(data, ipc, 5, batch)
    drawn = {label: [] for label in range(len(counts))}
    for epoch in range(4):
        for images, labels in stream.batches(epoch):
            for row, label in zip(rows(images), labels.tolist(), strict=True):
                assert data.labels[row] == label
        for label, count in enumerate(counts):
            drawn[label] += stream.members[label][stream.orders[label].take(epoch * ipc, ipc)].tolist()
            seen = drawn[label]
            for start in range(0, len(seen) - count + 1, count):
                assert len(set(seen[start : start + count])) == count


def test_real_epoch_has_what_a_generated_one_has(generator):
    data = numbered([20, 30, 40])
    real, generated = RealStream(data, 7, 0, 8), GeneratedStream(generator, 7, 0, 8)
    assert real.steps_per_epoch == generated.steps_per_epoch
    for (_, first), (_, second) in zip(real.batches(1), generated.batches(1), strict=True):
        assert torch.equal(first, second)


def test_the_whole_set_is_read_through(generator):
    data = numbered([3, 17])
    stream, real = (kind(data, ipc=5, seed=0, batch_size=4) for kind in (WholeSetStream, RealStream))
    assert [len(labels) for _, labels in stream.batches(0)] == [len(labels) for _, labels in real.batches(0)]
    seen = [row for epoch in range(2) for images, _ in stream.batches(epoch) for row in rows(images)]
    assert sorted(seen) == list(range(20))


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 12), start=st.integers(0, 50), count=st.integers(1, 30))
def test_any_stretch_of_an_order_is_the_same_from_anywhere(length, start, count):
    stretch = ShuffledOrder(length, 3, CPU).take(start, count)
    assert stretch.tolist() == ShuffledOrder(length, 3, CPU).take(0, start + count)[start:].tolist()
    whole = ShuffledOrder(length, 3, CPU).take(0, 4 * length)
    for part in whole.split(length):
        assert sorted(part.tolist()) == list(range(length))


def test_any_seed_of_63_bits(generator):
    images, labels = next(GeneratedStream(generator, 2, 2**63 - 1, 6).batches(10**6))
    assert torch.bincount(labels).tolist() == [2, 2, 2] and images.isfinite().all()


@pytest.mark.parametrize("stream", [GeneratedStream, RealStream, WholeSetStream])
@pytest.mark.parametrize(("ipc", "batch_size", "message"), [(0, 4, "`ipc` is 0"), (1, 0, "`batch_size` is 0")])
def test_refusals(stream, generator, ipc, batch_size, message):
    source = generator if stream is GeneratedStream else numbered([2, 2])
    with pytest.raises(ValueError, match=message):
        stream(source, ipc, 0, batch_size)
