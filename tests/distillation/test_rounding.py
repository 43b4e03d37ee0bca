"""Training with rounded weights: what they are inside, and that nothing of the exact ones is lost."""

import copy

import pytest
import torch

from dim_hf.distillation.rounding import rounded_weights
from dim_hf.models import DiMGenerator


def build_generator():
    torch.manual_seed(0)
    return DiMGenerator(3, 8, 1, 6, 4, (12, 8), (0, 1), residual=True)


def weights(generator):
    return {name: value.detach().clone() for name, value in generator.state_dict().items()}


@pytest.mark.parametrize("storage", ["int8", "int4", "int2"])
def test_inside_the_weights_are_those_of_the_file_and_afterwards_the_exact_ones(storage, tmp_path):
    generator = build_generator()
    before = weights(generator)
    generator.save_pretrained(tmp_path, storage=storage)
    stored = DiMGenerator.from_pretrained(tmp_path)
    with rounded_weights(generator, storage):
        inside = weights(generator)
    for name, value in stored.state_dict().items():
        if value.ndim > 1:
            assert torch.equal(inside[name], value), name
            assert not torch.equal(inside[name], before[name]), name
    after = weights(generator)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_are_those_of_the_rounded_weights_and_step_the_exact_ones():
    generator = build_generator()
    rounded = copy.deepcopy(generator)
    with rounded_weights(rounded, "int3"):
        plain = copy.deepcopy(rounded)
    latents, labels = torch.randn(6, 6), torch.arange(6) % 3
    before = weights(generator)
    with rounded_weights(generator, "int3"):
        generator(latents, labels).sample.square().sum().backward()
    plain(latents, labels).sample.square().sum().backward()
    torch.optim.SGD(generator.parameters(), lr=0.5).step()
    for (name, weight), other in zip(generator.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad), name
        assert torch.equal(weight, before[name] - 0.5 * other.grad), name


def test_layout_and_exact_weights_survive_an_error():
    generator = build_generator().to(memory_format=torch.channels_last)
    before = {name: weight.data_ptr() for name, weight in generator.named_parameters()}
    with pytest.raises(KeyboardInterrupt), rounded_weights(generator, "int4"):
        four = [weight for weight in generator.parameters() if weight.ndim == 4]
        assert four and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in four)
        raise KeyboardInterrupt
    assert {name: weight.data_ptr() for name, weight in generator.named_parameters()} == before
