"""What names of splits mean, and data that say in a column which split a row belongs to."""

from collections.abc import Iterable
from typing import Any

from ..messages import listed


SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
# What words in other names of splits mean; see `_refuse_splits`.
SPLIT_WORDS = SPLITS | {
    "training": "train", "testing": "test", "holdout": "test", "dev": "validation", "eval": "validation",
    "evaluation": "validation",
}  # fmt: skip
# Columns that say so.
SPLIT_COLUMNS = ("split", "subset", "partition")


def refuse_several_splits(where: str, column: str, values: Iterable[Any]) -> None:
    """
    Refuses rows of several splits in one, which would all be read as the same.

    Args:
        where (`str`): What holds the rows, for the message.
        column (`str`): The name of a column; others than `SPLIT_COLUMNS` are not looked at.
        values: Its values.
    """
    if column.lower() not in SPLIT_COLUMNS:
        return
    words = {value for value in values if isinstance(value, str)}
    if len({SPLIT_WORDS[word.strip().lower()] for word in words if word.strip().lower() in SPLIT_WORDS}) > 1:
        raise ValueError(
            f"{where} has rows of several splits, as its column {column!r} says ({listed(sorted(words), most=4)}); "
            "put each split into files, or a folder, of its own."
        )
