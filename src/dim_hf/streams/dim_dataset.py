"""
The data set of generated images that classifiers are trained on.

Every image is a pure function of (weights, seed, epoch, class, index), in any batch.
"""

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from ..arguments import check_flag, check_integer, check_number, check_seed, shown
from ..models import DiMGenerator
from ..pipelines import DiMPipeline
from ..pipelines.pipeline_dim import is_a, labelled_features
from .randomness import check_count, check_epoch, check_shuffled, epoch_order, latents_at


if TYPE_CHECKING:
    import datasets

# Images of a class that are chosen together, and drawn images per forward pass of a choice.
_GROUP, _CHOICE_BLOCK = 64, 1024
MOST_CHOOSE_FROM = 100


class DiMDataset(Dataset):
    """
    A map-style data set of generated images that are fresh in every epoch, for `DataLoader` (with or without workers),
    `DistributedSampler`, `transformers.Trainer`, Accelerate and Lightning.

    An item is `{"pixel_values": ..., "labels": ...}`, on the CPU. Each image is a pure function of (weights, seed,
    epoch, class, index), within rounding the same in any batch. A `DataLoader` gets each batch from one forward pass.
    Items are ordered by class, so shuffle them.

    Args:
        source ([`DiMPipeline`] or [`DiMGenerator`]): Makes the images, on its own device; put into `eval()` mode.
        ipc (`int` or `dict[int | str, int]`):
            Images per class and epoch. A `dict` has the number for each class, by label or name, and omits the other
            classes: `{"Coat": 500, 7: 20}` repairs an imbalance.
        seed (`int`, *optional*, defaults to 0): Seeds the noise.
        soft_labels (`bool`, *optional*, defaults to `False`):
            Whether `labels` are the class probabilities of the pipeline's `labeler`, float32 of shape
            `(num_classes,)`. Models of transformers would take them for multi-label targets, so `Trainer` needs a
            `compute_loss_func`; see docs/use.md.
        max_attempts (`int`, *optional*, defaults to 1):
            Above 1, an image that the pipeline's `labeler` assigns to another class is drawn again, up to this number
            of draws. If none is of its class, the one that the labeler is surest of is kept. Where the labeler is
            undecided within rounding, the batch may then decide.
        min_confidence (`float`, *optional*, defaults to 0.0):
            With `max_attempts` above 1, an image is also drawn again if the `labeler` gives its class a probability
            below this; in [0, 1).
        choose_from (`int`, *optional*, defaults to 1):
            Above 1, this many times as many images are drawn, and those are kept that cover them best in the
            features of the pipeline's `labeler` (see [`covering`]), anew in every epoch. The drawing takes as many
            times as long, and every worker draws all classes of the images that it needs, 64 per class together.
        noise_scale (`float`, *optional*, defaults to 1.0):
            Factor of the noise: images vary more above 1, less below.
        transform (`Callable`, *optional*):
            Maps a `PIL.Image.Image` (mode `L` or `RGB`) to `pixel_values`, as transforms of torchvision do, or to a
            mapping with `pixel_values` as a batch of one, as an image processor does. The default gives float32 of
            shape `(channels, size, size)` in [-1, 1].

    Raises:
        ValueError: If an argument is not valid, or the pipeline lacks a labeler that the arguments need.
    """

    def __init__(
        self,
        source: DiMPipeline | DiMGenerator,
        ipc: int | Mapping[int | str, int],
        seed: int = 0,
        *,
        soft_labels: bool = False,
        max_attempts: int = 1,
        min_confidence: float = 0.0,
        choose_from: int = 1,
        noise_scale: float = 1.0,
        transform: Callable[[Image.Image], Any] | None = None,
    ):
        if is_a(source, "DiMPipeline"):
            pipe: Any = source
        elif is_a(unwrap_module(source), "DiMGenerator"):
            pipe = DiMPipeline(source)
        else:
            raise ValueError(
                f"`source` is {shown(source)}; valid is a DiMPipeline or a DiMGenerator. "
                "`DiMPipeline.from_pretrained` loads a saved pipeline."
            )
        self.num_classes = pipe.generator.config.num_classes
        counts = [0] * self.num_classes
        if isinstance(ipc, Mapping):
            keys: dict[int, int | str] = {}
            for key, count in ipc.items():
                (label,) = pipe.get_label_ids([key], argument="ipc")
                check_count(f"ipc[{key!r}]", count, least=0)
                if label in keys:
                    raise ValueError(
                        f"`ipc` has {keys[label]!r} and {key!r}, which are one class; valid is one of them."
                    )
                keys[label], counts[label] = key, int(count)
        else:
            check_count("ipc", ipc, least=1)
            counts = [int(ipc)] * self.num_classes
        if sum(counts) == 0:
            raise ValueError(
                f"`ipc` is {shown(ipc)}, which asks for no images at all; valid is at least one number above 0."
            )
        check_seed(seed)
        check_flag("soft_labels", soft_labels)
        check_integer("max_attempts", max_attempts, least=1)
        check_number("min_confidence", min_confidence, least=0, below=1)
        if min_confidence and max_attempts == 1:
            raise ValueError(
                f"`min_confidence` is {min_confidence}, but with `max_attempts` 1 no image is drawn again; valid is a "
                "larger `max_attempts`."
            )
        check_integer("choose_from", choose_from, least=1, most=MOST_CHOOSE_FROM)
        check_count("choose_from` times `ipc", max(counts) * choose_from, least=0)
        check_number("noise_scale", noise_scale, above=0)
        if transform is not None and not callable(transform):
            raise ValueError(f"`transform` is {shown(transform)}; valid is a function of a PIL image, or None.")
        needs = {"soft_labels": soft_labels, "max_attempts": max_attempts, "choose_from": choose_from}
        asked = [name for name, value in needs.items() if value > 1 or value is True]
        if asked and pipe.labeler is None:
            raise ValueError(
                f"`{asked[0]}` is {needs[asked[0]]}, which needs a teacher, but the pipeline has no `labeler`; "
                "training/train_labeler.py adds one."
            )
        self.generator, self.labeler = pipe.generator.eval(), pipe.labeler
        self.class_names, self.counts, self.seed = pipe.class_names, counts, int(seed)
        self.soft_labels, self.noise_scale = soft_labels, noise_scale
        self.max_attempts, self.min_confidence, self.choose_from = max_attempts, min_confidence, int(choose_from)
        self.transform = transform
        self._length = sum(counts)
        self._ends = torch.tensor(counts).cumsum(0)
        self._starts = self._ends - torch.tensor(counts)
        # In shared memory, so that persistent workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # By epoch and group, which of the drawn images are kept: see `_chosen`.
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def __len__(self) -> int:
        return self._length

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """
        Selects the images of an epoch, in running workers too. Accelerate calls it only in simple cases, and `Trainer`
        needs a callback; see docs/use.md.
        """
        check_epoch(epoch)
        self._epoch.fill_(int(epoch))
        self.forget_choice()

    def forget_choice(self) -> None:
        """With `choose_from`, chooses anew when images are made next: the choice is kept while an epoch lasts."""
        self._kept = {}

    @torch.no_grad()
    def make(self, epoch: int | torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Makes the images at some positions of an epoch, in one forward pass.

        Args:
            epoch (`int` or `torch.Tensor` of shape `(batch_size,)`): The epoch of all images, or of each.
            positions (`torch.Tensor` of shape `(batch_size,)`): int64 in [0, length).

        Returns:
            Images `(batch_size, channels, size, size)` in [-1, 1] and labels, int64 of shape `(batch_size,)` or soft
            float32 of shape `(batch_size, num_classes)`, on the generator's device.

        Raises:
            RuntimeError: If a network is in training mode, or on a device that this process cannot use.
            ValueError: If an argument is not valid. Positions on a GPU are slow to read, so only their type is
                checked.
        """
        if not isinstance(epoch, torch.Tensor):
            check_epoch(epoch)
        if not isinstance(positions, torch.Tensor) or positions.dtype != torch.int64 or positions.ndim != 1:
            raise ValueError(f"`positions` is {shown(positions)}; valid is an int64 tensor of one dimension.")
        if positions.device.type == "cpu" and len(positions):
            low, high = positions.aminmax()
            if low < 0 or high >= len(self):
                outside = int(low if low < 0 else high)
                raise ValueError(f"`positions` holds {outside}; valid are 0 to {len(self) - 1}.")
        device = self.generator.device
        if get_worker_info() is not None and device.type != "cpu":
            raise RuntimeError(
                f"the generator is on {device}, which a worker of a DataLoader cannot use; valid are `num_workers=0` "
                "(for Trainer `dataloader_num_workers=0`), or a pipeline on the CPU."
            )
        for name, model in (("generator", self.generator), ("labeler", self.labeler)):
            if model is not None and model.training:
                raise RuntimeError(
                    f"the {name} is in training mode, in which an image depends on its batch; call its `eval()` first."
                )
        positions = positions.to(device)
        labels = torch.searchsorted(self._ends.to(device), positions, right=True)
        indices = positions - self._starts.to(device)[labels]
        if self.choose_from > 1:
            indices = self._chosen(epoch, labels, indices)
        images = self._draw_accepted(epoch, labels, indices)
        return images, self._teacher_logits(images).softmax(dim=1) if self.soft_labels else labels

    def _chosen(self, epoch: int | torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """
        Of each image the index that it has among the drawn ones. A class is chosen in groups of `_GROUP` images, so
        that the choice needs little memory and is the same whatever part of the epoch is asked for.
        """
        groups, chosen = indices // _GROUP, torch.empty_like(indices)
        epochs = epoch if isinstance(epoch, torch.Tensor) else torch.full_like(indices, epoch)
        asked = [(int(e), int(group)) for e, group in torch.stack([epochs, groups], dim=1).unique(dim=0)]
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] in {each for each, _ in asked}}
        for key in asked:
            if key not in self._kept:
                self._kept[key] = self._choose(*key)
            here = (epochs == key[0]) & (groups == key[1])
            chosen[here] = self._kept[key][labels[here], indices[here] % _GROUP]
        return chosen

    def _choose(self, epoch: int, group: int) -> torch.Tensor:
        """Of a group of every class, the indices of the drawn images that are kept, `(num_classes, _GROUP)`."""
        device = self.generator.device
        kept = torch.zeros(self.num_classes, _GROUP, dtype=torch.int64, device=device)
        sizes = [min(_GROUP, max(0, count - group * _GROUP)) for count in self.counts]
        start = group * _GROUP * self.choose_from
        # In batches that do not depend on who asks, since rounding could otherwise decide between equals.
        for size in sorted(set(sizes) - {0}):
            labels = torch.tensor([label for label in range(self.num_classes) if sizes[label] == size], device=device)
            drawn = torch.arange(start, start + size * self.choose_from, device=device)
            for part in labels.split(max(1, _CHOICE_BLOCK // len(drawn))):
                drawn_of = part.repeat_interleave(len(drawn)), drawn.repeat(len(part))
                features = torch.cat([
                    self.labeler.network[:-1](self._draw_accepted(epoch, *block).to(self.labeler.dtype)).float()
                    for block in zip(*(each.split(_CHOICE_BLOCK) for each in drawn_of), strict=True)
                ])  # fmt: skip
                for label, rows in zip(part.tolist(), features.split(len(drawn)), strict=True):
                    kept[label, :size] = drawn[covering(rows, size)]
        return kept

    def _draw_accepted(self, epoch: int | torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Images, drawn again while the teacher rejects them; the best one is kept."""
        images = self._draw(epoch, labels, indices, attempt=0)
        scores = self._scores(images, labels) if self.max_attempts > 1 else torch.empty(0)
        for attempt in range(1, self.max_attempts):
            rejected = torch.nonzero(scores < self.min_confidence).squeeze(1)
            if len(rejected) == 0:
                break
            epochs = epoch[rejected] if isinstance(epoch, torch.Tensor) else epoch
            candidates = self._draw(epochs, labels[rejected], indices[rejected], attempt)
            new = self._scores(candidates, labels[rejected])
            better = new > scores[rejected]
            images[rejected[better]], scores[rejected[better]] = candidates[better], new[better]
        return images

    def _draw(
        self, epoch: int | torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, attempt: int
    ) -> torch.Tensor:
        latents = latents_at(self.seed, epoch, labels, indices, self.generator.config.latent_dim, attempt)
        if self.noise_scale != 1:
            latents = self.noise_scale * latents
        return self.generator(latents.to(self.generator.dtype), labels).sample.float()

    def _scores(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The teacher's confidence in the labels, less 1 where it takes an image for another class."""
        logits = self._teacher_logits(images)
        confidence = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        return confidence - (logits.argmax(dim=1) != labels).float()

    def _teacher_logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.labeler(images.to(self.labeler.dtype)).logits.float()

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        """The items at some positions. A `DataLoader` calls this for each batch."""
        length = len(self)
        chosen = []
        for position in positions:
            try:
                index = operator.index(position)
            except TypeError:
                raise ValueError(
                    f"position {shown(position)} is not an integer; valid are {-length} to {length - 1}, one at a "
                    "time. Use a `DataLoader` for batches, and `torch.utils.data.Subset` for a part."
                ) from None
            if not -length <= index < length:
                raise IndexError(f"position {index} is out of range; the data set has {length} images.")
            chosen.append(index % length)
        if not chosen:
            return []
        images, labels = self.make(self.epoch, torch.tensor(chosen))
        pixels: Any = images.cpu()
        if self.transform is not None:
            made = [self.transform(image) for image in to_pil(images)]
            pixels = [each["pixel_values"][0] if isinstance(each, Mapping) else each for each in made]
        rows = labels.cpu() if self.soft_labels else labels.tolist()
        return [{"pixel_values": value, "labels": label} for value, label in zip(pixels, rows, strict=True)]

    def to_iterable_dataset(
        self, num_shards: int = 1, features: "datasets.Features | None" = None, block_size: int = 256
    ) -> "datasets.IterableDataset":
        """
        An endless `datasets.IterableDataset` of PIL images and class labels, shuffled within each epoch, starting at
        the epoch that is set. `datasets.interleave_datasets` mixes it with real data.

        Args:
            num_shards (`int`, *optional*, defaults to 1):
                Parts of each epoch for `DataLoader` workers, of all processes together: exactly one per worker. Since
                a part is endless, a worker that has several makes only the images of the first.
            features (`datasets.Features`, *optional*):
                Features of a data set to mix it with. Columns take their names from it, and classes, matched by name,
                their labels. By default the columns are `image` and `label`.
            block_size (`int`, *optional*, defaults to 256): Images per forward pass, at most.

        Raises:
            ValueError: If a class is missing from `features`, labels are soft, or there are fewer images than shards.
        """
        import datasets  # Not needed to train on tensors.

        if self.soft_labels:
            raise ValueError("`soft_labels` is True; a column of class labels cannot hold probabilities.")
        # A worker with empty shards would loop through empty epochs for ever.
        check_integer("num_shards", num_shards, least=1, most=len(self))
        check_integer("block_size", block_size, least=1)
        check_shuffled(len(self))
        label_ids = [label for label, count in enumerate(self.counts) if count]
        features, image_column, label_column, label_of = labelled_features(self.class_names, label_ids, features)

        rows = partial(_endless_rows, self, num_shards, block_size, image_column, label_column, label_of)
        return datasets.IterableDataset.from_generator(
            rows, features=features, gen_kwargs={"shards": list(range(num_shards))}
        )


def _endless_rows(
    images_of: DiMDataset,
    num_shards: int,
    block_size: int,
    image_column: str,
    label_column: str,
    label_of: Mapping[int, int],
    shards: list[int],
) -> Iterator[dict[str, Any]]:
    """The rows of some shards of [`DiMDataset.to_iterable_dataset`]. It can be pickled for workers."""
    for epoch in itertools.count(images_of.epoch):
        order = epoch_order(len(images_of), images_of.seed, epoch)
        mine = torch.cat([order[shard::num_shards] for shard in shards])
        for block in mine.split(block_size):
            images, labels = images_of.make(epoch, block)
            for image, label in zip(to_pil(images), labels.tolist(), strict=True):
                yield {image_column: image, label_column: label_of[label]}


def covering(rows: torch.Tensor, count: int) -> torch.Tensor:
    """
    Chooses rows that cover all: one after the other the one that lowers most the sum of squared distances of all rows
    to the nearest chosen one (greedy k-medoids). Nothing is random, and of equals the first is chosen.

    Args:
        rows (`torch.Tensor` of shape `(n, dim)`): float32.
        count (`int`): At most n.

    Returns:
        int64 of shape `(count,)`, ascending.
    """
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = torch.full_like(distances[0], torch.inf)
    chosen: list[int] = []
    for _ in range(count):
        cost = torch.minimum(nearest, distances).sum(dim=1)
        # Where all are equal, so are the costs.
        cost[chosen] = torch.inf
        chosen.append(int(cost.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    return torch.tensor(sorted(chosen), device=rows.device)


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Converts images `(batch_size, channels, size, size)` in [-1, 1] to PIL images of mode `L` or `RGB`."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    pixels = pixels.squeeze(3) if pixels.shape[3] == 1 else pixels
    return [Image.fromarray(image) for image in pixels.cpu().numpy()]
