"""GeneratedStream: even batches, images that depend on nothing else, blocks."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return DiMGenerator(3, 8, 1, 6, 4, (8,), (0,))


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


def test_generation_neither_records_nor_disables_gradients(generator):
    for images, _ in GeneratedStream(generator, 2, 0, 3).batches(0):
        assert not images.requires_grad and torch.is_grad_enabled()
    assert not generator.training


def test_any_seed_of_63_bits(generator):
    images, labels = next(GeneratedStream(generator, 2, 2**63 - 1, 6).batches(10**6))
    assert torch.bincount(labels).tolist() == [2, 2, 2] and images.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(ipc=st.integers(1, 5), batch_size=st.integers(1, 16), block_size=st.integers(1, 60))
def test_blocks_do_not_change_the_batches(generator, ipc, batch_size, block_size):
    stream = GeneratedStream(generator, ipc, 3, batch_size, block_size=block_size)
    plain = GeneratedStream(generator, ipc, 3, batch_size)
    sizes = []
    hook = generator.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for epoch in (0, 1, 2, 7):
        for found, wanted in zip(stream.batches(epoch), plain.batches(epoch), strict=True):
            torch.testing.assert_close(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
    hook.remove()
    assert max(sizes) <= max(block_size, batch_size)


def test_a_block_may_span_epochs(generator):
    calls = []
    hook = generator.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    stream = GeneratedStream(generator, ipc=2, seed=0, batch_size=3, block_size=24)
    for epoch in range(4):
        assert len(list(stream.batches(epoch))) == 2
    hook.remove()
    assert calls == [24]


@pytest.mark.parametrize("block_size", [6, 24])
def test_a_repeated_epoch_is_made_with_the_current_weights(generator, block_size):
    generator = copy.deepcopy(generator)
    stream = GeneratedStream(generator, ipc=2, seed=0, batch_size=3, block_size=block_size)
    before = torch.cat([images for images, _ in stream.batches(0)])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(0.5)
    after = torch.cat([images for images, _ in stream.batches(0)])
    assert not torch.allclose(before, after)
    plain = GeneratedStream(generator, ipc=2, seed=0, batch_size=3, block_size=3)
    torch.testing.assert_close(after, torch.cat([images for images, _ in plain.batches(0)]))


def test_the_order_of_an_epoch_is_drawn_once_for_all_its_blocks(generator, monkeypatch):
    drawn = []
    permutation = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: drawn.append(args) or permutation(*args, **kwargs))
    stream = GeneratedStream(generator, ipc=8, seed=0, batch_size=2, block_size=4)
    for epoch in range(3):
        assert len(list(stream.batches(epoch))) == 12
    assert drawn == [(24,)] * 3


def test_a_stream_of_counts_per_class(generator):
    stream = GeneratedStream(generator, {2: 5, 0: 2}, 0, 3)
    labels = torch.cat([labels for _, labels in stream.batches(0)])
    assert torch.bincount(labels).tolist() == [2, 0, 5] and stream.steps_per_epoch == 3 and stream.num_classes == 3
