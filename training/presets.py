"""The presets of `train_dim.py`: networks and settings in one table. docs/results.md has their accuracies."""

from typing import Any


# Settings of the training script by preset; a flag given by the user wins.
PRESETS: dict[str, dict[str, Any]] = {
    # The networks and losses of DiM's released code (arXiv 2303.04707).
    "paper": {
        "adversarial_loss": "wgan-gp",
        "class_loss_weight": 1.0,
        "train_batch_size": 128,
        "num_train_epochs": 150,
        "learning_rate": 1e-4,
        "adam_beta1": 0.0,
        "adam_beta2": 0.9,
        "discr_learning_rate": 1e-4,
        "r1_weight": 0.0,
        "augmentation": [],
        "ema_decay": 0.0,
        "num_match_epochs": 100,
        "match_learning_rate": 5e-6,
        "match_loss": "pairwise=0.01",
        "match_interval": 1,
        "pool": ["convnet3", "resnet10", "resnet18", "resnet10_ap", "resnet18_ap"],
        "pool_steps": 2000,
        "pool_snapshots": 6,
    },
    # DCGAN-shaped networks, small enough for a CPU.
    "base": {
        "adversarial_loss": "hinge",
        "class_loss_weight": 0.0,
        "train_batch_size": 64,
        "max_train_steps": 2000,
        "learning_rate": 4e-4,
        "adam_beta1": 0.5,
        "adam_beta2": 0.99,
        "discr_learning_rate": 4e-4,
        "r1_weight": 0.3,
        # By the number of images and their channels; see `default_augmentation`.
        "augmentation": None,
        "ema_decay": 0.999,
        # Off, because it helps only classifiers that train briefly. This form of it gained most over as many more
        # adversarial steps of these networks (docs/ablations.md).
        "max_match_steps": 0,
        "match_learning_rate": 4e-4,
        "match_loss": "class",
        "match_interval": 2,
        "pool": ["convnet3"],
        "pool_steps": 3000,
        "pool_snapshots": 1,
    },
}
# The same settings, with fewer weights in the generator or fewer bits per weight; sizes are in docs/how_small.md.
PRESETS |= {
    name: PRESETS["base"] | {"storage": storage}
    for name, storage in {"small": "int4", "tiny": "int6", "nano": "int4", "pico": "int4"}.items()
}
# Over any preset, with `--privacy_epsilon`.
PRIVATE: dict[str, Any] = {
    "train_batch_size": 100,
    "max_train_steps": 10_000,
    "learning_rate": 3e-3,
    "adam_beta1": 0.5,
    "adam_beta2": 0.99,
    "ema_decay": 0.99,
    "privacy_delta": 1e-5,
}
# Of each preset but the paper's: the generator's dimensions of noise and of class embedding, and its channels at the
# finest size, doubled from there to the coarser ones up to the last number.
GENERATORS = {
    "base": (100, 64, 48, 192),
    "small": (100, 64, 48, 192),
    "tiny": (32, 16, 48, 96),
    "nano": (32, 16, 30, 96),
    "pico": (32, 16, 16, 64),
}


def default_augmentation(num_images: int, channels: int) -> list[str]:
    """
    A shift keeps the discriminator from memorising few images (arXiv 2006.10738), and gains with any number of
    photographs; with many grey images, whose objects are centred, it does harm (docs/ablations.md).
    """
    return ["shift"] if num_images < 10_000 or channels > 1 else []


def doublings(sample_size: int) -> int:
    """
    How often the coarsest map, 4 to 7 pixels wide, is doubled to reach `sample_size`.

    Raises:
        ValueError: If `sample_size` is not 4, 5, 6 or 7 times a power of two, from 8 to 3,584.
    """
    valid = sorted({base * 2**n for base in (4, 5, 6, 7) for n in range(1, 10)})
    size, count = sample_size, 0
    while size > 7 and size % 2 == 0:
        size, count = size // 2, count + 1
    if sample_size not in valid:
        nearest = sorted(sorted(valid, key=lambda v: abs(v - sample_size))[:2])
        raise ValueError(
            f"`resolution` {sample_size} is a size that the generator cannot make: it must be 4, 5, 6 or 7 times a "
            f"power of two, from 8 to {valid[-1]}. The nearest are {nearest[0]} and {nearest[1]}; pass one as "
            f"--resolution."
        )
    return count


def network_configs(
    preset: str, sample_size: int, channels: int, num_classes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs of the generator and of the discriminator of a preset, for one image size."""
    count = doublings(sample_size)
    common = {"num_classes": num_classes, "sample_size": sample_size}
    if preset == "paper":
        # Eight convolutions of 196 channels in each network, whatever the size.
        extra = max(0, 8 - count - 2)
        generator_layers = [0] * (count + 1)
        generator_layers[-2] = 1
        generator_layers[1 if count > 2 else 0] += extra
        discriminator_layers = [0] * (count + 1)
        discriminator_layers[1] = 1
        discriminator_layers[-2 if count > 2 else -1] += extra
        widths = [196] * (count + 1)
        return (
            common
            | {
                "out_channels": channels,
                "latent_dim": max(100, 2 * num_classes),
                "class_embed_dim": 0,
                "block_out_channels": widths,
                "layers_per_block": generator_layers,
                "upsample_output": False,
            },
            common
            | {
                "in_channels": channels,
                "block_out_channels": widths,
                "layers_per_block": discriminator_layers,
                "downsample_input": False,
                "kernel_size": 3,
                "norm": "layer",
                "pool_features": True,
                "projection": False,
            },
        )
    # The generator is narrower than the discriminator: it runs half as often, and only its bytes are stored.
    # Where the size is doubled once, a 3x3 convolution in each network stands in for the block that is missing.
    latent_dim, class_embed_dim, finest, most = GENERATORS[preset]
    generator_widths = [min(finest * 2**i, most) for i in range(count)] if count > 1 else [2 * finest]
    discriminator_widths = [min(64 * 2**i, 256) for i in range(count)] if count > 1 else [128]
    layers = [0] * count if count > 1 else [1]
    # As good in three quarters of the bytes, measured over whole runs with `nano` on CIFAR-10 only; no gain for grey
    # images (docs/ablations.md).
    upsample_type = "nearest" if preset == "nano" and channels > 1 else "transposed"
    return (
        common
        | {
            "out_channels": channels,
            "latent_dim": latent_dim,
            "class_embed_dim": class_embed_dim,
            "block_out_channels": generator_widths[::-1],
            "layers_per_block": layers,
            "residual": True,
            "upsample_type": upsample_type,
        },
        common
        | {
            "in_channels": channels,
            "block_out_channels": discriminator_widths,
            "layers_per_block": layers,
            "norm": "none",
            "batch_std": True,
        },
    )
