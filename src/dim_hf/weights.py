"""Names and sizes of weights, and whether they are numbers at all."""

import hashlib
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """A short name of the generator's weights, by which an evaluation is known to be theirs."""
    return module_digest(pipeline.generator)


def module_digest(module: nn.Module) -> str:
    """A short name of a network's weights."""
    digest = hashlib.sha256()
    for _, value in sorted(module.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_finite(*modules: nn.Module) -> bool:
    """Whether no weight or buffer of these networks is NaN or infinite."""
    values = [value for module in modules for value in module.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in values]).all())


def module_bytes(module: ModelMixin) -> int:
    """
    Bytes of the weights and buffers of a network as they are saved. Of one that was loaded, its file tells: what was
    saved in half precision is loaded in full.
    """
    path = Path(module.config.get("_name_or_path") or "") / SAFETENSORS_WEIGHTS_NAME
    if path.parent.name and path.is_file():
        with path.open("rb") as file:
            # Eight bytes give the length of the header that follows them; the rest are the numbers.
            return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())
