"""
Fixed sets of generated images (protocol A): latents, chosen among many samples by a teacher's features and optimised
on request. Only the latents are stored, `ipc x classes x latent_dim` numbers; the generator turns them into the same
images again.
"""

import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from torch import nn
from tqdm.auto import tqdm

from ..arguments import reason
from ..classifiers import logits_and_features
from ..data.image_data import ImageData, members_by_class, normalise
from ..distillation.augmentation import draw_augmentation
from ..files import whole_file
from ..models import DiMGenerator
from ..streams.randomness import check_count, latents_at
from .names import SELECTIONS


# In the settings of a set that `optimise_latents` moved: a set made another way has another file.
LATENTS_FORMAT = 2
# A step of `optimise_latents` takes at most this many images of a class of the set, and in total; and of real images.
PER_CLASS, PER_STEP = 16, 256
REAL_PER_CLASS, REAL_PER_STEP = 32, 1024
# A file of latents that is larger is not read: a million images have some 400 MB.
MOST_FILE_BYTES = 2**30


def kmeans_medoids(features: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """
    The images nearest to the centres of `count` clusters, one of each, as DREAM chooses them (arXiv 2302.14416).

    Args:
        features (`torch.Tensor` of shape `(n, dim)`): One row per image, `n` at least `count`.
        count (`int`): Clusters.
        seed (`int`, *optional*, defaults to 0): Seeds the first centres.

    Returns:
        Different row numbers, int64 of shape `(count,)`, ascending.
    """
    rows = features.cpu().double()
    clusters = KMeans(count, n_init=1, random_state=seed).fit(rows.numpy())
    distances = torch.cdist(rows, torch.from_numpy(clusters.cluster_centers_))
    # Duplicate rows give fewer clusters than asked for; an empty one takes an unused row.
    cluster_of = torch.from_numpy(clusters.labels_)
    free = torch.ones(len(rows), dtype=torch.bool)
    for cluster in torch.bincount(cluster_of, minlength=count).argsort(descending=True).tolist():
        members = torch.nonzero(cluster_of == cluster).squeeze(1)
        members = members if len(members) else torch.nonzero(free).squeeze(1)
        free[members[distances[members, cluster].argmin()]] = False
    return torch.nonzero(~free).squeeze(1)


def herding(features: torch.Tensor, count: int) -> torch.Tensor:
    """
    Chooses images greedily: each next one brings the mean features of those chosen nearest to the mean of all
    (Welling, 2009; arXiv 1611.07725, algorithm 4).

    Args:
        features (`torch.Tensor` of shape `(n, dim)`): One row per image, `n` at least `count`.
        count (`int`): How many are chosen.

    Returns:
        Different row numbers, int64 of shape `(count,)`, in the order in which they were chosen.
    """
    rows = features.cpu().double()
    mean, total = rows.mean(dim=0), torch.zeros(rows.shape[1], dtype=torch.float64)
    chosen: list[int] = []
    for number in range(1, count + 1):
        distances = (number * mean - total - rows).square().sum(dim=1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += rows[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)


@torch.no_grad()
def choose_latents(
    generator: DiMGenerator,
    ipc: int,
    selection: str,
    *,
    seed: int,
    candidates: int = 100,
    teacher: nn.Module | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The latents of `ipc` images per class.

    Args:
        generator ([`DiMGenerator`]): In `eval()`.
        ipc (`int`): Images per class.
        selection (`str`):
            `"random"`: the first that a stream of this seed makes. `"kmeans"` and `"herding"`: [`kmeans_medoids`] or
            [`herding`] of each class among the first `candidates * ipc`, by their features in the last layer of the
            teacher.
        seed (`int`): Seeds the noise and the first centres.
        candidates (`int`, *optional*, defaults to 100): Samples per image that is kept.
        teacher (`torch.nn.Module`, *optional*): As [`build_classifier`] makes it, in `eval()`, on the generator's
            device; needed for all but `"random"`.

    Returns:
        Latents, float32 of shape `(classes * ipc, latent_dim)`, class by class, and labels, int64 of shape
        `(classes * ipc,)`, both on the generator's device.

    Raises:
        ValueError: If an argument is not valid, or a teacher is needed and missing.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"`selection` is {selection!r}; valid are {', '.join(map(repr, SELECTIONS))}.")
    check_count("ipc", ipc, least=1)
    check_count("candidates", candidates, least=1)
    if selection != "random" and teacher is None:
        raise ValueError(f"`selection` is {selection!r}, which takes a `teacher`.")
    device, latent_dim = generator.device, generator.config.latent_dim
    kept, labels = [], []
    for label in range(generator.config.num_classes):
        count = ipc if selection == "random" else ipc * candidates
        of_class = torch.full((count,), label, device=device)
        latents = latents_at(seed, 0, of_class, torch.arange(count, device=device), latent_dim)
        if selection != "random":
            assert teacher is not None
            features = []
            for part, part_labels in zip(latents.split(512), of_class.split(512), strict=True):
                images = generator(part.to(generator.dtype), part_labels).sample.float()
                layers = logits_and_features(teacher, images)[1]
                features.append(list(layers.values())[-1].flatten(1).cpu())
            chosen = (
                kmeans_medoids(torch.cat(features), ipc, seed)
                if selection == "kmeans"
                else herding(torch.cat(features), ipc)
            )
            latents = latents[chosen.to(device)]
        kept.append(latents)
        labels.append(of_class[:ipc])
    return torch.cat(kept), torch.cat(labels)


def optimise_latents(
    generator: DiMGenerator,
    latents: torch.Tensor,
    labels: torch.Tensor,
    data: ImageData,
    pool: Sequence[nn.Module],
    steps: int,
    *,
    seed: int,
    learning_rate: float = 0.03,
    mixed_precision: str = "no",
    progress: bool = False,
) -> torch.Tensor:
    """
    Moves latents so that networks of a pool see the set of each class as they see its real images; the generator stays
    as it is. Each step draws a network, images of the set, real ones of their classes and one shared shift, and takes
    a step of Adam on [`set_mean_loss`] (distribution matching, arXiv 2110.04181, by networks trained on the real
    images). In the second half of the steps the learning rate falls to 0.

    Args:
        generator ([`DiMGenerator`]): In `eval()`.
        latents (`torch.Tensor` of shape `(n, latent_dim)`), labels (`torch.Tensor` of shape `(n,)`):
            Those of the set, equally many of each class, class by class.
        data ([`ImageData`]): Real images, with every class.
        pool (`Sequence[torch.nn.Module]`): Frozen classifiers, as [`build_pool`] makes them.
        steps (`int`): Steps of Adam.
        seed (`int`): Seeds what is drawn.
        learning_rate (`float`, *optional*, defaults to 0.03): Of Adam.
        mixed_precision (`str`, *optional*, defaults to `"no"`): `"bf16"` for bfloat16 in generator and networks.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar over the steps.

    Returns:
        New latents of the same shape.

    Raises:
        FloatingPointError: If they become NaN or infinite.
    """
    rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    ipc, device = len(labels) // data.num_classes, labels.device
    per_class = min(ipc, PER_CLASS)
    count = min(data.num_classes, max(1, PER_STEP // per_class))
    real_per_class = min(REAL_PER_CLASS, max(1, REAL_PER_STEP // count))
    members = members_by_class(data.labels, data.num_classes)
    latents = latents.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / max(steps, 1)))
    low = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
    for _ in tqdm(range(steps), desc="latents", unit="step", leave=False, disable=not progress):
        classes = torch.randperm(data.num_classes, generator=draw)[:count].tolist()
        of_set = torch.cat([c * ipc + torch.randperm(ipc, generator=draw)[:per_class] for c in classes]).to(device)
        real = [
            members[c][torch.randint(len(members[c]), (real_per_class,), generator=draw).to(device)] for c in classes
        ]
        network, augment = rng.choice(pool), draw_augmentation(("shift",), data.size, rng)
        with low:
            parts = []
            with torch.no_grad():
                for rows in torch.cat(real).split(PER_STEP):
                    parts.append(logits_and_features(network, augment(normalise(data.batch(rows)[0])))[1])
            images = generator(latents[of_set].to(generator.dtype), labels[of_set]).sample.float()
            features = logits_and_features(network, augment(images))[1]
        layers = [
            set_mean_loss(torch.cat([part[name] for part in parts]).float(), of_layer.float(), count)
            for name, of_layer in features.items()
        ]
        # The generator's weights get no gradient.
        (latents.grad,) = torch.autograd.grad(torch.stack(layers).sum(), [latents])
        optimizer.step()
        schedule.step()
    if not latents.isfinite().all():
        raise FloatingPointError("the optimised latents became NaN or infinite; lower `learning_rate`.")
    return latents.detach()


def set_mean_loss(real_features: torch.Tensor, set_features: torch.Tensor, classes: int) -> torch.Tensor:
    """
    Squared distance between the mean features of a class's real images and those of its set, over the squared length
    of the real mean, both summed over the classes.

    A set is what it is, not a sample of the generator: its own mean counts. [`class_mean_matching_loss`], which
    estimates the distance to the mean of all that the generator could make, would drive the few images apart.

    Args:
        real_features, set_features (`torch.Tensor` of shape `(classes * n, ...)`):
            The outputs of one layer, class by class, equally many of each class; `n` may differ between the two.
    """
    real, of_set = (each.flatten(1).unflatten(0, (classes, -1)).mean(dim=1) for each in (real_features, set_features))
    return (of_set - real).square().sum() / real.square().sum().clamp(min=1e-6)


def fixed_set(pipeline: DiffusionPipeline, latents: torch.Tensor, labels: torch.Tensor) -> ImageData:
    """The images of latents `(n, latent_dim)` and labels `(n,)`, on the device of the labels."""
    images = pipeline(class_labels=labels, latents=latents, output_type="pt").images
    digest = hashlib.sha256(latents.cpu().numpy().tobytes() + labels.cpu().numpy().tobytes())
    pixels = (images * 255).round().to(torch.uint8).to(labels.device)
    return ImageData(pixels, labels, tuple(pipeline.class_names), digest.hexdigest()[:16])


def save_latents(
    path: str | os.PathLike, latents: torch.Tensor, labels: torch.Tensor, settings: dict[str, Any]
) -> None:
    """
    Writes latents and labels of a fixed set as safetensors, with the settings that made them and a digest of
    everything in the header. Creates the folder; an older file stays until the new one is complete.
    """
    content = {"latents": latents.cpu().contiguous(), "labels": labels.cpu()}
    text = json.dumps(settings, sort_keys=True)
    with whole_file(path) as aside:
        save_file(content, aside, metadata={"settings": text, "digest": _digest(text, content)})


def load_latents(path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What [`save_latents`] wrote: latents `(n, latent_dim)` and labels `(n,)`, on the CPU. The images are
    `pipe(class_labels=labels, latents=latents).images`.

    Raises:
        ValueError: If the file is damaged or holds something else, naming it.
    """
    content, _ = _read(path)
    return content["latents"], content["labels"]


def latents_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings that [`save_latents`] wrote into a file's header; raises what [`load_latents`] does."""
    return _read(path)[1]


def _read(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    try:
        if (size := Path(path).stat().st_size) > MOST_FILE_BYTES:
            raise ValueError(f"it has {size:,} bytes; valid are at most {MOST_FILE_BYTES:,}")
        with safe_open(path, framework="pt") as file:
            # Copied, because overwriting the file would change tensors that are mapped from it.
            content = {name: file.get_tensor(name).clone() for name in ("latents", "labels")}
            header = file.metadata() or {}
        latents, labels = content["latents"], content["labels"]
        if latents.ndim != 2 or labels.shape != latents.shape[:1]:
            raise ValueError(f"latents {tuple(latents.shape)} do not fit labels {tuple(labels.shape)}")
        kinds = latents.dtype, labels.dtype
        if kinds != (torch.float32, torch.int64) or not latents.isfinite().all() or (labels < 0).any():
            raise ValueError(f"{kinds[0]} latents and {kinds[1]} labels; valid are finite float32, and int64 from 0")
        if header["digest"] != _digest(header["settings"], content):
            raise ValueError("its content does not have the digest in its header")
        settings = json.loads(header["settings"])
        if not isinstance(settings, dict):
            raise ValueError("its settings are not an object")
        return content, settings
    except (SafetensorError, ValueError, KeyError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or is not the latents of a fixed set: {reason(error)}.") from error


def _digest(settings: str, content: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(settings.encode())
    for name in ("latents", "labels"):
        digest.update(content[name].numpy().tobytes())
    return digest.hexdigest()[:16]
