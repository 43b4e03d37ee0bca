"""What is released of private images, and its files. Nothing else of them leaves this module."""

import copy
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..arguments import check_number
from ..data import ImageData
from ..files import read_json, replace_text, whole_file
from ..messages import listed
from .features import RandomFeatures
from .mechanism import (
    CLIP,
    COUNT_WEIGHT,
    SENSITIVITY,
    SENSITIVITY_REPLACE,
    clipped_sums,
    epsilon_for_replacement,
    gaussian_noise_std,
    noisy_sums,
)


@dataclass(frozen=True)
class Guarantee:
    """
    What the release promises, for options, card and audit.

    Args:
        epsilon (`float`), delta (`float`): For neighbours that differ by adding or removing one image.
        epsilon_replace_one (`float`): The same at the same delta, for neighbours that differ by replacing one image.
        noise_std (`float`): Standard deviation of the noise on the sums.
        sensitivity (`float`), sensitivity_replace_one (`float`): Largest change of the sums between neighbours (L2).
        clip (`float`): Largest norm of an image's features.
        count_weight (`float`): What an image adds to the count of its class, before the noise.
    """

    epsilon: float
    delta: float
    epsilon_replace_one: float
    noise_std: float
    sensitivity: float = SENSITIVITY
    sensitivity_replace_one: float = SENSITIVITY_REPLACE
    clip: float = CLIP
    count_weight: float = COUNT_WEIGHT
    unit: str = "one image with its label"
    neighbours: str = "add or remove one"
    mechanism: str = "Gaussian, one release; noise from the operating system"
    public: str = "number and names of the classes, size and channels of the images"

    def describe(self) -> str:
        """One line for logs and the card."""
        return (
            f"({self.epsilon:g}, {self.delta:g})-differential privacy; unit: {self.unit}, added or removed (epsilon "
            f"{self.epsilon_replace_one:.2f} if replaced); Gaussian mechanism, sensitivity {self.sensitivity:g}, "
            f"noise {self.noise_std:.3f}"
        )


def guarantee_of(epsilon: float, delta: float) -> Guarantee:
    """
    What a release with this budget promises; it does not depend on any data.

    Raises:
        ValueError: If epsilon or delta is not valid, or if the accountant is not installed.
    """
    std = gaussian_noise_std(epsilon, delta)
    return Guarantee(epsilon, delta, epsilon_for_replacement(std, delta), std)


@dataclass(frozen=True)
class PrivateStatistics:
    """
    The noisy statistics of each class.

    Args:
        sums (`torch.Tensor` of shape `(num_classes, width)`): float64; noisy sums of the clipped features.
        counts (`torch.Tensor` of shape `(num_classes,)`): float64; noisy numbers of images. May be negative.
        class_names (`tuple[str, ...]`): Name of each class; public.
        features ([`RandomFeatures`]): Maps images to the features; it does not depend on the private images.
        guarantee ([`Guarantee`]): What the release promises.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    class_names: tuple[str, ...]
    features: RandomFeatures
    guarantee: Guarantee

    @property
    def count_std(self) -> float:
        """Standard deviation of the noise in `counts`."""
        return self.guarantee.noise_std / COUNT_WEIGHT

    def means(self) -> torch.Tensor:
        """Estimates of each class's mean features, `(num_classes, width)`, float32; see [`too_small`]."""
        return (self.sums / self.counts.clamp(min=self.count_std)[:, None]).float()

    def describe(self) -> str:
        """One line for a log: the noisy number of images of each class, and a warning where it is too small."""
        names_counts = zip(self.class_names, self.counts.tolist(), strict=True)
        line = f"about {listed((f'{name} {count:,.0f}' for name, count in names_counts), most=10)} images"
        if small := self.too_small():
            line += f"; too few for this epsilon, expect noise: {listed(small)}"
        return line

    def too_small(self) -> list[str]:
        """Names of classes with so few images that the noise may outweigh them: below five times its deviation."""
        small = (self.counts < 5 * self.count_std).tolist()
        return [name for name, is_small in zip(self.class_names, small, strict=True) if is_small]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `statistics.safetensors` and `statistics.json` into a folder that exists."""
        folder = Path(folder)
        with whole_file(folder / "statistics.safetensors") as path:
            save_file({"sums": self.sums, "counts": self.counts}, path)
        record = {
            "class_names": list(self.class_names),
            "features": self.features.config(),
            "guarantee": asdict(self.guarantee),
        }
        replace_text(folder / "statistics.json", json.dumps(record, indent=2))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "PrivateStatistics":
        """
        Reads what [`save`] wrote.

        Raises:
            ValueError: If the files do not hold statistics.
            OSError: If they cannot be read.
        """
        folder = Path(folder)
        record = read_json(folder / "statistics.json")
        try:
            tensors = load_file(folder / "statistics.safetensors")
            features = RandomFeatures(**record["features"])
            guarantee = Guarantee(**record["guarantee"])
            names = tuple(map(str, record["class_names"]))
            sums, counts = tensors["sums"], tensors["counts"]
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} does not hold the statistics of a private release: {error!r}.") from error
        for field in fields(guarantee):
            if field.type is float:
                check_number(f"{folder / 'statistics.json'}: {field.name}", getattr(guarantee, field.name), above=0)
        if sums.shape != (len(names), features.width) or counts.shape != (len(names),):
            raise ValueError(
                f"{folder} holds sums of shape {tuple(sums.shape)} and counts of shape {tuple(counts.shape)}; valid "
                f"for its {len(names)} classes and {features.width} features are {(len(names), features.width)} and "
                f"{(len(names),)}."
            )
        if not bool(sums.isfinite().all() and counts.isfinite().all()):
            raise ValueError(f"{folder / 'statistics.safetensors'} holds numbers that are not finite.")
        return cls(sums.double(), counts.double(), names, features, guarantee)


def release_statistics(
    data: ImageData, epsilon: float, delta: float, features: RandomFeatures | None = None
) -> PrivateStatistics:
    """
    Spends the whole budget once. Every call is a release of its own: two of them on the same images cost more than
    epsilon, and the result must be kept rather than drawn again.

    Args:
        data ([`ImageData`]): The private images.
        epsilon (`float`), delta (`float`): The budget; see [`check_privacy`].
        features ([`RandomFeatures`], *optional*): By default those of the images' channels and size.

    Raises:
        ValueError: If epsilon or delta is not valid, if `features` are of other images, or if the accountant is not
            installed.
    """
    guarantee = guarantee_of(epsilon, delta)
    features = RandomFeatures(data.channels, data.size) if features is None else features
    if (features.channels, features.size) != (data.channels, data.size):
        raise ValueError(
            f"`features` take images of {features.channels} x {features.size} x {features.size}; those of the data "
            f"set are {data.channels} x {data.size} x {data.size}."
        )
    noisy = noisy_sums(
        clipped_sums(data, copy.deepcopy(features).cpu().double().of_pixels, features.width), guarantee.noise_std
    )
    return PrivateStatistics(
        sums=noisy[:, :-1].contiguous(),
        counts=noisy[:, -1] / COUNT_WEIGHT,
        class_names=data.class_names,
        features=features,
        guarantee=guarantee,
    )
