"""The pipeline: generation, refusals, and loading saved pipelines with and without the package."""

import ast
import json
import os
import pickle
import sys
from pathlib import Path

import diffusers
import numpy as np
import processes
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from dim_hf.files import NEXT_PIPELINE
from dim_hf.models import DiMGenerator, DiMLabeler, labeler_dim
from dim_hf.pipelines import DiMPipeline, DiMPipelineOutput, pipeline_dim


NAMES = {0: "T-shirt", 1: "Coat", 2: "Bag"}
LATENT_DIM = 6


def make_pipeline(out_channels: int = 1, id2label: dict | None = NAMES) -> DiMPipeline:
    torch.manual_seed(0)
    generator = DiMGenerator(
        num_classes=3,
        sample_size=8,
        out_channels=out_channels,
        latent_dim=LATENT_DIM,
        class_embed_dim=4,
        block_out_channels=(8, 4),
    )
    for parameter in generator.parameters():
        parameter.data.normal_(std=0.5)
    # Non-trivial batch statistics, so that eval() and train() differ.
    for _ in range(20):
        generator(torch.randn(64, LATENT_DIM), torch.randint(3, (64,)))
    pipe = DiMPipeline(generator, id2label)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> DiMPipeline:
    """A pipeline that no test changes."""
    return make_pipeline()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(pipe: DiMPipeline, **kwargs) -> torch.Tensor:
    return pipe(**{"ipc": 4, "generator": rng(), "output_type": "pt"} | kwargs).images


# Classes


@pytest.mark.parametrize(
    ("class_labels", "label_ids"),
    [
        (None, [0, 1, 2]),
        (2, [2]),
        ("Coat", [1]),
        (["Bag", 0, "Coat", 0], [2, 0, 1, 0]),
        ((1, 2), [1, 2]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor(1), [1]),
        (torch.tensor([2], dtype=torch.uint8), [2]),
        (np.array([0, 2]), [0, 2]),
        (np.array(2), [2]),
        (np.array(["Bag", "Coat"]), [2, 1]),
        (np.array([0, "Coat"], dtype=object), [0, 1]),
        (np.int64(2), [2]),
        (np.str_("Coat"), [1]),
        ([torch.tensor(1), np.int8(2)], [1, 2]),
        (range(2), [0, 1]),
        ({"Bag": 0, "Coat": 0}.keys(), [2, 1]),
    ],
)
def test_classes_go_by_number_and_name(pipe, class_labels, label_ids):
    assert pipe.get_label_ids(class_labels) == label_ids
    output = pipe(class_labels, ipc=2)
    assert output.labels == [label for label in label_ids for _ in range(2)]
    assert len(output.images) == 2 * len(label_ids)


def test_an_iterator_is_read_once(pipe):
    assert pipe(iter(["Bag", 0]), ipc=2).labels == [2, 2, 0, 0]
    assert pipe.to_dataset(1, class_labels=(label for label in (1, 2)))["label"] == [1, 2]


def test_numbers_of_numpy_do_not_overflow(pipe):
    assert len(pipe(ipc=np.uint8(200), batch_size=np.int64(99)).images) == 600


def test_names_that_are_digits_are_names():
    pipe = make_pipeline(id2label={2: "0", 0: "2", 1: "1"})
    assert pipe.get_label_ids(["2", 2]) == [0, 2]
    assert list(pipe.config.id2label.values()) == ["2", "1", "0"]


def test_images_come_class_by_class(pipe):
    latents = torch.randn(6, LATENT_DIM, generator=rng())
    labels = torch.tensor([2, 2, 2, 0, 0, 0])
    with torch.no_grad():
        expected = (pipe.generator(latents, labels).sample + 1) / 2
    output = pipe(["Bag", 0], ipc=3, latents=latents, output_type="pt")
    assert output.labels == labels.tolist()
    torch.testing.assert_close(output.images, expected)


@pytest.mark.parametrize(("out_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types_hold_the_same_images(out_channels, mode):
    pipe = make_pipeline(out_channels)
    tensor = images(pipe)
    assert tensor.shape == (12, out_channels, 8, 8) and tensor.dtype == torch.float32
    assert 0 <= tensor.min() < 0.1 and 0.9 < tensor.max() <= 1
    array = images(pipe, output_type="np")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    pils = images(pipe, output_type="pil")
    assert {image.mode for image in pils} == {mode}
    stacked = np.stack([np.asarray(image).reshape(8, 8, out_channels) for image in pils])
    np.testing.assert_array_equal(stacked, (array * 255).round().astype(np.uint8))


def test_tuple_and_output_hold_the_same(pipe):
    output = pipe(ipc=2, generator=rng(), output_type="np")
    as_tuple = pipe(ipc=2, generator=rng(), output_type="np", return_dict=False)
    assert isinstance(output, DiMPipelineOutput) and isinstance(as_tuple, tuple)
    np.testing.assert_array_equal(as_tuple[0], output["images"])
    assert as_tuple[1] == output["labels"] == [0, 0, 1, 1, 2, 2]


# A seed means the same images


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 14), ipc=st.integers(1, 4))
def test_seed_means_the_same_images_for_any_batch_size(pipe, batch_size, ipc):
    whole = images(pipe, ipc=ipc, generator=rng(7))
    torch.testing.assert_close(images(pipe, ipc=ipc, generator=rng(7), batch_size=batch_size), whole)


def test_without_generator_the_global_seed_counts(pipe):
    torch.manual_seed(3)
    first = images(pipe, generator=None)
    torch.manual_seed(3)
    assert torch.equal(images(pipe, generator=None), first)
    assert not torch.equal(images(pipe, generator=None), first)


def test_noise_is_that_of_latents(pipe):
    latents = torch.randn(12, LATENT_DIM, generator=rng())
    assert torch.equal(images(pipe, latents=latents), images(pipe))


def test_list_of_generators_has_one_for_each_image(pipe):
    together = images(pipe, ipc=2, generator=[rng(seed) for seed in range(6)])
    for i, label in enumerate([0, 0, 1, 1, 2, 2]):
        single = images(pipe, class_labels=label, ipc=1, generator=rng(i))
        torch.testing.assert_close(together[i : i + 1], single)


def test_a_change_of_dtype_does_not_warn(caplog):
    diffusers.utils.logging.enable_propagation()
    pipe = with_labeler().to(torch.float16)
    pipe.to("cpu", torch.float16).to(device="cpu", dtype=torch.bfloat16)
    pipe.generator.to(torch.float16)
    diffusers.utils.logging.disable_propagation()
    assert (pipe.generator.dtype, pipe.labeler.dtype) == (torch.float16, torch.bfloat16)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_makes_the_same_images(pipe, dtype):
    half = make_pipeline().to(dtype)
    assert half.dtype == dtype
    assert images(half).dtype == torch.float32
    torch.testing.assert_close(images(half), images(pipe), atol=0.03, rtol=0)
    assert images(half, output_type="pil")[0].mode == "L"


def test_generator_is_in_eval_mode_and_stays_as_it_is():
    pipe = make_pipeline()
    assert not pipe.generator.training
    before = {name: value.clone() for name, value in pipe.generator.state_dict().items()}
    images(pipe)
    for name, value in pipe.generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    pipe.generator.train()
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        pipe()


# Memory and progress


def test_batch_size_bounds_each_forward_pass():
    pipe = make_pipeline()
    sizes = []
    pipe.generator.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert len(pipe(ipc=7, batch_size=5).images) == 21
    assert sizes == [5, 5, 5, 5, 1]


def test_progress_bar_counts_batches(capsys):
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=False)
    pipe(ipc=4, batch_size=5)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(ipc=4, batch_size=5)
    assert capsys.readouterr().err == ""


# Class names


def test_without_names_classes_go_by_number():
    pipe = make_pipeline(id2label=None)
    assert pipe([2, 0]).labels == [2, 0]
    assert pipe.class_names == ["0", "1", "2"]


@pytest.mark.parametrize("id2label", [list(NAMES.values()), tuple(NAMES.values()), {str(i): NAMES[i] for i in NAMES}])
def test_names_come_as_a_list_too(id2label):
    assert make_pipeline(id2label=id2label).config.id2label == NAMES


@pytest.mark.parametrize("labeler", [False, True])
@pytest.mark.parametrize("names", [NAMES, None])
def test_another_pipeline_of_the_same_parts_is_the_same(labeler, names):
    pipe = make_pipeline(id2label=names)
    pipe = DiMPipeline(pipe.generator, names, DiMLabeler(3, 8, 1, width=4) if labeler else None)
    for other in (DiMPipeline(**pipe.components), DiMPipeline.from_pipe(pipe)):
        assert other.generator is pipe.generator and other.labeler is pipe.labeler
        assert other.config.id2label == names and other.class_names == pipe.class_names
        assert other.to_json_string() == pipe.to_json_string()


def test_from_pipe_takes_other_parts_and_casts_only_if_asked(folder):
    pipe = DiMPipeline.from_pretrained(folder)
    pipe = DiMPipeline(pipe.generator.to(torch.bfloat16), NAMES, DiMLabeler(3, 8, 1, width=4))
    other = DiMPipeline.from_pipe(pipe, labeler=None, id2label=["a", "b", "c"])
    assert other.labeler is None and other.class_names == ["a", "b", "c"] and pipe.class_names == [*NAMES.values()]
    assert (other.generator.dtype, pipe.labeler.dtype) == (torch.bfloat16, torch.float32)
    assert DiMPipeline.from_pipe(other, dtype=torch.float32).generator.dtype == torch.float32
    assert DiMPipeline.from_pipe(other, torch_dtype=torch.float16).generator.dtype == torch.float16
    assert DiMPipeline.from_pipe(DiMPipeline.from_pretrained(folder)).name_or_path == str(folder)


# A saved pipeline


@pytest.fixture
def folder(pipe, tmp_path) -> Path:
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saved_folder_is_complete_in_itself(folder):
    files = content(folder)
    assert sorted(files) == [
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
        "generator/generator_dim.py",
        "model_index.json",
        "pipeline.py",
    ]
    assert files["pipeline.py"] == Path(pipeline_dim.__file__).read_bytes()
    index = json.loads(files["model_index.json"])
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": ["pipeline", "DiMPipeline"],
        "generator": ["generator_dim", "DiMGenerator"],
        "id2label": {"0": "T-shirt", "1": "Coat", "2": "Bag"},
    }


def test_source_files_need_nothing_but_torch_and_diffusers(folder):
    # diffusers itself needs safetensors.
    allowed = {"torch", "diffusers", "safetensors", *sys.stdlib_module_names}
    for path in (folder / "pipeline.py", folder / "generator" / "generator_dim.py", Path(labeler_dim.__file__)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and str(node.module).partition(".")[0] in allowed
            elif isinstance(node, ast.Import):
                # Imports that only one method needs are inside a function.
                names = {alias.name.partition(".")[0] for alias in node.names}
                assert names <= allowed or (names == {"datasets"} and node.col_offset > 0)


def test_loaded_pipeline_is_the_saved_one(pipe, folder, tmp_path):
    loaded = DiMPipeline.from_pretrained(folder)
    assert type(loaded) is DiMPipeline and type(loaded.generator) is DiMGenerator
    assert loaded.config.id2label == NAMES
    assert not loaded.generator.training
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images(loaded), images(pipe))

    loaded.save_pretrained(tmp_path / "again")
    assert content(tmp_path / "again") == content(folder)


def test_pipeline_without_names_is_loaded_without_names(tmp_path):
    make_pipeline(id2label=None).save_pretrained(tmp_path)
    assert DiMPipeline.from_pretrained(tmp_path).config.id2label is None


def test_installed_class_does_not_run_code_of_the_folder(pipe, folder):
    for name in ("pipeline.py", "generator/generator_dim.py"):
        (folder / name).write_text("raise SystemExit('the code of the folder was run')\n")
    for kwargs in ({}, {"trust_remote_code": True}):
        loaded = DiMPipeline.from_pretrained(folder, **kwargs)
        assert type(loaded.generator) is DiMGenerator
        assert torch.equal(images(loaded), images(pipe))


def test_folder_works_where_the_package_is_not_installed(pipe, folder, tmp_path):
    script = f"""
import sys
sys.modules["dim_hf"] = sys.modules["datasets"] = None  # an import of them fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
images, labels = pipe(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)
torch.save({{"images": images, "labels": labels}}, {str(tmp_path / "images.pt")!r})
pipe.save_pretrained({str(tmp_path / "again")!r})
again = type(pipe).from_pretrained({str(tmp_path / "again")!r}, trust_remote_code=True)
assert torch.equal(again(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt").images, images)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = processes.run(["-c", script], cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr
    assert "Expected types" not in run.stderr
    saved = torch.load(tmp_path / "images.pt", weights_only=True)
    torch.testing.assert_close(saved["images"], images(pipe))
    assert saved["labels"] == [0] * 4 + [1] * 4 + [2] * 4
    assert content(tmp_path / "again") == content(folder)


def test_variants_stand_side_by_side(pipe, folder):
    make_pipeline().to(torch.float16).save_pretrained(folder, variant="fp16")
    assert (folder / "generator" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    half = DiMPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(images(half), images(pipe), atol=0.03, rtol=0)
    assert torch.equal(images(DiMPipeline.from_pretrained(folder)), images(pipe))
    with pytest.raises(ValueError, match="variant=int8"):
        DiMPipeline.from_pretrained(folder, variant="int8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, {"generator": torch.bfloat16}, {"default": torch.bfloat16}])
def test_dtypes(folder, dtype):
    assert DiMPipeline.from_pretrained(folder, dtype=dtype).generator.dtype == torch.bfloat16


def test_sharded_weights(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list((tmp_path / "generator").glob("*.safetensors"))) > 1
    assert torch.equal(images(DiMPipeline.from_pretrained(tmp_path)), images(pipe))


def test_passed_generator_is_used(pipe, folder):
    loaded = DiMPipeline.from_pretrained(folder, generator=pipe.generator)
    assert loaded.generator is pipe.generator


def test_pickled_weights_are_neither_written_nor_read(pipe, folder, tmp_path):
    with pytest.raises(ValueError, match="`safe_serialization` is False"):
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()
    with pytest.raises(ValueError, match="`use_safetensors` is False"):
        DiMPipeline.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize("component", ["generator", "labeler"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "below/weights.pt"])
def test_pickled_weights_of_any_component_are_refused(tmp_path, component, name):
    with_labeler().save_pretrained(tmp_path)
    (tmp_path / component / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / component / name).parent.mkdir(exist_ok=True)
    (tmp_path / component / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match=rf"{tmp_path / component / name} is pickled, .*; only safetensors are read"):
        DiMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("component", ["generator", "labeler"])
def test_an_index_of_shards_that_names_a_pickled_one_is_refused(tmp_path, component):
    with_labeler().save_pretrained(tmp_path, max_shard_size="1KB")
    path = tmp_path / component / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= {max(index["weight_map"]): "below/last.bin"}
    path.write_text(json.dumps(index))
    (tmp_path / component / "below").mkdir()
    (tmp_path / component / "below" / "last.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match=r"below/last.bin is pickled, .*; only safetensors are read"):
        DiMPipeline.from_pretrained(tmp_path)


def test_a_pickle_under_the_name_of_safetensors_is_not_read(folder):
    (folder / "generator" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match="diffusion_pytorch_model.safetensors"):
        DiMPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "generator/config.json", "generator/diffusion_pytorch_model.safetensors"]
)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} does not hold a DiMPipeline: {name} is missing"):
        DiMPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["labeler/config.json", "labeler/diffusion_pytorch_model.safetensors"])
def test_missing_file_of_a_labeler_is_named_unless_one_is_passed(tmp_path, name):
    pipe = with_labeler()
    pipe.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} does not hold a DiMPipeline: {name} is missing"):
        DiMPipeline.from_pretrained(tmp_path)
    assert DiMPipeline.from_pretrained(tmp_path, labeler=pipe.labeler).labeler is pipe.labeler
    assert DiMPipeline.from_pretrained(tmp_path, labeler=None).labeler is None


@pytest.mark.parametrize(
    ("name", "valid"), [("model_index.json", "generator"), ("generator/config.json", "latent_dim")]
)
def test_unknown_config_entries_are_named(folder, name, valid):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | {"guidance": 1, "depth": 2}))
    with pytest.raises(ValueError, match=f"has the unknown entries depth, guidance; valid are .*{valid}"):
        DiMPipeline.from_pretrained(folder)


def test_pipeline_in_a_subfolder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "deep" / "below")
    assert torch.equal(images(DiMPipeline.from_pretrained(tmp_path, subfolder="deep/below")), images(pipe))
    with pytest.raises(FileNotFoundError, match="`subfolder` 'nowhere' is not in"):
        DiMPipeline.from_pretrained(tmp_path, subfolder="nowhere")


def test_code_that_is_named_after_the_installed_module_is_not_run(folder):
    (folder / "generator" / "dim_hf.models.generator_dim.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiMPipeline.from_pretrained(folder)


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


def test_another_pipeline_is_refused(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'DDPMPipeline'; valid is a DiMPipeline"):
        DiMPipeline.from_pretrained(tmp_path)


# A teacher


def with_labeler() -> DiMPipeline:
    pipe = make_pipeline()
    return DiMPipeline(pipe.generator, NAMES, DiMLabeler(3, 8, 1, width=4))


def test_a_labeler_travels_with_the_pipeline(tmp_path):
    pipe = with_labeler()
    pipe.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "model_index.json").read_text())["labeler"] == [
        "labeler_dim",
        "DiMLabeler",
    ]
    source = tmp_path / "saved" / "labeler" / "labeler_dim.py"
    assert source.read_bytes() == Path(labeler_dim.__file__).read_bytes()
    sample = torch.randn(5, 1, 8, 8, generator=rng())
    script = f"""
import sys
sys.modules["dim_hf"] = None
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
assert not pipe.labeler.training
sample = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
torch.save(pipe.labeler(sample).logits.detach(), {str(tmp_path / "logits.pt")!r})
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = processes.run(["-c", script], env=environment)
    assert run.returncode == 0, run.stderr
    for path in ("pipeline.py", "labeler/labeler_dim.py"):
        (tmp_path / "saved" / path).write_text("raise SystemExit('the code of the folder was run')\n")
    loaded = DiMPipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.labeler) is DiMLabeler and not loaded.labeler.training
    with torch.no_grad():
        logits = loaded.labeler(sample).logits
        torch.testing.assert_close(logits, pipe.labeler(sample, return_dict=False)[0])
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), logits)


# A data set


def test_to_dataset_holds_the_images_of_a_call(pipe):
    dataset = pipe.to_dataset(2, class_labels=["Bag", 0], generator=rng())
    output = pipe(["Bag", 0], ipc=2, generator=rng())
    assert dataset.features["label"].names == list(NAMES.values())
    assert dataset["label"] == output.labels == [2, 2, 0, 0]
    for row, image in zip(dataset, output.images, strict=True):
        assert row["image"].mode == "L" and row["image"].tobytes() == image.tobytes()


def test_to_dataset_says_what_it_needs(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs the package datasets: pip install datasets"):
        pipe.to_dataset(1)


# Ways in which diffusers runs a model


def test_offloading(pipe):
    offloaded = make_pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    assert torch.equal(images(offloaded), images(pipe))


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offloading(pipe, offload_type):
    offloaded = make_pipeline()
    cpu = torch.device("cpu")
    offloaded.enable_group_offload(cpu, cpu, offload_type=offload_type, num_blocks_per_group=1)
    assert torch.equal(images(offloaded), images(pipe))


def test_layerwise_casting(pipe):
    cast = make_pipeline().to(torch.bfloat16)
    cast.generator.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert cast.generator.conv_out.weight.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(images(cast), images(pipe), atol=0.2, rtol=0)


def test_compiled_generator_makes_the_same_images_and_is_saved_as_it_was(pipe, tmp_path):
    compiled = make_pipeline()
    compiled.generator = torch.compile(compiled.generator, backend="aot_eager")
    torch.testing.assert_close(images(compiled), images(pipe))
    compiled.save_pretrained(tmp_path)
    assert torch.equal(images(DiMPipeline.from_pretrained(tmp_path)), images(pipe))


# Saving over another pipeline


def identity(folder):
    loaded = DiMPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded.class_names, images(loaded)


def test_a_save_that_fails_leaves_the_older_pipeline(pipe, folder, monkeypatch):
    before, names = content(folder), sorted(os.listdir(folder))
    other = DiMPipeline(DiMGenerator(3, 8, 1, 9, 4, (8,), (0,)), ["a", "b", "c"])
    with pytest.raises(ValueError, match="`max_shard_size` is '10 gigs'; valid are a number of bytes from 1"):
        other.save_pretrained(folder, max_shard_size="10 gigs")

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match=f"`save_directory` {folder} cannot be written: I/O error: No space left"):
            other.save_pretrained(folder)
    assert content(folder) == before and sorted(os.listdir(folder)) == names
    # Nor does one into a new folder stand in its own way.
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="cannot be written"):
            other.save_pretrained(folder / "new")
    other.save_pretrained(folder / "new")
    assert identity(folder / "new")[0] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [DiMPipeline, pipeline_dim.DiMPipeline])
@pytest.mark.parametrize("at", ["generator", "pipeline.py", "model_index.json"])
def test_a_save_killed_between_two_files_is_never_loaded_as_a_mixture(folder, monkeypatch, kind, at):
    # As a repository's own class does it, without the package.
    new = kind(DiMGenerator(3, 8, 1, LATENT_DIM, 4, (8, 4)), ["a", "b", "c"])
    replace = os.replace

    def killed(source, target):
        if Path(target).name == at or (at == "generator" and "generator" in Path(target).parts):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(folder)
    if kind is DiMPipeline:
        assert identity(folder)[0] == ["a", "b", "c"]
    else:
        with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
            DiMPipeline.from_pretrained(folder)
    new.save_pretrained(folder)
    new.set_progress_bar_config(disable=True)
    names, made = identity(folder)
    assert names == ["a", "b", "c"] and torch.equal(made, images(new))
    assert not list(folder.glob(".*"))


def test_a_pipeline_that_waits_to_be_put_in_place_does_not_undo_a_later_save(pipe, folder):
    make_pipeline(id2label=None).save_pretrained(folder / NEXT_PIPELINE)
    assert identity(folder)[0] == ["0", "1", "2"]
    pipe.save_pretrained(folder)
    assert identity(folder)[0] == list(NAMES.values()) and not (folder / NEXT_PIPELINE).exists()


@pytest.mark.parametrize("kind", [DiMPipeline, pipeline_dim.DiMPipeline])
def test_variants_of_another_network_or_of_other_names_are_refused(pipe, folder, kind):
    # Variants share the config and the index.
    before = content(folder)
    wide = kind(DiMGenerator(3, 8, 1, LATENT_DIM, 4, (16, 4)), NAMES)
    renamed = kind(pipe.generator, {0: "Bag", 1: "Coat", 2: "T-shirt"})
    for other in (wide, renamed):
        with pytest.raises(ValueError, match=r"holds diffusion_pytorch_model\.safetensors of another network"):
            other.save_pretrained(folder, variant="x")
    assert content(folder) == before
    # A config of an earlier release lacks newer entries.
    path = folder / "generator" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "modulation"}))
    kind(pipe.generator, NAMES).save_pretrained(folder, variant="small", storage="int4")
    with pytest.raises(ValueError, match=r"holds diffusion_pytorch_model\.small\.safetensors of another network"):
        wide.save_pretrained(folder)
    kind(pipe.generator, NAMES).save_pretrained(folder, max_shard_size="1KB")
    assert DiMPipeline.from_pretrained(folder, variant="small").generator.storage == "int4"
    assert torch.equal(identity(folder)[1], images(pipe))


@pytest.mark.parametrize("kind", [DiMPipeline, pipeline_dim.DiMPipeline])
def test_others_can_read_a_saved_pipeline_and_links_are_not_written_through(pipe, folder, tmp_path, kind):
    links = tmp_path / "links"
    links.mkdir()
    for name in ("model_index.json", "pipeline.py"):
        (links / name).symlink_to(folder / name)
    before = content(folder)
    kind(pipe.generator, ["a", "b", "c"]).save_pretrained(links)
    assert content(folder) == before and identity(links)[0] == ["a", "b", "c"]
    modes = {path.stat().st_mode & 0o777 for path in links.rglob("*") if path.is_file()}
    assert modes == {0o666 & (links / "generator").stat().st_mode}
    (tmp_path / "outside").mkdir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "generator").symlink_to(tmp_path / "outside")
    with pytest.raises(FileExistsError, match="holds a link named generator"):
        pipe.save_pretrained(linked)
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(("name", "arguments"), [(NEXT_PIPELINE, {}), ("below", {"subfolder": "below"})])
def test_a_link_out_of_the_folder_is_not_loaded(pipe, folder, tmp_path, name, arguments):
    pipe.save_pretrained(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="is a link that leaves"):
        DiMPipeline.from_pretrained(folder, **arguments)


# Numbers


@pytest.mark.parametrize("number", [np.int8(100), np.uint8(100)])
def test_small_integers_of_numpy_do_not_overflow(pipe, number):
    output = pipe(ipc=np.int8(50), batch_size=number, generator=rng(), output_type="pt")
    assert len(output.labels) == 150
    torch.testing.assert_close(output.images, images(pipe, ipc=50))


def test_weights_too_large_for_float16_are_not_loaded_or_cast_as_infinity(folder):
    pipe = make_pipeline()
    pipe.generator.proj_in.bias.data[0] = 1e5
    pipe.save_pretrained(folder)
    message = r"`dtype` torch.float16 cannot hold the generator's proj_in.bias: .* 65504; valid are torch.float32"
    with pytest.raises(ValueError, match=message):
        DiMPipeline.from_pretrained(folder, dtype=torch.float16)
    with pytest.raises(ValueError, match=message):
        pipe.to(torch.float16)
    assert DiMPipeline.from_pretrained(folder, dtype=torch.bfloat16).generator.proj_in.bias[0] > 9e4
