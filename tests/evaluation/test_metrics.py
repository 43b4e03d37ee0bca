"""Metrics against values worked out by hand, alone and combined, without a network."""

import math

import evaluate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_hf.evaluation.metrics import (
    Accuracy,
    AugmentationRobustScore,
    LabelRobustScore,
    augmentation_robust_score,
    label_robust_score,
    unit_score,
)


LABELS = [0, 1, 2, 3]
# Right on 4, 3, 2, 1 and 0 of the four.
RIGHT = {4: [0, 1, 2, 3], 3: [0, 1, 2, 0], 2: [0, 1, 0, 0], 1: [0, 0, 0, 0], 0: [3, 3, 3, 0]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_score_maps_the_ends_to_0_and_1():
    assert unit_score(-1) == 0 and unit_score(1) == pytest.approx(1)
    # (1 - 1/e) / (e - 1/e) = 1 / (e + 1).
    assert unit_score(0) == pytest.approx(1 / (math.e + 1))


def test_scores_by_hand():
    # IOR = 0.75 - 0.25 and HLR = 1 - 0.5 cancel out.
    assert label_robust_score(real=1.0, hard=0.5, own=0.75, random=0.25) == pytest.approx(1 / (math.e + 1))
    # 0.25 * 0.5 - 0.75 * 0.5 = -0.25.
    expected = (math.exp(-0.25) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(real=1.0, hard=0.5, own=0.75, random=0.25, weight=0.25) == pytest.approx(expected)
    # 0.5 * (0.8 - 0.6) + 0.5 * (0.7 - 0.3) = 0.3.
    expected = (math.exp(0.3) - math.exp(-1)) / (math.e - math.exp(-1))
    score = augmentation_robust_score(augmented=0.8, random_augmented=0.6, plain=0.7, random_plain=0.3)
    assert score == pytest.approx(expected)


@given(st.tuples(*[st.floats(0, 1)] * 5))
def test_scores_stay_in_their_range_and_rise_with_what_is_good(values):
    real, hard, own, random, weight = values
    score = label_robust_score(real=real, hard=hard, own=own, random=random, weight=weight)
    assert -1e-9 <= score <= 1 + 1e-9
    assert label_robust_score(real=real, hard=1, own=1, random=random, weight=weight) >= score - 1e-12


def test_percentages_are_refused():
    with pytest.raises(ValueError, match=r"`real` is 92.5; it must lie in \[0, 1\], accuracies as fractions"):
        label_robust_score(real=92.5, hard=0.5, own=0.5, random=0.5)
    with pytest.raises(ValueError, match=r"`random_plain` is -1; it must lie in \[0, 1\]"):
        augmentation_robust_score(augmented=0.5, random_augmented=0.5, plain=0.5, random_plain=-1)


def test_metrics_combine_and_equal_their_equations():
    metrics = evaluate.combine([Accuracy(), LabelRobustScore(), AugmentationRobustScore()])
    scores = metrics.compute(
        references=LABELS,
        predictions=RIGHT[3],
        hard_label_predictions=RIGHT[2],
        real_predictions=RIGHT[4],
        random_predictions=RIGHT[1],
        augmented_predictions=RIGHT[3],
        random_augmented_predictions=RIGHT[0],
        plain_predictions=RIGHT[2],
        random_plain_predictions=RIGHT[1],
        augmentation_weight=0.25,
    )
    assert scores == {
        "accuracy": 0.75,
        "lrs": pytest.approx(label_robust_score(real=1.0, hard=0.5, own=0.75, random=0.25)),
        "ars": pytest.approx(unit_score(0.25 * 0.75 + 0.75 * 0.25)),
    }


def test_metrics_take_batches():
    metric = Accuracy()
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add_batch(predictions=[2, 2], references=[2, 2])
    assert metric.compute() == {"accuracy": 0.75}


def test_a_missing_input_is_named():
    with pytest.raises(ValueError, match="hard_label_predictions"):
        LabelRobustScore().compute(references=LABELS, predictions=LABELS)


def test_no_images_and_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="empty"):
        Accuracy().compute(references=[], predictions=[])
    with pytest.raises(ValueError, match="Mismatch|inconsistent"):
        Accuracy().compute(references=LABELS, predictions=LABELS[:3])
