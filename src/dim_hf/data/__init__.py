"""Data sets, folders and files as uint8 tensors."""

from typing import TYPE_CHECKING, Any

from .image_data import ImageData, holdout, members_by_class, normalise, stratified_order


if TYPE_CHECKING:
    from .images import load_image_data

__all__ = ["ImageData", "holdout", "load_image_data", "members_by_class", "normalise", "stratified_order"]


def __getattr__(name: str) -> Any:
    # Reading data sets imports `datasets` and scikit-learn, which images in memory do not need.
    if name == "load_image_data":
        from .images import load_image_data

        return load_image_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
