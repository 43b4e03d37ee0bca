"""Distil a labelled image data set into a conditional generator and train any classifier from it (DiM)."""

from .hub.push import push_to_hub
from .models import DiMDiscriminator, DiMGenerator, DiMLabeler
from .pipelines import DiMPipeline, DiMPipelineOutput
from .streams.generated import DiMDataset


# An installed pipeline is pushed with a model card.
DiMPipeline.push_to_hub = push_to_hub

__all__ = ["DiMDataset", "DiMDiscriminator", "DiMGenerator", "DiMLabeler", "DiMPipeline", "DiMPipelineOutput"]
