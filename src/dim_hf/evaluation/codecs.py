"""
Stores real images in few bytes: codecs, a container for images and labels, and the largest
class-balanced subset within a number of bytes.
"""

import hashlib
import io
import lzma
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..data import ImageData, members_by_class


# Images are tiled into pages with sides of at most this many pixels, so that an encoder's memory stays bounded.
PAGE = 4096
# A subset takes at least this share of its bytes, unless a single image more is too much.
FILLED = 0.995
# Errors from reading truncated or foreign bytes; Pillow raises `SyntaxError` for a broken PNG.
_UNREADABLE = (struct.error, lzma.LZMAError, EOFError, LookupError, OSError, SyntaxError, ValueError)


@dataclass(frozen=True)
class Codec:
    """
    How images are stored.

    Args:
        format (`str`): `"PNG files"`, concatenated; `"LZMA"` of raw pixels; or `"PNG"`, `"WebP"`, `"JPEG"` or `"AVIF"`
            of large pages, into which images are tiled so that they share headers and tables.
        quality (`int`, *optional*): Of WebP, JPEG and AVIF, from 0 to 100; `None` is lossless.
        colours (`int`, *optional*): Size of the palette that the images of a page share, at most 256 (grey levels if
            the images are grey); `None` keeps all colours.
        half (`bool`, *optional*, defaults to `False`):
            Whether images are kept at half their height and width, and enlarged when they are read.
    """

    format: str
    quality: int | None = None
    colours: int | None = None
    half: bool = False

    @property
    def name(self) -> str:
        """Its name in tables, `--codec` and the container."""
        parts = [self.format if self.quality is None else f"{self.format} quality {self.quality}"]
        if self.format == "WebP" and self.quality is None:
            parts = ["lossless WebP"]
        if self.colours is not None:
            parts.append(f"{self.colours} colours")
        return ", ".join(parts + ["half size"] * self.half)

    @property
    def pixels(self) -> tuple[Any, ...]:
        """Equal for codecs that give identical images, except for the choice of palette."""
        changed = (self.format, self.quality) if self.quality is not None else ()
        return (*changed, self.colours, self.half)

    @property
    def available(self) -> bool:
        """Whether this machine's Pillow has the format; it can be built without AVIF, for one."""
        return self.format == "LZMA" or self.format.removesuffix(" files").upper() in Image.SAVE

    @property
    def lossless(self) -> bool:
        return self.pixels == (None, False)

    def encode(self, images: torch.Tensor) -> bytes:
        """
        Args:
            images (`torch.Tensor` of shape `(N, channels, height, width)`): uint8, of 1 or 3 channels.
        """
        if self.half:
            smaller = [math.ceil(side / 2) for side in images.shape[2:]]
            # Image by image, so that neighbours on a page do not blend.
            images = F.interpolate(images.float(), smaller, mode="area").round().to(torch.uint8)
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        if self.format == "PNG files":
            return b"".join(_encode_page(_picture(image), self) for image in pixels)
        if self.format == "LZMA":
            return lzma.compress(self._plain(pixels), lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
        pages = []
        per_page = _per_page(*pixels.shape[1:3])
        for start in range(0, len(pixels), per_page):
            page = _picture(_tile(pixels[start : start + per_page]))
            if self.colours is not None:
                page = page.quantize(self.colours, dither=Image.Dither.NONE)
            content = _encode_page(page, self)
            pages.append(struct.pack("<I", len(content)) + content)
        return b"".join(pages)

    def decode(self, content: bytes, shape: tuple[int, int, int, int]) -> torch.Tensor:
        """
        Decodes what [`encode`] returned; with a lossy codec, approximately.

        Args:
            content (`bytes`): What [`encode`] returned.
            shape (`tuple[int, int, int, int]`): That of the images, `(N, channels, height, width)`.

        Returns:
            `torch.Tensor` of that shape: uint8, on the CPU.
        """
        count, channels, height, width = shape
        rows, columns = (math.ceil(side / 2) for side in (height, width)) if self.half else (height, width)
        if self.format == "LZMA":
            plain = np.frombuffer(lzma.decompress(content), np.uint8)
            if self.colours is not None:
                palette, plain = np.split(plain, [self.colours * channels])
                plain = palette.reshape(-1, channels)[plain]
            pixels = plain.reshape(count, rows, columns, channels)
        elif self.format == "PNG files":
            files, start = [], 0
            for _ in range(count):
                end = _end_of_png(content, start)
                files.append(_decode_page(content[start:end], channels))
                start = end
            pixels = np.stack(files)
        else:
            pages, start = [], 0
            for first in range(0, count, per_page := _per_page(rows, columns)):
                (length,) = struct.unpack_from("<I", content, start)
                end = start + 4 + length
                page = _decode_page(content[start + 4 : end], channels)
                pages.append(_untile(page, min(per_page, count - first), rows, columns))
                start = end
            pixels = np.concatenate(pages)
        if self.format != "LZMA" and start != len(content):
            raise ValueError(f"{start:,} bytes of images are expected, not {len(content):,}.")
        images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).contiguous()
        if self.half:
            larger = F.interpolate(images.float(), (height, width), mode="bicubic")
            images = larger.round().clamp(0, 255).to(torch.uint8)
        return images

    def _plain(self, pixels: np.ndarray) -> bytes:
        """The pixels as they are, or a palette and then the colour of each pixel."""
        if self.colours is None:
            return pixels.tobytes()
        count, height, width, channels = pixels.shape
        page = _picture(pixels.reshape(count * height, width, channels))
        indexed = page.quantize(self.colours, dither=Image.Dither.NONE)
        palette = np.zeros((self.colours, 3), np.uint8)
        entries = np.array(indexed.getpalette() or [], np.uint8).reshape(-1, 3)[: self.colours]
        palette[: len(entries)] = entries
        return palette[:, :channels].tobytes() + indexed.tobytes()


Image.init()
# The usual way, and what "PNG" means in a comparison.
PNG_FILES = Codec("PNG files")
# From lossless to the little that classifiers can still learn from. Which one is best depends on the data and on the
# number of bytes.
_ALL = (
    PNG_FILES,
    Codec("PNG"),
    Codec("WebP"),
    Codec("LZMA"),
    *(Codec(name, colours=colours) for colours in (16, 4) for name in ("WebP", "LZMA")),
    Codec("PNG", colours=64),
    *(Codec("JPEG", quality) for quality in (10, 25, 50)),
    *(Codec("WebP", quality) for quality in (5, 20, 50, 80)),
    *(Codec("AVIF", quality) for quality in (10, 20, 35, 50, 70)),
    Codec("WebP", half=True),
    *(Codec("AVIF", quality, half=True) for quality in (25, 50, 75)),
)
CODECS = {codec.name: codec for codec in _ALL if codec.available}
# Formats that this machine's Pillow was built without.
MISSING_FORMATS = tuple(dict.fromkeys(codec.format for codec in _ALL if not codec.available))


def pack(data: ImageData, codec: Codec) -> bytes:
    """
    Packs a labelled set: the codec's name, the shape, the number of images of each class, and the images sorted by
    class, so that labels need no further bytes. Class names are left out, as they are from a generator's weights.
    """
    labels = data.labels.cpu()
    order = labels.argsort(stable=True)
    images = data.batch(order.to(data.labels.device))[0]
    return _header(labels, images.shape, data.num_classes, codec) + codec.encode(images)


def unpack(content: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The images, uint8 of shape `(N, channels, height, width)`, and the labels `(N,)` of a container.

    Raises:
        ValueError: If it is not a container, or is truncated.
    """
    try:
        length, channels, height, width, classes = struct.unpack_from(_FIXED, content)
        start = struct.calcsize(_FIXED)
        if (codec := CODECS.get(name := content[start : start + length].decode())) is None:
            raise ValueError(f"its codec {name!r} is unknown, or Pillow was built without its format here")
        counts = torch.tensor(struct.unpack_from(f"<{classes}I", content, start + length))
        shape = (int(counts.sum()), channels, height, width)
        images = codec.decode(content[start + length + 4 * classes :], shape)
    except _UNREADABLE as error:
        raise ValueError(f"a container of {len(content):,} bytes cannot be read: {str(error)[:300]}") from error
    return images, torch.arange(classes).repeat_interleave(counts)


def packed_subset(train: ImageData, budget: int, seed: int, codec: Codec) -> bytes:
    """
    Packs as many images as fit into `budget` bytes, taking one of every class in turn; at least one of each, even if
    that exceeds the budget. They are taken in the order of [`random_subset`].

    Images that share headers have no size of their own, so the number is found by search: less than half a percent of
    the bytes, or less than one more image needs, is left unused.
    """
    order = class_turns(train, seed)
    few = int((torch.bincount(train.labels, minlength=train.num_classes) > 0).sum())
    content = pack(train.select(order[:few]), codec)
    many, attempt, slope = len(order) + 1, 0, len(content) / few
    while len(content) < FILLED * budget and many - few > 1:
        attempt += 1
        # Interpolates between the last two sizes, towards the middle of the accepted range. Sizes are not quite
        # linear, so bisection guarantees an end; for very few images the header dominates, so growth is limited.
        count = few + round(((1 + FILLED) / 2 * budget - len(content)) / slope)
        if attempt % 4 == 0 and many <= len(order):
            count = (few + many) // 2
        count = max(few + 1, min(count, many - 1, 40 * few))
        found = pack(train.select(order[:count]), codec)
        slope = max(0.1, (len(found) - len(content)) / (count - few))
        if len(found) <= budget:
            few, content = count, found
        else:
            many = count
    return content


def unpacked(content: bytes, like: ImageData) -> ImageData:
    """The images of a container as a data set with the class names and on the device of another."""
    images, labels = unpack(content)
    device = like.labels.device
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    return ImageData(images.to(device), labels.to(device), like.class_names, fingerprint)


def png_bytes(data: ImageData, at_most: int = 1000) -> int:
    """Bytes of a container of PNG files, estimated from at most `at_most` evenly spaced images."""
    count = min(len(data), at_most)
    positions = torch.arange(count) * (len(data) - 1) // max(1, count - 1)
    part = data.select(positions)
    fixed = len(_header(part.labels.cpu(), part.stored.shape, part.num_classes, PNG_FILES))
    return fixed + round((len(pack(part, PNG_FILES)) - fixed) * len(data) / count)


def shuffled_classes(train: ImageData, seed: int) -> list[torch.Tensor]:
    """The positions of each class's images in random order."""
    rng = torch.Generator().manual_seed(seed)
    members = members_by_class(train.labels.cpu(), train.num_classes)
    return [part[torch.randperm(len(part), generator=rng)] for part in members]


def class_turns(train: ImageData, seed: int) -> torch.Tensor:
    """All positions in random order, one of every class in turn, for as long as a class has any."""
    classes = shuffled_classes(train, seed)
    turns = torch.cat([torch.arange(len(part)) for part in classes])
    return torch.cat(classes)[turns.argsort(stable=True)]


# Length of the codec's name, channels, height, width, classes.
_FIXED = "<BBHHI"


def _header(labels: torch.Tensor, shape: tuple[int, ...], num_classes: int, codec: Codec) -> bytes:
    name = codec.name.encode()
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    return struct.pack(_FIXED, len(name), *shape[1:], num_classes) + name + struct.pack(f"<{num_classes}I", *counts)


def _per_page(height: int, width: int) -> int:
    return max(1, PAGE // height) * max(1, PAGE // width)


def _columns(count: int, height: int, width: int) -> int:
    """Images per row on a page of `count` images, which is about square."""
    return min(max(1, PAGE // width), math.ceil(math.sqrt(count * height / width)))


def _tile(pixels: np.ndarray) -> np.ndarray:
    """Images `(n, height, width, channels)` side by side; unused space is black."""
    count, height, width, channels = pixels.shape
    columns = _columns(count, height, width)
    rows = math.ceil(count / columns)
    filled = np.zeros((rows * columns, height, width, channels), np.uint8)
    filled[:count] = pixels
    return filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def _untile(page: np.ndarray, count: int, height: int, width: int) -> np.ndarray:
    columns = _columns(count, height, width)
    tiles = page.reshape(-1, height, columns, width, page.shape[2]).swapaxes(1, 2)
    return tiles.reshape(-1, height, width, page.shape[2])[:count]


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _encode_page(page: Image.Image, codec: Codec) -> bytes:
    options: dict[str, Any] = {"quality": codec.quality}
    if codec.format.startswith("PNG"):
        options = {"optimize": True}
    elif codec.format == "JPEG":
        options |= {"optimize": True, "progressive": True}
    elif codec.format == "AVIF":
        # One thread, so that the bytes do not depend on the machine's cores.
        options |= {"speed": 6, "max_threads": 1, "subsampling": "4:0:0" if page.mode == "L" else "4:2:0"}
    elif codec.quality is None:
        # WebP's slowest lossless mode takes twenty times as long to save another 1.5 percent.
        options = {"lossless": True, "quality": 80, "method": 4}
    else:
        options |= {"method": 6}
    if page.mode == "P" and codec.format == "WebP":
        page = page.convert("RGB")
    buffer = io.BytesIO()
    page.save(buffer, format=codec.format.removesuffix(" files"), **options)
    return buffer.getvalue()


def _decode_page(content: bytes, channels: int) -> np.ndarray:
    page = np.asarray(Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB"))
    return page[..., None] if channels == 1 else page


def _end_of_png(content: bytes, start: int) -> int:
    """The end of the PNG file that starts there: after its IEND chunk."""
    end, kind = start + 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, end)
        end += 12 + length
    return end
