"""Distil a labelled image data set into a conditional generator and train any classifier from it (DiM)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .models import DiMDiscriminator, DiMGenerator, DiMLabeler
    from .pipelines import DiMPipeline, DiMPipelineOutput
    from .streams.dim_dataset import DiMDataset

__all__ = ["DiMDataset", "DiMDiscriminator", "DiMGenerator", "DiMLabeler", "DiMPipeline", "DiMPipelineOutput"]

_MODULES = {
    "DiMDataset": ".streams.dim_dataset",
    "DiMDiscriminator": ".models",
    "DiMGenerator": ".models",
    "DiMLabeler": ".models",
    "DiMPipeline": ".pipelines",
    "DiMPipelineOutput": ".pipelines",
}


# Names are imported when they are first asked for (PEP 562), so that a part of the package that needs no networks does
# not wait for diffusers.
def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | __all__)
