"""
Trains a transformers model with `Trainer` on images generated on the fly, and tests it on real ones.

    python examples/transformers_trainer.py --pipeline out/demo    # made by `make demo`
    python examples/transformers_trainer.py --pipeline distilled/mnist --dataset_name ylecun/mnist
"""

import argparse
import tempfile

import numpy as np
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from dim_hf import DiMDataset, DiMPipeline
from dim_hf.data import load_image_data, normalise


class FreshImages(TrainerCallback):
    """Sets the epoch, which Trainer does not do with several processes or after resuming within an epoch."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        train_dataloader.dataset.set_epoch(int(state.epoch))


def main(input_args: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Train a transformers model with Trainer on generated images.")
    parser.add_argument("--pipeline", default="out/demo")
    parser.add_argument("--dataset_name", default="digits", help="real images of the same classes and size")
    parser.add_argument("--ipc", type=int, default=50, help="images per class and epoch")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args(input_args)

    set_seed(0)
    pipe = DiMPipeline.from_pretrained(args.pipeline)
    train = DiMDataset(pipe, ipc=args.ipc)
    shape = {"resolution": pipe.generator.config.sample_size, "channels": pipe.generator.config.out_channels}
    test = load_image_data(args.dataset_name, "test", class_names=tuple(pipe.class_names), **shape)
    real_test = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(normalise(test.images), test.labels.tolist(), strict=True)
    ]

    config = ResNetConfig(
        num_channels=test.channels,
        id2label=dict(enumerate(pipe.class_names)),
        embedding_size=32,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_type="basic",
    )
    # The stem of a ResNet for photographs halves the size twice, which is too much for 8 pixels.
    model = ResNetForImageClassification(config)
    model.resnet.embedder.embedder.convolution.stride = (1, 1)
    model.resnet.embedder.pooler.stride = 1

    def accuracy_of(prediction) -> dict[str, float]:
        return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            save_strategy="no",
            report_to="none",
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=real_test,
            compute_metrics=accuracy_of,
            callbacks=[FreshImages],
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy on {len(test)} real test images: {100 * accuracy:.2f} %")
    return accuracy


if __name__ == "__main__":
    main()
