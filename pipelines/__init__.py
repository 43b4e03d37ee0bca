"""The pipeline of the package; its one source is the file that every saved pipeline carries."""

from dim_hf.models import DiMGenerator
from dim_hf.publishing import push_to_hub

from .pipeline_dim import DiMPipeline, DiMPipelineOutput


# What the package adds to the file of a repository: its own class of the generator, and a model card.
DiMPipeline.generator_class = DiMGenerator
DiMPipeline.push_to_hub = push_to_hub

__all__ = ["DiMPipeline", "DiMPipelineOutput"]
