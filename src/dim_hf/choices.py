"""Names that a user chooses among. This module loads no library, so that `--help` answers at once."""

AUGMENTATIONS = ("shift", "cutout", "flip", "color")
# The field's own networks; those of timm and transformers have a prefix, see `dim_hf.classifiers`.
CLASSIFIERS = ("convnet3", "resnet10", "resnet18", "resnet10_ap", "resnet18_ap")
# Of logits, then of features.
MATCHING_LOSSES = (
    "class", "pairwise", "energy", "energy_probabilities", "standardised",
    "features", "energy_features", "sample_features",
)  # fmt: skip
# Those of `models/generator_dim.py`, which repositories on the Hub carry and which therefore imports nothing of ours.
STORAGE_FORMS = ("float32", "float16", *(f"int{bits}" for bits in range(8, 1, -1)))
