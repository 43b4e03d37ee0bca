"""What is computed over the batches of all processes, beside the same over one batch."""

import processes
import pytest
import torch
from torch import nn

from dim_hf.distillation.processes import GlobalBatchNorm2d, GlobalClassStd, over_all_processes
from dim_hf.models import DiMDiscriminator, DiMGenerator
from dim_hf.models.discriminator_dim import ClassStd


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from torch import nn
from dim_hf.distillation.processes import check_same, gather, make_equal, over_all_processes
from dim_hf.models.discriminator_dim import ClassStd

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
own = slice(4 * rank, 4 * rank + 4)
torch.manual_seed(0)
images, labels = torch.randn(8, 3, 4, 4).mul(5).add(100), torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])
found = {"gathered": gather(labels[own])}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.std = nn.BatchNorm2d(3), ClassStd(4)
        nn.init.uniform_(self.norm.weight)

    def forward(self, images, labels):
        return self.norm(images).square().mean((1, 2, 3)) * (1 + self.std(images, labels))


def second_gradients(network, images, labels):
    images = images.clone().requires_grad_()
    outputs = network(images, labels)
    (first,) = torch.autograd.grad(outputs.mul(1 + labels).sum(), images, create_graph=True)
    (outputs.square().sum() + first.square().sum()).backward()
    return {"outputs": outputs, "first": first, "second": images.grad}


torch.manual_seed(1)
network = Both()
found["one"] = second_gradients(network, images, labels) | {"norm": network.norm.state_dict()}
torch.manual_seed(1)
network = Both()
over_all_processes(network)
found["two"] = second_gradients(network, images[own], labels[own]) | {"norm": network.norm.state_dict()}
found["evaluated"] = network.eval().norm(images), nn.functional.batch_norm(
    images, network.norm.running_mean, network.norm.running_var, network.norm.weight, network.norm.bias)
torch.manual_seed(rank)
network = Both()
network.norm(torch.randn(4, 3, 4, 4))
make_equal([network])
found["equal"] = network.state_dict()
check_same(accelerator, {"a": 1, "b": [2]})
try:
    check_same(accelerator, {"a": 1, "batch": 8 * (1 + rank)})
except ValueError as error:
    found["refused"] = str(error)
torch.save(found, f"{sys.argv[1]}/{rank}")
"""


@pytest.mark.slow
def test_two_processes_compute_over_both_batches(tmp_path):
    processes.run_as_two(["-c", SCRIPT, tmp_path])
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for rank, found in enumerate(ranks):
        assert found["gathered"].tolist() == [0, 1, 0, 2, 1, 0, 2, 2]
        one, two, own = found["one"], found["two"], slice(4 * rank, 4 * rank + 4)
        torch.testing.assert_close(two["outputs"], one["outputs"][own], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two["first"], one["first"][own], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two["second"], one["second"][own], rtol=1e-3, atol=1e-5)
        for name, value in one["norm"].items():
            torch.testing.assert_close(two["norm"][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(*found["evaluated"], rtol=0, atol=0)
        assert found["refused"] == "`--batch` is 8 in process 0 and 16 in process 1; it must be the same in all 2."
    for name, value in ranks[0]["equal"].items():
        assert torch.equal(value, ranks[1]["equal"][name]), name
    torch.manual_seed(0)
    expected = nn.init.uniform_(nn.BatchNorm2d(3).weight)
    assert torch.equal(ranks[1]["equal"]["norm.weight"], expected)


def test_every_batch_norm_and_class_std_is_found_and_keeps_its_state():
    generator, discriminator = DiMGenerator(10, 8, 1), DiMDiscriminator(10, 8, 1, batch_std=True)
    names = [list(network.state_dict()) for network in (generator, discriminator)]
    for network in (generator, discriminator):
        over_all_processes(network)
    assert {type(module) for module in generator.modules() if isinstance(module, nn.BatchNorm2d)} == {
        GlobalBatchNorm2d
    }
    assert [type(m) for m in discriminator.modules() if isinstance(m, ClassStd)] == [GlobalClassStd]
    assert [list(network.state_dict()) for network in (generator, discriminator)] == names
