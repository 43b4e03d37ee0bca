"""
Trains a classifier in plain PyTorch on images generated on the fly, and tests it on real ones.

    python examples/pytorch_loop.py --pipeline out/demo    # made by `make demo`
    python examples/pytorch_loop.py --pipeline distilled/mnist --dataset_name ylecun/mnist
"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dim_hf import DiMDataset, DiMPipeline
from dim_hf.classifiers import build_classifier
from dim_hf.data import load_image_data
from dim_hf.evaluation.judges import evaluate_accuracy


def main(input_args: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Train a classifier in plain PyTorch on generated images.")
    parser.add_argument("--pipeline", default="out/demo")
    parser.add_argument("--dataset_name", default="digits", help="real images of the same classes and size")
    parser.add_argument("--ipc", type=int, default=50, help="images per class and epoch")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args(input_args)

    torch.manual_seed(0)
    pipe = DiMPipeline.from_pretrained(args.pipeline)
    train = DiMDataset(pipe, ipc=args.ipc)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    shape = {"resolution": pipe.generator.config.sample_size, "channels": pipe.generator.config.out_channels}
    test = load_image_data(args.dataset_name, "test", class_names=tuple(pipe.class_names), **shape)

    classifier = build_classifier("convnet3", train.num_classes, test.channels, test.size)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for epoch in range(args.epochs):
        train.set_epoch(epoch)  # fresh images
        for batch in loader:
            loss = F.cross_entropy(classifier(batch["pixel_values"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    accuracy = evaluate_accuracy(classifier, test)
    print(f"accuracy on {len(test)} real test images: {100 * accuracy:.2f} %")
    return accuracy


if __name__ == "__main__":
    main()
