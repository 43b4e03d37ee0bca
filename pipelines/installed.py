"""The installed pipeline: loads without running a repository's code, and pushes with a model card."""

import os
from collections.abc import Container
from pathlib import Path, PurePath
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dim_hf.arguments import shown
from dim_hf.files import read_json, replace_pipeline
from dim_hf.hub_errors import check_characters, clear_hub_errors
from dim_hf.messages import listed
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.models.generator_dim import MOST_WEIGHTS

from . import pipeline_dim


Pipeline = TypeVar("Pipeline", bound="DiMPipeline")

# Of a file of weights: some 10,000 tensors.
_MOST_HEADER_BYTES = 2**20
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class DiMPipeline(pipeline_dim.DiMPipeline):
    __doc__ = pipeline_dim.DiMPipeline.__doc__

    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Pipeline:
        """
        Loads a pipeline from a folder or the Hub, as [`DiffusionPipeline.from_pretrained`] does, but only from
        safetensors and without running code from there.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder (`~` is the home folder), or the id of a repository on the Hub.
            subfolder (`str`, *optional*): Folder of the pipeline within it.
            kwargs: See [`DiffusionPipeline.from_pretrained`].

        Raises:
            OSError: If a file is missing, weights are pickled, or the Hub refuses.
            ValueError: If an argument is not valid, or a file describes another pipeline.
            TypeError: If an argument does not exist.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` is {shown(kwargs['use_safetensors'])}; only True is valid, since pickled weights "
                "can run code."
            )
        if kwargs.get("custom_pipeline") is not None:
            raise ValueError(
                f"`custom_pipeline` is {shown(kwargs['custom_pipeline'])}; only None is valid, since this class runs "
                "no code of a repository. `diffusers.DiffusionPipeline` does."
            )
        check_characters(kwargs.get("token"), "`token`")
        variant = kwargs.get("variant")
        if variant is not None and not isinstance(variant, str):
            raise ValueError(f"`variant` is {shown(variant)}; valid is a `str`, or None.")
        for argument in ("dtype", "torch_dtype"):
            _check_dtype(argument, kwargs.get(argument))
        # The installed classes are in the place of all that a repository could bring.
        kwargs["trust_remote_code"] = False
        name = _folder_or_repo_id(pretrained_model_name_or_path)
        if subfolder is not None:
            if not isinstance(subfolder, str | os.PathLike):
                raise ValueError(f"`subfolder` is {shown(subfolder)}; valid is the path of a folder, or None.")
            if os.path.isabs(subfolder) or ".." in Path(subfolder).parts:
                raise ValueError(f"`subfolder` is {shown(subfolder)}; valid is a path within {shown(name)}, or None.")
            subfolder = PurePath(subfolder).as_posix()
            if not os.path.isdir(name):
                hub_arguments = ("cache_dir", "force_download", "local_files_only", "token", "revision")
                arguments = {key: kwargs.pop(key) for key in hub_arguments if key in kwargs}
                with clear_hub_errors(name):
                    name = snapshot_download(name, allow_patterns=f"{subfolder}/*", **arguments)
            parent, name = name, os.path.join(name, subfolder)
            _check_link(Path(name), Path(parent))
            if not os.path.isdir(name):
                raise FileNotFoundError(f"`subfolder` {str(subfolder)!r} is not in {pretrained_model_name_or_path}.")
        # Holds the whole pipeline if a process was killed while it replaced an older one.
        unfinished = os.path.join(name, pipeline_dim.NEXT_PIPELINE)
        folder = unfinished if os.path.isdir(unfinished) else name
        if os.path.isdir(folder):
            _check_link(Path(folder), Path(name))
            cls._check_files(Path(folder), passed=kwargs)
        pipeline = super().from_pretrained(folder, **kwargs)
        if folder != name:
            pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """[`DiffusionPipeline.download`] with one clear message if the download fails or is not a `DiMPipeline`."""
        with clear_hub_errors(pretrained_model_name):
            folder = super().download(pretrained_model_name, **kwargs)
        cls._check_files(Path(folder), passed=kwargs)
        return folder

    @classmethod
    def _check_files(cls, folder: Path, passed: Container[str]) -> None:
        """Raises an `OSError` that names missing files, or pickled weights; `passed` components need none."""
        missing = []
        components = ["generator"]
        _check_link(folder / "model_index.json", folder)
        if (folder / "model_index.json").is_file():
            config = cls._dict_from_json_file(folder / "model_index.json")
            components += ["labeler"] if config.get("labeler") not in (None, [None, None]) else []
        else:
            missing.append("model_index.json")
        for component in (name for name in components if name not in passed):
            below = folder / component
            for path in (below, *(below.iterdir() if below.is_dir() else ())):
                _check_link(path, folder)
            if not (below / "config.json").is_file():
                missing.append(f"{component}/config.json")
            # diffusers reads the shards that an index names, and unpickles those that are not safetensors.
            shards = {
                below / name for path in below.glob("*.safetensors.index*.json") for name in _shards_of_index(path)
            }
            pickled = {path for path in shards if path.suffix != ".safetensors"}
            weights = [path for path in below.glob("*.safetensors") if path.is_file()]
            if not weights:
                missing.append(f"{component}/diffusion_pytorch_model.safetensors")
                pickled |= {path for path in below.rglob("*") if path.suffix in _PICKLED}
            if pickled:
                raise OSError(f"{min(pickled)} is pickled, and reading it can run code; only safetensors are read.")
            _check_sizes(weights)
        if missing:
            raise FileNotFoundError(f"{folder} does not hold a DiMPipeline: {', '.join(missing)} is missing.")

    # A saved pipeline names its own source files, which diffusers would run if it were told to trust them. The next
    # two methods put the installed classes in their place.
    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        config = _json_object(json_file)
        found = config.get("_class_name")
        if found not in ("DiMPipeline", ["pipeline", "DiMPipeline"]):
            raise ValueError(f"{json_file} describes a pipeline {shown(found)}; valid is a DiMPipeline.")
        # Other entries of this kind are orders to diffusers.
        known = {name: value for name, value in config.items() if not name.startswith("_")}
        return known | {"_class_name": cls.__name__}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config_dict if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"{cls.config_name} has the unknown entries {listed(unknown)}; valid are {listed(sorted(valid))}."
            )
        names = config_dict.get("id2label")
        words = list(names.values()) if isinstance(names, dict) else names
        if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ValueError(f"{cls.config_name} has the id2label {shown(names)}; valid is a name for each label.")
        for name in ("generator", "labeler"):
            entry = config_dict.get(name, ["", ""])
            named = isinstance(entry, list | tuple) and len(entry) == 2 and len({type(each) for each in entry}) == 1
            if not named or not isinstance(entry[0], str | None):
                raise ValueError(
                    f"{cls.config_name} has the {name} {shown(entry)}; valid is a list of its file and class."
                )
        installed = {
            name: [network.__module__, network.__name__]
            for name, network in (("generator", DiMGenerator), ("labeler", DiMLabeler))
            if config_dict.get(name, [None])[0] is not None
        }
        init_dict, unused, hidden = super().extract_init_dict(config_dict | installed, **kwargs)
        # diffusers only logs these; a mistyped `variant` would load other weights.
        if unused:
            raise TypeError(f"`from_pretrained` takes no {listed(sorted(unused))}.")
        return init_dict, unused, hidden

    def _put_in_place(self, written: Path, folder: Path) -> None:
        if (folder / "model_index.json").is_file() or written.name == pipeline_dim.NEXT_PIPELINE:
            replace_pipeline(written, folder)
        else:
            # Nothing is replaced.
            super()._put_in_place(written, folder)

    def push_to_hub(self, repo_id: str, *args: Any, storage: str | None = None, **kwargs: Any) -> str:
        """Pushes the pipeline with a model card and a sample grid; see [`dim_hf.hub.push.push_to_hub`]."""
        # The card needs more imports than images do.
        from dim_hf.hub.push import push_to_hub

        return push_to_hub(self, repo_id, *args, **(kwargs | {"storage": storage}))


def _check_dtype(argument: str, value: Any) -> None:
    """Refuses what diffusers would replace by float32, and numbers in which the networks do not run."""
    for each in value.values() if isinstance(value, dict) else [value]:
        if each not in (None, torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(
                f"`{argument}` is or holds {shown(each)}; valid are torch.float32, torch.float16, torch.bfloat16 and "
                "torch.float64."
            )


def _folder_or_repo_id(value: Any) -> str:
    """The path of a folder or a valid repository id; refuses anything else before the Hub is asked."""
    what = f"`pretrained_model_name_or_path` {shown(str(value) if isinstance(value, os.PathLike) else value)}"
    valid = "valid is the folder of a saved pipeline, or the id of a repository on the Hub"
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{what} is neither a path nor an id; {valid}.")
    name = os.path.expanduser(str(value))
    if os.path.isdir(name):
        return name
    if os.path.exists(name):
        raise NotADirectoryError(f"{what} is a file; {valid}.")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(f"{what} does not exist, and is not a valid repository id; {valid}.") from None
    if isinstance(value, os.PathLike):
        raise FileNotFoundError(f"{what} does not exist; {valid}, as a `str`.")
    return name


def _json_object(path: str | os.PathLike) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise OSError(str(error)) from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds {shown(content)}; valid is a JSON object.")
    return content


def _shards_of_index(path: Path) -> list[str]:
    """The files that an index of shards names; each must lie beside it."""
    index = _json_object(path)
    entries = index.get("weight_map")
    names = list(entries.values()) if isinstance(entries, dict) else []
    if not names or not isinstance(index.get("metadata"), dict) or not all(isinstance(name, str) for name in names):
        raise OSError(f"{path} is damaged; valid is an object with `metadata` and a `weight_map` from names to files.")
    for name in names:
        if Path(name).suffix == ".safetensors" and Path(name).name != name:
            raise OSError(f"{path} names the file {shown(name)}; valid are files beside it.")
    return names


def _check_link(path: Path, folder: Path) -> None:
    """Refuses a link that leaves the folder; those of the Hub's cache lead to the files of the same repository."""
    root = folder.resolve()
    for parent in root.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            root = parent.parent
            break
    if not path.resolve().is_relative_to(root):
        raise OSError(f"{path} is a link that leaves {folder}; valid are files within it, so put a copy there.")


def _check_sizes(weights: list[Path]) -> None:
    """Refuses files of weights with more in them than any network of ours has."""
    for path in weights:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > _MOST_HEADER_BYTES and header < path.stat().st_size:
            raise OSError(f"{path} has a header of {header:,} bytes; valid are at most {_MOST_HEADER_BYTES:,}.")
    # In float32, with room for their names.
    most = 4 * MOST_WEIGHTS + 2**20
    if (size := sum(path.stat().st_size for path in weights)) > most:
        raise OSError(f"{weights[0].parent} holds weights of {size:,} bytes; valid are at most {most:,}.")
