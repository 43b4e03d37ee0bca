"""The pipeline that turns class labels and noise into images of a distilled data set.

This file is also what a distilled repository on the Hub holds as `pipeline.py`, so it needs torch and diffusers, with
the huggingface_hub that diffusers is built on, and nothing else.
"""

import inspect
import json
import os
import shutil
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor, unwrap_module
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id


Pipeline = TypeVar("Pipeline", bound="DiMPipeline")
ClassLabels = int | str | Iterable[int | str] | torch.Tensor | None

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
        id2label (`dict[int, str]` or `list[str]`, *optional*):
            The name of every class of the generator, by its label. Without it classes go by number only.
        labeler ([`DiMLabeler`], *optional*):
            A classifier trained on the real images, for soft labels and for leaving out images that it takes for
            another class; see [`DiMDataset`]. It is put into `eval()` mode.
    """

    model_cpu_offload_seq = "generator"
    _optional_components = ["labeler"]

    def __init__(
        self,
        generator: ModelMixin,
        id2label: dict[int, str] | dict[str, str] | list[str] | None = None,
        labeler: ModelMixin | None = None,
    ):
        super().__init__()
        _check_network("generator", generator, "DiMGenerator")
        if labeler is not None:
            _check_network("labeler", labeler, "DiMLabeler")
            made = [generator.config[name] for name in ("num_classes", "sample_size", "out_channels")]
            taken = [labeler.config[name] for name in ("num_classes", "sample_size", "in_channels")]
            if made != taken:
                raise ValueError(
                    f"`labeler` takes {taken[0]} classes, {taken[1]} pixels and {taken[2]} channels; the generator "
                    f"makes {made[0]}, {made[1]} and {made[2]}."
                )
            labeler = labeler.eval()
        self.register_modules(generator=generator.eval(), labeler=labeler)
        self.register_to_config(id2label=_checked_names(id2label, generator.config.num_classes))
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def components(self) -> dict[str, Any]:
        """
        What `DiMPipeline(**pipe.components)` needs to make this pipeline again: its networks, and the class names
        where it has any.
        """
        # diffusers leaves out what is not a network.
        names = {} if self.config.id2label is None else {"id2label": self.config.id2label}
        return super().components | names

    @classmethod
    def from_pipe(
        cls: type[Pipeline], pipeline: DiffusionPipeline, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Pipeline:
        """
        Makes a pipeline of the networks and class names of another; the two share their memory.

        Args:
            pipeline ([`DiMPipeline`]): Where they come from.
            dtype (`torch.dtype`, *optional*): What the networks of both are cast to; by default they stay as they are.
            kwargs: Arguments of this class that take the place of those of `pipeline`.

        Raises:
            ValueError: If `pipeline` is something else.
        """
        # That of diffusers drops every network whose class is not the annotated one, and casts the others to float32.
        if not is_a(pipeline, "DiMPipeline"):
            raise ValueError(f"`pipeline` is {_shown(pipeline)}; valid is a DiMPipeline.")
        made = cls(**(pipeline.components | kwargs))
        if pipeline.name_or_path is not None:
            made.register_to_config(_name_or_path=pipeline.name_or_path)
        return made if dtype is None else made.to(dtype=dtype)

    def to(self: Pipeline, *args: Any, **kwargs: Any) -> Pipeline:
        """As [`DiffusionPipeline.to`], without its warning of float16 on a CPU, where these networks do run."""
        return super().to(*args, **{"silence_dtype_warnings": True} | kwargs)

    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Pipeline:
        """
        Loads a pipeline from a folder or from the Hub, as [`DiffusionPipeline.from_pretrained`] does, but only from
        safetensors and, where this class comes from an installed package, without running any code of the folder or
        repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder, in which `~` is the home folder, or a repository on the Hub.
            subfolder (`str`, *optional*): Where the pipeline lies in it, if not at its top.
            kwargs: Those of [`DiffusionPipeline.from_pretrained`].

        Raises:
            OSError: If a file is missing, weights are pickled, or the Hub does not give the repository.
            ValueError: If an argument is not valid, or a file describes something else than this pipeline.
        """
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError(
                f"`use_safetensors` is {_shown(kwargs['use_safetensors'])}; only True is valid, since pickled weights "
                "can run code."
            )
        name = _folder_or_repo_id(pretrained_model_name_or_path)
        if subfolder is not None:
            if not isinstance(subfolder, str | os.PathLike):
                raise ValueError(f"`subfolder` is {_shown(subfolder)}; valid is the path of a folder, or None.")
            if not os.path.isdir(name):
                of_the_hub = ("cache_dir", "force_download", "local_files_only", "token", "revision")
                arguments = {key: kwargs.pop(key) for key in of_the_hub if key in kwargs}
                with _clear_hub_errors(name):
                    name = snapshot_download(name, allow_patterns=f"{subfolder}/*", **arguments)
            name = os.path.join(name, subfolder)
            if not os.path.isdir(name):
                raise FileNotFoundError(f"`subfolder` {str(subfolder)!r} is not in {pretrained_model_name_or_path}.")
        # A save over an older pipeline that was killed between two files is whole in here.
        killed = os.path.join(name, ".pipeline.next")
        folder = killed if os.path.isdir(killed) else name
        if os.path.isdir(folder):
            cls._check_files(Path(folder), passed=kwargs)
        pipeline = super().from_pretrained(folder, **kwargs)
        if folder != name:
            pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str | os.PathLike:
        """As [`DiffusionPipeline.download`], with one clear message where the Hub does not give the repository."""
        with _clear_hub_errors(pretrained_model_name):
            folder = super().download(pretrained_model_name, **kwargs)
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
            indexes = [_read_json(path) for path in below.glob("*.safetensors.index*.json")]
            shards = {below / name for index in indexes for name in index.get("weight_map", {}).values()}
            pickled = {path for path in shards if path.suffix != ".safetensors"}
            if not list(below.glob("*.safetensors")):
                missing.append(f"{component}/diffusion_pytorch_model.safetensors")
                pickled |= {path for path in below.rglob("*") if path.suffix in _PICKLED}
            if pickled:
                raise OSError(_PICKLED_IS_REFUSED.format(min(pickled)))
        if missing:
            raise FileNotFoundError(f"{folder} holds no DiMPipeline: {', '.join(missing)} is missing.")

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        config = _read_json(json_file)
        found = config.get("_class_name")
        if found not in ("DiMPipeline", ["pipeline", "DiMPipeline"]):
            raise ValueError(f"{json_file} describes a pipeline {_shown(found)}; valid is a DiMPipeline.")
        return config

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        valid = cls._get_init_keys(cls) - {"self"}
        if unknown := sorted(key for key in config_dict if not key.startswith("_") and key not in valid):
            raise ValueError(
                f"{cls.config_name} has the unknown entries {_listed(unknown)}; valid are {_listed(sorted(valid))}."
            )
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
            raise ValueError("`safe_serialization` is False; only True is valid, since pickled weights can run code.")
        if not isinstance(save_directory, str | os.PathLike):
            raise ValueError(f"`save_directory` is {_shown(save_directory)}; valid is the path of a folder.")
        folder = Path(save_directory).expanduser()
        if folder.is_file():
            raise NotADirectoryError(f"`save_directory` {folder} is a file; valid is the path of a folder.")
        form = self.generator.storage if storage is None else storage
        if form is not None:
            # Before any file is made.
            self.generator.check_storage(form, max_shard_size)
        for name in ("generator", *(["labeler"] if self.labeler is not None else [])):
            library = self.config[name][0]
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inspect.getfile(sys.modules[library]), folder / name / f"{_file_name(library)}.py")
        shutil.copyfile(__file__, folder / "pipeline.py")
        repo_id = kwargs.pop("repo_id", folder.name)
        with self._saved_in(form):
            super().save_pretrained(
                str(folder), variant=variant, max_shard_size=max_shard_size, **({} if push_to_hub else kwargs)
            )
        # diffusers notes where a component was loaded from: a path of this machine, and a change in every copy.
        for name in ("generator", "labeler"):
            config_file = folder / name / "config.json"
            if config_file.is_file():
                config = json.loads(config_file.read_text())
                if config.pop("_name_or_path", None) is not None:
                    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        # A push takes nothing else from the folder, which may hold a run with its checkpoints.
        if push_to_hub:
            self.push_to_hub(repo_id, variant=variant, storage=storage, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, storage: str | None = None, **kwargs: Any) -> str:
        """Pushes as [`DiffusionPipeline.push_to_hub`] does, in a form of storage as [`save_pretrained`] has it."""
        own_form = self.generator.storage
        self.generator.storage = own_form if storage is None else storage
        try:
            return super().push_to_hub(repo_id, *args, **kwargs)
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
        class_labels: ClassLabels,
        ipc: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        batch_size: int,
        output_type: str,
    ) -> None:
        """Raises a `ValueError` that names the first argument of [`__call__`] that is wrong, and what is valid."""
        for name, value in (("ipc", ipc), ("batch_size", batch_size)):
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
                raise ValueError(f"`{name}` is {_shown(value)}; valid is a whole number from 1.")
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` is {_shown(output_type)}; valid are 'pil', 'np' and 'pt'.")
        label_ids = self.get_label_ids(class_labels)
        num_images = len(label_ids) * int(ipc)
        if num_images > _MOST_IN_MEMORY:
            raise ValueError(
                f"`ipc` is {_shown(ipc)}, for {len(label_ids)} classes; valid are at most {_MOST_IN_MEMORY:,} images "
                "in memory. training/generate_dim.py of dim_hf writes any number to disk."
            )
        generators = generator if isinstance(generator, list) else [generator]
        for each in generators:
            if not isinstance(each, torch.Generator) and generator is not None:
                raise ValueError(
                    f"`generator` is or holds {_shown(each)}; valid is a `torch.Generator`, such as "
                    "`torch.Generator().manual_seed(0)`, a list with one for each image, or None."
                )
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"`generator` is a list of {len(generator)}; {num_images} images are asked for, and a list must have "
                "one for each."
            )
        shape = (num_images, self.generator.config.latent_dim)
        if latents is not None:
            valid = f"valid for {num_images} images is a floating-point tensor of shape {shape}"
            if not isinstance(latents, torch.Tensor):
                raise ValueError(f"`latents` is {_shown(latents)}; {valid}.")
            if latents.shape != shape or not latents.is_floating_point():
                raise ValueError(f"`latents` is {latents.dtype} of shape {tuple(latents.shape)}; {valid}.")
            if not latents.isfinite().all():
                raise ValueError("`latents` holds infinity or NaN; valid are finite numbers.")
        if self.generator.training:
            raise ValueError(
                "`pipe.generator` is in training mode, in which an image depends on its batch; call "
                "`pipe.generator.eval()` first."
            )

    def get_label_ids(self, class_labels: ClassLabels, argument: str = "class_labels") -> list[int]:
        """
        The label of each class that is asked for.

        Args:
            class_labels (`int`, `str`, `torch.Tensor`, `np.ndarray` or an iterable of these, *optional*):
                A label or a class name, or several of them in order, mixed at will. `None` stands for every class.
            argument (`str`, *optional*, defaults to `"class_labels"`): What an error calls it.

        Returns:
            `list[int]`: The labels, in the order given.

        Raises:
            ValueError: If there is no such class, naming the valid ones.
        """
        num_classes = self.generator.config.num_classes
        if class_labels is None:
            return list(range(num_classes))
        id2label = self.config.id2label or {}
        label2id = {name: label for label, name in id2label.items()}
        valid = f"valid are the labels 0 to {num_classes - 1}"
        if id2label:
            valid += f" and the names {_listed(repr(id2label[label]) for label in range(num_classes))}"
        if isinstance(class_labels, set | frozenset | Mapping | bytes | bytearray):
            raise ValueError(
                f"`{argument}` is {_shown(class_labels)}; valid is one class or a sequence of them, since the order "
                "decides which noise a class gets."
            )
        class_labels = _plain(class_labels)
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        label_ids = []
        for label in islice(map(_plain, class_labels), _MOST_IN_MEMORY + 1):
            label_id = label2id.get(label, label) if isinstance(label, str) else label
            if (
                not isinstance(label_id, Integral)
                or isinstance(label_id, bool)
                or not 0 <= int(label_id) < num_classes
            ):
                raise ValueError(f"`{argument}` is or holds {_shown(label)}; {valid}.")
            label_ids.append(int(label_id))
        if not label_ids:
            raise ValueError(f"`{argument}` is empty; {valid}, or None for every class.")
        if len(label_ids) > _MOST_IN_MEMORY:
            raise ValueError(f"`{argument}` holds more than {_MOST_IN_MEMORY:,} classes; valid are at most so many.")
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
        class_labels: ClassLabels = None,
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
            class_labels (`int`, `str`, `torch.Tensor`, `np.ndarray` or an iterable of these, *optional*):
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
        # An iterator can be read only once.
        label_ids = self.get_label_ids(class_labels)
        self.check_inputs(label_ids, ipc, generator, latents, batch_size, output_type)
        labels = [label for label in label_ids for _ in range(ipc)]
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
        class_labels: ClassLabels = None,
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
        label_ids = self.get_label_ids(class_labels)
        self.check_inputs(label_ids, ipc, generator, None, batch_size, "pil")
        features, image_column, label_column, label_of = labelled_features(self.class_names, label_ids, features)
        images, labels = self(label_ids, ipc, generator, batch_size=batch_size, return_dict=False)
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
    if not isinstance(features, datasets.Features):
        raise ValueError(f"`features` is {_shown(features)}; valid is the `features` of a data set, or None.")
    columns = {}
    for kind in (datasets.Image, datasets.ClassLabel):
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(found) != 1:
            raise ValueError(
                f"`features` has the {kind.__name__} columns {_listed(found)}; valid is exactly one. `select_columns` "
                "and `cast_column` make it so."
            )
        columns[found[0]] = features[found[0]]
    image_column, label_column = columns
    names = columns[label_column].names
    if unknown := [class_names[label] for label in label_ids if class_names[label] not in names]:
        raise ValueError(
            f"`features` has the classes {_listed(names)}; the pipeline also generates {_listed(unknown)}. Rename the "
            "classes of one of them, or leave these out."
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


def is_a(value: Any, class_name: str) -> bool:
    """Whether a value is of the class of that name, whichever copy of its source that was made from."""
    return class_name in [each.__name__ for each in type(value).__mro__]


def _check_network(argument: str, network: Any, class_name: str) -> None:
    if not is_a(unwrap_module(network), class_name):
        raise ValueError(
            f"`{argument}` is {_shown(network)}; valid is a {class_name}. `DiMPipeline.from_pretrained` loads a saved "
            "pipeline."
        )


def _checked_names(id2label: Any, num_classes: int) -> dict[int, str] | None:
    """The name of each label. JSON has turned the labels of a saved pipeline into strings."""
    if id2label is None:
        return None
    if isinstance(id2label, list | tuple):
        id2label = dict(enumerate(id2label))
    if not isinstance(id2label, Mapping):
        raise ValueError(f"`id2label` is {_shown(id2label)}; valid is a dict of labels and names, or a list of names.")
    names = {str(label): name for label, name in id2label.items()}
    if names.keys() != {str(label) for label in range(num_classes)} or len(id2label) != num_classes:
        raise ValueError(
            f"`id2label` names the labels {_listed(map(repr, id2label))}; the generator has {num_classes} classes, so "
            f"valid are exactly 0 to {num_classes - 1}."
        )
    seen: set[str] = set()
    for name in names.values():
        if not isinstance(name, str) or name in seen:
            raise ValueError(f"`id2label` holds {_shown(name)}; every class must have a name (`str`) of its own.")
        seen.add(name)
    return {label: str(names[str(label)]) for label in range(num_classes)}


def _folder_or_repo_id(value: Any) -> str:
    """A folder, or an id that a repository may have; anything else is refused before the Hub is asked."""
    what = f"`pretrained_model_name_or_path` {_shown(str(value) if isinstance(value, os.PathLike) else value)}"
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
        raise FileNotFoundError(f"{what} does not exist, and no repository can have this id; {valid}.") from None
    if isinstance(value, os.PathLike):
        raise FileNotFoundError(f"{what} does not exist; {valid}, as a `str`.")
    return name


def _read_json(path: str | os.PathLike) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds {_shown(content)}; valid is a JSON object.")
    return content


def _plain(value: Any) -> Any:
    """A tensor or an array of any number of dimensions, down to none, as Python's own lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _shown(value: Any) -> str:
    """A value as a message has it: on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(names: Iterable[str]) -> str:
    """`a, b, c and 17 more`."""
    remaining = iter(names)
    named = [name if len(name) <= 30 else f"{name[:27]}..." for name in islice(remaining, 6)]
    more = sum(1 for _ in remaining)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _file_name(library: str) -> str:
    """The last part of a module's dotted name: a class that diffusers loaded from a folder has a longer one."""
    return library.rpartition(".")[2]


@contextmanager
def _clear_hub_errors(repo_id: str) -> Iterator[None]:
    """Says in one message why a repository cannot be loaded from the Hub."""
    try:
        yield
    except (OSError, httpx.HTTPError, EntryNotFoundError) as error:
        raise OSError(
            f"{repo_id!r} is not a local folder and cannot be loaded from the Hub: {hub_reason(error)}"
        ) from (error)


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
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:397]}..."
