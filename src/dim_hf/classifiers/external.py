"""Models of timm and transformers as classifiers of small images, in one wrapper."""

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from huggingface_hub import file_exists
from huggingface_hub.utils import httpx, validate_repo_id
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..arguments import reason, shown
from ..files import read_json
from ..messages import listed
from .features import logits_and_features
from .names import split_name


# Layers that feature matching reads, evenly spaced up to the last.
NUM_FEATURE_LAYERS = 4
# Of a config, which may come from a stranger.
MOST_LAYERS, MOST_WEIGHTS = 1024, 2**31
# Arguments that the data decides, or that would read weights from elsewhere.
NOT_OPTIONS = {
    "num_classes", "in_chans", "img_size", "num_labels", "num_channels", "image_size", "checkpoint_path",
    "pretrained_cfg", "pretrained_cfg_overlay",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """
    A model before it is made.

    Args:
        make: `make(num_classes, channels, arguments, pretrained=False)` makes it.
        own_size (`int`): Size of the images that it was designed for.
        size_argument (`str`, *optional*): The argument for the size of the images, if it has one.
        sets_patches (`bool`): Whether its `patch_size` may be chosen here.
        any_channels (`bool`): Whether it takes any number of channels; otherwise three.
        pretrained (`bool`), input_size (`int`, *optional*): The options of these names.
        statistics: Returns the mean and standard deviation, in [0, 1], of the images its weights were trained on.
    """

    make: Callable[..., Any]
    own_size: int
    size_argument: str | None
    sets_patches: bool
    any_channels: bool
    pretrained: bool
    input_size: int | None
    statistics: Callable[[], tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Plan:
    """
    How a model is fitted to images.

    Args:
        input_size (`int`): Size to which images are resized.
        channels (`int`): Channels of the model; if 3, grey images are repeated.
        arguments (`dict`): Arguments of the model in addition to the user's.
        stem (`str`, *optional*): The first convolution, if the stem is changed to keep the size of the images.
        feature_layers (`tuple[str, ...]`): See [`logits_and_features`].
    """

    input_size: int
    channels: int
    arguments: dict[str, Any]
    stem: str | None = None
    feature_layers: tuple[str, ...] = ()


class ExternalClassifier(nn.Module):
    """
    A model of timm or transformers from images `(batch_size, channels, size, size)` in [-1, 1] to logits.

    Args:
        network: The model.
        plan ([`Plan`]): How it is fitted to the images.
        statistics: Mean and standard deviation of the images that pretrained weights expect.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, plan: Plan, statistics: tuple[Sequence[float], Sequence[float]] | None = None
    ):
        super().__init__()
        if plan.stem:
            keep_size(network, plan.stem)
        self.network, self.feature_layers = network, plan.feature_layers
        self.channels, self.input_size = plan.channels, plan.input_size
        # transformers returns its hidden states; each passes through its own module, where a hook can read it.
        self.hidden = nn.ModuleList(nn.Identity() for _ in range(NUM_FEATURE_LAYERS))
        mean, std = statistics or ([0.5], [0.5])
        self.register_buffer("mean", 2 * torch.tensor(mean)[:, None, None] - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(std)[:, None, None], persistent=False)
        self.normalises = statistics is not None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        if images.shape[2] != self.input_size:
            images = F.interpolate(images, [self.input_size] * 2, mode="bilinear", antialias=True)
        if self.normalises:
            images = (images - self.mean) / self.std
        if not isinstance(self.network, PreTrainedModel):
            return self.network(images)
        output = self.network(images, output_hidden_states=True)
        if output.hidden_states:
            for module, hidden in zip(self.hidden, evenly_spaced(output.hidden_states), strict=False):
                module(hidden)
        return output.logits


def evenly_spaced(items: Sequence[Any]) -> list[Any]:
    """At most `NUM_FEATURE_LAYERS` of the items, including the last."""
    count = min(NUM_FEATURE_LAYERS, len(items))
    return [items[len(items) * (i + 1) // count - 1] for i in range(count)]


def build_external(name: str, num_classes: int, channels: int, size: int) -> ExternalClassifier:
    """See [`build_classifier`]."""
    source, fitted = find_source(name), plan(name, channels, size)
    try:
        network = source.make(num_classes, fitted.channels, fitted.arguments, pretrained=source.pretrained)
        statistics = source.statistics() if source.pretrained else None
    except Exception as error:  # From the network, the file system, or the library.
        if not source.pretrained:
            raise
        raise ValueError(
            f"classifier {name!r} has no pretrained weights that can be loaded: {reason(error)}"
        ) from error
    return ExternalClassifier(network, fitted, statistics)


def check_external_name(name: str) -> None:
    """Raises a `ValueError` if a name or its options are wrong, without using the network."""
    library, model, options = split_name(name)
    config_classes = [CONFIG_MAPPING_NAMES[model_type] for model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES]
    if not isinstance(options.get("pretrained", False), bool):
        raise ValueError(f"classifier {name!r}: `pretrained` is {options['pretrained']!r}; valid are true and false.")
    size = options.get("input_size", 1)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"classifier {name!r}: `input_size` is {size!r}; it must be a number of pixels.")
    if refused := ", ".join(sorted(NOT_OPTIONS & options.keys())):
        raise ValueError(f"classifier {name!r}: {refused} cannot be set; the data and `pretrained` decide.")
    if library == "timm":
        if not timm.is_model(model):
            unknown(name, "timm", model, timm.list_models())
        try:
            config: Any = timm.get_pretrained_cfg(model, allow_unregistered=False)
        except RuntimeError:
            unknown(name, "timm", model, timm.list_pretrained(f"{model.partition('.')[0]}.*"))
        if options.get("pretrained") and not config.hf_hub_id:
            raise ValueError(f"classifier {name!r} has no pretrained weights in safetensors on the Hub.")
    elif model.isidentifier() and model.endswith("Config"):
        if model not in config_classes:
            unknown(name, "transformers", model, config_classes)
        if options.get("pretrained"):
            raise ValueError(f"classifier {name!r} is a config without weights; pretrained needs a hub id or folder.")
    elif not (Path(model) / "config.json").is_file():
        if "/" not in model and not Path(model).exists():
            # Image classifiers on the Hub all have a namespace, so this is a misspelt config class.
            unknown(name, "transformers", model, config_classes)
        try:
            validate_repo_id(model)
        except ValueError as error:
            raise ValueError(
                f"classifier {name!r}: {model!r} is not a config class of an image classifier (such as ResNetConfig), "
                f"a folder with a config.json, or a hub id."
            ) from error


def unknown(name: str, library: str, model: str, valid: list[str]) -> None:
    nearest = difflib.get_close_matches(model, valid, n=5, cutoff=0)
    raise ValueError(
        f"classifier {shown(name)} is unknown; the nearest are {listed(f'{library}/{other}' for other in nearest)}."
    )


@lru_cache(maxsize=64)
def find_source(name: str) -> Source:
    """The model with this name. The config of a hub id is read from the Hub or the cache."""
    library, model, options = split_name(name)
    pretrained, input_size = options.pop("pretrained", False), options.pop("input_size", None)
    sets_patches = "patch_size" not in options and not pretrained
    if library == "timm":
        weights: Any = timm.get_pretrained_cfg(model, allow_unregistered=False)

        def make_timm(num_classes: int, channels: int, arguments: dict[str, Any], pretrained: bool = False) -> Any:
            # With a file name timm does not fall back to a pickle.
            overlay = {"hf_hub_filename": "model.safetensors"} if pretrained else None
            arguments = {"num_classes": num_classes, "in_chans": channels} | options | arguments
            return timm.create_model(model, pretrained=pretrained, pretrained_cfg_overlay=overlay, **arguments)

        return Source(
            make=make_timm,
            own_size=weights.input_size[-1],
            size_argument="img_size" if weights.fixed_input_size else None,
            sets_patches=sets_patches,
            any_channels=True,
            pretrained=pretrained,
            input_size=input_size,
            statistics=lambda: (weights.mean, weights.std),
        )

    if model.isidentifier() and model.endswith("Config"):
        config = getattr(transformers, model)()
    else:
        try:
            read_json(Path(model) / "config.json")
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        # Of a stranger's file: entries of other kinds than a config class expects raise anything.
        except Exception as error:
            raise ValueError(f"classifier {name!r} has no config that can be loaded: {reason(error)}") from error
    if config.model_type not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        valid = listed(sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES))
        raise ValueError(f"classifier {name!r} is a {config.model_type}; image classifiers are {valid}.")
    attributes = config.to_dict()
    for key, value in attributes.items():
        deepest = max((each for each in _numbers(value)), default=0)
        if ("layer" in key or "depth" in key or "blocks" in key) and deepest > MOST_LAYERS:
            raise ValueError(
                f"classifier {name!r}: its {key} is {shown(value)}; valid are at most {MOST_LAYERS} layers."
            )
    if wrong := sorted(options.keys() - attributes.keys()):
        nearest = difflib.get_close_matches(wrong[0], attributes, n=5, cutoff=0)
        raise ValueError(f"classifier {name!r}: its config has no {wrong[0]!r}; the nearest are {', '.join(nearest)}.")
    own_size = attributes.get("image_size") or 224
    own_size = own_size if isinstance(own_size, int) else own_size[0]

    def make_transformers(num_classes: int, channels: int, arguments: dict[str, Any], pretrained: bool = False) -> Any:
        made = copy.deepcopy(config)
        for key, value in {"num_labels": num_classes, **options, **arguments}.items():
            setattr(made, key, value)
        if "num_channels" in attributes:
            made.num_channels = channels
        if not pretrained:
            return AutoModelForImageClassification.from_config(made, trust_remote_code=False, dtype=torch.float32)
        network, loading = AutoModelForImageClassification.from_pretrained(
            model,
            config=made,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        # Only the head may be new.
        if misfits := [key for key, _, shape in loading["mismatched_keys"] if shape[0] != num_classes]:
            raise ValueError(f"the options change the shape of {', '.join(misfits)}")
        made_here = {key for key, _ in network.named_parameters() if key.startswith(f"{network.base_model_prefix}.")}
        if new := sorted(made_here & set(loading["missing_keys"])):
            raise ValueError(f"its weights lack {listed(new, most=4)}, which would stay random")
        return network

    def statistics() -> tuple[Sequence[float], Sequence[float]]:
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(model)
        except OSError:
            if not lacks_processor(model):
                raise
            return [0.5], [0.5]
        if settings.get("do_flip_channel_order"):
            raise ValueError("it takes images whose channels are in reverse order, BGR")
        if not settings.get("do_normalize", bool(settings.get("image_mean"))):
            return [0.0], [1.0]
        return settings.get("image_mean") or [0.5], settings.get("image_std") or [0.5]

    return Source(
        make=make_transformers,
        own_size=own_size,
        size_argument="image_size" if "image_size" in attributes else None,
        sets_patches=sets_patches and isinstance(attributes.get("patch_size"), int),
        any_channels="num_channels" in attributes,
        pretrained=pretrained,
        input_size=input_size,
        statistics=statistics,
    )


def lacks_processor(model: str) -> bool:
    """Whether a folder or repository has no image processor; `False` if that is not known, as without a network."""
    names = ("processor_config.json", "preprocessor_config.json")
    if Path(model).is_dir():
        return not any((Path(model) / name).exists() for name in names)
    try:
        return not any(file_exists(model, name) for name in names)
    except (OSError, httpx.HTTPError):
        return False


# Initial weights must not depend on whether a plan was made before them.
@lru_cache(maxsize=64)
@torch.random.fork_rng(devices=[])
def plan(name: str, channels: int, size: int) -> Plan:
    """
    Fits a model to images of one size: the first candidate for which a forward pass runs. They are tried on PyTorch's
    meta device, which makes no weights and computes nothing.

    Raises:
        ValueError: If the model refuses the options, or does not take such images, listing those that it takes.
    """
    source = find_source(name)
    model_channels = channels if source.any_channels and not source.pretrained else 3
    if channels not in (1, model_channels):
        raise ValueError(f"classifier {name!r} takes images of 1 or 3 channels; these have {channels}.")
    try:
        with torch.device("meta"):
            network = source.make(2, model_channels, {})
    except Exception as error:  # Any error of a library over an option that it does not know.
        raise ValueError(f"classifier {name!r} cannot be made: {reason(error)}") from error
    if (weights := sum(parameter.numel() for parameter in network.parameters())) > MOST_WEIGHTS:
        raise ValueError(f"classifier {name!r} has {weights:,} weights; valid are at most {MOST_WEIGHTS:,}.")
    stem = first_convolution(network)
    enlarged = sorted({size, *(n for n in (2 * size, 4 * size) if n < source.own_size), max(size, source.own_size)})
    targets = enlarged
    if source.pretrained or source.input_size:
        targets = [source.input_size or source.own_size]
    fitted: Plan | Exception
    for target in targets:
        for candidate in candidates(source, network, stem, target, model_channels):
            fitted = tried(source, candidate, channels, size)
            if isinstance(fitted, Plan):
                return fitted
    fits = [
        str(other)
        for other in enlarged
        for candidate in candidates(source, network, stem, other, model_channels)
        if isinstance(tried(source, candidate, channels, size), Plan)
    ]
    valid = ", ".join(dict.fromkeys(fits))
    raise ValueError(
        f"classifier {name!r} does not take images of {' or '.join(map(str, targets))} pixels"
        + (f"; valid for `input_size`, to which images are resized: {valid}." if valid else f": {reason(fitted)}")
    )


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a value of a config."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)


def first_convolution(network: Any) -> str | None:
    """The name of the first convolution, if the model has one."""
    if not isinstance(network, PreTrainedModel):
        named = network.pretrained_cfg["first_conv"]
        named = named if isinstance(named, str) else next(iter(named or ()), None)
        return named if isinstance(dict(network.named_modules()).get(named), nn.Conv2d) else None
    return next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)


def candidates(source: Source, network: Any, stem: str | None, target: int, channels: int) -> Iterator[Plan]:
    """Ways to fit a model to images of `target` pixels, best first."""
    sized = {source.size_argument: target} if source.size_argument else {}
    if 2 * target < source.own_size and not source.pretrained and stem:
        convolution = network.get_submodule(stem)
        patch = convolution.stride[0]
        if source.size_argument and patch > 1 and convolution.kernel_size[0] == patch:
            if source.sets_patches:
                # At least half the number of patches per side that images of the model's own size have.
                limit = max(1, min(patch, 2 * patch * target // source.own_size))
                largest = next(n for n in range(limit, 0, -1) if target % n == 0)
                yield Plan(target, channels, sized | {"patch_size": largest})
        else:
            yield Plan(target, channels, sized, stem)
            if not source.size_argument:
                return
    yield Plan(target, channels, sized)


def tried(source: Source, fitted: Plan, channels: int, size: int) -> Plan | Exception:
    """The plan with its feature layers if its model maps images to logits, or else the error."""
    try:
        with torch.device("meta"), torch.no_grad():
            network = source.make(2, fitted.channels, fitted.arguments)
            classifier = ExternalClassifier(network, fitted).eval()
            known = dict(classifier.named_modules())
            if isinstance(network, PreTrainedModel):
                layers = [f"hidden.{i}" for i in range(NUM_FEATURE_LAYERS)]
            else:
                layers = [f"network.{stage['module']}" for stage in network.feature_info]
            classifier.feature_layers = tuple(dict.fromkeys(name for name in layers if name in known))
            logits, features = logits_and_features(classifier, torch.empty(2, channels, size, size))
        if logits.shape != (2, 2):
            raise ValueError(f"its output has the shape {tuple(logits.shape)}, which is not a batch of logits.")
    except Exception as error:  # Models refuse such images with errors of any kind.
        return error
    layers = [name for name, output in features.items() if isinstance(output, torch.Tensor)]
    return Plan(fitted.input_size, fitted.channels, fitted.arguments, fitted.stem, tuple(evenly_spaced(layers)))


def keep_size(network: nn.Module, stem: str) -> None:
    """Removes the stride of the first convolution, and the pooling that follows it before any other stride."""
    convolution: Any = network.get_submodule(stem)
    if convolution.kernel_size == convolution.stride:
        convolution.padding = tuple((n - 1) // 2 for n in convolution.kernel_size)
    convolution.stride = (1, 1)
    names = [name for name, _ in network.named_modules()]
    for name in names[names.index(stem) + 1 :]:
        module = network.get_submodule(name)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            network.set_submodule(name, nn.Identity())
            return
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            return
