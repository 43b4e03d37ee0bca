"""Distil a labelled image data set into a conditional generator and train any classifier from it (DiM)."""

from .models import DiMDiscriminator, DiMGenerator
from .pipelines import DiMPipeline, DiMPipelineOutput


__all__ = ["DiMDiscriminator", "DiMGenerator", "DiMPipeline", "DiMPipelineOutput"]
