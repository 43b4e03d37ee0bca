"""What names of splits mean, and data that say in a column which split a row belongs to."""

from collections.abc import Iterable
from typing import Any

from ..messages import listed


SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
# What words in other names of splits mean; see `_refuse_splits`.
SPLIT_WORDS = SPLITS | {
    "training": "train", "testing": "test", "holdout": "test", "dev": "validation", "eval": "validation",
    "evaluation": "validation", "publictest": "test", "privatetest": "test",
}  # fmt: skip
# Columns that say so.
SPLIT_COLUMNS = (
    "split", "subset", "partition", "set", "phase", "usage", "data_split", "dataset_split", "is_test", "is_train",
)  # fmt: skip


def several_splits(column: str, values: Iterable[Any]) -> str:
    """
    What a column says of its rows if they are of the test split and of others, which would all be read as one; else
    `""`.

    Args:
        column (`str`): The name of a column; others than `SPLIT_COLUMNS` say nothing.
        values: Its values.
    """
    if column.lower() not in SPLIT_COLUMNS:
        return ""
    values = set(values)
    if column.lower() in ("is_test", "is_train") and {0, 1} <= values:
        return f"has rows of several splits, as its column {column!r} says"
    words = sorted({value for value in values if isinstance(value, str)})
    splits = {SPLIT_WORDS[word.strip().lower()] for word in words if word.strip().lower() in SPLIT_WORDS}
    if "test" not in splits or len(splits) == 1:
        return ""
    return f"has rows of several splits, as its column {column!r} says ({listed(words, most=4)})"
