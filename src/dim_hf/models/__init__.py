"""The generator, the discriminator, and the optional teacher that is saved with a generator."""

from .discriminator_dim import DiMDiscriminator, DiMDiscriminatorOutput
from .generator_dim import DiMGenerator, DiMGeneratorOutput
from .labeler_dim import DiMLabeler, DiMLabelerOutput


__all__ = [
    "DiMDiscriminator",
    "DiMDiscriminatorOutput",
    "DiMGenerator",
    "DiMGeneratorOutput",
    "DiMLabeler",
    "DiMLabelerOutput",
]
