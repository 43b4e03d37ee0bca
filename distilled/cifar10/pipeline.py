"""The pipeline that turns class labels and noise into images of a distilled data set.

A distilled repository on the Hub holds this file as `pipeline.py`, so it imports only torch, diffusers and
safetensors. How the installed package loads a pipeline is in `installed.py`.
"""

import copy
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor, unwrap_module
from safetensors import SafetensorError


Pipeline = TypeVar("Pipeline", bound="DiMPipeline")
ClassLabels = int | str | Iterable[int | str] | torch.Tensor | None
Generators = torch.Generator | list[torch.Generator] | None

# A call keeps all of its images until the last one is made.
_MOST_IN_MEMORY = 1_000_000
# Of the noise and pixels of those images: 16 GiB in float32.
_MOST_NUMBERS = 2**32
_LONGEST_NAME = 200
# Holds a whole pipeline until its files have replaced those of an older one; the installed pipeline looks here first.
NEXT_PIPELINE = ".pipeline.next"
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

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
            N images, class by class: PIL images (mode `L` or `RGB`), or float32 in [0, 1] as an array of shape
            `(N, height, width, channels)` or a tensor of shape `(N, channels, height, width)` on the CPU.
        labels (`list[int]`): The class of each image.
    """

    labels: list[int]


class DiMPipeline(DiffusionPipeline):
    r"""
    Generates labelled images from a distilled data set (DiM, arXiv 2303.04707).

    Args:
        generator ([`DiMGenerator`]):
            Maps noise and labels to images in [-1, 1]. It is put into `eval()` mode, in which an image does not
            depend on its batch, so pass a copy if it is still being trained.
        id2label (`dict[int, str]` or `list[str]`, *optional*): The name of each class, by its label.
        labeler ([`DiMLabeler`], *optional*):
            A classifier of the real images, put into `eval()` mode. [`DiMDataset`] uses it for soft labels and to
            reject images that it classifies wrongly.
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
        self.register_modules(generator=generator.eval(), labeler=None if labeler is None else labeler.eval())
        self.register_to_config(id2label=checked_names(id2label, generator.config.num_classes))
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, do_resize=False)

    @property
    def components(self) -> dict[str, Any]:
        """The arguments that make this pipeline again, with `DiMPipeline(**pipe.components)`."""
        # diffusers lists only the networks.
        names = {} if self.config.id2label is None else {"id2label": self.config.id2label}
        return super().components | names

    @classmethod
    def from_pipe(
        cls: type[Pipeline], pipeline: DiffusionPipeline, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Pipeline:
        """
        Makes a pipeline from the networks and class names of another, without copying weights.

        Args:
            pipeline ([`DiMPipeline`]): The other pipeline.
            dtype (`torch.dtype`, *optional*): Casts the networks of both pipelines; `torch_dtype` is the same.
            kwargs: Arguments of this class that replace those of `pipeline`.

        Raises:
            ValueError: If `pipeline` is not a `DiMPipeline`.
        """
        # The method of diffusers drops networks that are not of the annotated class, and casts the rest to float32.
        if not is_a(pipeline, "DiMPipeline"):
            raise ValueError(f"`pipeline` is {_shown(pipeline)}; valid is a DiMPipeline.")
        dtype = kwargs.pop("torch_dtype", dtype)
        made = cls(**(pipeline.components | kwargs))
        if pipeline.name_or_path is not None:
            made.register_to_config(_name_or_path=pipeline.name_or_path)
        return made if dtype is None else made.to(dtype=dtype)

    def to(self: Pipeline, *args: Any, **kwargs: Any) -> Pipeline:
        """[`DiffusionPipeline.to`] without its warning about float16 on a CPU, where these networks do run."""
        return super().to(*args, **{"silence_dtype_warnings": True} | kwargs)

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
        Saves the pipeline as safetensors with its source, so that the folder works without this package. Takes the
        arguments of [`DiffusionPipeline.save_pretrained`] and `storage`. A pipeline that the folder holds is replaced
        once the new one is complete; weights of other variants stay.

        Args:
            storage (`str`, *optional*):
                How the generator's weights are stored: `"float32"`, `"float16"`, or `"int8"` to `"int2"`: codes of
                that many bits with a scale per channel. A labeler is stored in float16 with `"float16"`, and in codes
                of 8 bits with any of these. The default is the form that the generator was loaded from, or else its
                dtype in memory. Weights in memory do not change, and loading gives float32.

        Raises:
            ValueError: If an argument is not valid, the form of storage cannot hold the weights, or the folder holds
                weights of another variant that belong to another network or have other class names.
            OSError: If the folder cannot be written, or holds a `pipeline.py` but no pipeline.
        """
        if kwargs and not push_to_hub:
            raise TypeError(f"`save_pretrained` takes no {_listed(sorted(kwargs))} without `push_to_hub`.")
        if safe_serialization is not True:
            raise ValueError(
                f"`safe_serialization` is {_shown(safe_serialization)}; only True is valid, since pickled weights can "
                "run code."
            )
        if not isinstance(save_directory, str | os.PathLike):
            raise ValueError(f"`save_directory` is {_shown(save_directory)}; valid is the path of a folder.")
        form = self._checked_form(storage, variant, max_shard_size)
        folder = Path(os.path.expanduser(save_directory))
        if folder.is_file():
            raise NotADirectoryError(f"`save_directory` {folder} is a file; valid is the path of a folder.")
        if (folder / NEXT_PIPELINE).is_dir():
            self._put_in_place(folder / NEXT_PIPELINE, folder)
        self._check_folder(folder, variant)
        stored = self._stored_as(form)
        repo_id = kwargs.pop("repo_id", folder.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".pipeline.", suffix=".incomplete", dir=folder) as aside:
                written = Path(aside) / "pipeline"
                written.mkdir()
                for name in stored._networks():
                    if (folder / name).is_dir():
                        shutil.copytree(folder / name, written / name, ignore_dangling_symlinks=True)
                    (written / name).mkdir(exist_ok=True)
                    module = stored.config[name][0]
                    shutil.copyfile(inspect.getfile(sys.modules[module]), written / name / f"{_file_name(module)}.py")
                shutil.copyfile(__file__, written / "pipeline.py")
                # `DiMPipeline` may be another class by now: diffusers runs this file again for each pipeline that it
                # loads.
                super(__class__, stored).save_pretrained(  # type: ignore[name-defined]
                    str(written), variant=variant, max_shard_size=max_shard_size
                )
                # safetensors makes files that only their owner may read.
                for weights in written.rglob("*.safetensors"):
                    shutil.copymode(written / "pipeline.py", weights)
                self._put_in_place(written, folder)
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno is None:
                raise
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
            raise OSError(f"`save_directory` {folder} cannot be written: {reason}.") from error
        # From a temporary folder, since this one may also hold a run with its checkpoints.
        if push_to_hub:
            self.push_to_hub(repo_id, variant=variant, storage=storage, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, storage: str | None = None, **kwargs: Any) -> str:
        """Pushes as [`DiffusionPipeline.push_to_hub`] does; `storage` is that of [`save_pretrained`]."""
        # diffusers creates the repository before it saves.
        stored = self._stored_as(self._checked_form(storage, kwargs.get("variant")))
        return super(__class__, stored).push_to_hub(repo_id, *args, **kwargs)  # type: ignore[name-defined]

    def _checked_form(
        self, storage: str | None, variant: str | None, max_shard_size: int | str | None = None
    ) -> str | None:
        """The form of storage, once these arguments of [`save_pretrained`] are found to be valid."""
        # It becomes part of file names.
        if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"\w[\w-]*", variant)):
            raise ValueError(
                f"`variant` is {_shown(variant)}; valid are letters, digits, hyphens and underscores, or None."
            )
        form = self.generator.storage if storage is None else storage
        self.generator.check_storage(form, max_shard_size)
        if self.labeler is not None:
            self.labeler.check_storage(form)
        return form

    def _check_folder(self, folder: Path, variant: str | None) -> None:
        """Raises an error if saving here would overwrite what is not a pipeline's, or mix two pipelines."""
        source = folder / "pipeline.py"
        foreign = source.is_file() and source.read_bytes() != Path(__file__).read_bytes()
        if foreign and not (folder / "model_index.json").is_file():
            raise FileExistsError(
                f"`save_directory` {folder} holds a pipeline.py without a pipeline, which would be overwritten; "
                "name another folder."
            )
        for name in ("generator", "labeler"):
            if (folder / name).is_symlink():
                raise FileExistsError(
                    f"`save_directory` {folder} holds a link named {name}, and what it leads to would be overwritten; "
                    "name another folder."
                )
        files = {
            path: path.read_bytes()
            for path in (folder / "generator" / "config.json", folder / "model_index.json")
            if path.is_file()
        }
        names = [path.name for path in (folder / "generator").glob("*.safetensors")]
        self.refuse_mixture(f"`save_directory` {folder}", variant, names, *files.values())

    def refuse_mixture(self, where: str, variant: str | None, names: list[str], *files: bytes) -> None:
        """
        Raises a `ValueError` if there are weights of other variants that belong to another network or to other class
        names. All variants in one place share one configuration, so this pipeline's would be theirs too.

        Args:
            where (`str`): The folder or repository, for the message.
            variant (`str`, *optional*): That of this pipeline.
            names (`list[str]`): The names of the generator's files there.
            files (`bytes`): The contents of `generator/config.json` and `model_index.json` there.
        """
        ending = f".{variant}" if variant else ""
        ours = re.compile(rf"diffusion_pytorch_model{re.escape(ending)}(-\d+-of-\d+)?\.safetensors")
        others = sorted(
            name for name in names if name.startswith("diffusion_pytorch_model") and not ours.fullmatch(name)
        )
        if not others:
            return
        signature = inspect.signature(type(self.generator))
        defaults = {name: each.default for name, each in signature.parameters.items()}

        def told(config: Any, index: Any) -> tuple[Any, Any]:
            # Older configs lack newer entries.
            network = defaults | {name: value for name, value in config.items() if name[0] != "_"}
            return {name: list(v) if isinstance(v, tuple) else v for name, v in network.items()}, index.get("id2label")

        index = json.loads(self.to_json_string())
        try:
            config_there, index_there = (json.loads(file) for file in files)
            fits = told(config_there, index_there) == told(self.generator.config, index)
            fits = fits and ("labeler" in index or "labeler" not in index_there)
        except (ValueError, AttributeError, TypeError):
            fits = False
        if not fits:
            raise ValueError(
                f"{where} holds {', '.join(others[:3])} of another network, or with other class names or a teacher, "
                "which all variants share; name another."
            )

    def _put_in_place(self, written: Path, folder: Path) -> None:
        """Replaces a folder's pipeline. The folder cannot be loaded until it has an index again, which goes last."""
        (folder / "model_index.json").unlink(missing_ok=True)
        for path in sorted(written.iterdir(), key=lambda path: path.name == "model_index.json"):
            if (folder / path.name).is_dir():
                os.rename(folder / path.name, written / f".old {path.name}")
            os.replace(path, folder / path.name)
        shutil.rmtree(written)

    def _networks(self) -> dict[str, ModelMixin]:
        networks = {"generator": self.generator, "labeler": self.labeler}
        return {name: unwrap_module(network) for name, network in networks.items() if network is not None}

    def _stored_as(self: Pipeline, form: str | None) -> Pipeline:
        """A shallow copy of the pipeline; its networks are saved in this form of storage."""
        stored = copy.copy(self)
        for name, network in self._networks().items():
            network = copy.copy(network)
            # diffusers would record where the network was loaded from: a local path, different in every copy.
            network._internal_dict = FrozenDict({k: v for k, v in network.config.items() if k != "_name_or_path"})
            setattr(stored, name, network)
        stored.generator.storage = form
        if stored.labeler is not None and form not in (None, "float32"):
            content = stored.labeler.stored_state(form)
            stored.labeler.state_dict = lambda: content
        return stored

    def to_json_string(self) -> str:
        """The content of `model_index.json`, which names the source files that [`save_pretrained`] copies."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        config["_class_name"] = ["pipeline", "DiMPipeline"]
        if self.labeler is None:
            del config["labeler"]
        for name in self._networks():
            config[name][0] = _file_name(config[name][0])
        return json.dumps(config, indent=2) + "\n"

    @property
    def class_names(self) -> list[str]:
        """The name of each class, by label; its number if the pipeline has no names."""
        names = self.config.id2label or {}
        return [names.get(label, str(label)) for label in range(self.generator.config.num_classes)]

    def check_inputs(
        self,
        class_labels: ClassLabels,
        ipc: int,
        generator: Generators,
        latents: torch.Tensor | None,
        batch_size: int,
        output_type: str,
    ) -> None:
        """Raises a `ValueError` for the first argument of [`__call__`] that is wrong."""
        for name, value in (("ipc", ipc), ("batch_size", batch_size)):
            if not _is_integer(value) or int(value) < 1:
                raise ValueError(f"`{name}` is {_shown(value)}; valid is a whole number from 1.")
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` is {_shown(output_type)}; valid are 'pil', 'np' and 'pt'.")
        label_ids = self.get_label_ids(class_labels)
        num_images = len(label_ids) * int(ipc)
        config = self.generator.config
        numbers = config.latent_dim + config.out_channels * config.sample_size**2
        if num_images > (most := min(_MOST_IN_MEMORY, _MOST_NUMBERS // numbers)):
            raise ValueError(
                f"`ipc` is {_shown(ipc)}, for {len(label_ids)} classes; valid are at most {most:,} images "
                "in memory. training/generate_dim.py of dim_hf writes any number to disk."
            )
        for each in generator if isinstance(generator, list) else [generator]:
            if not isinstance(each, torch.Generator) and generator is not None:
                raise ValueError(
                    f"`generator` is or holds {_shown(each)}; valid is a `torch.Generator`, such as "
                    "`torch.Generator().manual_seed(0)`, a list with one for each image, or None."
                )
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(f"`generator` is a list of {len(generator)}; {num_images} images need one each.")
        if latents is not None:
            shape = (num_images, self.generator.config.latent_dim)
            valid = f"valid for {num_images} images is a floating-point tensor of shape {shape}"
            if not isinstance(latents, torch.Tensor):
                raise ValueError(f"`latents` is {_shown(latents)}; {valid}.")
            if latents.shape != shape or not latents.is_floating_point():
                raise ValueError(f"`latents` is {latents.dtype} of shape {tuple(latents.shape)}; {valid}.")
            if not latents.isfinite().all():
                raise ValueError("`latents` holds infinity or NaN; valid are finite numbers.")
        if self.generator.training:
            raise ValueError("`pipe.generator` is in training mode; call `pipe.generator.eval()` first.")

    def get_label_ids(self, class_labels: ClassLabels, argument: str = "class_labels") -> list[int]:
        """
        The label of each class in `class_labels`, in the order given.

        Args:
            class_labels (`int`, `str`, `torch.Tensor`, `np.ndarray` or an iterable of these, *optional*):
                One or several labels and class names. `None` means every class.
            argument (`str`, *optional*, defaults to `"class_labels"`): The name of the argument in errors.

        Raises:
            ValueError: If there is no such class.
        """
        num_classes, id2label = self.generator.config.num_classes, self.config.id2label or {}
        if class_labels is None:
            return list(range(num_classes))
        label2id = {name: label for label, name in id2label.items()}
        valid = f"valid are the labels 0 to {num_classes - 1}"
        if id2label:
            valid += f" and the names {_listed(repr(id2label[label]) for label in range(num_classes))}"
        if isinstance(class_labels, set | frozenset | Mapping | bytes | bytearray):
            raise ValueError(
                f"`{argument}` is {_shown(class_labels)}; valid is one class or a sequence, whose order decides which "
                "noise a class gets."
            )
        class_labels = _plain(class_labels)
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        label_ids = []
        for label in islice(map(_plain, class_labels), _MOST_IN_MEMORY + 1):
            label_id = label2id.get(label, label) if isinstance(label, str) else label
            if not _is_integer(label_id) or not 0 <= int(label_id) < num_classes:
                raise ValueError(f"`{argument}` is or holds {_shown(label)}; {valid}.")
            label_ids.append(int(label_id))
        if not label_ids:
            raise ValueError(f"`{argument}` is empty; {valid}, or None for every class.")
        if len(label_ids) > _MOST_IN_MEMORY:
            raise ValueError(f"`{argument}` holds more than {_MOST_IN_MEMORY:,} classes, the most that are valid.")
        return label_ids

    def prepare_latents(self, num_images: int, generator: Generators) -> torch.Tensor:
        """
        The noise of all images: a float32 tensor of shape `(num_images, latent_dim)` on the CPU. It is drawn at once,
        so that a seed gives the same noise for any batch size, device and dtype.
        """
        first = generator[0] if isinstance(generator, list) else generator
        device = torch.device("cpu") if first is None else first.device
        shape = (num_images, self.generator.config.latent_dim)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).cpu()

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: ClassLabels = None,
        ipc: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        batch_size: int = 256,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DiMPipelineOutput | tuple[Any, list[int]]:
        r"""
        Generates `ipc` images of each class, class by class.

        Args:
            class_labels (`int`, `str`, `torch.Tensor`, `np.ndarray` or an iterable of these, *optional*):
                Labels and class names; a string is one name. `None` means every class.
            ipc (`int`, *optional*, defaults to 1): Images per class.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the noise, or a list with one for each image. A seed gives the same images,
                within rounding, for any `batch_size` and on any device.
            latents (`torch.Tensor` of shape `(num_images, latent_dim)`, *optional*):
                Standard normal noise to use in place of `generator`'s.
            batch_size (`int`, *optional*, defaults to 256):
                Images per forward pass, which bounds the memory used on the generator's device.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"` (`PIL.Image.Image`), `"np"` (`np.ndarray`) or `"pt"` (`torch.Tensor`).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a [`DiMPipelineOutput`] instead of the tuple `(images, labels)`.

        Examples:

        Raises:
            ValueError: If an argument is not valid.
        """
        # Read once, since it may be an iterator.
        label_ids = self.get_label_ids(class_labels)
        self.check_inputs(label_ids, ipc, generator, latents, batch_size, output_type)
        # Small integers of NumPy would overflow.
        ipc, batch_size = int(ipc), int(batch_size)
        labels = [label for label in label_ids for _ in range(ipc)]
        latents = self.prepare_latents(len(labels), generator) if latents is None else latents

        images: Any = []
        for start in self.progress_bar(range(0, len(labels), batch_size)):
            batch = slice(start, start + batch_size)
            sample = self.generator(
                latents[batch].to(self._execution_device, self.generator.dtype),
                torch.tensor(labels[batch], device=self._execution_device),
            ).sample.float()
            # Finished images leave the device with their batch.
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
        *,
        class_labels: ClassLabels = None,
        generator: Generators = None,
        batch_size: int = 256,
        features: Any = None,
    ) -> Any:
        """
        Generates a fixed set of images as a `datasets.Dataset` of an `Image` and a `ClassLabel` column, in memory.

        Args:
            ipc, class_labels, generator, batch_size: See [`__call__`].
            features (`datasets.Features`, *optional*):
                Features of a data set to mix it with. Columns take their names from it, and classes, matched by name,
                their labels. By default the columns are `image` and `label`.

        Raises:
            ImportError: If the package datasets is not installed.
            ValueError: If an argument is not valid, or a class is missing from `features`.
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
    The columns of generated data, which may be mixed with a real data set.

    Args:
        class_names (`list[str]`): The generator's classes, by label.
        label_ids (`list[int]`): The labels to be generated.
        features (`datasets.Features`, *optional*): Features of the real data set.

    Returns:
        `datasets.Features` of the two columns, the name of the image and of the label column, and a dictionary from
        each label to be generated to its label in that column.

    Raises:
        ImportError: If the package datasets is not installed.
        ValueError: If a class is missing from `features`, or there is not exactly one image and one label column.
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
                f"`features` has the {kind.__name__} columns {_listed(found)}; valid is exactly one. Use "
                "`select_columns` and `cast_column`."
            )
        columns[found[0]] = features[found[0]]
    image_column, label_column = columns
    names = columns[label_column].names
    if unknown := [class_names[label] for label in label_ids if class_names[label] not in names]:
        raise ValueError(
            f"`features` has the classes {_listed(names)}; the pipeline also generates {_listed(unknown)}. Rename "
            "classes, or leave these out."
        )
    label_of = {label: names.index(class_names[label]) for label in label_ids}
    return datasets.Features(columns), image_column, label_column, label_of


def _import_datasets() -> Any:
    # diffusers refuses to load a file whose imports are not installed, unless they are in a `try` block.
    try:
        import datasets
    except ImportError as error:
        raise ImportError("a data set of generated images needs the package datasets: pip install datasets") from error
    return datasets


def is_a(value: Any, class_name: str) -> bool:
    """Whether a value is an instance of a class of this name, whichever copy of the source defines it."""
    return class_name in [each.__name__ for each in type(value).__mro__]


def _check_network(argument: str, network: Any, class_name: str) -> None:
    if not is_a(unwrap_module(network), class_name):
        valid = f"valid is a {class_name}. `DiMPipeline.from_pretrained` loads a saved pipeline."
        raise ValueError(f"`{argument}` is {_shown(network)}; {valid}")


def checked_names(id2label: Any, num_classes: int) -> dict[int, str] | None:
    """The name of each label. The labels of a saved pipeline are strings, as in any JSON."""
    if id2label is None:
        return None
    if isinstance(id2label, list | tuple):
        id2label = dict(enumerate(id2label))
    if not isinstance(id2label, Mapping):
        raise ValueError(f"`id2label` is {_shown(id2label)}; valid is a dict of labels and names, or a list of names.")
    # Counted first, since a saved file may hold any number of them.
    names = {str(label): name for label, name in id2label.items()} if len(id2label) == num_classes else {}
    if names.keys() != {str(label) for label in range(num_classes)}:
        raise ValueError(
            f"`id2label` names the labels {_listed(map(repr, id2label))}; the generator has {num_classes} classes, so "
            f"valid are exactly 0 to {num_classes - 1}."
        )
    seen: set[str] = set()
    for name in names.values():
        if not isinstance(name, str) or name in seen:
            raise ValueError(f"`id2label` holds {_shown(name)}; every class must have a name (`str`) of its own.")
        # Names go into tables, pages and cards. What reorders text could make one look like another.
        odd = [each for each in name if category(each) in ("Cc", "Cs", "Zl", "Zp") or each in _REORDERING]
        if odd or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"`id2label` holds the name {_shown(name)}, of {len(name):,} characters; valid is one line of at most "
                f"{_LONGEST_NAME}, without control characters."
            )
        seen.add(name)
    return {label: str(names[str(label)]) for label in range(num_classes)}


def _plain(value: Any) -> Any:
    """A tensor or an array as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(names: Iterable[str]) -> str:
    """`a, b, c and 17 more`."""
    remaining = iter(names)
    named = [name if len(name) <= 30 else f"{name[:27]}..." for name in islice(remaining, 6)]
    more = sum(1 for _ in remaining)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _file_name(library: str) -> str:
    """The last part of a module's dotted name, which is longer if diffusers loaded the module from a folder."""
    return library.rpartition(".")[2]
