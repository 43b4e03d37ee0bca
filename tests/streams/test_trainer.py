"""DiMDataset in `transformers.Trainer`: the images of the epoch, after a resume and in two processes; soft labels."""

import inspect
import re
from pathlib import Path

import processes
import pytest
import torch
import transformers_trainer
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
from transformers_trainer import FreshImages

from dim_hf import DiMDataset, DiMGenerator, DiMLabeler, DiMPipeline


USE = (Path(__file__).parents[2] / "docs" / "use.md").read_text()


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    generator = DiMGenerator(3, 8, 1, 6, 4, (8,), (0,))
    for parameter in generator.parameters():
        parameter.data.normal_(std=0.5)
    return DiMPipeline(generator, labeler=DiMLabeler(3, 8, 1, width=4))


class Recording(Trainer):
    """Keeps the inputs and the loss of each step."""

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        self.steps = [*getattr(self, "steps", []), (inputs["pixel_values"], inputs["labels"], loss)]
        return loss


def make_trainer(folder, dataset, options=None, **arguments):
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3, layer_type="basic"
    )
    arguments = {"per_device_train_batch_size": 6, "num_train_epochs": 3} | arguments
    arguments = TrainingArguments(folder, report_to="none", use_cpu=True, disable_tqdm=True, **arguments)
    return Recording(ResNetForImageClassification(config), arguments, train_dataset=dataset, **options or {})


def epochs_of(steps, pipe):
    """The epoch that the images of each step are of."""
    dataset, whole = DiMDataset(pipe, 8), []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        whole += [item["pixel_values"].flatten() for item in dataset]
    found = []
    for pixels, _, _ in steps:
        distances = (pixels.flatten(1)[:, None] - torch.stack(whole)).abs().amax(dim=2)
        nearest = distances.min(dim=1)
        assert nearest.values.max() < 1e-5
        (epoch,) = set((nearest.indices // 24).tolist())
        found.append(epoch)
    return found


def test_the_documents_show_the_callback_of_the_example():
    assert inspect.getsource(FreshImages) in USE


@pytest.mark.slow
def test_a_single_process_does_not_need_a_callback(pipe, tmp_path):
    trainer = make_trainer(tmp_path, DiMDataset(pipe, 8))
    assert trainer.train().training_loss > 0
    assert epochs_of(trainer.steps, pipe) == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.slow
def test_a_resume_in_mid_epoch_goes_on_with_the_images_of_that_epoch(pipe, tmp_path):
    options = {"callbacks": [FreshImages]}
    whole = make_trainer(tmp_path, DiMDataset(pipe, 8), options, save_steps=6)
    whole.train()
    resumed = make_trainer(tmp_path, DiMDataset(pipe, 8), options, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert epochs_of(resumed.steps, pipe) == [1] * 2 + [2] * 4
    for found, wanted in zip(resumed.steps, whole.steps[6:], strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_the_documented_loss_is_the_cross_entropy_with_soft_labels(pipe, tmp_path):
    (source,) = re.findall(r"```python\n(def soft_cross_entropy.*?)```", USE, re.DOTALL)
    names = {"F": F}
    exec(source, names)
    real = list(DiMDataset(pipe, 4))
    options = {"compute_loss_func": names["soft_cross_entropy"], "eval_dataset": real}
    dataset = DiMDataset(pipe, 8, soft_labels=True)
    trainer = make_trainer(tmp_path, dataset, options, gradient_accumulation_steps=2, save_strategy="no")
    model = trainer.model
    model.register_forward_hook(lambda module, args, output: logits.append(output.logits.detach()))
    logits = []
    trainer.train()
    assert len(trainer.steps) == len(logits) == 12 and model.config.problem_type is None
    for (_, labels, loss), of_step in zip(trainer.steps, logits, strict=True):
        assert labels.shape == (6, 3) and labels.is_floating_point()
        # Half, because two batches make a step.
        torch.testing.assert_close(loss, F.cross_entropy(of_step, labels) / 2)
    logits.clear()
    loss = trainer.evaluate()["eval_loss"]
    wanted = F.cross_entropy(torch.cat(logits), torch.tensor([item["labels"] for item in real]))
    assert loss == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.slow
def test_two_processes_divide_fresh_images(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    script = tmp_path / "train.py"
    script.write_text(f"""
import sys
sys.path += {[str(Path(file).parent) for file in (__file__, processes.__file__, transformers_trainer.__file__)]}
import torch
from dim_hf import DiMDataset, DiMPipeline
from test_trainer import FreshImages, make_trainer
dataset = DiMDataset(DiMPipeline.from_pretrained({str(tmp_path / "pipeline")!r}), 8)
options = {{"callbacks": [FreshImages]}}
trainer = make_trainer({str(tmp_path / "out")!r}, dataset, options, save_strategy="no", ddp_backend="gloo")
trainer.train()
torch.save(trainer.steps, {str(tmp_path)!r} + f"/{{trainer.args.process_index}}-of-{{trainer.args.world_size}}.pt")
trainer.accelerator.end_training()
""")
    processes.run_as_two([script])
    parts = [torch.load(tmp_path / f"{rank}-of-2.pt") for rank in range(2)]
    for part in parts:
        assert epochs_of(part, pipe) == [0] * 2 + [1] * 2 + [2] * 2
    for epoch in range(3):
        own = torch.cat([step[0] for part in parts for step in part[2 * epoch : 2 * epoch + 2]]).flatten(1)
        assert torch.pdist(own).min() > 1e-3 and len(own) == 24
