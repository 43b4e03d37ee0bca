"""The two networks of the adversarial game, and the teacher that may go with the generator."""

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
