"""How a classifier is trained in deployment. This module loads no library, so that `--help` answers at once."""

from dataclasses import dataclass

from ..arguments import check_choice, check_integer, check_number


# Images per step of protocol C, unless another number is asked for.
LEGACY_BATCH_SIZE = 128


@dataclass(frozen=True)
class DeploymentRecipe:
    """
    How a classifier is trained: SGD with momentum, one-cycle learning rate, random crops, smoothed hard labels.

    Args:
        epochs (`int`): Epochs; each sees `ipc` images per class.
        batch_size (`int`): The largest batch; an epoch is split into equal ones.
        learning_rate (`float`): The largest of the one-cycle schedule.
        momentum (`float`), weight_decay (`float`): Of SGD.
        label_smoothing (`float`): Share of a hard label that is spread evenly over all classes (arXiv 1512.00567). The
            labels of generated images are less certain than those of real ones.
        mixed_precision (`str`): `"no"`, or `"bf16"` to train in bfloat16; scoring is in float32, on a GPU as PyTorch
            is set (TF32 in convolutions by default).
    """

    epochs: int = 1000
    batch_size: int = 64
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, least=1)
        check_integer("batch_size", self.batch_size, least=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0)
        check_number("label_smoothing", self.label_smoothing, least=0, below=1)
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16"))
