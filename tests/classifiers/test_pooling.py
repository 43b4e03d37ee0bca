import pytest
import torch
from torch.nn import functional as F

from dim_hf.classifiers.pooling import AveragePool


@pytest.mark.parametrize("size", [(2, 2), (28, 28), (7, 7), (3, 8), (32, 32), (14, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mean_and_gradient_are_those_of_pytorch(size, dtype, memory_format):
    rng = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 5, *size, generator=rng).to(dtype).to(memory_format=memory_format).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    pooled, expected = AveragePool()(ours), F.avg_pool2d(theirs, 2)
    assert torch.equal(pooled, expected)
    weights = torch.randn(expected.shape, generator=rng).to(dtype)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
