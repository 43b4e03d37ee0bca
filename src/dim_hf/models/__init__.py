"""The two networks of the adversarial game."""

from .discriminator_dim import DiMDiscriminator, DiMDiscriminatorOutput
from .generator_dim import DiMGenerator, DiMGeneratorOutput


__all__ = ["DiMDiscriminator", "DiMDiscriminatorOutput", "DiMGenerator", "DiMGeneratorOutput"]
