"""Data sets, folders and files as uint8 tensors."""

from .images import ImageData, holdout, load_image_data, normalise, stratified_order


__all__ = ["ImageData", "holdout", "load_image_data", "normalise", "stratified_order"]
