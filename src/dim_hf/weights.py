"""Digests, sizes and stored forms of weights, and checks that they are finite."""

import hashlib
import tempfile
import warnings
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import save
from torch import nn

from .models import DiMGenerator, DiMLabeler
from .pipelines import DiMPipeline


def stored_form(pipeline: DiMPipeline, storage: str | None) -> DiMPipeline:
    """
    Saves the pipeline with this `storage` and loads it again, so that what is measured is what is shipped. The result
    is float32 in memory and keeps the `name_or_path` of `pipeline`. `None` returns `pipeline`.

    Raises:
        ValueError: If the form is unknown or cannot hold the weights.
    """
    if storage is None:
        return pipeline
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder, storage=storage)
        generator = DiMGenerator.from_pretrained(Path(folder) / "generator")
        labeler = pipeline.labeler
        if labeler is not None:
            labeler = DiMLabeler.from_pretrained(Path(folder) / "labeler")
    stored = DiMPipeline(generator, pipeline.config.id2label, labeler)
    stored.register_to_config(_name_or_path=pipeline.name_or_path)
    return stored.to(pipeline.device)


def warn_of_storage(storage: str, accuracy: float, full: float, about: str) -> None:
    """Warns if a form of storage costs more than 2 points, with both accuracies."""
    if full - accuracy > 0.02:
        warnings.warn(
            f"`--storage` {storage} costs more than 2 points: {about} is {100 * accuracy:.2f} %, and "
            f"{100 * full:.2f} % with the original weights; use more bits.",
            stacklevel=2,
        )


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """A short digest of the generator's weights, which identifies their evaluations."""
    return module_digest(pipeline.generator)


def module_digest(module: nn.Module) -> str:
    """A short digest of a network's weights."""
    digest = hashlib.sha256()
    for _, value in sorted(module.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_finite(*modules: nn.Module) -> bool:
    """Whether all weights and buffers of these networks are finite."""
    values = [value for module in modules for value in module.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in values]).all())


def module_bytes(module: ModelMixin) -> int:
    """
    Size in bytes of the safetensors file of a network: its weights and buffers, the codes and scales of a generator in
    few bits, and the header with names and shapes. config.json and code are not counted.

    For a teacher that was loaded it is the size of its file, because half precision is loaded as float32.
    """
    if isinstance(module, DiMLabeler) and module.file_bytes is not None:
        return module.file_bytes
    form = module.storage if isinstance(module, DiMGenerator) else None
    content = module.state_dict() if form is None else module.stored_state(form)
    # As `save_pretrained` writes it.
    return len(save({name: value.contiguous() for name, value in content.items()}, metadata={"format": "pt"}))
