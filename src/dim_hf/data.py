"""Any image classification data set as uint8 tensors."""

from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class ImageData:
    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> int:
        return self.images.shape[2]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageData":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[indices], self.labels[indices]

    def select(self, indices: torch.Tensor) -> "ImageData":
        import hashlib

        key = hashlib.sha256(self.fingerprint.encode() + indices.numpy().tobytes()).hexdigest()[:16]
        return replace(self, images=self.images[indices], labels=self.labels[indices], fingerprint=key)


def load_image_data(dataset_name: str = "digits", split: str = "train", **kwargs) -> ImageData:
    if dataset_name == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        parts = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
        index = np.sort(parts[0 if split == "train" else 1])
        images = torch.from_numpy((digits.images[index] * 255 / 16).round().astype(np.uint8))[:, None]
        names = tuple(str(n) for n in range(10))
        return ImageData(images, torch.from_numpy(digits.target[index]).long(), names, f"digits/{split}")
    from datasets import load_dataset

    data = load_dataset(dataset_name, split=split)
    images = torch.from_numpy(np.stack([np.array(image) for image in data["image"]]))[:, None]
    return ImageData(images, torch.tensor(data["label"]), tuple(data.features["label"].names), data._fingerprint)


def holdout(data: ImageData, fraction: float = 0.1, seed: int = 0) -> tuple[ImageData, ImageData]:
    rng = torch.Generator().manual_seed(seed)
    parts: tuple[list, list] = ([], [])
    for label in range(data.num_classes):
        members = torch.nonzero(data.labels == label).squeeze(1)
        members = members[torch.randperm(len(members), generator=rng)]
        count = max(1, round(len(members) * fraction))
        parts[0].append(members[count:])
        parts[1].append(members[:count])
    return data.select(torch.cat(parts[0]).sort().values), data.select(torch.cat(parts[1]).sort().values)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1
