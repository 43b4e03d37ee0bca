"""The pipelines in distilled/, as they would be pushed."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from torch.nn import functional as F

from dim_hf import DiMDataset, DiMPipeline
from dim_hf.classifiers import build_classifier
from dim_hf.hub.card import model_card
from dim_hf.hub.merging import PART
from dim_hf.streams.generated import GeneratedStream
from dim_hf.weights import module_bytes, weights_digest


DISTILLED = Path(__file__).parents[1] / "distilled"
# Name, data set on the Hub, size and channels.
SHIPPED = {
    "mnist": ("ylecun/mnist", 28, 1),
    "fashion-mnist": ("zalando-datasets/fashion_mnist", 28, 1),
    "cifar10": ("uoft-cs/cifar10", 32, 3),
}
NAMES = sorted({path.name for path in DISTILLED.iterdir()} | set(SHIPPED) if DISTILLED.is_dir() else SHIPPED)
FILES = {
    "README.md", "samples.png", "model_index.json", "pipeline.py",
    "generator/config.json", "generator/diffusion_pytorch_model.safetensors", "generator/generator_dim.py",
}  # fmt: skip
MOST_BYTES = 1_000_000

pytestmark = pytest.mark.parametrize("name", NAMES)


def test_the_three_are_shipped_and_nothing_but_exports(name):
    assert (DISTILLED / name).is_dir(), f"distilled/{name} is missing"
    sizes = {
        str(path.relative_to(DISTILLED / name)): path.stat().st_size
        for path in (DISTILLED / name).rglob("*")
        if path.is_file()
    }
    # Neither a discriminator, nor a labeler, nor anything else of a run.
    assert set(sizes) == FILES
    assert sum(sizes.values()) <= MOST_BYTES
    # The code of this version, not of the one that made the export.
    root = DISTILLED.parent
    for copy, source in (
        ("pipeline.py", "pipelines/pipeline_dim.py"),
        ("generator/generator_dim.py", "src/dim_hf/models/generator_dim.py"),
    ):
        assert (DISTILLED / name / copy).read_bytes() == (root / source).read_bytes(), f"export {name} again"


def test_what_the_name_promises_is_what_loads(name):
    pipe = DiMPipeline.from_pretrained(DISTILLED / name)
    config = pipe.generator.config
    assert pipe.labeler is None and len(set(pipe.class_names)) == config.num_classes
    if name in SHIPPED:
        dataset, size, channels = SHIPPED[name]
        assert (config.num_classes, config.sample_size, config.out_channels) == (10, size, channels)
        assert ModelCard.load(DISTILLED / name / "README.md").data.datasets == [dataset]
    assert pipe.config.id2label is not None


def test_the_card_tells_of_these_weights(name):
    folder = DISTILLED / name
    pipe = DiMPipeline.from_pretrained(folder)
    text = (folder / "README.md").read_text()
    parts = {part[1]: part[2] for part in PART.finditer(text)}
    assert set(parts) - {"audit"} == {"model", "start", "results", "training"}
    assert {parts[name] for name in ("results", "training", "audit") if name in parts} == {weights_digest(pipe)}
    size = (folder / "generator" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert module_bytes(pipe.generator) == size
    assert f"in {size:,} bytes" in text and f"{pipe.generator.num_parameters():,} parameters" in text
    # A card written now of what is stored, merged into it, finds no part that is of something else.
    card = ModelCard.load(folder / "README.md")
    assert model_card(pipe, f"distilled/{name}", existing=card).text == card.text


def test_the_card_has_results_and_the_command_and_nothing_of_a_machine(name):
    text = (DISTILLED / name / "README.md").read_text()
    results = ModelCard(text).data.eval_results
    assert results and all(0.2 < result.metric_value <= 1 for result in results)
    assert "```bash\naccelerate launch training/train_dim.py " in text
    assert f'from_pretrained("distilled/{name}")' in text
    assert not re.search(r"hf_\w{20}|(?<![\w.:/])(/|~/)(home|root|work|tmp|mnt|data|Users|var)\b", text)


def test_diffusers_alone_loads_it_and_makes_the_same_images(name):
    ours = DiMPipeline.from_pretrained(DISTILLED / name)
    theirs = DiffusionPipeline.from_pretrained(DISTILLED / name, trust_remote_code=True)
    assert type(theirs) is not type(ours)
    one, other = (
        pipe(ipc=2, generator=torch.Generator().manual_seed(0), output_type="pt").images for pipe in (ours, theirs)
    )
    assert torch.equal(one, other)
    # Images of weights that were read, not of random ones: they differ within a class and between classes.
    assert one.std(dim=0).mean() > 0.1


@pytest.mark.slow
def test_a_classifier_learns_from_it(name):
    pipe = DiMPipeline.from_pretrained(DISTILLED / name)
    config = pipe.generator.config
    torch.manual_seed(0)
    classifier = build_classifier("convnet3", config.num_classes, config.out_channels, config.sample_size)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.02, momentum=0.9)
    held_out, labels = DiMDataset(pipe, 5, seed=1).make(0, torch.arange(5 * config.num_classes))

    def loss_of_unseen() -> float:
        with torch.no_grad():
            return F.cross_entropy(classifier(held_out), labels).item()

    before = loss_of_unseen()
    stream = GeneratedStream(pipe, 5, seed=0, batch_size=64)
    for epoch in range(20):
        for images, targets in stream.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(classifier(images), targets).backward()
            optimizer.step()
    assert loss_of_unseen() < 0.9 * before
