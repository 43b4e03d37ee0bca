"""
Folders of images, read by one rule (docs/your_data.md): only its position decides what a folder means. Only `train`,
`test` and `validation` at the top are splits, and only if they hold folders of classes.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
from PIL import Image, ImageFile

from ..files import MARKER, WRITES, has_made, is_run
from ..messages import listed, one_line
from .metadata import METADATA, read_metadata
from .splits import SPLIT_WORDS, SPLITS


# What systems put into folders: archives of macOS, thumbnails and recycle bins of Synology, QNAP and Windows.
NOT_DATA = {"__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "system volume information"}
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LAYOUTS = "Valid is one folder per class, at the top or inside train, test and validation folders (docs/your_data.md)"


def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that this installation of Pillow decodes."""
    suffixes = Image.registered_extensions()
    # Pillow only identifies some formats, and leaves decoding to plugins.
    only_identified = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    # Without being such a file, MPEG is only identified too.
    decoded = Image.OPEN.keys() - only_identified - {"MPEG"}
    # Several JPEG images in one file, which the decoder of JPEG opens.
    decoded |= {"MPO"} if "JPEG" in decoded else set()
    return frozenset(suffix for suffix, name in suffixes.items() if name in decoded)


@dataclass(eq=False)
class Folder:
    """
    A folder and everything below it, with links followed.

    Args:
        path (`str`): Path from `root`; `""` for `root` itself.
        root (`Path`): The folder that the user gave.
        argument (`str`): The argument that gave it, for messages.
        identity (`tuple[int, int]`): Device and inode.
    """

    path: str
    root: Path
    argument: str
    identity: tuple[int, int]
    parent: "Folder | None" = None
    folders: list["Folder"] = field(default_factory=list)
    images: list[tuple[str, os.stat_result]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    num_images: int = 0

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def below(self) -> Iterator["Folder"]:
        """This folder and all folders below it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(reversed(folder.folders))

    def files(self) -> list[str]:
        """The files below that are not images, as paths from `root`."""
        return [path for folder in self.below() for path in folder.others]

    def images_below(self) -> list[tuple[str, os.stat_result]]:
        """All images at any depth, sorted by path."""
        return sorted((image for folder in self.below() for image in folder.images), key=lambda image: image[0])

    def refusal(self, problem: str) -> ValueError:
        """An error that names the problem with `root`, the valid layouts, and what this folder holds."""
        parts = []
        if folders := [folder.name for folder in self.folders if folder.num_images]:
            parts.append(f"{len(folders):,} folders with images ({listed(folders, most=3)})")
        if self.images:
            parts.append(f"{len(self.images):,} images ({listed((os.path.basename(i) for i, _ in self.images), 1)})")
        if self.others:
            parts.append(f"{len(self.others):,} other files")
        found = f"found in {one_line(self.root / self.path)}: {' and '.join(parts) or 'no image'}"
        return ValueError(f"`{self.argument}` {one_line(self.root)}: {problem}. {LAYOUTS}; {found}.")


def refuse_data_folder(output_dir: str | os.PathLike, dataset_name: str | None, train_data_dir: str | None) -> None:
    """
    Checks, before any work, that a script would not write among the images that it reads or beside their splits. A new
    folder among images is harmless, because [`read_folder`][dim_hf.data.folders.read_folder] skips it.

    Args:
        dataset_name, train_data_dir (`str`, *optional*): The flags that name the data set. Only a folder is refused;
            `"digits"` is the embedded set, even if there is a folder of that name.

    Raises:
        FileExistsError: If the output folder is that folder, one below it with files that no script wrote, any below
            one of data files, or the one that holds it as a split; or if it holds images that no script wrote.
    """
    data = dataset_name if train_data_dir is None else train_data_dir
    if data is None or (train_data_dir is None and data == "digits") or not Path(data).is_dir():
        return _refuse_images(Path(output_dir))
    output, root = Path(output_dir).resolve(), Path(data).resolve()
    visible = output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir())
    if output == root:
        place = f"the data folder {data}"
    elif root in output.parents and visible and not is_run(output):
        place = f"part of the data folder {data}"
    elif root in output.parents and any(next(root.rglob(f"*{each}"), None) for each in (".parquet", ".arrow")):
        place = f"part of the data folder {data}, of which `datasets` reads all data files"
    elif output == root.parent and root.name.lower() in SPLITS and not is_run(output):
        place = f"the folder of the split {data}"
    else:
        return _refuse_images(Path(output_dir))
    raise FileExistsError(
        f"`--output_dir` {output_dir} is {place}, whose images it would be mixed with; name another folder."
    )


def _refuse_images(output: Path) -> None:
    """Refuses an output folder with images: once it is a run's, it is skipped where images are read."""
    if not output.is_dir() or any(has_made(script, output) for script in WRITES):
        return
    suffixes = image_suffixes()
    # An export has a picture, too.
    found = [path.name for path in sorted(output.iterdir()) if path.suffix.lower() in suffixes]
    if found and not (output / "model_index.json").is_file():
        raise FileExistsError(
            f"`--output_dir` {output} holds {len(found):,} images ({listed(found, 2)}), which would no longer be read "
            "as data; name another folder."
        )


def read_folder(root: Path, argument: str) -> Folder:
    """
    Lists the content of a folder.

    Raises:
        OSError: If a part cannot be read, or a link is broken or leads to a folder that contains it.
    """
    suffixes = image_suffixes()
    status = root.stat()
    top = Folder("", root, argument, (status.st_dev, status.st_ino))
    # Not recursive, because folders can be nested deeper than Python calls.
    reached = [top]
    for folder in reached:
        try:
            with os.scandir(root / folder.path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            message = f"`{argument}`: the folder {one_line(root / folder.path)} cannot be read: {error.strerror}."
            raise OSError(message) from error
        if folder.parent and any(entry.name == MARKER for entry in found) and is_run(root / folder.path):
            folder.parent.folders.remove(folder)
            folder.parent.hidden.append(folder.path)
            continue
        for entry in found:
            path = f"{folder.path}/{entry.name}" if folder.path else entry.name
            if entry.name.startswith(".") or entry.name.lower() in NOT_DATA:
                folder.hidden.append(path)
                continue
            try:
                # That of the entry itself has no inode on Windows.
                status = os.stat(entry.path)
            except OSError as error:
                kind = "link" if entry.is_symlink() else "entry"
                message = f"`{argument}`: the {kind} {one_line(root / path)} leads to nothing that can be read"
                raise OSError(f"{message}: {error.strerror}.") from error
            if stat.S_ISDIR(status.st_mode):
                child = Folder(path, root, argument, (status.st_dev, status.st_ino), folder)
                above: Folder | None = folder
                while above is not None:
                    if above.identity == child.identity:
                        raise OSError(
                            f"`{argument}`: the link {one_line(root / path)} leads to a folder that contains it."
                        )
                    above = above.parent
                folder.folders.append(child)
                reached.append(child)
            elif stat.S_ISREG(status.st_mode) and os.path.splitext(entry.name)[1].lower() in suffixes:
                folder.images.append((path, status))
            else:
                folder.others.append(path)
    for folder in reversed(reached):
        folder.num_images = len(folder.images) + sum(child.num_images for child in folder.folders)
    return top


def read_image_folder(top: Folder, split: str, label_column: str | None) -> tuple[datasets.Dataset, str]:
    """
    One split of a folder of images, with the columns `image` and `label`, or `image` and a column of its metadata.

    Args:
        top ([`Folder`]): From [`read_folder`].
        split (`str`): `"train"`, `"test"` or `"validation"`; only `"train"` if there are no folders of splits.
        label_column (`str`, *optional*): A column of metadata files that labels the images instead of their folders.

    Returns:
        The images, sorted by class and then by path, and a text about skipped files.

    Raises:
        ValueError: If the folder has another layout, naming what does not fit.
    """
    if archives := [path for path in top.files() if path.lower().endswith(ARCHIVES)]:
        raise top.refusal(f"archives are not read; unpack {listed(archives, 2)}, or move them elsewhere")
    if not top.num_images:
        raise top.refusal("it holds no image that Pillow reads")
    tables = [path for path in top.files() if os.path.basename(path) in METADATA] if label_column else []
    part = _split(top, split, flat=bool(tables))
    tables = [path for path in tables if path in {*top.others, *part.files()}]
    labels = None
    if label_column and tables:
        labels = read_metadata(top.root, tables, label_column, top.argument, one_split=part is top)
    images = part.images_below()
    if labels is None and label_column not in (None, "label"):
        raise top.refusal(f"`label_column` {listed([label_column])} is not in it: folders of classes give `label`")
    if labels is not None:
        column = label_column or ""
        known = dict(zip(labels["file_name"].to_pylist(), labels["label"].to_pylist(), strict=True))
        if unlabelled := [path for path, _ in images if path not in known]:
            missing = f"{len(unlabelled):,} images ({listed(unlabelled, 2)})"
            raise top.refusal(f"{listed(tables, 1)} has no row for {missing}")
        every = {path for path, _ in top.images_below()}
        if lost := [path for path in known if path not in every]:
            raise top.refusal(f"{listed(tables, 1)} names {len(lost):,} images that are missing ({listed(lost, 2)})")
        values = [known[path] for path, _ in images]
        features = datasets.Features.from_arrow_schema(pa.schema({column: labels.schema.field("label").type}))
    else:
        column = "label"
        classes = _classes(part)
        features = datasets.Features({column: datasets.ClassLabel(names=[folder.name for folder in classes])})
        by_class = [folder.images_below() for folder in classes]
        images = [image for members in by_class for image in members]
        values = [label for label, members in enumerate(by_class) for _ in members]
    if strange := [path for path, _ in images if not _is_utf8(path)]:
        raise top.refusal(f"{len(strange):,} names are not UTF-8 ({listed(strange, 2)}); rename them")
    if any(isinstance(value, int) and value >= 2**63 for value in values):
        raise top.refusal(f"{listed(tables, 1)} has labels of 2**63 or more, which `datasets` does not take")
    root = os.path.abspath(top.root)
    dataset = datasets.Dataset.from_dict(
        {"image": [f"{root}/{path}" for path, _ in images], column: values},
        features=datasets.Features({"image": datasets.Image(), **features}),
    )
    # A changed file changes the fingerprint, so it is decoded again.
    content = [root, [(path, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for path, at in images], column, values]
    dataset._fingerprint = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]
    used = set(tables) if labels is not None else set()
    return dataset, _skipped(top, part, used)


def _skipped(top: Folder, part: Folder, used: set[str]) -> str:
    """A text about the files that were skipped at the top and in a split."""
    beside = top.hidden + top.others if part is not top else []
    paths = sorted({*beside, *(path for folder in part.below() for path in (*folder.hidden, *folder.others))} - used)
    return f"{len(paths):,} that are hidden or not images ({listed(paths, most=4)})" if paths else ""


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(top: Folder, split: str, flat: bool) -> Folder:
    """
    The folder of a split: one of those at the top, or the top itself if there are none.

    Args:
        flat (`bool`): Whether labels are in metadata, so that images need no folders of classes.
    """
    holding = [folder for folder in top.folders if folder.num_images]
    named = [folder for folder in holding if folder.name.lower() in SPLITS]
    if not flat or top.images or len(named) < len(holding):
        named = [folder for folder in named if any(child.num_images for child in folder.folders)]
    wanted = SPLITS.get(split.lower(), split)
    if not named:
        if wanted != "train":
            raise top.refusal(f"it has no split {split!r}; valid is train, as it has no folders of splits")
        if flat and len(set().union(*(_split_words(folder) for folder in holding))) > 1:
            raise _named_like_splits(top, [folder for folder in holding if _split_words(folder)])
        return top
    if top.images or len(named) < len(holding):
        beside = [os.path.basename(path) for path, _ in top.images]
        beside = [folder.name for folder in holding if folder not in named] + beside
        splits = listed((folder.name for folder in named), 3)
        train = [folder for folder in named if SPLITS[folder.name.lower()] == "train"]
        other = [folder.name for folder in holding if folder not in named and "train" in _split_words(folder)]
        way_out = f", or rename {listed(other, 1)} to train" if other else ""
        if train:
            way_out = f", or give {one_line(top.root / train[0].name)}"
        raise top.refusal(f"images in no split ({listed(beside, 2)}) lie beside {splits}; move them{way_out}")
    by_split: dict[str, Folder] = {}
    for folder in named:
        if (first := by_split.setdefault(SPLITS[folder.name.lower()], folder)) is not folder:
            raise top.refusal(f"{first.name} and {folder.name} are the same split")
    if wanted not in by_split:
        raise top.refusal(f"it has no split {split!r}; valid are {listed(by_split)}")
    return by_split[wanted]


def _classes(part: Folder) -> list[Folder]:
    """The folders of classes in a split, in sorted order."""
    if part.images:
        loose = f"{len(part.images):,} images are in no class ({listed((path for path, _ in part.images), 2)})"
        tables = [path for path in part.others if os.path.basename(path) in METADATA]
        hint = f"; `label_column` (--label_column) can name a column of {tables[0]}" if tables else ""
        raise part.refusal(loose + hint)
    if empty := [folder.name for folder in part.folders if not folder.num_images]:
        lacking = f"{len(empty):,} folders hold no image that Pillow reads ({listed(empty, 2)})"
        raise part.refusal(f"{lacking}, and every class needs one; move or fill them")
    if len(part.folders) < 2:
        inner = part.folders[0]
        while len(inner.folders) == 1 and not inner.images:
            inner = inner.folders[0]
        several = sum(folder.num_images > 0 for folder in inner.folders) > 1
        hint = f"; if its folders are the classes, give {one_line(inner.root / inner.path)}" if several else ""
        raise part.refusal(f"there is only one class ({listed([part.folders[0].name])}){hint}")
    _refuse_splits(part)
    same = [{child.name for child in folder.folders if child.num_images} for folder in part.folders]
    if len(same[0]) > 1 and all(names == same[0] for names in same) and not any(f.images for f in part.folders):
        warnings.warn(
            f"each class of {one_line(part.root / part.path)} ({listed(sorted(f.name for f in part.folders), 4)}) "
            f"holds the same folders ({listed(sorted(same[0]), 4)}); if these are the classes, name one of the "
            f"former as `{part.argument}`, or call them train and test.",
            stacklevel=2,
        )
    return sorted(part.folders, key=lambda folder: folder.name)


def _refuse_splits(part: Folder) -> None:
    """
    Raises an error if folders that would become classes seem to be splits of other names: folders of folders with
    words of several splits in their names (`seg_train`, `seg_test` and `seg_pred`), or all of them with such a word or
    exactly such a name. Otherwise a word in a name says nothing (`freight train`, `car` and `bus`).
    """
    nested = [folder for folder in part.folders if _split_words(folder) and not folder.images]
    like = [folder for folder in part.folders if folder in nested or folder.name.lower() in SPLIT_WORDS]
    if len(like) == len(part.folders):
        raise _named_like_splits(part, like)
    if len(set().union(*map(_split_words, nested))) > 1:
        raise _named_like_splits(part, nested)


def _named_like_splits(part: Folder, folders: list[Folder]) -> ValueError:
    names = listed((folder.name for folder in folders), 4)
    return part.refusal(
        f"{names} would be classes, but are named like splits: if they are, name them train, test and validation, "
        "with no other folder beside them; if not, rename them"
    )


def _split_words(folder: Folder) -> set[str]:
    """The splits that words in a folder's name mean; `TrainSet`, `train_data` and `trainset` mean `train`."""
    words = re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder.name).lower())
    words += [word.removesuffix(end) for word in words for end in ("set", "data", "images")]
    return {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
