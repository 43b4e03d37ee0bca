"""Distil a labelled image data set into a conditional generator and train any classifier from it (DiM)."""

from .models import DiMDiscriminator, DiMGenerator, DiMLabeler
from .pipelines import DiMPipeline, DiMPipelineOutput
from .streaming import DiMDataset


__all__ = ["DiMDataset", "DiMDiscriminator", "DiMGenerator", "DiMLabeler", "DiMPipeline", "DiMPipelineOutput"]
