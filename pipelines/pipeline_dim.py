"""The pipeline that turns class labels and noise into images of a distilled data set.

This file is also what a distilled repository on the Hub holds as `pipeline.py`, so it needs torch and diffusers, with
the huggingface_hub that diffusers is built on, and nothing else.
"""

import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx


_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED_IS_REFUSED = "{} is pickled, and reading it can run code; only safetensors are read."
# Images of one call, which are kept until all are made.
_MOST_IN_MEMORY = 1_000_000

EXAMPLE_DOC_STRING = """
        Examples:
            ```py
            >>> import torch
            >>> from dim_hf import DiMPipeline

            >>> pipe = DiMPipeline.from_pretrained("out/fashion")
            >>> out = pipe(class_labels=["Coat", 7], ipc=10, generator=torch.Generator().manual_seed(0))
            >>> out.images[0].save("coat.png")
            >>> out.labels  # [4] * 10 + [7] * 10
            ```
"""


@dataclass
class DiMPipelineOutput(ImagePipelineOutput):
    """
    Output of [`DiMPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            The N images, class by class: PIL images (mode `L` or `RGB`), an array of shape `(N, height, width,
            channels)`, or a tensor of shape `(N, channels, height, width)` on the CPU; the last two are float32 in
            [0, 1].
        labels (`list[int]`): The class of each image.
    """

    labels: list[int]


class DiMPipeline(DiffusionPipeline):
    r"""
    Generates labelled images from a distilled data set (DiM, arXiv 2303.04707).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        generator ([`DiMGenerator`]):
            The network that maps noise and labels to images in [-1, 1]. It is put into `eval()` mode, in which an
            image does not depend on its batch; pass a copy of one that is being trained.
        id2label (`dict[int, str]`, *optional*):
            The name of every class of the generator, by its label. Without it classes go by number alone.
        labeler ([`DiMLabeler`], *optional*):
            A classifier trained on the real images, for soft labels and for leaving out images that it takes for
            another class; see [`DiMDataset`]. It is put into `eval()` mode.
    """

    model_cpu_offload_seq = "generator"
    _optional_components = ["labeler"]

    # The classes that load the components where this file is part of an installed package. In a repository they are
    # None, and diffusers loads the repository's own classes, if it is trusted.
    generator_class: ClassVar[type[ModelMixin] | None] = None
    labeler_class: ClassVar[type[ModelMixin] | None] = None

    def __init__(
        self,
        generator: ModelMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        labeler: ModelMixin | None = None,
    ):
        super().__init__()
        if labeler is not None:
            made, taken = (
                [config.num_classes, config.sample_size, channels]
                for config, channels in (
                    (generator.config, generator.config.out_channels),
                    (labeler.config, labeler.config.in_channels),
                )
            )
            if made != taken:
                raise ValueError(
                    f"`labeler` takes {taken[0]} classes, {taken[1]} pixels and {taken[2]} channels; the generator "
                    f"makes {made[0]}, {made[1]} and {made[2]}."
                )
            labeler = labeler.eval()
        self.register_modules(generator=generator.eval(), labeler=labeler)
        if id2label is not None:
            num_classes = generator.config.num_classes
            # JSON has turned the keys of a saved pipeline into strings.
            names = {str(label): name for label, name in id2label.items()}
            if names.keys() != {str(label) for label in range(num_classes)}:
                raise ValueError(
                    f"`id2label` names the labels {list(id2label)}; the generator has {num_classes} classes, so valid "
                    f"are exactly 0 to {num_classes - 1}."
                )
            id2label = {label: names[str(label)] for label in range(num_classes)}
            listed = list(names.values())
            if wrong := [name for name in listed if not isinstance(name, str) or listed.count(name) > 1]:
                raise ValueError(f"`id2label` holds {wrong}; every class must have a name (`str`) of its own.")
        self.register_to_config(id2label=id2label)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str | None = None, **kwargs: Any
    ) -> "DiMPipeline":
        """
        Loads a pipeline from a folder or from the Hub, as [`DiffusionPipeline.from_pretrained`] does, but from
        safetensors alone and, where this class comes from an installed package, without running any code of the
        folder or repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder, or a repository on the Hub.
            subfolder (`str`, *optional*): Where the pipeline lies in it, if not at its top.
            kwargs: Those of [`DiffusionPipeline.from_pretrained`].

        Raises:
            OSError: If a file is missing, weights are pickled, or the Hub does not give the repository.
            ValueError: If a file describes something else than this pipeline.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` is {kwargs['use_safetensors']}; valid is True alone, since pickled weights can "
                "run code."
            )
        name = str(pretrained_model_name_or_path)
        if subfolder is not None:
            if not os.path.isdir(name):
                of_the_hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
                arguments = {key: kwargs.pop(key) for key in of_the_hub if key in kwargs}
                with _clear_hub_errors(name):
                    name = snapshot_download(name, allow_patterns=f"{subfolder}/*", **arguments)
            name = os.path.join(name, subfolder)
            if not os.path.isdir(name):
                raise FileNotFoundError(f"`subfolder` {subfolder!r} is not in {pretrained_model_name_or_path}.")
        if os.path.isdir(name):
            cls._check_files(Path(name), passed=kwargs)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """As [`DiffusionPipeline.download`], with one clear message where the Hub does not give the repository."""
        with _clear_hub_errors(pretrained_model_name):
            try:
                folder = super().download(pretrained_model_name, **kwargs)
            except OSError as error:
                # Where any weights are no safetensors, diffusers names every file of the repository.
                names = re.findall(r"'([^']+)'", str(error)) if "necessary `safetensors`" in str(error) else []
                for component in ("generator", "labeler"):
                    own = sorted(name for name in names if name.startswith(f"{component}/"))
                    if component in kwargs or not own or any(name.endswith(".safetensors") for name in own):
                        continue
                    if pickled := [name for name in own if name.endswith(_PICKLED)]:
                        raise OSError(_PICKLED_IS_REFUSED.format(pickled[0])) from error
                    raise OSError(f"{component}/diffusion_pytorch_model.safetensors is missing.") from error
                raise
        cls._check_files(Path(folder), passed=kwargs)
        return folder

    @classmethod
    def _check_files(cls, folder: Path, passed: Container[str]) -> None:
        """Raises an error that names what a saved pipeline lacks, or its weights if they are pickled."""
        missing = []
        components = ["generator"]
        if (folder / "model_index.json").is_file():
            config = cls._dict_from_json_file(folder / "model_index.json")
            components += ["labeler"] if (config.get("labeler") or [None])[0] else []
        else:
            missing.append("model_index.json")
        for component in (name for name in components if name not in passed):
            below = folder / component
            if not (below / "config.json").is_file():
                missing.append(f"{component}/config.json")
            # An index names its shards, and diffusers unpickles those that are no safetensors.
            indexes = [json.loads(path.read_text()) for path in below.glob("*.safetensors.index*.json")]
            shards = {below / name for index in indexes for name in index["weight_map"].values()}
            pickled = {path for path in shards if path.suffix != ".safetensors"}
            if not list(below.glob("*.safetensors")):
                missing.append(f"{component}/diffusion_pytorch_model.safetensors")
                pickled |= {path for path in below.rglob("*") if path.suffix in _PICKLED}
            if pickled:
                raise OSError(_PICKLED_IS_REFUSED.format(min(pickled)))
        if missing:
            raise FileNotFoundError(f"{folder} holds no DiMPipeline: {', '.join(missing)} is missing.")

    # A saved pipeline names the source files beside it. `DiffusionPipeline.from_pretrained` would run them, once it is
    # told to trust them; these two put the installed classes in their place.
    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        try:
            config = super()._dict_from_json_file(json_file)
        except ValueError as error:
            raise OSError(f"{json_file} is no valid JSON: {error}.") from error
        if config.get("_class_name") not in ("DiMPipeline", ["pipeline", "DiMPipeline"]):
            found = config.get("_class_name")
            raise ValueError(f"{json_file} describes a pipeline {found!r}; valid is a DiMPipeline.")
        if cls.generator_class is not None:
            config["_class_name"] = cls.__name__
        return config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config_dict if not key.startswith("_") and key not in valid):
            listed = ", ".join(sorted(valid))
            raise ValueError(f"{cls.config_name} has the unknown entries {', '.join(unknown)}; valid are {listed}.")
        if cls.generator_class is not None:
            installed = [cls.generator_class.__module__, cls.generator_class.__name__]
            config_dict = {**config_dict, "generator": installed}
        if cls.labeler_class is not None and "labeler" in config_dict:
            installed = [cls.labeler_class.__module__, cls.labeler_class.__name__]
            config_dict = {**config_dict, "labeler": installed}
        return super().extract_init_dict(config_dict, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        storage: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Saves the pipeline with its source, so that the folder works where this package is not installed. The weights
        are always safetensors. The arguments are those of [`DiffusionPipeline.save_pretrained`], and

        Args:
            storage (`str`, *optional*):
                How the generator's weights are stored: `"float32"`, `"float16"`, or `"int8"` to `"int2"`, codes of so
                many bits with a scale per channel; a labeler is in float16 with any but the first. What is read back
                is float32 again, of what the form has kept. By default as the generator's file was that it was loaded
                from, else as in memory. What is in memory stays as it is.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` is False; valid is True alone, since pickled weights can run code.")
        form = self.generator.storage if storage is None else storage
        if form is not None:
            # Before any file is made.
            self.generator.check_storage(form, max_shard_size)
        folder = Path(save_directory)
        for name in ("generator", *(["labeler"] if self.labeler is not None else [])):
            library = self.config[name][0]
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inspect.getfile(sys.modules[library]), folder / name / f"{_file_name(library)}.py")
        shutil.copyfile(__file__, folder / "pipeline.py")
        repo_id = kwargs.pop("repo_id", folder.name)
        with self._saved_in(form):
            super().save_pretrained(
                str(save_directory), variant=variant, max_shard_size=max_shard_size, **({} if push_to_hub else kwargs)
            )
        # diffusers notes where a component was loaded from: a path of this machine, and a change in every copy.
        for name in self.components:
            config_file = folder / name / "config.json"
            if config_file.is_file():
                config = json.loads(config_file.read_text())
                if config.pop("_name_or_path", None) is not None:
                    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        # A push takes nothing else from the folder, which may hold a run with its checkpoints.
        if push_to_hub:
            self.push_to_hub(repo_id, variant=variant, storage=storage, **kwargs)

    def push_to_hub(self, *args: Any, storage: str | None = None, **kwargs: Any) -> str:
        """Pushes as [`DiffusionPipeline.push_to_hub`] does, in a form of storage as [`save_pretrained`] has it."""
        own_form = self.generator.storage
        self.generator.storage = own_form if storage is None else storage
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self.generator.storage = own_form

    @contextmanager
    def _saved_in(self, form: str | None) -> Iterator[None]:
        """Within it, diffusers saves the components in a form of storage."""
        own_form, self.generator.storage = self.generator.storage, form
        halved = self.labeler is not None and form not in (None, "float32")
        if halved:
            content = {name: value.half() for name, value in self.labeler.state_dict().items()}
            self.labeler.state_dict = lambda: content
        try:
            yield
        finally:
            self.generator.storage = own_form
            if halved:
                del self.labeler.state_dict

    def to_json_string(self) -> str:
        """The content of `model_index.json`, which names the source files that [`save_pretrained`] copies."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        config["_class_name"] = ["pipeline", "DiMPipeline"]
        config["generator"][0] = _file_name(config["generator"][0])
        if self.labeler is None:
            del config["labeler"]
        else:
            config["labeler"][0] = _file_name(config["labeler"][0])
        return json.dumps(config, indent=2) + "\n"

    @property
    def class_names(self) -> list[str]:
        """The name of each class, by label; its number where the pipeline has no names."""
        names = self.config.id2label or {}
        return [names.get(label, str(label)) for label in range(self.generator.config.num_classes)]

    def check_inputs(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor | None,
        ipc: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        batch_size: int,
        output_type: str,
    ) -> None:
        """Raises a `ValueError` that names the first argument of [`__call__`] that is wrong, and what is valid."""
        for name, value in (("ipc", ipc), ("batch_size", batch_size)):
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
                raise ValueError(f"`{name}` is {value!r}; valid is a whole number from 1.")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` is {output_type!r}; valid are 'pil', 'np' and 'pt'.")
        label_ids = self.get_label_ids(class_labels)
        num_images = len(label_ids) * ipc
        if num_images > _MOST_IN_MEMORY:
            raise ValueError(
                f"`ipc` is {ipc}, for {len(label_ids)} classes; valid are at most {_MOST_IN_MEMORY:,} images in "
                "memory. training/generate_dim.py of dim_hf writes any number to disk."
            )
        generators = generator if isinstance(generator, list) else [generator]
        for each in generators:
            if not isinstance(each, torch.Generator) and generator is not None:
                raise ValueError(
                    f"`generator` is or holds {each!r}; valid is a `torch.Generator`, such as "
                    "`torch.Generator().manual_seed(0)`, a list with one for each image, or None."
                )
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"`generator` is a list of {len(generator)}; {num_images} images are asked for, and a list must have "
                "one for each."
            )
        shape = (num_images, self.generator.config.latent_dim)
        if latents is not None and (not isinstance(latents, torch.Tensor) or latents.shape != shape):
            received = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(f"`latents` is {received}; valid for {num_images} images is a tensor of shape {shape}.")
        if self.generator.training:
            raise ValueError(
                "`pipe.generator` is in training mode, in which an image depends on its batch; call "
                "`pipe.generator.eval()` first."
            )

    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor | None) -> list[int]:
        """
        The label of each class that is asked for.

        Args:
            class_labels (`int`, `str`, `list[int | str]` or `torch.Tensor`, *optional*):
                A label or a class name, or several of them, mixed at will. `None` stands for every class.

        Returns:
            `list[int]`: The labels, in the order given.

        Raises:
            ValueError: If there is no such class, naming the valid ones.
        """
        num_classes = self.generator.config.num_classes
        if class_labels is None:
            return list(range(num_classes))
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        id2label = self.config.id2label or {}
        label2id = {name: label for label, name in id2label.items()}
        valid = f"valid are the labels 0 to {num_classes - 1}"
        if id2label:
            valid += f" and the names {', '.join(repr(id2label[label]) for label in range(num_classes))}"
        label_ids = []
        for label in class_labels:
            label_id = label2id.get(label, label) if isinstance(label, str) else label
            if (
                not isinstance(label_id, Integral)
                or isinstance(label_id, bool)
                or not 0 <= int(label_id) < num_classes
            ):
                raise ValueError(f"`class_labels` is or holds {label!r}; {valid}.")
            label_ids.append(int(label_id))
        if not label_ids:
            raise ValueError(f"`class_labels` is empty; {valid}, or None for every class.")
        return label_ids

    def prepare_latents(
        self,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """
        The noise of all images, a float32 tensor of shape `(num_images, latent_dim)` on the CPU. It is drawn at once
        and before it meets the generator's device and dtype, so that a seed means the same images for any of these and
        for any `batch_size`.
        """
        if latents is not None:
            return latents
        first = generator[0] if isinstance(generator, list) else generator
        device = first.device if first is not None else torch.device("cpu")
        shape = (num_images, self.generator.config.latent_dim)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).cpu()

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        ipc: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        batch_size: int = 256,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DiMPipelineOutput | tuple[Any, list[int]]:
        r"""
        Generates `ipc` images of each class, class by class.

        Args:
            class_labels (`int`, `str`, `list[int | str]` or `torch.Tensor`, *optional*):
                The classes, each by its label or its name; a string is one name. `None` stands for every class.
            ipc (`int`, *optional*, defaults to 1):
                Images per class.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the noise, or a list of one for each image. The noise of all images is drawn from it at once,
                so that a seed means the same images for any `batch_size`, and on any device within rounding.
            latents (`torch.Tensor` of shape `(num_images, latent_dim)`, *optional*):
                Standard normal noise to use in place of `generator`'s.
            batch_size (`int`, *optional*, defaults to 256):
                Images made at a time; it bounds the memory that is used on the generator's device.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"` (`PIL.Image.Image`), `"np"` (`np.ndarray`) or `"pt"` (`torch.Tensor`).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`DiMPipelineOutput`] instead of a tuple.

        Examples:

        Returns:
            [`DiMPipelineOutput`], or the tuple `(images, labels)` when `return_dict` is `False`.
        """
        self.check_inputs(class_labels, ipc, generator, latents, batch_size, output_type)
        labels = [label for label in self.get_label_ids(class_labels) for _ in range(ipc)]
        latents = self.prepare_latents(len(labels), generator, latents)

        images: Any = []
        for start in self.progress_bar(range(0, len(labels), batch_size)):
            batch = slice(start, start + batch_size)
            sample = self.generator(
                latents[batch].to(self._execution_device, self.generator.dtype),
                torch.tensor(labels[batch], device=self._execution_device),
            ).sample.float()
            # What is finished leaves the device with its batch.
            if output_type == "pil":
                images += self.image_processor.postprocess(sample, "pil")
            else:
                images.append(self.image_processor.postprocess(sample, "pt").cpu())
        if output_type != "pil":
            images = torch.cat(images)
        if output_type == "np":
            images = self.image_processor.pt_to_numpy(images)

        self.maybe_free_model_hooks()
        if not return_dict:
            return images, labels
        return DiMPipelineOutput(images=images, labels=labels)

    def to_dataset(
        self,
        ipc: int,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int = 256,
        features: Any = None,
    ) -> Any:
        """
        A fixed set of generated images as a `datasets.Dataset`, in memory, class by class.

        Args:
            ipc, class_labels, generator, batch_size: Those of [`__call__`].
            features (`datasets.Features`, *optional*):
                Those of a data set it will be mixed with, by `datasets.interleave_datasets` or otherwise. Its image
                and label columns give the names of the columns and the number of each class, which are matched by
                name. By default the columns are `image` and `label`.

        Returns:
            `datasets.Dataset` with an `Image` and a `ClassLabel` column.

        Raises:
            ImportError: If the package datasets is not installed.
            ValueError: If an argument is not valid, or a class is not one of `features`.
        """
        self.check_inputs(class_labels, ipc, generator, None, batch_size, "pil")
        label_ids = self.get_label_ids(class_labels)
        features, image_column, label_column, label_of = labelled_features(self.class_names, label_ids, features)
        images, labels = self(class_labels, ipc, generator, batch_size=batch_size, return_dict=False)
        content = {image_column: images, label_column: [label_of[label] for label in labels]}
        return _import_datasets().Dataset.from_dict(content, features=features)


def labelled_features(
    class_names: list[str], label_ids: list[int], features: Any = None
) -> tuple[Any, str, str, dict[int, int]]:
    """
    The columns of generated data, alone or beside a real data set.

    Args:
        class_names (`list[str]`): The generator's classes, by label.
        label_ids (`list[int]`): The labels that are generated.
        features (`datasets.Features`, *optional*): Those of the real data set.

    Returns:
        `datasets.Features` of an image and a label column, their names, and the label in that column of each that is
        generated.

    Raises:
        ImportError: If the package datasets is not installed.
        ValueError: If a class has no label in `features`, or these have not one image and one label column.
    """
    datasets = _import_datasets()
    if features is None:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    columns = {}
    for kind in (datasets.Image, datasets.ClassLabel):
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(found) != 1:
            raise ValueError(
                f"`features` has the {kind.__name__} columns {found}; valid is exactly one. `select_columns` and "
                "`cast_column` make it so."
            )
        columns[found[0]] = features[found[0]]
    image_column, label_column = columns
    names = columns[label_column].names
    if unknown := [class_names[label] for label in label_ids if class_names[label] not in names]:
        raise ValueError(
            f"`features` has the classes {', '.join(names)}; the pipeline also generates {', '.join(unknown)}. Rename "
            "the classes of one of them, or leave these out."
        )
    label_of = {label: names.index(class_names[label]) for label in label_ids}
    return datasets.Features(columns), image_column, label_column, label_of


def _import_datasets() -> Any:
    # diffusers does not demand of a repository's code what is imported under `try`.
    try:
        import datasets
    except ImportError as error:
        raise ImportError("a data set of generated images needs the package datasets: pip install datasets") from error
    return datasets


def _file_name(library: str) -> str:
    """The last part of a module's dotted name: a class that diffusers loaded from a folder has a longer one."""
    return library.rpartition(".")[2]


@contextmanager
def _clear_hub_errors(repo_id: str) -> Iterator[None]:
    """Says in one message why a repository cannot be loaded from the Hub."""
    try:
        yield
    except (OSError, httpx.HTTPError, EntryNotFoundError) as error:
        raise OSError(f"{repo_id!r} is no local folder and cannot be loaded from the Hub: {hub_reason(error)}") from (
            error
        )


def hub_reason(error: BaseException) -> str:
    """What went wrong between here and the Hub, in a sentence, from the errors of its client."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in chain:
        if isinstance(each, RevisionNotFoundError):
            return "the repository has no such `revision`."
        if isinstance(each, RemoteEntryNotFoundError):
            return f"the repository has no file {str(each.response.url).rpartition('/')[2]}."
        if isinstance(each, RepositoryNotFoundError):
            return "there is no such repository, or it is private and the token does not give access to it."
        if isinstance(each, HfHubHTTPError) and each.response.status_code == 401:
            return "the token is not valid; log in with `hf auth login`, or set HF_TOKEN."
        if isinstance(each, HfHubHTTPError) and each.response.status_code == 403:
            return "the token does not give the right to do this; it needs write access to the repository."
        if isinstance(each, httpx.TransportError):
            return f"the connection to {constants.ENDPOINT} failed ({str(each) or type(each).__name__})."
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain) and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing but the cache is used."
    if any(isinstance(each, LocalEntryNotFoundError) for each in chain):
        return "it is not in the cache, and `local_files_only` keeps it from being looked up."
    return " ".join(str(error).split())
