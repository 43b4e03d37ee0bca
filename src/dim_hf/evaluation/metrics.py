"""
Metrics of a distilled data set as metrics of `evaluate`: accuracy, and the two scores of DD-Ranking.

Each is computed from what classifiers predict on the same real test images. They need no network and combine:

    scores = evaluate.combine([Accuracy(), LabelRobustScore()])
    scores.compute(references=labels, predictions=..., hard_label_predictions=..., real_predictions=...,
                   random_predictions=...)
"""

import math
from typing import TYPE_CHECKING, Any

from sklearn.metrics import accuracy_score


if TYPE_CHECKING:
    from evaluate import Metric, MetricInfo
else:

    class Metric:
        """A class of metrics that becomes one of `evaluate.Metric` when its first metric is made."""

        # Importing evaluate imports the pipelines of transformers: 11 CPU seconds.
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            import evaluate

            return object.__new__(type(cls.__name__, (cls, evaluate.Metric), {"__doc__": cls.__doc__}))


CITATION = "DD-Ranking: Rethinking the Evaluation of Dataset Distillation"


def unit_score(value: float) -> float:
    """Maps [-1, 1] to [0, 1] as DD-Ranking does: `(exp(value) - exp(-1)) / (e - exp(-1))`."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(*, real: float, hard: float, own: float, random: float, weight: float = 0.5) -> float:
    """
    Label-robust score (LRS) of DD-Ranking, for accuracies as fractions: [`unit_score`] of
    `weight * IOR - (1 - weight) * HLR`, with `HLR = real - hard` and `IOR = own - random`.

    The published package puts percentages into the same equations, which leaves [0, 1]; its raw output is another
    number.

    Args:
        real (`float`): Of a classifier trained on all real images with hard labels.
        hard (`float`): Of one trained on the distilled images with hard labels.
        own (`float`): Of one trained on the distilled images with their own labels, hard or soft.
        random (`float`): Of one trained on as many random real images, by the recipe of `own`.
        weight (`float`, *optional*, defaults to 0.5): In [0, 1].

    Raises:
        ValueError: If a value lies outside [0, 1].
    """
    _check_fractions(real=real, hard=hard, own=own, random=random, weight=weight)
    return unit_score(weight * (own - random) - (1 - weight) * (real - hard))


def augmentation_robust_score(
    *, augmented: float, random_augmented: float, plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """
    Augmentation-robust score (ARS) of DD-Ranking, for accuracies as fractions: [`unit_score`] of
    `weight * (augmented - random_augmented) + (1 - weight) * (plain - random_plain)`.

    Args:
        augmented (`float`), plain (`float`): Of classifiers trained on the distilled images, with augmentation and
            without.
        random_augmented (`float`), random_plain (`float`): Of classifiers trained likewise on as many random real
            images.
        weight (`float`, *optional*, defaults to 0.5): In [0, 1].

    Raises:
        ValueError: If a value lies outside [0, 1].
    """
    _check_fractions(
        augmented=augmented, random_augmented=random_augmented, plain=plain, random_plain=random_plain, weight=weight
    )
    return unit_score(weight * (augmented - random_augmented) + (1 - weight) * (plain - random_plain))


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is {value}; it must lie in [0, 1], accuracies as fractions.")


def _info(description: str, *inputs: str) -> "MetricInfo":
    import datasets
    import evaluate

    features = datasets.Features({name: datasets.Value("int64") for name in inputs})
    listed = "\n".join(f"    {name} (`list[int]`): Class indices, one per test image." for name in inputs)
    return evaluate.MetricInfo(
        description=description, citation=CITATION, inputs_description=f"\nArgs:\n{listed}\n", features=features
    )


# `evaluate.combine` hands every metric the inputs of all of them, so each takes and leaves what it does not know.


class Accuracy(Metric):
    """`{"accuracy": ...}` in [0, 1], of `predictions` and `references`."""

    def _info(self) -> "MetricInfo":
        return _info("Share of predictions that are right.", "predictions", "references")

    def _compute(self, predictions: list[int], references: list[int], **others: Any) -> dict[str, float]:
        return {"accuracy": accuracy_score(references, predictions)}


class LabelRobustScore(Metric):
    """
    `{"lrs": ...}` in [0, 1]; see [`label_robust_score`]. Takes `references` and the predictions of four classifiers:
    `predictions` (trained on the distilled images with their own labels), `hard_label_predictions`,
    `real_predictions` and `random_predictions`, and, optionally, `label_weight`.
    """

    def _info(self) -> "MetricInfo":
        return _info(
            "Label-robust score of DD-Ranking, from accuracies as fractions.",
            "predictions",
            "references",
            "hard_label_predictions",
            "real_predictions",
            "random_predictions",
        )

    def _compute(
        self,
        predictions: list[int],
        references: list[int],
        hard_label_predictions: list[int],
        real_predictions: list[int],
        random_predictions: list[int],
        label_weight: float = 0.5,
        **others: Any,
    ) -> dict[str, float]:
        score = label_robust_score(
            real=accuracy_score(references, real_predictions),
            hard=accuracy_score(references, hard_label_predictions),
            own=accuracy_score(references, predictions),
            random=accuracy_score(references, random_predictions),
            weight=label_weight,
        )
        return {"lrs": score}


class AugmentationRobustScore(Metric):
    """
    `{"ars": ...}` in [0, 1]; see [`augmentation_robust_score`]. Takes `references` and the predictions of the four
    classifiers: `augmented_predictions` and `plain_predictions` (trained on the distilled images),
    `random_augmented_predictions` and `random_plain_predictions`, and, optionally, `augmentation_weight`.
    """

    def _info(self) -> "MetricInfo":
        return _info(
            "Augmentation-robust score of DD-Ranking, from accuracies as fractions.",
            "references",
            "augmented_predictions",
            "random_augmented_predictions",
            "plain_predictions",
            "random_plain_predictions",
        )

    def _compute(
        self,
        references: list[int],
        augmented_predictions: list[int],
        random_augmented_predictions: list[int],
        plain_predictions: list[int],
        random_plain_predictions: list[int],
        augmentation_weight: float = 0.5,
        **others: Any,
    ) -> dict[str, float]:
        score = augmentation_robust_score(
            augmented=accuracy_score(references, augmented_predictions),
            random_augmented=accuracy_score(references, random_augmented_predictions),
            plain=accuracy_score(references, plain_predictions),
            random_plain=accuracy_score(references, random_plain_predictions),
            weight=augmentation_weight,
        )
        return {"ars": score}
