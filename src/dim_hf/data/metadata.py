"""Labels of images in `metadata.csv`, `.jsonl` or `.parquet` beside them, the convention of `datasets`."""

import codecs
import posixpath
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from ..messages import listed
from .splits import several_splits


METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(
    root: Path, tables: list[str], column: str, argument: str, one_split: bool = False
) -> pa.Table | None:
    """
    Reads the labels of a folder's images from its metadata.

    Args:
        tables (`list[str]`): Paths of the metadata files from `root`.
        argument (`str`): The argument that gave the folder, for messages.
        one_split (`bool`, *optional*, defaults to `False`): Whether all images are of one split.

    Returns:
        A table with the columns `file_name`, as paths from `root`, and `label`; `None` if `column` is `"label"`, which
        folders of classes provide, and no file has it.

    Raises:
        ValueError: If a file cannot be read or lacks a column, or an image is named more than once.
    """
    parts = []
    found: list[str] = []
    for path in tables:
        try:
            table = _read(root / path, column)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:150]
            if (root / path).read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                reason = "it is UTF-16; save it as UTF-8"
            raise ValueError(f"`{argument}`: the metadata {root / path} cannot be read: {reason}") from error
        names = table.column_names
        if repeated := [name for name in ("file_name", column) if names.count(name) > 1]:
            raise ValueError(f"`{argument}`: the metadata {root / path} has several columns {listed(repeated)}.")
        if "file_name" not in names:
            raise ValueError(
                f"`{argument}`: the metadata {root / path} needs a column `file_name` of paths; its columns are "
                f"{listed(map(repr, names))}."
            )
        if not table.num_rows:
            raise ValueError(f"`{argument}`: the metadata {root / path} has no rows.")
        if not _is_text(kind := table.schema.field("file_name").type):
            reason = "text that is not UTF-8" if pa.types.is_binary(kind) else f"of type {kind}"
            raise ValueError(
                f"`{argument}`: in the metadata {root / path} the column `file_name` is {reason}; valid are paths."
            )
        if column in names and pa.types.is_binary(table[column].type):
            raise ValueError(
                f"`label_column`: in the metadata {root / path} the column {column!r} is text that is not UTF-8."
            )
        for name in names if one_split else ():
            kind = table.schema.field(name).type
            plain = name != column and (_is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind))
            if plain and (several := several_splits(name, table[name].unique().to_pylist())):
                raise ValueError(
                    f"`{argument}`: the metadata {root / path} {several}; put each split into a folder of its own."
                )
        found += [name for name in names if name not in ("file_name", "image", *found)]
        if column in names and column not in ("file_name", "image"):
            folder = posixpath.dirname(path)
            # With slashes on every system, as the paths of images are.
            files = [posixpath.normpath(posixpath.join(folder, name or "")) for name in table["file_name"].to_pylist()]
            label = table[column].cast(pa.string()) if _is_text(table[column].type) else table[column]
            parts.append(pa.table({"file_name": pa.array(files, pa.string()), "label": label}))
    if len(parts) < len(tables):
        if not parts and column == "label":
            return None
        raise ValueError(
            f"`label_column` {listed([repr(column)])} is not in all the metadata of {root}, {listed(tables, most=2)}; "
            f"valid are label (the folders of classes) and {listed(map(repr, found), most=4)}."
        )
    if any(_is_text(part.schema.field("label").type) for part in parts):
        # A CSV file of a class may happen to hold only whole numbers.
        for index, (path, part) in enumerate(zip(tables, parts, strict=True)):
            if path.endswith(".csv") and pa.types.is_integer(part.schema.field("label").type):
                parts[index] = part.set_column(1, "label", part["label"].cast(pa.string()))
    try:
        labels = pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        kinds = listed({str(part.schema.field("label").type) for part in parts})
        raise ValueError(f"`label_column` {column!r} has several types in the metadata of {root}: {kinds}.") from error
    seen: set[str] = set()
    for name in labels["file_name"].to_pylist():
        if name in seen:
            raise ValueError(
                f"`{argument}`: in {listed(tables, 2)} of {root}, {listed([name])} occurs more than once."
            )
        seen.add(name)
    return labels


def _read(path: Path, column: str) -> pa.Table:
    if path.suffix == ".csv":
        table = pyarrow.csv.read_csv(path)
        # In a file without types, 007 and 7 are two labels, as are 1.1 and 1.10, and a path may be a number.
        as_written = pyarrow.csv.ConvertOptions(column_types={"file_name": pa.string(), column: pa.string()})
        try:
            written = pyarrow.csv.read_csv(path, convert_options=as_written)
        except pa.ArrowInvalid:
            return table  # Not UTF-8, which its types say.
        for index, name in enumerate(table.column_names):
            kind = table.schema.field(index).type
            kept = pa.types.is_integer(kind) and table[index].cast(pa.string()).equals(written[index])
            if name == "file_name" or (name == column and not kept):
                table = table.set_column(index, name, written[index])
        return table
    if path.suffix == ".jsonl":
        table = pyarrow.json.read_json(path)
        # Text that looks like a date stays text.
        dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
        if text := [pa.field(name, pa.string()) for name in ("file_name", column) if name in dates]:
            options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(text))
            table = pyarrow.json.read_json(path, parse_options=options)
        return table
    return pyarrow.parquet.read_table(path)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings; pandas and Polars write large ones, or each different one once."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
