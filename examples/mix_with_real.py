"""
Trains the same classifier for the same number of steps on a few real images, and on a mixture with generated ones.

    python examples/mix_with_real.py --pipeline out/demo    # made by `make demo`
    python examples/mix_with_real.py --pipeline distilled/mnist --dataset_name ylecun/mnist

The generator was trained on more real images than the hundred that the classifier gets here, so the mixture adds what
it learned from the others.
"""

import argparse

import datasets
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dim_hf import DiMDataset, DiMPipeline
from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, load_image_data, stratified_order
from dim_hf.evaluation.judges import evaluate_accuracy


def main(input_args: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Train on a few real images, and on a mixture with generated ones.")
    parser.add_argument("--pipeline", default="out/demo")
    parser.add_argument("--dataset_name", default="digits", help="real images of the same classes and size")
    parser.add_argument("--real", type=int, default=100, help="real images")
    parser.add_argument("--share", type=float, default=0.25, help="share of real images in the mixture")
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args(input_args)

    pipe = DiMPipeline.from_pretrained(args.pipeline)
    shape = {"resolution": pipe.generator.config.sample_size, "channels": pipe.generator.config.out_channels}
    train, test = (
        load_image_data(args.dataset_name, split, class_names=tuple(pipe.class_names), **shape)
        for split in ("train", "test")
    )
    real = scarce(train, args.real)
    real_stream = real.to_iterable_dataset().repeat(None).shuffle(seed=0, buffer_size=args.real)
    generated = DiMDataset(pipe, ipc=100).to_iterable_dataset(features=real.features)
    mixture = datasets.interleave_datasets(
        [real_stream, generated], probabilities=[args.share, 1 - args.share], seed=0
    )

    accuracies = {}
    for name, stream in ((f"only {args.real} real images", real_stream), ("with generated ones", mixture)):
        accuracies[name] = evaluate_accuracy(train_on(stream, test, args.steps), test)
        print(f"{name}: {100 * accuracies[name]:.2f} % of {len(test)} real test images")
    return accuracies


def scarce(data: ImageData, count: int) -> datasets.Dataset:
    """A stratified data set of `count` real images."""
    chosen = stratified_order(data.labels, seed=0)[:count]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(data.class_names))}
    )
    # Channels last, and none for grey, as Pillow takes them.
    images = [image.permute(1, 2, 0).squeeze(2).numpy() for image in data.images[chosen]]
    content = {"image": images, "label": data.labels[chosen].tolist()}
    return datasets.Dataset.from_dict(content, features=features)


def train_on(stream: datasets.IterableDataset, test: ImageData, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    classifier = build_classifier("convnet3", test.num_classes, test.channels, test.size)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    loader = iter(DataLoader(stream.with_format("torch"), batch_size=64))
    for _ in range(steps):
        batch = next(loader)
        images = batch["image"].reshape(-1, test.channels, test.size, test.size).float() / 127.5 - 1
        loss = F.cross_entropy(classifier(images), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier


if __name__ == "__main__":
    main()
