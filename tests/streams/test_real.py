"""Streams of whole batches: real images without repetition, in batches of the same size as generated ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.data import ImageData
from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.real import RealStream, WholeSetStream


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


def test_a_real_epoch_has_the_labels_of_a_generated_one(generator):
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


@pytest.mark.parametrize("stream", [GeneratedStream, RealStream, WholeSetStream])
@pytest.mark.parametrize(
    ("ipc", "batch_size", "message"),
    [
        (0, 4, "`ipc` is 0"),
        (1, 0, "`batch_size` is 0"),
        (10**8, 4, "`ipc` asks for [23]00,000,000 images in an epoch; valid are at most 100,000,000"),
        (2**32 - 1, 4, "`ipc` asks for"),
    ],
)
def test_refusals(stream, generator, ipc, batch_size, message):
    source = generator if stream is GeneratedStream else numbered([2, 2])
    with pytest.raises(ValueError, match=message):
        stream(source, ipc, 0, batch_size)


@pytest.mark.parametrize("stream", [GeneratedStream, RealStream, WholeSetStream])
@pytest.mark.parametrize("epoch", [-1, 2**32, 1.0, True])
def test_invalid_epochs_are_refused(stream, generator, epoch):
    source = generator if stream is GeneratedStream else numbered([2, 2])
    # Where it is asked for, not where its first batch is.
    with pytest.raises(ValueError, match=rf"`epoch` is {epoch}; valid is a whole number from 0 to 4,294,967,295"):
        stream(source, 2, 0, 4).batches(epoch)
