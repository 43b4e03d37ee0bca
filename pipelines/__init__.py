"""The pipeline of the package; its one source is the file that every saved pipeline carries."""

from dim_hf.models import DiMGenerator, DiMLabeler

from .pipeline_dim import DiMPipeline, DiMPipelineOutput


# What the package adds to the file of a repository: classes of its own for the components.
DiMPipeline.generator_class = DiMGenerator
DiMPipeline.labeler_class = DiMLabeler

__all__ = ["DiMPipeline", "DiMPipelineOutput"]
