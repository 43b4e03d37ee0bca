import math

import pytest
import torch

from dim_hf.classifiers import build_classifier
from dim_hf.evaluation.coverage import density, last_features, recall


LINE = torch.arange(10.0)[:, None]  # Each row's nearest other row is 1 away.


def test_the_same_images_are_covered_and_faithful():
    assert recall(LINE, LINE, neighbours=1) == 1.0
    # Itself and both neighbours, but for the two ends: (8 * 3 + 2 * 2) / 10.
    assert density(LINE, LINE, neighbours=1) == pytest.approx(2.8)


def test_a_collapsed_class_is_faithful_and_covers_little():
    collapsed = torch.full((10, 1), 5.0) + 1e-3 * LINE
    assert recall(LINE, collapsed, neighbours=1) == pytest.approx(0.1)
    assert density(LINE, collapsed, neighbours=1) >= 1.0


def test_images_from_elsewhere_are_neither():
    assert recall(LINE, LINE + 100, neighbours=3) == 0.0
    assert density(LINE, LINE + 100, neighbours=3) == 0.0


def test_samples_of_one_distribution_have_density_near_one():
    rng = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(2000, 3, generator=rng) for _ in range(2))
    assert density(real, generated) == pytest.approx(1.0, abs=0.05)
    assert recall(real, generated) > 0.9


def test_too_few_images_for_so_many_neighbours():
    with pytest.raises(ValueError, match=r"`neighbours` is 10; valid for 10 images is 1 to 9"):
        recall(LINE, LINE, neighbours=10)


def test_features_are_those_of_the_last_layer():
    classifier = build_classifier("convnet3", 3, 1, 8).eval()
    images = torch.randn(5, 1, 8, 8)
    rows = last_features(classifier, images.split(2))
    expected = torch.nn.Sequential(*list(classifier)[:12])(images).flatten(1)
    assert rows.shape == (5, 128) and torch.allclose(rows, expected, atol=1e-6) and math.isfinite(rows.sum())
