"""Containers of real images: what is read back, how large they are, and the search for the best codec."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation import codecs
from dim_hf.evaluation.codec_search import ROUNDS, best_codec
from dim_hf.evaluation.codecs import (
    CODECS,
    PNG_FILES,
    Codec,
    class_turns,
    pack,
    packed_subset,
    png_bytes,
    unpack,
    unpacked,
)
from dim_hf.evaluation.controls import random_subset
from dim_hf.evaluation.recipe import DeploymentRecipe
from dim_hf.evaluation.results import EVALUATION_FORMAT


LOSSLESS = [name for name, codec in CODECS.items() if codec.lossless]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_image_data("digits", cache_dir=tmp_path_factory.mktemp("cache"))


def smooth(count, channels, size, seed=0):
    """Images without noise, as photographs are, in three classes of which the last may be empty."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=rng)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    labels = torch.randint(3, (count,), generator=rng)
    return ImageData((255 * images.clamp(0, 1)).to(torch.uint8), labels, ("a", "b", "c"), "smooth")


def in_order(data):
    order = data.labels.argsort(stable=True)
    return data.images[order], data.labels[order]


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(LOSSLESS),
    count=st.integers(1, 50),
    channels=st.sampled_from([1, 3]),
    size=st.integers(8, 64),
    seed=st.integers(0, 3),
)
def test_lossless_codecs_give_back_every_pixel_and_label(name, count, channels, size, seed):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, size, size), generator=rng, dtype=torch.uint8)
    data = ImageData(images, torch.randint(3, (count,), generator=rng), ("a", "b", "c"), "noise")
    found, labels = unpack(pack(data, CODECS[name]))
    expected, expected_labels = in_order(data)
    assert torch.equal(found, expected) and torch.equal(labels, expected_labels)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from([name for name in CODECS if name not in LOSSLESS]),
    count=st.integers(1, 50),
    channels=st.sampled_from([1, 3]),
    size=st.integers(8, 64),
)
def test_lossy_codecs_give_back_labels_and_each_image_nearer_to_itself_than_to_grey(name, count, channels, size):
    data = smooth(count, channels, size)
    found, labels = unpack(pack(data, CODECS[name]))
    expected, expected_labels = in_order(data)
    assert found.shape == expected.shape and found.dtype == torch.uint8 and torch.equal(labels, expected_labels)
    errors = (found.float() - expected.float()).square().mean().sqrt()
    # Of very small images half the size leaves little; four colours of a cube leave 0.7 of its deviation.
    assert errors < (0.9 if size >= 24 else 1.2) * max(float(expected.float().std()), 50)


@pytest.mark.parametrize("form", ["JPEG", "WebP", "AVIF"])
def test_more_quality_is_fewer_errors_and_more_bytes(form):
    data = smooth(40, 3, 16)
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    images = (data.images + 10 * noise).clamp(0, 255).to(torch.uint8)
    data = ImageData(images, data.labels, data.class_names, "noisy")
    sizes, errors = [], []
    for codec in (each for each in CODECS.values() if each.format == form and each.quality and not each.half):
        content = pack(data, codec)
        sizes.append(len(content))
        errors.append((unpack(content)[0].float() - in_order(data)[0].float()).square().mean().item())
    assert len(sizes) >= 3 and sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


def test_half_size_and_a_palette_by_hand():
    # 2 x 2 squares of one value are one pixel each at half size.
    coarse = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    image = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]
    plain = Codec("LZMA", half=True)
    found = plain.decode(plain.encode(image), image.shape)
    assert (found[..., :4, :4] == 0).all() and (found[..., :4, 12:] == 255).all()
    # Four colours of four keep all.
    levels = torch.tensor([3, 90, 160, 251], dtype=torch.uint8)
    image = levels[torch.arange(64) % 4].reshape(1, 1, 8, 8)
    for form in ("LZMA", "WebP", "PNG"):
        codec = Codec(form, colours=4)
        assert torch.equal(codec.decode(codec.encode(image), image.shape), image)


@pytest.mark.parametrize("name", ["PNG", "lossless WebP, 16 colours", "AVIF quality 70"])
def test_many_images_take_several_pages(monkeypatch, name):
    data = smooth(40, 1, 8)
    codec = CODECS[name]
    one_page = codec.encode(data.images)
    monkeypatch.setattr(codecs, "PAGE", 32)
    several = codec.encode(data.images)
    length = int.from_bytes(several[:4], "little")
    assert length + 4 < len(several) and int.from_bytes(one_page[:4], "little") + 4 == len(one_page)
    found = codec.decode(several, data.images.shape)
    errors = (found.float() - data.images).square().mean((1, 2, 3)).sqrt()
    assert errors.max() < 25 if codec.name != "PNG" else errors.max() == 0


def test_codecs_are_named_and_read_back_by_their_names():
    assert len({codec.name for codec in CODECS.values()}) == len(CODECS)
    assert {"PNG files", "lossless WebP", "JPEG quality 25", "AVIF quality 50, half size"} <= set(CODECS)


def test_a_machine_whose_pillow_has_no_avif_says_so(digits, tmp_path):
    (tmp_path / "container").write_bytes(pack(smooth(9, 1, 8), CODECS["AVIF quality 20"]))
    code = f"""
from PIL import Image
Image.init()
del Image.SAVE["AVIF"]
import warnings
from pathlib import Path
from dim_hf.data import load_image_data
from dim_hf.evaluation.codec_search import best_codec
from dim_hf.evaluation.codecs import CODECS, unpack
from dim_hf.evaluation.recipe import DeploymentRecipe
folder = Path({str(tmp_path)!r})
try:
    unpack((folder / "container").read_bytes())
except ValueError as error:
    print(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    data = load_image_data("digits", cache_dir=folder / "cache")
    best_codec(data, 9, 1, DeploymentRecipe(1), folder / "codecs.jsonl", codecs=[CODECS["PNG"]])
print(*(each.message for each in caught if "Pillow" in str(each.message)))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    first, *_, last = finished.stdout.splitlines()
    assert first.endswith(
        "cannot be read: its codec 'AVIF quality 20' is unknown, or Pillow was built without its format here"
    )
    assert last.startswith("Pillow was built without AVIF here, so no codec in it is tried")


@pytest.mark.parametrize("name", ["PNG files", "PNG", "LZMA", "AVIF quality 20", "lossless WebP, 4 colours"])
def test_what_is_no_whole_container_is_refused(name):
    content = pack(smooth(9, 1, 8), CODECS[name])
    for broken in (b"", content[:7], content[: len(content) // 2], content[:-20], b"\x05" + content[1:]):
        with pytest.raises(ValueError, match="cannot be read"):
            unpack(broken)


@pytest.mark.parametrize("name", CODECS)
def test_a_subset_fills_its_bytes_with_the_beginning_of_one_order(digits, name):
    codec, budget = CODECS[name], 6_000
    content = packed_subset(digits, budget, 3, codec)
    data = unpacked(content, digits)
    order = class_turns(digits, 3)
    assert len(content) <= budget
    assert content == pack(digits.select(order[: len(data)]), codec)
    one_more = pack(digits.select(order[: len(data) + 1]), codec)
    assert len(data) == len(digits) or len(content) >= 0.995 * budget or len(one_more) > budget
    counts = torch.bincount(data.labels, minlength=10)
    assert len(data) == len(digits) or counts.max() - counts.min() <= 1
    assert data.class_names == digits.class_names


def test_the_order_begins_with_random_subsets(digits):
    order = class_turns(digits, 3)
    for ipc in (1, 7):
        subset = random_subset(digits, ipc, 3)
        assert torch.equal(in_order(digits.select(order[: 10 * ipc]))[0], subset.images)
    assert not torch.equal(order, class_turns(digits, 4))
    assert torch.equal(order.sort().values, torch.arange(len(digits)))


def test_a_subset_has_an_image_of_every_class_and_ends_with_the_data(digits):
    for codec in (PNG_FILES, CODECS["AVIF quality 20"]):
        assert unpack(packed_subset(digits, 1, 0, codec))[1].tolist() == list(range(10))
        assert len(unpack(packed_subset(digits, 10**9, 0, codec))[1]) == len(digits)


def test_another_container_is_another_data_set(digits):
    one, other = (
        unpacked(packed_subset(digits, 5_000, 0, CODECS[name]), digits) for name in ("PNG", "WebP quality 5")
    )
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == unpacked(packed_subset(digits, 5_000, 0, CODECS["PNG"]), digits).fingerprint


def test_bytes_of_a_part_are_scaled_to_all(digits):
    exact = len(pack(digits, PNG_FILES))
    assert png_bytes(digits, at_most=len(digits)) == exact
    assert png_bytes(digits, at_most=100) == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_the_search_chooses_by_held_out_accuracy_and_goes_on_where_it_ended(digits, tmp_path, capsys):
    cache, recipe = tmp_path / "codecs.jsonl", DeploymentRecipe(epochs=32)
    names = ["PNG files", "PNG", "LZMA", "LZMA, 4 colours", "JPEG quality 10", "WebP quality 50", "WebP quality 5"]
    names += ["JPEG quality 25", "JPEG quality 50", "WebP quality 20", "WebP quality 80"]
    candidates = [CODECS[name] for name in names]
    best = best_codec(digits, 8_000, 2, recipe, cache, codecs=candidates)
    records = [json.loads(line) for line in cache.read_text().splitlines()]
    rounds = {epochs: [r for r in records if r["job"]["recipe"]["epochs"] == epochs] for epochs in (0, 2, 6, 18)}
    # Of the three lossless ones the one that holds the most images is tried.
    lossless = max(rounds[0][:3], key=lambda record: record["images"])["job"]["codec"]
    tried = {record["job"]["codec"] for record in rounds[2]}
    assert tried == {lossless, *names[3:]}
    assert [len(own) for own in rounds.values()] == [11, 9, ROUNDS[0][1], ROUNDS[1][1]]
    assert best.name == max(rounds[18], key=lambda record: record["accuracy"])["job"]["codec"]
    kept = sorted(rounds[2], key=lambda record: -record["accuracy"])[: ROUNDS[0][1]]
    assert {record["job"]["codec"] for record in rounds[6]} == {record["job"]["codec"] for record in kept}
    assert all(record["bytes"] <= 8_000 for record in records)
    # 9 x 2 + 7 x 6 + 2 x 18.
    assert "best of 9 codecs for 8,000 bytes" in (said := capsys.readouterr().out) and "96 epochs" in said

    finished = cache.read_bytes()
    assert best_codec(digits, 8_000, 2, recipe, cache, codecs=candidates) == best
    assert cache.read_bytes() == finished and capsys.readouterr().out == ""
    # What an interruption took away is measured again, with the same result.
    cache.write_text("\n".join(finished.decode().splitlines()[:-3]) + "\n{")
    assert best_codec(digits, 8_000, 2, recipe, cache, codecs=candidates) == best
    again = [json.loads(line) for line in cache.read_text().splitlines() if line.endswith("}")]
    assert [r["accuracy"] for r in again[-3:]] == [r["accuracy"] for r in records[-3:]]


def test_one_codec_needs_no_search(digits, tmp_path, capsys):
    best = best_codec(digits, 8_000, 2, DeploymentRecipe(epochs=1), tmp_path / "codecs.jsonl", codecs=[CODECS["PNG"]])
    (record,) = map(json.loads, (tmp_path / "codecs.jsonl").read_text().splitlines())
    said = f"nothing to choose for 8,000 bytes of real images but PNG, which takes {record['bytes']:,}\n"
    assert best == CODECS["PNG"] and capsys.readouterr().out == said
    assert record["job"]["format"] == EVALUATION_FORMAT


def test_codecs_that_do_not_fit_are_left_out(digits, tmp_path):
    few = DeploymentRecipe(epochs=1)
    # The least that AVIF takes is more than this.
    candidates = [CODECS["AVIF quality 10"], CODECS["LZMA, 4 colours"]]
    assert best_codec(digits, 350, 1, few, tmp_path / "a", codecs=candidates).name == "LZMA, 4 colours"
    assert best_codec(digits, 1, 1, few, tmp_path / "a", codecs=candidates).name == "LZMA, 4 colours"
