"""The pipeline of the package; its one source is the file that every saved pipeline carries."""

from dim_hf.models import DiMGenerator

from .pipeline_dim import DiMPipeline, DiMPipelineOutput


DiMPipeline.generator_class = DiMGenerator

__all__ = ["DiMPipeline", "DiMPipelineOutput"]
