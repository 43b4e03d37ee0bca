"""Forms of storage: exact packing, the least error, files that hold what was measured, and files that do not fit."""

import copy
import json
import math
import os
import re
import warnings

import evaluate_dim
import processes
import pytest
import torch
import train_dim
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.models.generator_dim import STORAGE_FORMS, dequantise, pack, quantise, unpack
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_bytes, stored_form, warn_of_storage, weights_digest


INT_FORMS = [form for form in STORAGE_FORMS if form.startswith("int")]
FILE = "diffusion_pytorch_model.safetensors"
LINEAR = "network.13.weight"  # of the teacher, 3 x 4


def make_generator(seed: int = 0, **kwargs) -> DiMGenerator:
    torch.manual_seed(seed)
    arguments = {"latent_dim": 6, "class_embed_dim": 3, "block_out_channels": (8, 5), "layers_per_block": (0, 1)}
    generator = DiMGenerator(3, 8, 1, **arguments | kwargs)
    for parameter in generator.parameters():
        parameter.data.normal_(std=0.5)
    # Non-trivial batch statistics.
    for _ in range(5):
        generator(torch.randn(32, 6), torch.randint(3, (32,)))
    return generator.eval()


def make_pipeline(labeler: bool = False) -> DiMPipeline:
    torch.manual_seed(1)
    pipe = DiMPipeline(make_generator(), {0: "a", 1: "b", 2: "c"}, DiMLabeler(3, 8, 1, width=4) if labeler else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe) -> torch.Tensor:
    return pipe(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)[0]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# Codes


@settings(deadline=None)
@given(bits=st.integers(2, 8), count=st.integers(0, 70), seed=st.integers(0, 99))
def test_packing_is_exact_and_as_small_as_possible(bits, count, seed):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (math.ceil(count * bits / 8),)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_packed_bits_are_in_the_order_that_is_documented():
    # 5 is 101 and 3 is 011: from the lowest bit, 101 110 001 1 -> 0b10011101, 0b01.
    assert pack(torch.tensor([5, 3, 4, 1], dtype=torch.uint8), 3).tolist() == [0b00011101, 0b0011]


rows_of_weights = st.lists(
    st.lists(st.integers(-60000, 60000) | st.floats(-1e-3, 1e-3) | st.floats(-1, 1), min_size=5, max_size=5),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(2, 8), rows=rows_of_weights)
def test_rounding_twice_is_rounding_once(bits, rows):
    codes, scale = quantise(torch.tensor(rows, dtype=torch.float32), bits)
    again, scale_again = quantise(dequantise(codes, scale, bits), bits)
    assert torch.equal(again, codes) and torch.equal(scale_again, scale)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 999))
def test_within_the_scale_no_weight_is_off_by_more_than_half_a_step(bits, seed):
    rows = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    codes, scale = quantise(rows, bits)
    error, scale = (dequantise(codes, scale, bits) - rows).abs(), scale.float()[:, None]
    step = 2 * scale / (2**bits - 1)
    outside = rows.abs() > scale
    assert (error <= step / 2 + 1e-6)[~outside].all()
    # What lies outside becomes the outermost value, and as a whole that is better than a scale that leaves none out.
    torch.testing.assert_close(error[outside], (rows.abs() - scale)[outside])
    widest = rows.abs().amax(dim=1, keepdim=True).half().float()
    levels = torch.arange(2**bits) * 2 - (2**bits - 1.0)
    all_levels = widest[:, :, None] * levels / (2**bits - 1)
    plain = (rows[:, :, None] - all_levels).abs().amin(dim=2)
    assert (error.square().sum(dim=1) <= plain.square().sum(dim=1) * (1 + 1e-5)).all()


def test_few_bits_clip_and_many_do_not():
    rows = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    largest = rows.abs().max()
    assert quantise(rows, 8)[1].item() == pytest.approx(largest.item(), rel=1e-3)
    # The best of four even levels for normal numbers is known: a step of 0.996 standard deviations.
    assert quantise(rows, 2)[1].item() == pytest.approx(1.494, abs=0.15)


def test_rows_of_zeros_and_of_next_to_nothing_are_zeros():
    rows = torch.tensor([[0.0, 0.0, -0.0], [3e-5, -6e-5, 0.0], [1.0, 0.0, 0.0]])
    for bits in range(2, 9):
        codes, scale = quantise(rows, bits)
        assert scale[:2].tolist() == [0, 0] and (dequantise(codes, scale, bits)[:2] == 0).all()


# Files


@pytest.mark.parametrize("option", [{}, {"modulation": True}, {"upsample_type": "nearest"}])
@pytest.mark.parametrize("form", STORAGE_FORMS)
def test_each_form_is_read_back_as_stored_and_takes_the_expected_bytes(form, option, tmp_path):
    generator = make_generator(**option)
    before = copy.deepcopy(generator)
    generator.save_pretrained(tmp_path / "once", storage=form)
    assert same_weights(generator, before) and generator.storage is None
    loaded = DiMGenerator.from_pretrained(tmp_path / "once")
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded.storage == (None if form == "float32" else form)
    expected, _ = generator.read_state(generator.stored_state(form))
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    # Known without the file, too.
    size = (tmp_path / "once" / FILE).stat().st_size
    assert module_bytes(loaded) == size
    loaded.register_to_config(_name_or_path="")
    assert module_bytes(loaded) == size
    # A file that is read and saved again is the same file.
    loaded.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / FILE).read_bytes() == (tmp_path / "once" / FILE).read_bytes()


@pytest.mark.parametrize("form", INT_FORMS)
def test_bytes_are_those_of_codes_scales_and_float16(form):
    generator, bits = make_generator(), int(form[3:])
    # Embedding, linear, transposed convolution of 8 to 5, convolution, transposed convolution of 5 to 1: channels are
    # its second dimension.
    shapes = [(3, 3), (8 * 2 * 2, 9), (5, 8 * 16), (5, 5 * 9), (1, 5 * 16)]
    matrices = sum(math.ceil(rows * length * bits / 8) + 2 * rows for rows, length in shapes)
    vectors = 2 * (32 + 4 * 8 + 2 * 4 * 5 + 1) + 3 * 8
    content = generator.stored_state(form)
    checksums = 4 * (len(content) - 1)
    assert sum(value.numel() * value.element_size() for value in content.values()) == matrices + vectors + checksums
    assert content[f"blocks.1.upsample.weight.{form}"].shape == (math.ceil(5 * 8 * 16 * bits / 8),)
    assert content["blocks.1.upsample.weight.scale"].shape == (5,)
    assert {value.dtype for value in content.values()} == {torch.uint8, torch.float16, torch.int64, torch.int32}


@pytest.mark.parametrize("upsample_type", ["transposed", "nearest"])
def test_each_output_channel_of_a_convolution_has_its_own_scale(upsample_type):
    generator = make_generator(upsample_type=upsample_type)
    name, channels = ("upsample.weight", 1) if upsample_type == "transposed" else ("upsample.1.weight", 0)
    original = generator.blocks[1].get_parameter(name)
    original.data.select(channels, 3).mul_(1000)
    content, _ = generator.read_state(generator.stored_state("int8"))
    error = (content[f"blocks.1.{name}"] - original).abs().amax(dim=(1 - channels, 2, 3))
    assert error[3] > 1 and (error[[0, 1, 2, 4]] < 0.02).all()


def test_values_beyond_float16_stay_in_float32(tmp_path):
    generator = make_generator()
    generator.blocks[0].norm.running_var[2] = 1e6
    generator.blocks[1].norm.running_var[2] = 1e-9
    for form in ("float16", "int4"):
        generator.save_pretrained(tmp_path / form, storage=form)
        loaded = DiMGenerator.from_pretrained(tmp_path / form)
        assert torch.equal(loaded.blocks[0].norm.running_var, generator.blocks[0].norm.running_var)
        # Beside the 1e-5 that batch norm adds, less than float16 holds is nothing.
        torch.testing.assert_close(
            loaded.blocks[1].norm.running_var, generator.blocks[1].norm.running_var, rtol=1e-3, atol=1e-7
        )
        assert module_bytes(loaded) == (tmp_path / form / FILE).stat().st_size


def test_a_small_form_can_be_read_in_half_precision_and_saved_in_full(tmp_path):
    make_generator().save_pretrained(tmp_path / "small", storage="int4")
    full = DiMGenerator.from_pretrained(tmp_path / "small")
    half = DiMGenerator.from_pretrained(tmp_path / "small", dtype=torch.float16)
    assert half.dtype == torch.float16 and half.storage == "int4"
    assert same_weights(half, copy.deepcopy(full).half())
    half.save_pretrained(tmp_path / "again")
    codes, again = (load_file(tmp_path / name / FILE)["proj_in.weight.int4"] for name in ("small", "again"))
    assert torch.equal(codes, again)
    full.save_pretrained(tmp_path / "full", storage="float32")
    back = DiMGenerator.from_pretrained(tmp_path / "full")
    assert same_weights(back, full) and back.storage is None


@pytest.mark.parametrize(
    "arguments", [{"low_cpu_mem_usage": False}, {"device_map": {"": "cpu"}}, {"disable_mmap": True}]
)
def test_ways_of_diffusers_to_load(arguments, tmp_path):
    make_generator().save_pretrained(tmp_path / "below", storage="int8", variant="small")
    plain = DiMGenerator.from_pretrained(tmp_path, subfolder="below", variant="small")
    loaded, info = DiMGenerator.from_pretrained(
        tmp_path, subfolder="below", variant="small", output_loading_info=True, **arguments
    )
    assert same_weights(loaded, plain) and loaded.storage == "int8" and not info["missing_keys"]


# Pipelines


@pytest.mark.parametrize("form", ["float16", "int8", "int3"])
def test_a_pipeline_is_read_back_as_it_was_measured(form, tmp_path):
    pipe = make_pipeline(labeler=True)
    original = images(pipe)
    stored = stored_form(pipe, form)
    stored.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "saved", storage=form)
    assert torch.equal(images(pipe), original) and pipe.generator.storage is None
    loaded = DiMPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.generator.storage == form and not torch.equal(images(loaded), original)
    assert torch.equal(images(loaded), images(stored)) and weights_digest(loaded) == weights_digest(stored)
    # What is scored has the bytes of what is saved, of the teacher too.
    for network in ("generator", "labeler"):
        size = (tmp_path / "saved" / network / FILE).stat().st_size
        assert module_bytes(getattr(stored, network)) == module_bytes(getattr(loaded, network)) == size
    # The teacher goes in float16, and in 8 bits beside codes of any number of bits.
    kinds = {value.dtype for value in load_file(tmp_path / "saved" / "labeler" / FILE).values()}
    if form == "float16":
        assert same_weights(loaded.labeler, copy.deepcopy(pipe.labeler).half().float())
        assert kinds == {torch.float16}
    else:
        assert kinds == {torch.float16, torch.uint8, torch.int32}
        for name, value in pipe.labeler.state_dict().items():
            rows, rounded = value.view(len(value), -1), loaded.labeler.state_dict()[name].view(len(value), -1)
            # Half a step of 255 between -scale and scale, and what float16 makes of the scale.
            step = rows.abs().amax(dim=1, keepdim=True) / 255 if value.ndim > 1 else 0.0
            assert bool(((rounded - rows).abs() <= step + rows.abs().amax(dim=1, keepdim=True) / 1024).all()), name
    assert {value.dtype for value in pipe.labeler.state_dict().values()} == {torch.float32}
    # Saved again, it is the same folder; and in full where that is asked for.
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "saved").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "saved")).read_bytes(), path
    loaded.save_pretrained(tmp_path / "full", storage="float32")
    full = DiMPipeline.from_pretrained(tmp_path / "full")
    assert same_weights(full.generator, loaded.generator) and full.generator.storage is None


def test_forms_stand_side_by_side_as_variants(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    config = (tmp_path / "generator" / "config.json").read_bytes()
    pipe.save_pretrained(tmp_path, variant="small", storage="int4")
    assert (tmp_path / "generator" / "config.json").read_bytes() == config
    assert same_weights(DiMPipeline.from_pretrained(tmp_path).generator, pipe.generator)
    assert DiMPipeline.from_pretrained(tmp_path, variant="small").generator.storage == "int4"


def test_a_stored_form_comes_from_where_its_pipeline_does(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    pipe = DiMPipeline.from_pretrained(tmp_path)
    stored = stored_form(pipe, "int4")
    assert stored.name_or_path == str(tmp_path) and stored.config.id2label == pipe.config.id2label
    assert stored_form(pipe, None) is pipe and stored_form(stored, "float32").generator.storage is None


@settings(deadline=None)
@given(scale=st.floats(0, 60000), seed=st.integers(0, 99), storage=st.sampled_from(["int8", "int5", "int2"]))
def test_a_teacher_in_codes_is_the_same_after_a_second_rounding(scale, seed, storage):
    labeler = DiMLabeler(3, 8, 1, width=4)
    generator = torch.Generator().manual_seed(seed)
    for value in labeler.parameters():
        value.data = torch.rand(value.shape, generator=generator).mul(2).sub(1).mul(scale)
    labeler.network[0].weight.data[0] = 0
    content = labeler.stored_state(storage)
    once = DiMLabeler(3, 8, 1, width=4)
    weights = dict(content)
    once._fix_state_dict_keys_on_load(weights)
    once.load_state_dict(weights)
    assert not once.network[0].weight[0].any()
    again = once.stored_state(storage)
    assert again.keys() == content.keys() and all(torch.equal(again[name], content[name]) for name in content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{LINEAR}.scale"), rf"lack, or hold without need, '?{re.escape(LINEAR)}"),
        (lambda w: w.update({LINEAR: torch.zeros(3, 4)}), rf"hold without need, '?{re.escape(LINEAR)}.int8"),
        (
            lambda w: w.update({f"{LINEAR}.int8": w[f"{LINEAR}.int8"][:2]}),
            r"\.int8 is torch.uint8 of shape \(2, 4\);",
        ),
        (lambda w: w.update({f"{LINEAR}.int8": w[f"{LINEAR}.int8"].float()}), r"\.int8 is torch.float32 of shape"),
        (lambda w: w.update({f"{LINEAR}.scale": -w[f"{LINEAR}.scale"]}), r"scale holds -.*; valid are scales from 0"),
        (lambda w: w.update({f"{LINEAR}.scale": w[f"{LINEAR}.scale"].float()}), r"scale is torch.float32"),
        (lambda w: w.update({f"{LINEAR}.scale": torch.zeros(3, dtype=torch.uint16)}), r"scale is torch.uint16"),
        (lambda w: w[f"{LINEAR}.scale"].fill_(torch.nan), rf"{re.escape(LINEAR)} holds numbers that are not finite"),
    ],
    ids=["no scale", "twice", "cut", "not codes", "negative", "float32", "uint16", "nan"],
)
def test_a_teacher_in_damaged_codes_is_refused(change, message, tmp_path):
    make_pipeline(labeler=True).save_pretrained(tmp_path, storage="int4")
    path = tmp_path / "labeler" / FILE
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        DiMPipeline.from_pretrained(tmp_path)


def test_a_teacher_that_codes_cannot_hold_is_refused_before_any_file_is_made(tmp_path):
    pipe = make_pipeline(labeler=True)
    pipe.labeler.network[0].weight.data[1, 0, 2, 2] = 1e6
    with pytest.raises(ValueError, match=r"'int4' cannot hold the labeler's network.0.weight: its largest .* 1e\+06"):
        pipe.save_pretrained(tmp_path / "saved", storage="int4")
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_a_small_form_is_read_where_the_package_is_not_installed(tmp_path):
    pipe = make_pipeline(labeler=True)
    pipe.save_pretrained(tmp_path / "saved", storage="int4")
    script = f"""
import sys
sys.modules["dim_hf"] = sys.modules["datasets"] = None  # an import of them fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
# For which diffusers runs the same file again, so that its classes are others.
DiffusionPipeline.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
images = pipe(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, {str(tmp_path / "images.pt")!r})
pipe.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = processes.run(["-c", script], env=environment)
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), images(stored_form(pipe, "int4")))
    for path in (tmp_path / "saved").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "saved")).read_bytes(), path


def test_one_file_takes_the_place_of_several_and_the_other_way_round(tmp_path):
    pipe = make_pipeline(labeler=True)
    for arguments in ({"storage": "float32", "max_shard_size": "1KB"}, {"storage": "int4"}) * 2:
        pipe.save_pretrained(tmp_path, **arguments)
        kept = [path.parent.name for path in tmp_path.glob("*/*.index.json")]
        assert sorted(kept) == (["generator", "labeler"] if "max_shard_size" in arguments else [])
        loaded, expected = DiMPipeline.from_pretrained(tmp_path), stored_form(pipe, arguments["storage"])
        assert torch.equal(images(loaded), images(expected))
        assert same_weights(loaded.labeler, expected.labeler)


def test_bytes_are_those_that_saving_takes_whatever_was_loaded(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "full", storage="float32")
    pipe.save_pretrained(tmp_path / "both", storage="int4")
    pipe.save_pretrained(tmp_path / "both", storage="float32", variant="full")
    half = DiMPipeline.from_pretrained(tmp_path / "full", dtype=torch.float16)
    variant = DiMPipeline.from_pretrained(tmp_path / "both", variant="full")
    for name, loaded in {"half": half, "variant": variant}.items():
        loaded.save_pretrained(tmp_path / name)
        assert module_bytes(loaded.generator) == (tmp_path / name / "generator" / FILE).stat().st_size


# What is refused


@pytest.mark.parametrize("form", ["int9", "int1", "fp8", "INT8", "", 8])
def test_an_unknown_form_is_refused_before_any_file_is_made(form, tmp_path):
    message = rf"`storage` is {form!r}; valid are 'float32', 'float16', 'int8', .* 'int2'\.$"
    for saved in (make_pipeline(), make_generator()):
        with pytest.raises(ValueError, match=message):
            saved.save_pretrained(tmp_path / "saved", storage=form)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("form", [None, "float32", "float16", "int8"])
@pytest.mark.parametrize("network", ["generator", "labeler"])
@pytest.mark.parametrize("dims", [1, 4])
def test_weights_that_are_not_finite_are_refused_before_any_file_is_made(dims, network, form, tmp_path):
    pipe = make_pipeline(labeler=True)
    values = getattr(pipe, network).state_dict()
    name = next(name for name, value in values.items() if value.ndim == dims)
    values[name].view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"the {network}'s {name} cannot be stored: it has values that are not fin"):
        pipe.save_pretrained(tmp_path / "saved", storage=form)
    if network == "generator":
        with pytest.raises(ValueError, match=f"{name} cannot be stored"):
            pipe.generator.save_pretrained(tmp_path / "saved", storage=form)
    assert not (tmp_path / "saved").exists()


def test_weights_that_a_form_cannot_hold_are_refused_before_any_file_is_made(tmp_path):
    pipe = make_pipeline()
    with pytest.raises(ValueError, match=r"`max_shard_size` is '1KB'; valid with `storage` 'int8', .* is None"):
        pipe.save_pretrained(tmp_path / "saved", storage="int8", max_shard_size="1KB")
    for value, shown in ((1e5, "1e\\+05"), (-2e38, "2e\\+38")):
        pipe.generator.proj_in.weight.data[3, 2] = value
        with pytest.raises(ValueError, match=rf"'int4' cannot hold proj_in.weight: its largest weight is {shown};"):
            pipe.save_pretrained(tmp_path / "saved", storage="int4")
    assert not (tmp_path / "saved").exists()


def lose(name):
    return lambda content: content.pop(name)


def put(name, change):
    return lambda content: content.update({name: change(content.get(name))})


def rename(old, new):
    return lambda content: content.update({new: content.pop(old)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("proj_in.weight.scale"), "lack proj_in.weight and have proj_in.weight.int4; valid is proj"),
        (lose("proj_in.weight.int4"), "lack proj_in.weight and have proj_in.weight.scale; valid is"),
        (lose("blocks.0.norm.bias"), "lack blocks.0.norm.bias; valid is"),
        (rename("proj_in.weight.int4", "proj_in.weight.int9"), "have proj_in.weight.int9, .*int8 to .*int2"),
        (rename("proj_in.weight.int4", "proj_in.weight.int8"), r"int8 is torch.uint8 of shape \(144,\); .*\(288"),
        (put("proj_in.weight.int4", lambda v: v[:-1]), r"int4 is torch.uint8 of shape \(143,\); .* \(144"),
        (put("proj_in.weight.int4", lambda v: v.half()), "int4 is torch.float16 of shape .* whole numbers"),
        (put("proj_in.weight.int4", lambda v: v.to(torch.int32)), "has torch.int32 codes and torch.float16 scales"),
        (put("proj_in.weight.scale", lambda v: v[:3]), r"scale is torch.float16 of shape \(3,\); valid .* \(32,\)"),
        (put("proj_in.weight.scale", lambda v: v * torch.nan), "scale holds numbers that are not finite"),
        (put("proj_in.weight.scale", lambda v: -v), "proj_in.weight.scale holds -.*; valid are scales from 0"),
        (put("proj_in.weight.scale", lambda v: v.float()), "has torch.uint8 codes and torch.float32 scales"),
        (put("blocks.0.norm.bias", lambda v: v[:2]), r"blocks.0.norm.bias is torch.float16 of shape \(2,\)"),
        (put("proj_in.weight.scale", lambda v: v.to(torch.float8_e4m3fn)), "scale is torch.float8_e4m3fn of shape"),
        (put("proj_in.weight.scale", lambda v: v.to(torch.complex64)), "scale is torch.complex64 of shape"),
        (put("blocks.0.norm.running_var", lambda v: v.to(torch.float8_e4m3fn)), "running_var is torch.float8_e4m3fn"),
        (put("blocks.0.norm.num_batches_tracked", lambda v: v.bool()), "num_batches_tracked is torch.bool"),
        (put("blocks.0.norm.running_var", lambda v: v / 0), "running_var holds numbers that are not finite"),
        (put("conv_out.gain", lambda v: torch.zeros(1)), "hold the unknown conv_out.gain"),
        (put("proj_in.weight", lambda v: torch.zeros(32, 9)), "the unknown proj_in.weight.int4, proj_in"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(damage, message, tmp_path):
    make_pipeline().save_pretrained(tmp_path, storage="int4")
    content = load_file(tmp_path / "generator" / FILE)
    damage(content)
    save_file(content, tmp_path / "generator" / FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the generator's .*{message}") as error:
        DiMPipeline.from_pretrained(tmp_path)
    assert len(str(error.value)) < 600


def test_files_of_two_forms_are_refused(tmp_path):
    generator = make_generator()
    generator.save_pretrained(tmp_path, storage="int4")
    content = load_file(tmp_path / FILE)
    other = generator.stored_state("int8")
    for name in ("proj_in.weight.int4", "proj_in.weight.scale"):
        del content[name]
    content |= {name: other[name] for name in ("proj_in.weight.int8", "proj_in.weight.scale")}
    save_file(content, tmp_path / FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="are stored as int4 and int8; valid is one form"):
        DiMGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("form", ["int8", "int3"])
@pytest.mark.parametrize("network", ["generator", "labeler"])
def test_a_file_with_any_other_number_in_it_is_refused(network, form, tmp_path):
    make_pipeline(labeler=True).save_pretrained(tmp_path, storage=form)
    path = tmp_path / network / FILE
    original = load_file(path)
    for name in original:
        content = {key: value.clone() for key, value in original.items()}
        # The lowest bit of the last byte of the first number.
        content[name].reshape(-1).view(torch.uint8)[content[name].element_size() - 1] ^= 1
        save_file(content, path, metadata={"format": "pt"})
        # What the checksums do not fit is the first of them, where they are wrong themselves.
        named = min(original) if name == "checksums" else name
        with pytest.raises(ValueError, match=rf"the {network}'s .*{re.escape(named)}"):
            DiMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("network", ["generator", "labeler"])
def test_numbers_of_another_channel_or_scale_are_named(network, tmp_path):
    make_pipeline(labeler=True).save_pretrained(tmp_path, storage="int4")
    path = tmp_path / network / FILE
    name = "blocks.1.upsample.weight.scale" if network == "generator" else "network.4.weight.scale"
    for change in (lambda v: v.flip(0), lambda v: 2 * v, lambda v: 0 * v):
        content = load_file(path)
        content[name] = change(content[name])
        assert len(content[name].unique()) == 1 or not content[name].equal(load_file(path)[name])
        save_file(content, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"the {network}'s file is damaged: its checksums do not fit {name}.$"):
            DiMPipeline.from_pretrained(tmp_path)
        make_pipeline(labeler=True).save_pretrained(tmp_path, storage="int4")


@pytest.mark.parametrize("network", ["generator", "labeler"])
def test_checksums_of_other_tensors_are_refused_and_files_without_them_are_read(network, tmp_path):
    pipe = make_pipeline(labeler=True)
    pipe.save_pretrained(tmp_path, storage="int4")
    path = tmp_path / network / FILE
    content = load_file(path)
    for sums in (content["checksums"][1:], content["checksums"].long()):
        save_file(content | {"checksums": sums}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"the {network}'s file is damaged: its checksums do not fit checksums"):
            DiMPipeline.from_pretrained(tmp_path)
    # As older ones are.
    del content["checksums"]
    save_file(content, path, metadata={"format": "pt"})
    loaded = getattr(DiMPipeline.from_pretrained(tmp_path), network)
    assert same_weights(loaded, getattr(stored_form(pipe, "int4"), network))


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_negative_variance_is_refused(form, tmp_path):
    generator = make_generator()
    generator.blocks[1].norm.running_var[3] = -0.5
    generator.save_pretrained(tmp_path, storage=form)
    with pytest.raises(ValueError, match=r"blocks.1.norm.running_var holds -0.5; valid are variances, from 0"):
        DiMGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_file_that_is_cut_short_is_named(form, share, tmp_path):
    make_pipeline().save_pretrained(tmp_path, storage=form)
    path = tmp_path / "generator" / FILE
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(OSError, match=str(path)):
        DiMPipeline.from_pretrained(tmp_path)


NETWORKS = [("blocks.0.norm.bias", make_generator), ("network.13.bias", lambda: DiMLabeler(3, 8, 1, width=4))]


@pytest.mark.parametrize("shards", ["10GB", "1KB"])
@pytest.mark.parametrize(("name", "make"), NETWORKS)
def test_weights_that_a_file_lacks_are_never_left_at_random(name, make, shards, tmp_path):
    network = make()
    network.save_pretrained(tmp_path, max_shard_size=shards)
    index = tmp_path / f"{FILE}.index.json"
    path = tmp_path / (json.loads(index.read_text())["weight_map"].pop(name) if shards == "1KB" else FILE)
    content = load_file(path)
    del content[name]
    save_file(content, path, metadata={"format": "pt"})
    if shards == "1KB":
        entries = json.loads(index.read_text())
        del entries["weight_map"][name]
        index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=f"r's weights lack.*{name}"):
        type(network).from_pretrained(tmp_path)


@pytest.mark.parametrize("shards", ["10GB", "1KB"])
@pytest.mark.parametrize(("name", "make"), NETWORKS)
def test_numbers_of_a_file_that_are_not_finite_are_refused(name, make, shards, tmp_path):
    network = make()
    network.save_pretrained(tmp_path, max_shard_size=shards)
    (path,) = (path for path in tmp_path.glob("*.safetensors") if name in load_file(path))
    content = load_file(path)
    content[name][1] = math.nan
    save_file(content, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} .* not finite"):
        type(network).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"metadata": {}, "weight_map": {"a": 5}}']
)
@pytest.mark.parametrize("make", [make for _, make in NETWORKS])
def test_a_damaged_index_of_several_files_is_named(make, content, tmp_path):
    make().save_pretrained(tmp_path, max_shard_size="1KB")
    index = tmp_path / f"{FILE}.index.json"
    index.write_text(content)
    with pytest.raises(OSError, match=f"{re.escape(str(index))} is damaged: "):
        type(make()).from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "make"), NETWORKS)
def test_a_network_reads_no_pickled_file_that_an_index_names(name, make, tmp_path):
    network = make()
    network.save_pretrained(tmp_path, max_shard_size="1KB")
    assert same_weights(type(network).from_pretrained(tmp_path), network)
    index = tmp_path / f"{FILE}.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"][name] = "last.bin"
    index.write_text(json.dumps(entries))
    torch.save(network.state_dict(), tmp_path / "last.bin")
    with pytest.raises(OSError, match=r"last.bin is pickled, .*; only safetensors are read"):
        type(network).from_pretrained(tmp_path)


# What is shipped


def test_a_warning_names_both_accuracies_where_a_form_costs_more_than_two_points():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_storage("int4", 0.9301, 0.95, "validation accuracy")
    message = (
        r"`--storage` int4 costs .* 2 points: validation accuracy is 92\.90 %, and 95\.00 % with the original weights"
    )
    with pytest.warns(UserWarning, match=message):
        warn_of_storage("int4", 0.929, 0.95, "validation accuracy")


@pytest.mark.slow
def test_a_run_scores_and_ships_the_form_and_never_the_discriminator(tmp_path):
    # Accelerate keeps its settings for the life of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    train_dim.main(train_dim.parse_args(
        ["--output_dir", str(tmp_path), "--max_train_steps", "2", "--train_batch_size", "8",
         "--validation_epochs", "1", "--validation_steps", "2",
         "--report_to", "none", "--storage", "int8"]
    ))  # fmt: skip
    run = DiMPipeline.from_pretrained(tmp_path)
    assert run.generator.storage == "int8"
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"validation/accuracy", "validation/accuracy_in_float32"} <= set(last)
    # What was shipped is the average of the last checkpoint as int8 keeps it.
    average = DiMGenerator.from_pretrained(tmp_path / "checkpoint-2" / "ema_generator")
    assert average.storage is None
    assert same_weights(run.generator, stored_form(DiMPipeline(average), "int8").generator)

    # A checkpoint holds the discriminator. Neither the pipeline of the run nor one that is saved from it does.
    discriminator = DiMDiscriminator.from_pretrained(tmp_path / "checkpoint-2" / "discriminator")
    run.save_pretrained(tmp_path / "shipped")
    shipped = [path for path in (tmp_path / "shipped").rglob("*") if path.is_file()]
    files = {str(path.relative_to(tmp_path / "shipped")) for path in shipped}
    assert files == {
        "model_index.json", "pipeline.py", "generator/config.json", "generator/generator_dim.py", f"generator/{FILE}"
    }  # fmt: skip
    own = set(run.generator.state_dict())
    assert not own & set(discriminator.state_dict())
    for folder in (tmp_path, tmp_path / "shipped"):
        assert {path.name for path in folder.glob("generator/*.safetensors")} == {FILE}
        content = load_file(folder / "generator" / FILE)
        assert {name.removesuffix(".int8").removesuffix(".scale") for name in content} == own | {"checksums"}
        assert "discriminator" not in (folder / "model_index.json").read_text()

    evaluate_dim.main(evaluate_dim.parse_args(
        ["--pipeline", str(tmp_path), "--storage", "int3", "--classifiers", "convnet3", "--ipc", "1", "--epochs", "1",
         "--seeds", "0", "--controls"]
    ))  # fmt: skip
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    small = stored_form(run, "int3")
    assert metrics["weights"] == weights_digest(small) != weights_digest(run)
    assert [row["bytes"] for row in metrics["rows"]] == [module_bytes(small.generator)]
    # The classifier of the row, and the one that it is compared with.
    jobs = [json.loads(line)["job"] for line in (tmp_path / "evaluation" / "results.jsonl").read_text().splitlines()]
    assert len(jobs) == 2 and jobs[0] != jobs[1]
    assert same_weights(DiMPipeline.from_pretrained(tmp_path).generator, run.generator)
