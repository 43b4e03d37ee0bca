"""Images of every mode and format, broken ones, and the cache that decoded ones are kept in."""

import io
import os
import signal
import struct
import subprocess
import threading
import time
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from filelock import FileLock
from PIL import Image

from dim_hf.data import load_image_data
from dim_hf.data.decoding import _each_batch, _opened, _size_and_mode, _whole, decoded_images, to_pixels


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def reopened(image, image_format="PNG", **options):
    return datasets.Image().decode_example({"bytes": encoded(image, image_format, **options), "path": None})


def two_by_two(values, dtype=np.uint8, mode=None):
    image = Image.fromarray(np.array(values, dtype=dtype))
    return image.convert(mode) if mode else image


SHADES = [[0, 1], [100, 255]]
RGB = [[(0, 0, 0), (255, 0, 0)], [(0, 255, 0), (10, 20, 30)]]
RED, GREEN, BLUE = ([[pixel[i] for pixel in row] for row in RGB] for i in range(3))
SIXTEEN = [[0, 257], [100 * 257, 65535]]
HALF_CLEAR = [[(0, 255), (0, 0)], [(200, 255), (200, 0)]]


def pgm(highest, values):
    return b"P5 2 2 %d\n" % highest + np.array(values, dtype=">u2").tobytes()


def png_of_16_bits(values, colour_type):
    """Two rows of two pixels of big-endian values, with transparency, which Pillow does not write."""
    rows = b"".join(b"\0" + np.array(row, dtype=">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def tiff_of_12_bits(*more):
    """Two rows of two values, 0 and 4095 and then 2048 and 16, three bytes a row; Pillow does not write it."""
    data = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), *more]
    tags += [(277, 3, 1), (278, 3, 2), (279, 4, 6)]
    entries = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, value in tags
    )
    start = (16).to_bytes(4, "little")
    return b"II*\0" + start + data + b"\0\0" + len(tags).to_bytes(2, "little") + entries + b"\0\0\0\0"


def white_is_zero(image):
    """The values of an image as those of a TIFF file that counts from white to black; Pillow does not write it."""
    black_is_zero = bytes.fromhex("0601 0300 01000000 01000000")
    content = encoded(image, "TIFF")
    assert content.count(black_is_zero) == 1
    return Image.open(io.BytesIO(content.replace(black_is_zero, bytes.fromhex("0601 0300 01000000 00000000"))))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (reopened(two_by_two([[0, 1], [1, 0]], bool)), [[[0, 255], [255, 0]]]),
        (reopened(two_by_two(SHADES)), [SHADES]),
        (reopened(two_by_two(SHADES), "TIFF"), [SHADES]),
        (reopened(two_by_two(HALF_CLEAR)), [[[0, 255], [200, 255]]]),
        (reopened(two_by_two(RGB)), [RED, GREEN, BLUE]),
        (reopened(two_by_two(RGB).quantize(4)), [RED, GREEN, BLUE]),
        (reopened(two_by_two(RGB, mode="RGBA"), "TIFF"), [RED, GREEN, BLUE]),
        (reopened(two_by_two(RGB, mode="CMYK"), "TIFF"), [RED, GREEN, BLUE]),
        (two_by_two(SHADES).convert("RGB").convert("YCbCr"), [SHADES] * 3),
        (two_by_two(SHADES).convert("RGB").convert("HSV"), [SHADES] * 3),
        (reopened(two_by_two(SIXTEEN, np.uint16)), [SHADES]),
        (reopened(two_by_two(SIXTEEN, np.uint16), "TIFF"), [SHADES]),
        (reopened(two_by_two(SIXTEEN, ">u2"), "TIFF"), [SHADES]),
        (Image.open(io.BytesIO(pgm(65535, SIXTEEN))), [SHADES]),
        (Image.open(io.BytesIO(pgm(4095, [[0, 4095], [2048, 16]]))), [[[0, 255], [128, 1]]]),
        (Image.open(io.BytesIO(tiff_of_12_bits())), [[[0, 255], [128, 1]]]),
        (white_is_zero(two_by_two(SIXTEEN, np.uint16)), [[[255, 254], [155, 0]]]),
        (white_is_zero(two_by_two(SHADES)), [[[255, 254], [155, 0]]]),
        (
            Image.open(io.BytesIO(encoded(two_by_two(SIXTEEN, np.uint16), "PNG", transparency=0))),
            [[[255, 1], [100, 255]]],
        ),
    ],
)
def test_every_mode_to_exact_values(image, expected):
    assert to_pixels(image, 2, len(expected)).tolist() == expected


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "CMYK", "P", "RGBA", "LA", "PA", "1", "L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_white_in_every_mode(mode, channels):
    white = {"LAB": (255, 128, 128), "HSV": (0, 0, 255), "YCbCr": (255, 128, 128), "CMYK": (0, 0, 0, 0)}
    image = Image.new(mode, (2, 2), white[mode]) if mode in white else Image.new("RGB", (2, 2), "white").convert(mode)
    # A colour profile leads from LAB to RGB, and rounds.
    assert (to_pixels(image, 2, channels) >= (254 if mode == "LAB" else 255)).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            reopened(two_by_two([[100, 10**7]] * 2, np.int32), "TIFF"),
            "its pixels are signed or 32-bit integers, of no known range",
        ),
        (
            reopened(two_by_two([[0.5, 1.0]] * 2, np.float32), "TIFF"),
            "its pixels are floating point numbers, of no known",
        ),
        (two_by_two([[-1, 5]] * 2, np.int32), "its pixels are not of 16 bits"),
        (two_by_two([[0, 65536]] * 2, np.int32), "its pixels are not of 16 bits"),
    ],
)
def test_values_without_a_range_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        to_pixels(image, 2, 1)


# The usual orientation, which most programs write into TIFF files.
UPRIGHT = {274: 1}


def test_the_range_of_values_is_known_whatever_the_orientation(tmp_path):
    content = tiff_of_12_bits((274, 3, 1))
    assert to_pixels(_opened({"bytes": content, "path": None}), 2, 1).tolist() == [[[0, 255], [128, 1]]]
    (tmp_path / "x.tif").write_bytes(content)
    assert to_pixels(_opened({"bytes": None, "path": f"{tmp_path}/x.tif"}), 2, 1).tolist() == [[[0, 255], [128, 1]]]
    image = _opened({"bytes": encoded(two_by_two(SIXTEEN, np.uint16), "TIFF", tiffinfo=UPRIGHT), "path": None})
    assert to_pixels(image, 2, 1).tolist() == [SHADES]
    image = _opened({"bytes": encoded(two_by_two(SHADES, np.int32), "TIFF", tiffinfo=UPRIGHT), "path": None})
    with pytest.raises(ValueError, match="its pixels are signed or 32-bit integers, of no known range"):
        to_pixels(image, 2, 1)


@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_header_tells_what_decoding_would(tmp_path, orientation, mode):
    exif = Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    content = encoded(Image.new(mode, (6, 4)), "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(content)
    for value in ({"bytes": content, "path": None}, {"bytes": None, "path": str(tmp_path / "x.jpg")}):
        image = _opened(value)
        assert _size_and_mode(value) == (image.size, image.mode)
        assert image.size == ((4, 6) if orientation in (5, 6, 7, 8) else (6, 4))


def test_grey_of_16_bits_with_transparency_stays_grey():
    grey = [[(0, 65535), (257, 65535)], [(100 * 257, 65535), (0, 0)]]
    colour = [[(*[value] * 3, alpha) for value, alpha in row] for row in grey]
    for values, colour_type, mode, channels in ((grey, 4, "LA", 1), (colour, 6, "RGBA", 3)):
        value = {"bytes": png_of_16_bits(values, colour_type), "path": None}
        assert _size_and_mode(value) == ((2, 2), mode)
        assert to_pixels(_opened(value), 2, channels).tolist() == [SHADES] * channels


def test_an_image_that_ends_early_is_named_whatever_its_header_says(tmp_path):
    whole = [encoded(Image.effect_noise((32, 32), 50), "JPEG") for _ in range(2)]
    write(tmp_path / "set", image=[whole[0], whole[1][:-200]], label=["a", "b"])
    with pytest.raises(ValueError, match="the image in row 1 of .* cannot be decoded: .*truncated"):
        load_image_data(tmp_path / "set", cache_dir=tmp_path / "cache", num_workers=0)


def write(folder, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), folder / "train.parquet")
    return folder


PNG = encoded(two_by_two(SHADES))


@pytest.fixture
def load(tmp_path):
    return lambda *args, **kwargs: load_image_data(*args, cache_dir=tmp_path / "cache", num_workers=0, **kwargs)


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ([PNG, PNG, PNG], [True, False, True], ("False", "True")),
        (pa.array([PNG, PNG, PNG], pa.large_binary()), ["b", "a", "b"], ("a", "b")),
        ([{"bytes": PNG, "path": None}] * 3, [3, 1, 3], ("1", "3")),
        ([{"bytes": PNG, "path": "a.png"}] * 3, pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b")),
    ],
)
def test_bytes_of_images_as_pandas_writes_them(tmp_path, load, images, labels, names):
    data = load(write(tmp_path / "set", picture=images, kind=labels))
    assert data.class_names == names and data.labels.tolist() == [1, 0, 1]
    assert data.images[1].tolist() == [SHADES]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [PNG, None], "label": [0, 1]}, "the image in row 1 of .* cannot be decoded: it is missing .null."),
        (
            {"image": [{"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": None}], "label": [0, 1]},
            "image in row 1 of",
        ),
        (
            {"image": [{"bytes": PNG, "path": "a.png"}, {"bytes": PNG[:45], "path": "b.png"}], "label": [0, 1]},
            "in row 1 .b.png.",
        ),
        (
            {"image": [PNG, PNG], "label": [0.5, 1.0]},
            "`label_column` must be given, since no column fits .named classes.*label .float64",
        ),
        ({"image": [PNG, PNG], "label": [[0], [1]]}, "`label_column` must be given, since no column fits"),
        (
            {"image": [PNG, PNG], "Target": [0.0, 1.0], "fold": [0, 1]},
            "`label_column` must be given, since there is Target .float64. beside fold .int64.; valid are fold",
        ),
        (
            {"image": [PNG, PNG], "label": [0.0, 1.0], "caption": ["a", "b"]},
            "`label_column` must be given, since there is label .float64. beside caption .string.; valid are caption",
        ),
        (
            {"image": [PNG, PNG], "label": [0.0, 1.0], "__index_level_0__": [3, 4]},
            "`label_column` must be given, since no column fits",
        ),
        (
            {"image": [PNG, b""], "label": [0, 1]},
            "the image in row 1 of .* cannot be decoded: Pillow finds no image in",
        ),
        (
            {"image": ["a.png", "b.png"], "label": [0, 1]},
            "`image_column` must be given.*image .string., label .int64.",
        ),
        ({"image": [PNG, PNG], "label": [0, None]}, "`label_column` label of .* has no label in row 1"),
        ({"image": [PNG, PNG], "label": ["a", ""]}, "`label_column` label of .* has no label in row 1"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, load, columns, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(write(tmp_path / "set", **columns))
    assert len(str(caught.value)) <= 600


def test_the_message_for_a_wrong_column_names_its_type(tmp_path, load):
    folder = write(tmp_path / "set", image=[PNG, PNG], label=[0, 1], score=[0.5, 1.0])
    with pytest.raises(ValueError, match="`label_column` 'score' .* .it holds float64.; valid are label"):
        load(folder, label_column="score")


def test_a_cut_image_of_a_folder_is_named(tmp_path, load):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (64, 64), 7).save(tmp_path / "set" / name / "a.jpg")
    path = tmp_path / "set" / "dog" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"the image in row 1 .{path}. of split 'train' of .* cannot be decoded: "):
        load(tmp_path / "set")
    assert not list((tmp_path / "cache" / "images").glob("*.npy"))


def test_paths_and_home(tmp_path, load, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        two_by_two(SHADES).save(tmp_path / "set" / name / "0.png")
    data = [load("~/set"), load(tmp_path / "set"), load(train_data_dir="~/set")]
    data.append(load_image_data("~/set", cache_dir="~/other", num_workers=0))
    assert {each.fingerprint for each in data} == {data[0].fingerprint} and (tmp_path / "other" / "images").is_dir()
    with pytest.raises(ValueError, match="`num_workers` is -1; valid is a whole number from 0"):
        load_image_data("digits", num_workers=-1)


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 16]) + content[-8:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(os.urandom(300))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "gone", "noise"])
@pytest.mark.parametrize("suffix", ["npy", "sha256"])
def test_a_damaged_cache_is_made_anew(load, tmp_path, suffix, how):
    before = load(max_samples=50)
    pixels, fingerprint = before.images.clone(), before.fingerprint
    (path,) = (tmp_path / "cache" / "images").glob(f"*.{suffix}")
    good = path.read_bytes()
    damage(path, how)
    after = load(max_samples=50)
    assert torch.equal(after.images, pixels) and after.fingerprint == fingerprint and path.read_bytes() == good


def test_a_process_that_waited_for_another_does_not_decode_again(load, tmp_path):
    load(max_samples=50)
    (path,) = (tmp_path / "cache" / "images").glob("*.npy")
    whole = tmp_path / "whole.npy"
    path.rename(whole)
    with FileLock(tmp_path / "cache" / ".locks" / f"{path.name}.lock"):
        waiting = threading.Thread(target=load, kwargs={"max_samples": 50})
        waiting.start()
        waiting.join(timeout=2)
        assert waiting.is_alive()
        whole.rename(path)
        written = path.stat().st_ino, path.stat().st_mtime_ns
    waiting.join()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == written


def test_every_flipped_bit_of_the_header_is_seen(load, tmp_path):
    load(max_samples=10)
    (path,) = (tmp_path / "cache" / "images").glob("*.npy")
    digest, good = path.with_suffix(".sha256"), path.read_bytes()
    assert _whole(path, digest) is not None
    for bit in range(8 * 128):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        found = _whole(path, digest)
        # A space of the padding may become what means the same.
        assert found is None or found.tobytes() == good[128:]


def full_disk(tmp_path, size):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    return folder


@pytest.mark.parametrize("fill", [False, True])
def test_a_cache_disk_that_is_too_small_is_one_message(tmp_path, fill):
    folder = full_disk(tmp_path, "256k")
    try:
        if fill:
            (folder / "filler").write_bytes(b"0" * 200 * 1024)
        with pytest.raises(
            OSError, match=f"`cache_dir` {folder} cannot take .* No space left.*name another .*--cache_dir"
        ):
            load_image_data("digits", cache_dir=folder, num_workers=0, resolution=8 if fill else 32)
        assert not [
            path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != "filler"
        ]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_cache_that_is_a_file_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=f"`cache_dir` {tmp_path / 'file'} cannot take the decoded images of .*--cache_dir"
    ):
        load_image_data("digits", cache_dir=tmp_path / "file", num_workers=0)


def _slow(batch, start, origin, pid_file):
    with open(pid_file, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.05)
    return start


@pytest.mark.slow
def test_a_killed_process_is_one_message(tmp_path):
    pid_file = tmp_path / "pids"
    pid_file.touch()

    def kill_one():
        while not (pids := pid_file.read_text().splitlines()):
            time.sleep(0.01)
        os.kill(int(pids[0]), signal.SIGKILL)

    rows = Dataset.from_dict({"image": list(range(256 * 100))})
    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(
        ChildProcessError, match="a process that decoded the set was killed.*--dataloader_num_workers.*now 2"
    ):
        _each_batch(rows, "Decoding", 2, _slow, ("the set", pid_file))
    killer.join()
    for pid in set(pid_file.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_an_error_in_a_worker_process_is_raised_unchanged(tmp_path):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    rows = [{"bytes": PNG, "path": None}] * 4000
    rows[3000] = {"bytes": b"broken", "path": "b.png"}
    data = Dataset.from_dict({"image": rows, "label": [0, 1] * 2000}, features=features)
    with pytest.raises(ValueError, match="the image in row 3000 .b.png. of the set cannot be decoded"):
        decoded_images(data, "the set", "image", None, None, tmp_path, 2)
    assert not list(tmp_path.rglob("*.npy"))
