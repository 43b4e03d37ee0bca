"""Pipelines and files of strangers: one message, no code run, and no more memory than a file of that size needs."""

import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path

import processes
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dim_hf.evaluation.fixed_sets import latents_settings, load_latents, save_latents
from dim_hf.files import read_json, read_json_lines
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline


INDEX = "model_index.json"
CONFIGS = ("generator/config.json", "labeler/config.json")
WEIGHTS = tuple(f"{name}/diffusion_pytorch_model.safetensors" for name in ("generator", "labeler"))
SHARDS = "diffusion_pytorch_model.safetensors.index.json"
DEEP = "[" * 100_000
FUZZ = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline with a teacher, which no test changes."""
    folder = tmp_path_factory.mktemp("saved")
    generator = DiMGenerator(3, 8, 1, 6, 4, (8, 4))
    DiMPipeline(generator, ["a", "b", "c"], DiMLabeler(3, 8, 1, width=4)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(saved, tmp_path / "theirs")
    return tmp_path / "theirs"


def refusal(read, *args) -> str:
    """The one message of a refusal; any other error, and success, fails the test."""
    try:
        read(*args)
    except (ValueError, OSError) as error:
        message = str(error)
        assert 10 < len(message) <= 600 and "\n" not in message.strip(), message
        return message
    raise AssertionError("it was accepted")


def set_entries(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# Configs

NUMBERS = [10**9, 2**63, 10**30, -1, 0, 1.5, "8", None, True, [1], {"a": 1}]
LISTS = [10**9, [10**9, 8], [8, -1], ["a", "b"], [1.5, 2], [], None, [8] * 60, "88", {"0": 1}, [[8], [4]], [True, 4]]
HUGE = [
    # Each number is one that some network may have.
    {"sample_size": 4096, "block_out_channels": [4096, 4096]},
    {"latent_dim": 60_000, "sample_size": 512},
    {"sample_size": 2**15, "block_out_channels": [2] * 15, "layers_per_block": [0] * 15},
    {"layers_per_block": [10**9, 0]},
    {"num_classes": 65536, "class_embed_dim": 65536},
    {"latent_dim": 60_000, "block_out_channels": [8, 4096], "modulation": True},
]


@pytest.mark.parametrize("entry", ["num_classes", "sample_size", "out_channels", "latent_dim", "class_embed_dim"])
def test_numbers_of_a_generator(folder, entry):
    for value in NUMBERS:
        if (entry, value) != ("class_embed_dim", 0):
            set_entries(folder / CONFIGS[0], **{entry: value})
            assert f"`{entry}` is {value!r}"[:60] in refusal(DiMPipeline.from_pretrained, folder)


@pytest.mark.parametrize("entry", ["num_classes", "sample_size", "in_channels", "width"])
def test_numbers_of_a_labeler(folder, entry):
    for value in NUMBERS:
        set_entries(folder / CONFIGS[1], **{entry: value})
        assert f"`{entry}` is {value!r}"[:60] in refusal(DiMPipeline.from_pretrained, folder)


@pytest.mark.parametrize("entry", ["block_out_channels", "layers_per_block"])
def test_lists_of_a_generator(folder, entry):
    for value in LISTS:
        set_entries(folder / CONFIGS[0], **{entry: value})
        assert f"`{entry}` is " in refusal(DiMPipeline.from_pretrained, folder)
    set_entries(folder / CONFIGS[0], block_out_channels=[8, 4], layers_per_block=[0, 0], residual="no")
    assert refusal(DiMPipeline.from_pretrained, folder) == "`residual` is 'no'; valid are True and False."
    for value in ("bilinear", None, 1, ["nearest"]):
        set_entries(folder / CONFIGS[0], residual=False, upsample_type=value)
        expected = f"`upsample_type` is {value!r}; valid are 'transposed', 'nearest'."
        assert refusal(DiMPipeline.from_pretrained, folder) == expected


@pytest.mark.parametrize(("config", "entry"), [(CONFIGS[0], "sample_size"), (CONFIGS[1], "num_classes")])
def test_an_entry_that_is_needed(folder, config, entry):
    content = json.loads((folder / config).read_text())
    del content[entry]
    (folder / config).write_text(json.dumps(content))
    assert refusal(DiMPipeline.from_pretrained, folder) == f"the {config.split('/')[0]}'s config.json lacks {entry}."


@pytest.mark.parametrize("entries", HUGE, ids=range(len(HUGE)))
def test_sizes_that_only_the_product_shows(folder, entries):
    set_entries(folder / CONFIGS[0], **entries)
    assert "valid " in refusal(DiMPipeline.from_pretrained, folder)


def test_the_predicted_size_is_that_of_the_network():
    """The bound holds for what is built: all is counted but a few numbers per channel and the output layer."""
    network = DiMGenerator(10, 128, 3, 100, 64, (48, 32, 24), (2, 1, 0))

    def counted(last: int) -> int:
        layers = 2 * (9 * 48 + 2) * 48 + (9 * 32 + 2) * 32
        return 64 * 10 + 165 * 48 * 16**2 + 16 * 48 * 32 + 16 * 32 * last + layers

    assert 0.99 < counted(24) / network.num_parameters() < 1
    with pytest.raises(ValueError, match=f"about {counted(2**16):,} weights, and {2**16 * 64**2:,} numbers"):
        DiMGenerator(10, 128, 3, 100, 64, (48, 32, 2**16), (2, 1, 0))


@pytest.mark.parametrize(
    "entries", [{"quantization_config": {"quant_method": "bitsandbytes"}}, {"auto_map": {"a": "b"}}]
)
def test_orders_to_other_libraries_are_unknown_entries(folder, entries):
    for name in CONFIGS:
        set_entries(folder / name, **entries)
        assert f"has the unknown entries {next(iter(entries))}" in refusal(DiMPipeline.from_pretrained, folder)
        shutil.copy(Path(__file__), folder / "pipeline.py")


@pytest.mark.parametrize("name", [INDEX, *CONFIGS, f"generator/{SHARDS}"])
@pytest.mark.parametrize(
    "content",
    [DEEP, '{"a":' * 50_000, '{"num_classes":' + "9" * 10_000 + "}", "[1]", "null", b"\xff\xfe\x00", "", "x" * 2**25],
    ids=["deep", "deep object", "long number", "list", "null", "bytes", "empty", "large"],
)
def test_json_that_is_not_a_config(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert name in refusal(DiMPipeline.from_pretrained, folder)


@pytest.mark.parametrize("entry", ["generator", "labeler"])
@pytest.mark.parametrize("value", [5, "x", ["os"], [], [1, 2], {"a": 1}, ["generator_dim", None], [["a"], ["b"]]])
def test_components_of_an_index(folder, entry, value):
    set_entries(folder / INDEX, **{entry: value})
    assert f"has the {entry} " in refusal(DiMPipeline.from_pretrained, folder)


def test_a_module_that_an_index_names_is_not_imported(folder):
    set_entries(folder / INDEX, generator=["antigravity", "x"], labeler=["os", "system"])
    loaded = DiMPipeline.from_pretrained(folder)
    assert type(loaded.generator) is DiMGenerator and type(loaded.labeler) is DiMLabeler
    assert "antigravity" not in sys.modules


NAMES = [
    5,
    "abc",
    ["a", "b"],
    ["a", "a", "b"],
    {"0": 1, "1": 2, "2": 3},
    [["a"], ["b"], ["c"]],
    {"0": {"a": {}}, "1": "b", "2": "c"},
    {str(label): "x" for label in range(100_000)},
    ["a", "b", "c" * 10**6],
    ["a", "b", "c\n\n# Mine"],
    ["a", "b", "\x00"],
    ["a", "b", "\ud800"],
    ["a", "b", "user\u202egnp.exe"],
]


@pytest.mark.parametrize("names", NAMES, ids=range(len(NAMES)))
def test_class_names_are_one_line_each(folder, names):
    set_entries(folder / INDEX, id2label=names)
    assert "id2label" in refusal(DiMPipeline.from_pretrained, folder)


def test_names_of_any_script_are_names(folder):
    names = ["<5 mm", "می‌خواهم", "👩‍🔬 R&B"]
    set_entries(folder / INDEX, id2label=names)
    assert DiMPipeline.from_pretrained(folder).class_names == names


# Weights


def header(content: dict | bytes, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: list, start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LYING = {
    "empty": b"",
    "cut short": struct.pack("<Q", 100)[:4],
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of spaces": header(b" " * 2**21),
    "deep header": header(b"[" * 10_000),
    "overlapping": header({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
    "beyond the end": header({"a": tensor([2**40], 0, 2**42)}, bytes(24)),
    "shape that overflows": header({"a": tensor([2**62, 2**62, 16], 0, 0)}),
    "negative": header({"a": tensor([-1], 0, 0)}),
    "unknown dtype": header({"a": tensor([1], 0, 4, "X9")}, bytes(4)),
    "many tensors": header({f"t{i}": tensor([0], 0, 0) for i in range(30_000)}),
    "pickle": pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", LYING)
def test_files_of_weights_that_lie(folder, name, kind):
    (folder / name).write_bytes(LYING[kind])
    assert name in refusal(DiMPipeline.from_pretrained, folder)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(folder, name, dtype):
    save_file({key: value.to(dtype) for key, value in load_file(folder / name).items()}, folder / name)
    assert "floating-point" in refusal(DiMPipeline.from_pretrained, folder)


def test_weights_of_a_labeler_are_those_of_its_config(folder):
    good = load_file(folder / WEIGHTS[1])
    first = min(good)
    without = {name: value for name, value in good.items() if name != first}
    for content, said in (
        (without, f"hold without need, {first}; valid"),
        (good | {"more": torch.zeros(3)}, "hold without need, more; valid"),
        (without | {first: torch.zeros(9)}, f"the labeler's {first} is torch.float32 of shape (9,); valid"),
        (without | {first: torch.full_like(good[first], torch.nan)}, f"{first} holds numbers that are not finite"),
    ):
        save_file(content, folder / WEIGHTS[1])
        assert said in refusal(DiMPipeline.from_pretrained, folder)
    save_file({name: value.half() for name, value in good.items()}, folder / WEIGHTS[1])
    loaded = DiMPipeline.from_pretrained(folder).labeler.state_dict()
    assert all(torch.equal(value, good[name].half().float()) for name, value in loaded.items())


@pytest.mark.parametrize("network", [DiMGenerator, DiMLabeler])
def test_networks_read_no_pickle(folder, network):
    name = "generator" if network is DiMGenerator else "labeler"
    path = folder / name / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    for passed in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="no file named diffusion_pytorch_model.safetensors"):
            network.from_pretrained(folder / name, **passed)


INDEXES = [
    "{}",
    '{"weight_map": []}',
    '{"weight_map": {}}',
    '{"metadata": {}, "weight_map": {"a": ["b"]}}',
    '{"metadata": 5, "weight_map": {"a": "other.safetensors"}}',
    *(
        json.dumps({"metadata": {}, "weight_map": {"a": name}})
        for name in ("../x.safetensors", "/tmp/x.safetensors", "a/../x.safetensors", "..", "", "x.bin", 5, None)
    ),
]


@pytest.mark.parametrize("content", INDEXES)
@pytest.mark.parametrize("component", ["generator", "labeler"])
def test_an_index_of_shards_names_files_beside_it(folder, component, content):
    (folder / component / SHARDS).write_text(content)
    assert component in refusal(DiMPipeline.from_pretrained, folder)


# Names and links


@pytest.mark.parametrize("name", [INDEX, "generator", *CONFIGS, *WEIGHTS])
def test_links_that_leave_the_folder(folder, saved, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(saved / name)
    assert f"{path} is a link that leaves {folder}" in refusal(DiMPipeline.from_pretrained, folder)


def test_links_within_the_folder_and_to_it_are_read(folder, tmp_path):
    (folder / CONFIGS[0]).rename(folder / "generator" / "real.json")
    (folder / CONFIGS[0]).symlink_to("real.json")
    (tmp_path / "link").symlink_to(folder)
    assert DiMPipeline.from_pretrained(tmp_path / "link").class_names == ["a", "b", "c"]


def test_links_of_the_cache_of_the_hub_are_read(folder, tmp_path):
    snapshot = tmp_path / "models--me--x" / "snapshots" / "0"
    (tmp_path / "models--me--x" / "blobs").mkdir(parents=True)
    for i, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = tmp_path / "models--me--x" / "blobs" / str(i)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert DiMPipeline.from_pretrained(snapshot).class_names == ["a", "b", "c"]


@pytest.mark.parametrize("subfolder", ["..", "generator/../..", "/"])
def test_a_subfolder_does_not_leave_the_folder(folder, subfolder):
    assert "`subfolder` is " in refusal(lambda: DiMPipeline.from_pretrained(folder, subfolder=subfolder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_and_devices_are_not_waited_for(folder, tmp_path):
    for name in WEIGHTS:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert f"{name} is missing" in refusal(DiMPipeline.from_pretrained, folder)
    os.mkfifo(tmp_path / "latents")
    assert "is not a file" in refusal(load_latents, tmp_path / "latents")


def test_code_beside_the_weights_is_never_run(folder):
    for path in ("pipeline.py", "generator/generator_dim.py", "labeler/labeler_dim.py", "diffusers.py"):
        (folder / path).write_text("raise SystemExit('it was run')\n")
    assert DiMPipeline.from_pretrained(folder, trust_remote_code=True).class_names == ["a", "b", "c"]
    (folder / "generator" / "dim_hf.models.generator_dim.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError, match="custom code"):
        DiMPipeline.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="`custom_pipeline` is .*; only None is valid"):
        DiMPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)


# Latents and records


def test_latents_of_a_stranger(tmp_path):
    path, latents, labels = tmp_path / "latents.safetensors", torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    save_latents(path, latents, labels, {"a": 1})
    assert latents_settings(path) == {"a": 1}
    for content, metadata in (
        ((latents, labels), None),
        ((latents, labels), {"settings": DEEP}),
        ((latents, labels), {"settings": "x"}),
        ((latents, labels), {"settings": "[]"}),
        ((latents.int(), labels), {"settings": "{}"}),
        ((latents.bfloat16(), labels), {"settings": "{}"}),
        ((latents * torch.nan, labels), {"settings": "{}"}),
        ((latents, labels - 5), {"settings": "{}"}),
        ((latents, labels.float()), {"settings": "{}"}),
        ((latents, labels[:1]), {"settings": "{}"}),
    ):
        save_file(dict(zip(("latents", "labels"), content, strict=True)), path, metadata=metadata)
        assert f"{path} is damaged" in refusal(load_latents, path)
    for content in LYING.values():
        path.write_bytes(content)
        assert f"{path} is damaged" in refusal(load_latents, path)


def test_records_of_a_stranger(tmp_path):
    path = tmp_path / "options.json"
    path.write_text(DEEP)
    assert f"{path} is damaged" in refusal(read_json, path)
    path.write_text(f'{{"a": 1}}\n{DEEP}\n{{"a": 2}}\n')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in (read_json, read_json_lines):
        assert "bytes; valid are at most" in refusal(read, path)


# What nobody thought of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def changed(data: bytes, change: tuple[int, bytes, int]) -> bytes:
    """Some bytes of a file replaced by others."""
    place, new, old_length = change
    place %= len(data) + 1
    return data[:place] + new + data[place + old_length :]


CHANGES = st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 12))


def loads_or_refuses(read, *args) -> None:
    try:
        read(*args)
    except (ValueError, OSError) as error:
        assert len(str(error)) <= 1000


@FUZZ
@given(st.sampled_from([INDEX, *CONFIGS]), st.data(), JSON)
def test_any_entry_of_a_config(saved, tmp_path, name, data, value):
    theirs = tmp_path / "theirs"
    if not theirs.exists():
        shutil.copytree(saved, theirs)
    content = json.loads((saved / name).read_text())
    content[data.draw(st.sampled_from(sorted(content)) | st.text(max_size=8))] = value
    (theirs / name).write_text(json.dumps(content))
    loads_or_refuses(DiMPipeline.from_pretrained, theirs)
    shutil.copy(saved / name, theirs / name)


@FUZZ
@given(st.sampled_from([INDEX, *CONFIGS, *WEIGHTS]), CHANGES)
@example(WEIGHTS[0], (0, b"\xff" * 8, 8))
def test_any_byte_of_a_pipeline(saved, tmp_path, name, change):
    theirs = tmp_path / "theirs"
    if not theirs.exists():
        shutil.copytree(saved, theirs)
    (theirs / name).write_bytes(changed((saved / name).read_bytes(), change))
    loads_or_refuses(DiMPipeline.from_pretrained, theirs)
    shutil.copy(saved / name, theirs / name)


@FUZZ
@given(CHANGES)
def test_any_byte_of_latents(tmp_path, change):
    good, path = tmp_path / "good", tmp_path / "latents"
    if not good.exists():
        save_latents(good, torch.randn(4, 3), torch.arange(4), {"ipc": 1})
    path.write_bytes(changed(good.read_bytes(), change))
    loads_or_refuses(load_latents, path)


# Memory


@pytest.mark.slow
def test_memory_is_bounded(folder, tmp_path):
    """Each of these, in a process that may take 300 MB more than it has after its imports."""
    sparse = tmp_path / "sparse"
    content = header({"x": tensor([2**38], 0, 2**38, "U8")})
    with sparse.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + 2**38)
    cases = [(CONFIGS[0], {entry: value}) for entry in ("num_classes", "latent_dim") for value in (10**9, 2**40)]
    cases += [(CONFIGS[0], entries) for entries in HUGE]
    cases += [(CONFIGS[1], {entry: 10**9}) for entry in ("num_classes", "sample_size", "in_channels", "width")]
    script = f"""
import json, resource, shutil
from pathlib import Path
from dim_hf import DiMPipeline
from dim_hf.evaluation.fixed_sets import load_latents
from dim_hf.files import read_json
folder = Path({str(folder)!r})
DiMPipeline.from_pretrained(folder)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def refused(read, path):
    try:
        read(path)
    except (ValueError, OSError) as error:
        print(type(error).__name__)
    else:
        print("accepted", path)

for name, entries in {cases!r}:
    good = (folder / name).read_text()
    (folder / name).write_text(json.dumps(json.loads(good) | entries))
    refused(DiMPipeline.from_pretrained, folder)
    (folder / name).write_text(good)
for name in {WEIGHTS!r}:
    (folder / name).rename(folder / "good")
    shutil.move({str(sparse)!r}, folder / name)
    refused(DiMPipeline.from_pretrained, folder)
    shutil.move(folder / name, {str(sparse)!r})
    (folder / "good").rename(folder / name)
refused(load_latents, {str(sparse)!r})
refused(read_json, {str(sparse)!r})
"""
    run = processes.run(["-c", script], env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) <= {"ValueError", "OSError"} and len(run.stdout.split()) == len(cases) + 4
