"""Reports."""

import torch
from pathlib import Path


def environment() -> dict:
    return {"torch": torch.__version__}


def save_sample_grid(pipeline, path) -> None:
    import torchvision

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    out = pipeline(ipc=10, generator=torch.Generator().manual_seed(0), output_type="pt").images
    torchvision.utils.save_image(out, path, nrow=10)
