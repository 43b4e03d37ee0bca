"""The class-conditional generator that stores a distilled data set, and how its weights are stored.

A distilled repository on the Hub holds this file, so it imports only torch and diffusers.
"""

import copy
import json
import os
import re
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
from torch import nn


# Forms of storage of the weights. `intN`: codes of N bits, with a float16 scale per channel.
STORAGE_FORMS = ("float32", "float16", *(f"int{bits}" for bits in range(8, 1, -1)))
# The tensor in a file that has a checksum of each of the others.
CHECKSUMS = "checksums"

# Ways to double the height and width.
UPSAMPLE_TYPES = ("transposed", "nearest")

# A config may come from a stranger. Limits of its file in bytes, of the numbers in it, of the weights that it asks
# for, and of the numbers that one layer makes of one image.
MOST_CONFIG_BYTES = 2**20
MOST_IN_CONFIG, MOST_BLOCKS, MOST_LAYERS = 2**16, 16, 64
MOST_WEIGHTS, MOST_ACTIVATIONS = 2**28, 2**26

# The numbers that a file of weights may hold.
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Entries of a config that diffusers writes.
_OF_DIFFUSERS = ("_class_name", "_diffusers_version")


@dataclass
class DiMGeneratorOutput(BaseOutput):
    """
    Output of [`DiMGenerator`].

    Args:
        sample (`torch.Tensor` of shape `(batch_size, out_channels, sample_size, sample_size)`):
            Generated images in [-1, 1].
    """

    sample: torch.Tensor


class DiMGenerator(ModelMixin, ConfigMixin):
    """
    Maps standard normal noise and a class to an image: linear layer, then blocks that double the size, with batch norm
    and ReLU, then tanh. Its arguments cover the network of the DiM paper (arXiv 2303.04707)
    and smaller ones of the DCGAN family (arXiv 1511.06434).

    Args:
        num_classes (`int`): Number of classes; labels are `0 .. num_classes - 1`.
        sample_size (`int`): Height and width of the images in pixels.
        out_channels (`int`, *optional*, defaults to 3): 1 (grey) or 3 (RGB).
        latent_dim (`int`, *optional*, defaults to 100): Length of the noise vector.
        class_embed_dim (`int`, *optional*, defaults to 64):
            Length of the class embedding that is concatenated with the noise. `0` overwrites the first `num_classes`
            entries of the noise with the one-hot label instead, as the paper's released network does.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(128, 64)`):
            Channels of each block, from the coarsest; every block but the first doubles the size.
        layers_per_block (`tuple[int, ...]`, *optional*, defaults to `(0, 0)`):
            3x3 convolutions that follow in each block at its own size.
        residual (`bool`, *optional*, defaults to `False`): Whether those 3x3 convolutions are added to their input.
        upsample_output (`bool`, *optional*, defaults to `True`):
            Whether the output layer doubles the size once more; otherwise it is a 3x3 convolution at the size of the
            last block.
        modulation (`bool`, *optional*, defaults to `False`):
            Whether noise and class also scale and shift each channel after the batch norm of every block
            (self-modulation, arXiv 1810.01365).
        upsample_type (`str`, *optional*, defaults to `"transposed"`):
            How the size is doubled: `"transposed"`, a transposed 4x4 convolution, or `"nearest"`, a 3x3 convolution of
            repeated pixels, which has 9/16 of the weights and takes 2.25 times as many multiplications.
    """

    # Form of the file that the weights were loaded from, and of the next save; `None`: the dtype in memory.
    storage: str | None = None

    @register_to_config
    def __init__(
        self,
        num_classes: int,
        sample_size: int,
        out_channels: int = 3,
        latent_dim: int = 100,
        class_embed_dim: int = 64,
        block_out_channels: tuple[int, ...] = (128, 64),
        layers_per_block: tuple[int, ...] = (0, 0),
        residual: bool = False,
        upsample_output: bool = True,
        modulation: bool = False,
        upsample_type: str = "transposed",
    ):
        super().__init__()
        for name, number, least in (
            ("num_classes", num_classes, 1),
            ("sample_size", sample_size, 1),
            ("latent_dim", latent_dim, 1),
            ("class_embed_dim", class_embed_dim, 0),
        ):
            check_entry(name, number, least)
        check_list("block_out_channels", block_out_channels, 1, MOST_IN_CONFIG)
        check_list("layers_per_block", layers_per_block, 0, MOST_LAYERS)
        flags = {"residual": residual, "upsample_output": upsample_output, "modulation": modulation}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"`{name}` is {_shown(flag)}; valid are True and False.")
        if upsample_type not in UPSAMPLE_TYPES:
            raise ValueError(
                f"`upsample_type` is {_shown(upsample_type)}; valid are {', '.join(map(repr, UPSAMPLE_TYPES))}."
            )
        if len(layers_per_block) != len(block_out_channels):
            raise ValueError(
                f"`layers_per_block` {tuple(layers_per_block)} must have one entry per block of `block_out_channels` "
                f"{tuple(block_out_channels)}."
            )
        if not _is_whole(out_channels, 1, 3) or out_channels == 2:
            raise ValueError(f"`out_channels` is {_shown(out_channels)}; valid are 1 (grey) and 3 (RGB).")
        if class_embed_dim == 0 and num_classes > latent_dim:
            raise ValueError(
                f"`class_embed_dim` 0 writes the label into the noise, so `num_classes` ({num_classes}) can be at "
                f"most `latent_dim` ({latent_dim}); use a class embedding for more classes."
            )
        doublings = len(block_out_channels) - 1 + int(upsample_output)
        self.bottom_size, remainder = divmod(sample_size, 2**doublings)
        if remainder or self.bottom_size < 1:
            raise ValueError(
                f"`sample_size` {sample_size} cannot be reached by {doublings} doublings of a whole number of pixels; "
                f"it must be a multiple of {2**doublings}."
            )
        # Before any memory is taken.
        weights = num_classes * class_embed_dim
        weights += (latent_dim + class_embed_dim + 1) * block_out_channels[0] * self.bottom_size**2
        condition_dim = latent_dim + class_embed_dim if modulation else 0
        weights += 2 * condition_dim * sum(block_out_channels)
        taps = 16 if upsample_type == "transposed" else 9
        activations, size = 0, self.bottom_size
        for i, (channels, layers) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            size *= 2 if i else 1
            weights += taps * block_out_channels[i - 1] * channels if i else 0
            weights += (9 * channels + 2) * channels * layers
            activations = max(activations, channels * size**2)
        check_network_size(weights, max(activations, out_channels * sample_size**2))

        self.class_embedding = nn.Embedding(num_classes, class_embed_dim) if class_embed_dim else None
        self.proj_in = nn.Linear(latent_dim + class_embed_dim, block_out_channels[0] * self.bottom_size**2)
        self.blocks = nn.ModuleList()
        in_channels = block_out_channels[0]
        for i, (channels, layers) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            upsample = upsample_type if i else None
            self.blocks.append(GeneratorBlock(in_channels, channels, layers, residual, upsample, condition_dim))
            in_channels = channels
        self.conv_out: nn.Module
        if upsample_output:
            self.conv_out = upsampling(upsample_type, in_channels, out_channels, bias=True)
        else:
            self.conv_out = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # Ignoring an entry would build a different network.
        cls._check_known(config_dict)
        init_dict, *others = super().extract_init_dict(config_dict, **kwargs)
        needed = (key for key, each in signature(cls).parameters.items() if each.default is Parameter.empty)
        if missing := [key for key in needed if key not in init_dict]:
            raise ValueError(f"the generator's {cls.config_name} lacks {', '.join(missing)}.")
        return init_dict, *others

    @classmethod
    def _check_known(cls, config: dict[str, Any]) -> None:
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"the generator's {cls.config_name} has the unknown entries {_listed(unknown)}; valid are "
                f"{', '.join(sorted(valid))}."
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

    def to(self, *args: Any, **kwargs: Any) -> Any:
        # ModelMixin warns about layers to keep in float32 at every change of dtype, even if there are none.
        changes_dtype = any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values()))
        if not changes_dtype:
            return super().to(*args, **kwargs)
        moved = nn.Module.to(self, *args, **kwargs)
        moved._check_range()
        return moved

    def _check_range(self) -> None:
        """Raises a `ValueError` if values became infinite in a smaller dtype, which would silently change images."""
        for name, value in self.state_dict().items():
            if value.is_floating_point() and bool(value.isinf().any()):
                raise ValueError(
                    f"`dtype` {value.dtype} cannot hold the generator's {name}: it has larger values than "
                    f"{torch.finfo(value.dtype).max:.5g}; valid are torch.float32 and torch.bfloat16."
                )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        storage: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Saves the network as [`ModelMixin.save_pretrained`] does. Weights in memory do not change.

        Args:
            storage (`str`, *optional*):
                How the weights are stored: `"float32"`, `"float16"`, or `"int8"` to `"int2"`: codes of that many bits
                with a scale per channel. The default is the form that the weights were loaded from, or else their
                dtype in memory.
            save_directory, is_main_process, save_function, safe_serialization, variant, max_shard_size, push_to_hub:
                See [`ModelMixin.save_pretrained`]; codes are stored in one file.

        Raises:
            ValueError: If the form is unknown or cannot hold the weights.
        """
        form = self.storage if storage is None else storage
        if safe_serialization is not True:
            raise ValueError(
                f"`safe_serialization` is {_shown(safe_serialization)}; only True is valid, since pickled weights can "
                "run code."
            )
        self.check_storage(form, max_shard_size)
        saved = self
        if form is not None:
            content = self.stored_state(form)
            # diffusers saves what `state_dict` returns; a shallow copy returns the stored form.
            saved = copy.copy(self)
            saved.state_dict = lambda: content  # type: ignore[method-assign, assignment]
        ending = f".{variant}" if variant else ""
        single = Path(save_directory) / f"diffusion_pytorch_model{ending}.safetensors"
        index = Path(save_directory) / f"diffusion_pytorch_model.safetensors.index{ending}.json"
        written = index.stat().st_mtime_ns if index.is_file() else None
        # `DiMGenerator` may be another class by now: diffusers runs this file again for each pipeline that it loads.
        super(__class__, saved).save_pretrained(  # type: ignore[name-defined]
            save_directory,
            is_main_process,
            save_function,
            safe_serialization,
            variant,
            "10GB" if max_shard_size is None else max_shard_size,
            push_to_hub,
            **kwargs,
        )
        # diffusers leaves the index of an earlier save in several files, or the file of one in a single file.
        if index.is_file() and index.stat().st_mtime_ns != written:
            single.unlink(missing_ok=True)
        elif single.is_file():
            index.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """
        Loads the network as [`ModelMixin.from_pretrained`] does, from safetensors in any form of storage.

        Raises:
            OSError: If a file is missing or damaged, or there are only pickled weights.
            ValueError: If the weights in the file are not exactly those of the network that its config describes.
        """
        with_info = kwargs.pop("output_loading_info", False)
        # Pickled weights can run code.
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            # diffusers reads the index of weights in several files, if there is one, and trusts what it holds.
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if found := sorted(folder.glob("*.safetensors.index*.json")):
                raise OSError(f"{found[0]} is damaged: {_shown(str(error))}.") from error
            raise
        # diffusers leaves weights that are missing from a file at their random initial values.
        for kind in ("missing", "unexpected", "mismatched"):
            if keys := info[f"{kind}_keys"]:
                raise ValueError(f"the generator's weights have {kind} tensors: {_listed(sorted(map(str, keys)))}.")
        model._check_range()
        return (model, info) if with_info else model

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
        # diffusers calls this with the content of a file, before it uses any of it.
        super()._fix_state_dict_keys_on_load(state_dict)
        weights, self.storage = self.read_state(state_dict)
        state_dict.clear()
        state_dict.update(weights)

    def check_storage(self, storage: str | None, max_shard_size: int | str | None = None) -> None:
        """Raises a `ValueError` if the weights cannot be stored in this form; `None` is their dtype in memory."""
        if storage is not None and storage not in STORAGE_FORMS:
            raise ValueError(f"`storage` is {storage!r}; valid are {', '.join(map(repr, STORAGE_FORMS))}.")
        for name, value in self.state_dict().items():
            if not value.isfinite().all():
                raise ValueError(f"the generator's {name} cannot be stored: it has values that are not finite.")
        if not _is_size(max_shard_size):
            raise ValueError(
                f"`max_shard_size` is {_shown(max_shard_size)}; valid are a number of bytes from 1, such a string as "
                "'5GB' (or KB, MB, TB), and None."
            )
        if storage is None or not storage.startswith("int"):
            return
        if max_shard_size is not None:
            raise ValueError(
                f"`max_shard_size` is {max_shard_size!r}; valid with `storage` {storage!r}, one file, is None."
            )
        for name, value in self.state_dict().items():
            if value.ndim > 1 and value.abs().max() > torch.finfo(torch.float16).max:
                raise ValueError(
                    f"`storage` {storage!r} cannot hold {name}: its largest weight is {value.abs().max():.3g}; valid "
                    "are weights up to 65504."
                )

    def stored_state(self, storage: str) -> dict[str, torch.Tensor]:
        """
        The content of a file in one of [`STORAGE_FORMS`]. `intN` stores a weight as `NAME.intN`, its packed codes, and
        `NAME.scale`; the few one-dimensional tensors are in float16, or in float32 where float16 would overflow. It
        adds [`checksums`]; the other forms hold nothing but weights.
        """
        content = {}
        for name, value in self.state_dict().items():
            if not value.is_floating_point():
                content[name] = value
            elif storage.startswith("int") and value.ndim > 1:
                bits = int(storage[3:])
                codes, scale = quantise(self.channels_first(name, value.float()).flatten(1), bits)
                content[f"{name}.{storage}"] = pack(codes.flatten(), bits)
                content[f"{name}.scale"] = scale
            else:
                half = value.half()
                content[name] = value.float() if storage == "float32" or half.isinf().any() else half
        return content | {CHECKSUMS: checksums(content)} if storage.startswith("int") else content

    def read_state(self, content: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str | None]:
        """
        The inverse of [`stored_state`].

        Returns:
            The float32 weights by name, and the form of storage, which is `None` for plain float32.

        Raises:
            ValueError: If the content does not fit this network or its checksums, naming the tensor that is wrong.
        """
        left, weights = dict(content), {}
        # Older files have none.
        expected_sums = left.pop(CHECKSUMS, None)
        stored = dict(left)
        forms: set[str] = set()
        for name, expected in self.state_dict().items():
            shape = expected.shape
            if name in left:
                value = _checked(name, left.pop(name), shape, expected.is_floating_point())
                weights[name] = value.float() if value.is_floating_point() else value
                if value.dtype == torch.float16 and value.ndim > 1:
                    forms.add("float16")
                continue
            found = [form for form in STORAGE_FORMS if form.startswith("int") and f"{name}.{form}" in left]
            if len(found) != 1 or f"{name}.scale" not in left:
                other = sorted(key for key in left if key.startswith(f"{name}."))
                raise ValueError(
                    f"the generator's weights lack {name}"
                    + (f" and have {_listed(other)}" if other else "")
                    + f"; valid is {name}, or its codes {name}.int8 to {name}.int2 and {name}.scale."
                )
            bits = int(found[0][3:])
            forms.add(found[0])
            rows = self.channels_first(name, expected).shape
            size = (shape.numel() * bits + 7) // 8
            packed = _checked(f"{name}.{found[0]}", left.pop(f"{name}.{found[0]}"), torch.Size([size]), False)
            scale = _checked(f"{name}.scale", left.pop(f"{name}.scale"), rows[:1], True)
            if packed.dtype != torch.uint8 or scale.dtype != torch.float16:
                raise ValueError(
                    f"the generator's {name} has {packed.dtype} codes and {scale.dtype} scales; valid are torch.uint8 "
                    "and torch.float16."
                )
            if bool((scale < 0).any()):
                raise ValueError(f"the generator's {name}.scale holds {scale.min():.3g}; valid are scales from 0.")
            codes = unpack(packed, bits, shape.numel()).reshape(rows[0], -1)
            weights[name] = self.channels_first(name, dequantise(codes, scale, bits).reshape(rows)).contiguous()
        if left:
            raise ValueError(f"the generator's weights hold the unknown {_listed(sorted(left))}.")
        if len(forms) > 1:
            raise ValueError(
                f"the generator's weights are stored as {' and '.join(sorted(forms))}; valid is one form."
            )
        if expected_sums is not None and (wrong := damaged_tensors(stored, expected_sums)):
            raise ValueError(f"the generator's file is damaged: its checksums do not fit {_listed(wrong)}.")
        return weights, forms.pop() if forms else None

    def channels_first(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Moves the output channels of a weight, which have a scale each, to the first dimension, and back."""
        module = self.get_submodule(name.rpartition(".")[0])
        return value.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else value

    def forward(
        self, latents: torch.Tensor, class_labels: torch.Tensor, return_dict: bool = True
    ) -> DiMGeneratorOutput | tuple[torch.Tensor]:
        """
        Args:
            latents (`torch.Tensor` of shape `(batch_size, latent_dim)`): Standard normal noise.
            class_labels (`torch.Tensor` of shape `(batch_size,)`): Integer labels.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a [`DiMGeneratorOutput`].

        Returns:
            [`DiMGeneratorOutput`], or a tuple with the images in [-1, 1] when `return_dict` is `False`.
        """
        if self.class_embedding is not None:
            hidden = torch.cat([latents, self.class_embedding(class_labels).to(latents.dtype)], dim=1)
        else:
            one_hot = nn.functional.one_hot(class_labels, self.config.num_classes).to(latents.dtype)
            hidden = torch.cat([one_hot, latents[:, self.config.num_classes :]], dim=1)
        condition = hidden
        hidden = self.proj_in(condition).unflatten(1, (-1, self.bottom_size, self.bottom_size))
        for block in self.blocks:
            hidden = block(hidden, condition)
        sample = self.conv_out(hidden).tanh()
        if not return_dict:
            return (sample,)
        return DiMGeneratorOutput(sample=sample)


class GeneratorBlock(nn.Module):
    """
    Batch norm and ReLU at one size, reached by doubling the one before unless it is the coarsest. A condition of
    `condition_dim` numbers scales and shifts each channel between the two, unless that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        residual: bool,
        upsample_type: str | None,
        condition_dim: int,
    ):
        super().__init__()
        self.residual = residual
        self.upsample = (
            nn.Identity()
            if upsample_type is None
            else upsampling(upsample_type, in_channels, out_channels, bias=False)
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.modulation = nn.Linear(condition_dim, 2 * out_channels, bias=False) if condition_dim else None
        if self.modulation is not None:
            # At first the block is one without.
            nn.init.zeros_(self.modulation.weight)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
            )
            for _ in range(layers)
        )

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.upsample(hidden))
        if self.modulation is not None:
            scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        hidden = hidden.relu()
        for layer in self.layers:
            update = layer(hidden)
            hidden = (hidden + update if self.residual else update).relu()
        return hidden


def upsampling(kind: str, in_channels: int, out_channels: int, bias: bool) -> nn.Module:
    """A layer that doubles the height and width, of one of [`UPSAMPLE_TYPES`]."""
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=bias)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias),
    )


def quantise(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rounds each row to `2**bits` evenly spaced values, symmetric about zero. The largest of them, the row's scale, is
    the fraction of its largest weight, from a grid, with the least squared error: clipping pays off with few bits.
    Rows that were rounded before are unchanged, bit for bit: their largest weight is the scale.

    Args:
        rows (`torch.Tensor` of shape `(num_rows, length)`): float32, within the range of float16.
        bits (`int`): 2 to 8.

    Returns:
        uint8 codes of shape `(num_rows, length)`, and float16 scales of shape `(num_rows,)`. The scale is zero if the
        largest weight of the row is below `2**-14`, where float16 loses digits.
    """
    top = 2**bits - 1

    def positions(part: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        # A scale of zero gives all of its row the code just above the middle, whatever is in it.
        divisor = scale.float().where(scale > 0, torch.inf)[:, None]
        return (part / divisor).add_(1).mul_(top / 2).round_().clamp_(0, top)

    all_codes, all_scales = [], []
    # A few rows at a time stay in a processor's cache for all scales that are tried; a GPU would launch more kernels.
    few = 2**15 // max(1, rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    for part in rows.split(max(1, few)):
        largest = part.abs().amax(dim=1)
        best_error = torch.full_like(largest, torch.inf)
        best_scale = torch.zeros_like(largest, dtype=torch.float16)
        for percent in range(100, 20, -5):
            scale = (largest * (percent / 100)).half()
            scale[scale < torch.finfo(torch.float16).tiny] = 0
            rounded = positions(part, scale).mul_(2).sub_(top).div_(top).mul_(scale.float()[:, None])
            error = rounded.sub_(part).square_().sum(dim=1)
            # The first of equal ones, so that an error of zero keeps the scale that gave it.
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
        all_codes.append(positions(part, best_scale).to(torch.uint8))
        all_scales.append(best_scale)
    return torch.cat(all_codes), torch.cat(all_scales)


def dequantise(codes: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of [`quantise`]: float32 weights."""
    # The outermost values are exactly the scale, so rounding twice is the same as rounding once.
    levels = torch.arange(2**bits, dtype=torch.float32, device=codes.device) * 2 - (2**bits - 1)
    return (levels / (2**bits - 1))[codes.long()] * scale.float()[:, None]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs a one-dimensional uint8 tensor of codes of `bits` bits into bytes, lowest bit first."""
    ones = (codes[:, None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    ones = nn.functional.pad(ones.flatten(), (0, -len(codes) * bits % 8)).reshape(-1, 8)
    return (ones << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of [`pack`], for `count` codes."""
    ones = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    ones = ones.flatten()[: count * bits].reshape(count, bits)
    return (ones << torch.arange(bits, dtype=torch.uint8, device=packed.device)).sum(dim=1, dtype=torch.uint8)


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


def check_entry(name: str, value: Any, least: int, most: int = MOST_IN_CONFIG) -> None:
    """Raises a `ValueError` unless an entry of a config is a whole number in [least, most]."""
    if not _is_whole(value, least, most):
        raise ValueError(f"`{name}` is {_shown(value)}; valid is a whole number from {least} to {most:,}.")


def check_list(name: str, value: Any, least: int, most: int) -> None:
    """Raises a `ValueError` unless an entry of a config is a list of whole numbers in [least, most], one per block."""
    fits = isinstance(value, list | tuple) and 0 < len(value) <= MOST_BLOCKS
    if not fits or not all(_is_whole(each, least, most) for each in value):
        raise ValueError(
            f"`{name}` is {_shown(value)}; valid is a list of 1 to {MOST_BLOCKS} whole numbers from {least} to "
            f"{most:,}."
        )


def check_network_size(weights: int, activations: int) -> None:
    """Raises a `ValueError` for a network that no config of ours asks for, before it takes any memory."""
    if weights > MOST_WEIGHTS or activations > MOST_ACTIVATIONS:
        raise ValueError(
            f"the config asks for about {weights:,} weights, and {activations:,} numbers in a layer for one image; "
            f"valid are at most {MOST_WEIGHTS:,} and {MOST_ACTIVATIONS:,}."
        )


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _is_size(value: Any) -> bool:
    """Whether diffusers can read a value as the size of a file, or it is `None`."""
    if isinstance(value, str):
        return re.fullmatch(r"\d*[1-9]\d*(KB|MB|GB|TB)", value) is not None
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _shown(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _checked(name: str, value: torch.Tensor, shape: torch.Size, floating: bool) -> torch.Tensor:
    """Returns a tensor of a file if it has the expected shape and kind of numbers, and all are finite."""
    valid = _FLOATING if floating else _WHOLE
    if value.shape != shape or value.dtype not in valid:
        kind = "floating-point" if floating else "whole"
        raise ValueError(
            f"the generator's {name} is {value.dtype} of shape {tuple(value.shape)}; valid are {kind} numbers of "
            f"shape {tuple(shape)}."
        )
    if floating and not bool(value.isfinite().all()):
        raise ValueError(f"the generator's {name} holds numbers that are not finite.")
    if name.endswith("running_var") and bool((value < 0).any()):
        raise ValueError(f"the generator's {name} holds {value.min():.3g}; valid are variances, from 0.")
    return value


def _listed(names: list[str]) -> str:
    """At most five names, for a message."""
    return ", ".join(name[:60] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
