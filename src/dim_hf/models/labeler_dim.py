"""A classifier of the real images that is saved with a generator as the teacher of its images.

A distilled repository on the Hub holds this file, so it imports only torch, diffusers and safetensors.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.model_loading_utils import load_state_dict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from safetensors.torch import save
from torch import nn


# The limits of a generator's config.
MOST_CONFIG_BYTES, MOST_IN_CONFIG, MOST_WEIGHTS, MOST_ACTIVATIONS = 2**20, 2**16, 2**28, 2**26
# The tensor in a file that has a checksum of each of the others.
CHECKSUMS = "checksums"
# The numbers that a file of weights may hold.
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Entries of a config that diffusers writes.
_OF_DIFFUSERS = ("_class_name", "_diffusers_version")


@dataclass
class DiMLabelerOutput(BaseOutput):
    """
    Output of [`DiMLabeler`].

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes)`): Class scores before softmax.
    """

    logits: torch.Tensor


class DiMLabeler(ModelMixin, ConfigMixin):
    """
    ConvNet-3 as a component of a pipeline: three blocks of 3x3 convolution, instance norm, ReLU and 2x2 average
    pooling, then a linear layer (arXiv 2006.05929, section 4).

    Args:
        num_classes (`int`): Number of classes.
        sample_size (`int`): Height and width of the images in pixels, at least 8.
        in_channels (`int`, *optional*, defaults to 3): 1 (grey) or 3 (RGB).
        width (`int`, *optional*, defaults to 128): Channels of every block.
    """

    # Size of the file that the weights were loaded from: those of smaller forms are float32 in memory.
    file_bytes: int | None = None

    @register_to_config
    def __init__(self, num_classes: int, sample_size: int, in_channels: int = 3, width: int = 128):
        super().__init__()
        numbers = {"num_classes": num_classes, "sample_size": sample_size, "in_channels": in_channels, "width": width}
        for name, value in numbers.items():
            least, most = 8 if name == "sample_size" else 1, 3 if name == "in_channels" else MOST_IN_CONFIG
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or not least <= int(value) <= most:
                raise ValueError(f"`{name}` is {_shown(value)}; valid is a whole number from {least} to {most:,}.")
        # Before any memory is taken.
        weights, activations = 9 * width * (in_channels + 2 * width) + 16 * width * num_classes, width * sample_size**2
        if weights > MOST_WEIGHTS or activations > MOST_ACTIVATIONS:
            raise ValueError(
                f"the labeler's config asks for about {weights:,} weights, and {activations:,} numbers in a layer for "
                f"one image; valid are at most {MOST_WEIGHTS:,} and {MOST_ACTIVATIONS:,}."
            )
        layers: list[nn.Module] = []
        channels, size = in_channels, sample_size
        for _ in range(3):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels, size = width, size // 2
        if size > 4:
            layers.append(nn.AdaptiveAvgPool2d(4))
            size = 4
        self.network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size**2, num_classes))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # Ignoring an entry would build a different network.
        cls._check_known(config_dict)
        init_dict, *others = super().extract_init_dict(config_dict, **kwargs)
        needed = (key for key, each in signature(cls).parameters.items() if each.default is Parameter.empty)
        if missing := [key for key in needed if key not in init_dict]:
            raise ValueError(f"the labeler's {cls.config_name} lacks {', '.join(missing)}.")
        return init_dict, *others

    @classmethod
    def _check_known(cls, config: dict[str, Any]) -> None:
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"the labeler's {cls.config_name} has the unknown entries {_shown(', '.join(unknown))[1:-1]}; valid "
                f"are {', '.join(sorted(valid))}."
            )

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if os.path.isfile(json_file) and os.path.getsize(json_file) > MOST_CONFIG_BYTES:
            raise OSError(f"{json_file} has more than {MOST_CONFIG_BYTES:,} bytes, the most that are read.")
        try:
            config = super()._dict_from_json_file(json_file, *args, **kwargs)
        except (ValueError, RecursionError) as error:
            raise OSError(f"{json_file} is damaged, it is not JSON: {_shown(str(error))}.") from error
        if not isinstance(config, dict):
            raise OSError(f"{json_file} holds {_shown(config)}; valid is a JSON object.")
        # diffusers acts on some entries, such as `quantization_config`, before it asks for those of the network.
        cls._check_known(config)
        return {name: value for name, value in config.items() if name[0] != "_" or name in _OF_DIFFUSERS}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """
        Loads the network as [`ModelMixin.from_pretrained`] does, from safetensors.

        Raises:
            OSError: If a file is missing or damaged, or there are only pickled weights.
            ValueError: If the weights in the file are not exactly those of the network that its config describes.
        """
        # Pickled weights can run code.
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **(kwargs | {"use_safetensors": True}))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            # diffusers reads the index of weights in several files, if there is one, and trusts what it holds.
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if found := sorted(folder.glob("*.safetensors.index*.json")):
                raise OSError(f"{found[0]} is damaged: {_shown(str(error))}.") from error
            raise

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the network as [`ModelMixin.save_pretrained`] does, in place of any earlier one of this variant."""
        ending = f".{variant}" if variant else ""
        single = Path(save_directory) / f"diffusion_pytorch_model{ending}.safetensors"
        index = Path(save_directory) / f"diffusion_pytorch_model.safetensors.index{ending}.json"
        written = index.stat().st_mtime_ns if index.is_file() else None
        super().save_pretrained(
            save_directory,
            is_main_process,
            save_function,
            safe_serialization,
            variant,
            max_shard_size,
            push_to_hub,
            **kwargs,
        )
        # diffusers leaves the index of an earlier save in several files, or the file of one in a single file.
        if index.is_file() and index.stat().st_mtime_ns != written:
            single.unlink(missing_ok=True)
        elif single.is_file():
            index.unlink(missing_ok=True)

    def check_storage(self, storage: str | None) -> None:
        """Raises a `ValueError` if the weights cannot be stored beside a generator in this form."""
        for name, value in self.state_dict().items():
            if not bool(value.isfinite().all()):
                raise ValueError(f"the labeler's {name} cannot be stored: it has values that are not finite.")
            if storage is not None and storage.startswith("int") and value.ndim > 1 and value.half().isinf().any():
                raise ValueError(
                    f"`storage` {storage!r} cannot hold the labeler's {name}: its largest weight is "
                    f"{value.abs().max():.3g}; valid are weights up to 65504."
                )

    def stored_state(self, storage: str) -> dict[str, torch.Tensor]:
        """
        The content of a file beside a generator in this form of storage. `"int8"` to `"int2"` all store a weight as
        `NAME.int8`, uint8 codes of its own shape, and `NAME.scale`, a float16 per output channel; every other tensor
        is float16, or float32 where float16 would overflow. They add [`checksums`]. `"float16"` and `"float32"` store
        all tensors so, without.

        Raises:
            ValueError: If a weight is not finite, or too large for codes.
        """
        self.check_storage(storage)
        content = {}
        for name, value in self.state_dict().items():
            half = value.half()
            if not storage.startswith("int") or value.ndim == 1:
                content[name] = value.float() if storage == "float32" or half.isinf().any() else half
                continue
            rows = value.float().flatten(1)
            scale = half.flatten(1).abs().amax(dim=1)
            # Where float16 loses digits.
            scale[scale < torch.finfo(torch.float16).tiny] = 0
            divisor = scale.float().where(scale > 0, torch.inf)[:, None]
            codes = (rows / divisor).add(1).mul(127.5).round().clamp(0, 255)
            content[f"{name}.int8"] = codes.to(torch.uint8).view_as(value)
            content[f"{name}.scale"] = scale
        return content | {CHECKSUMS: checksums(content)} if storage.startswith("int") else content

    @classmethod
    def _load_pretrained_model(
        cls,
        model: Any,
        state_dict: dict[str, torch.Tensor] | None,
        files: list[str],
        name: Any,
        keys: list[str],
        **kwargs: Any,
    ) -> Any:
        # Weights in several files: diffusers would unpickle those of another kind that an index names, and leave out
        # the check of a single file.
        if state_dict is None:
            if pickled := sorted(str(file) for file in files if not str(file).endswith(".safetensors")):
                raise OSError(f"{pickled[0]} is pickled, and reading it can run code; only safetensors are read.")
            state_dict = {}
            for file in files:
                state_dict.update(load_state_dict(file))
            model._fix_state_dict_keys_on_load(state_dict)
            keys = list(state_dict)
        return super()._load_pretrained_model(model, state_dict, files, name, keys, **kwargs)

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, torch.Tensor]) -> None:
        # diffusers calls this with the content of a file; what is missing there it leaves at random initial values.
        super()._fix_state_dict_keys_on_load(state_dict)
        content = dict(state_dict)
        # Older files have none.
        expected_sums = state_dict.pop(CHECKSUMS, None)
        stored, expected = dict(state_dict), self.state_dict()
        for name, weight in expected.items():
            if f"{name}.int8" not in state_dict or f"{name}.scale" not in state_dict or name in state_dict:
                continue
            codes, scale = state_dict.pop(f"{name}.int8"), state_dict.pop(f"{name}.scale")
            if codes.dtype != torch.uint8 or codes.shape != weight.shape:
                raise ValueError(
                    f"the labeler's {name}.int8 is {codes.dtype} of shape {tuple(codes.shape)}; valid are torch.uint8 "
                    f"and the shape {tuple(weight.shape)}."
                )
            if scale.dtype != torch.float16 or scale.shape != weight.shape[:1]:
                raise ValueError(
                    f"the labeler's {name}.scale is {scale.dtype} of shape {tuple(scale.shape)}; valid are "
                    f"torch.float16 and the shape {tuple(weight.shape[:1])}."
                )
            if bool((scale < 0).any()):
                raise ValueError(f"the labeler's {name}.scale holds {scale.min():.3g}; valid are scales from 0.")
            # The outermost values are exactly the scale, so rounding twice is the same as rounding once.
            state_dict[name] = (codes.float() * 2 - 255) / 255 * scale.float().view(-1, *[1] * (weight.ndim - 1))
        if wrong := sorted(expected.keys() ^ state_dict.keys()):
            raise ValueError(
                f"the labeler's weights lack, or hold without need, {_shown(', '.join(wrong))[1:-1]}; valid are "
                "exactly those of its config."
            )
        for name, value in state_dict.items():
            if value.shape != expected[name].shape or value.dtype not in _FLOATING:
                raise ValueError(
                    f"the labeler's {name} is {value.dtype} of shape {tuple(value.shape)}; valid are floating-point "
                    f"numbers of shape {tuple(expected[name].shape)}."
                )
            state_dict[name] = value.float()
            if not bool(state_dict[name].isfinite().all()):
                raise ValueError(f"the labeler's {name} holds numbers that are not finite.")
        if expected_sums is not None and (wrong := damaged_tensors(stored, expected_sums)):
            names = _shown(", ".join(wrong))[1:-1]
            raise ValueError(f"the labeler's file is damaged: its checksums do not fit {names}.")
        self.file_bytes = len(save(content, metadata={"format": "pt"}))

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # ModelMixin warns about layers to keep in float32 at every change of dtype, even if there are none.
        changes_dtype = any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))
        return nn.Module.to(self, *args, **kwargs) if changes_dtype else super().to(*args, **kwargs)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DiMLabelerOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor` of shape `(batch_size, in_channels, sample_size, sample_size)`): Images in [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`DiMLabelerOutput`].

        Returns:
            [`DiMLabelerOutput`], or a tuple with the logits when `return_dict` is `False`.
        """
        logits = self.network(sample)
        if not return_dict:
            return (logits,)
        return DiMLabelerOutput(logits=logits)


def checksums(content: dict[str, torch.Tensor]) -> torch.Tensor:
    """31 bits of the CRC-32 of each tensor, in the order of their names: int32 of shape `(len(content),)`."""
    flat = (content[name].detach().cpu().contiguous().reshape(-1) for name in sorted(content))
    return torch.tensor([zlib.crc32(each.view(torch.uint8).numpy().data) % 2**31 for each in flat], dtype=torch.int32)


def damaged_tensors(content: dict[str, torch.Tensor], expected: torch.Tensor) -> list[str]:
    """The names of the tensors that do not fit their checksums, or of these if there is not one for each."""
    if expected.dtype != torch.int32 or expected.shape != (len(content),):
        return [CHECKSUMS]
    fits = (checksums(content) == expected.cpu()).tolist()
    return [name for name, each in zip(sorted(content), fits, strict=True) if not each]


def _shown(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
