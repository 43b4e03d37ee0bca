"""The augmentation: shared by batches, exact where it can be said exactly, differentiable."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.distillation.augmentation import AUGMENTATIONS, draw_augmentation


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), names=st.sets(st.sampled_from(AUGMENTATIONS)), size=st.sampled_from([8, 28, 32]))
def test_a_batch_is_treated_as_its_images_are(seed, names, size):
    images = torch.rand(4, 3, size, size) * 2 - 1
    augment = draw_augmentation(sorted(names), size, random.Random(seed))
    together = augment(images)
    assert together.shape == images.shape
    assert torch.allclose(together, torch.cat([augment(image[None]) for image in images]), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([8, 28]))
def test_shift_moves_every_pixel_by_the_same_step(seed, size):
    augment = draw_augmentation(["shift"], size, random.Random(seed))
    rows = torch.arange(size, dtype=torch.float32)
    seen = augment(torch.stack([rows[:, None].expand(size, size), rows[None, :].expand(size, size)])[None])[0]
    reach = size // 8
    for moved in (seen[0, :, 0], seen[1, 0, :]):
        steps = moved - rows
        # Away from the edges, where pixels are repeated, the content moves as a whole.
        assert steps[reach:-reach].unique().numel() == 1
        assert steps.abs().max() <= reach


def test_every_shift_is_drawn():
    rows = torch.arange(28.0)[None, None, :, None].expand(1, 1, 28, 28)
    steps = {
        draw_augmentation(["shift"], 28, random.Random(seed))(rows)[0, 0, 14, 14].item() - 14 for seed in range(200)
    }
    assert steps == {-3, -2, -1, 0, 1, 2, 3}


def test_cutout_clears_a_square_of_at_most_half_the_size():
    for seed in range(30):
        cleared = draw_augmentation(["cutout"], 8, random.Random(seed))(torch.ones(1, 1, 8, 8)) == 0
        rows, columns = cleared[0, 0].any(dim=1).sum(), cleared[0, 0].any(dim=0).sum()
        assert cleared.sum() == rows * columns
        assert 0 < rows <= 4 and 0 < columns <= 4


def test_flip_is_an_involution_drawn_half_the_time():
    images = torch.randn(2, 3, 8, 8)
    flipped = 0
    for seed in range(200):
        augment = draw_augmentation(["flip"], 8, random.Random(seed))
        assert torch.equal(augment(augment(images)), images)
        flipped += torch.equal(augment(images), images.flip(3))
    assert 60 < flipped < 140


def test_no_name_changes_nothing():
    images = torch.randn(2, 1, 8, 8)
    assert draw_augmentation([], 8, random.Random(0))(images) is images


def test_gradients_pass_through():
    images = torch.zeros(2, 1, 8, 8, requires_grad=True)
    draw_augmentation(["shift", "flip", "color"], 8, random.Random(0))(images).sum().backward()
    assert images.grad.sum() != 0


def test_unknown_name():
    with pytest.raises(ValueError, match=r"`augmentation`.*'blur'.*valid are shift, cutout, flip, color"):
        draw_augmentation(["shift", "blur"], 8, random.Random(0))
