"""The pipeline of the package."""

from .installed import DiMPipeline
from .pipeline_dim import DiMPipelineOutput


__all__ = ["DiMPipeline", "DiMPipelineOutput"]
