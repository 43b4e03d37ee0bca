"""An existing card: how it is read, and how a new one is merged into it."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import RepoCard, hf_hub_download
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import RemoteEntryNotFoundError
from yaml import YAMLError

from ..arguments import reason


# A part of a card that a push replaces when more is known, or when it describes other weights or images.
PART = re.compile(
    r"<!-- (model|start|results|audit|training|images) of \w+ (\w+) -->\n.*?<!-- end of \1 -->", re.DOTALL
)
MOST_CARD_BYTES = 2**20
Card = TypeVar("Card", bound=RepoCard)


def existing_card(kind: type[Card], repo_id_or_path: str | Path, token: str | None = None) -> Card | None:
    """
    The card that a repository or a file has, if any; `kind` is `ModelCard` or `DatasetCard`.

    Raises:
        ValueError: If its metadata cannot be read.
    """
    if isinstance(repo_id_or_path, Path) and not repo_id_or_path.exists():
        return None
    try:
        path = repo_id_or_path
        if not isinstance(path, Path):
            path = Path(hf_hub_download(path, REPOCARD_NAME, repo_type=kind.repo_type, token=token))
        if (size := path.stat().st_size) > MOST_CARD_BYTES:
            raise ValueError(f"the card {repo_id_or_path} has {size:,} bytes; valid are at most {MOST_CARD_BYTES:,}.")
        return kind.load(path, ignore_metadata_errors=True)
    except RemoteEntryNotFoundError:
        return None
    except (YAMLError, RecursionError) as error:
        raise ValueError(
            f"the card {repo_id_or_path} has metadata that is not YAML ({reason(error)}); correct it, or remove the "
            "file."
        ) from error


def merge_cards(existing: Card, card: Card, known: set[str], outdated: Collection[str] = ()) -> Card:
    """
    Merges a new card into the existing one. Its text stays, except for our parts that are better known now or describe
    other weights or images. Its metadata stay, except for the `outdated` fields, and the new ones are added.

    `metadata_update` of huggingface_hub would commit on its own, before the weights that the metadata describe.
    """
    before = {part[1]: part for part in PART.finditer(existing.text)}
    stale = {part[1] for part in PART.finditer(card.text) if part[1] in before and part[2] != before[part[1]][2]}
    text = existing.text
    for part in PART.finditer(card.text):
        if part[1] in before and part[1] in known | stale:
            text = text.replace(before[part[1]][0], part[0])
        elif part[1] not in before and part[1] in known:
            text = insert_section(text, card.text, part)
    # Dumping a card restores the order of metadata in its file, which loading does not keep.
    str(existing), str(card)
    old = {name: value for name, value in existing.data.to_dict().items() if name not in outdated}
    new = card.data.to_dict()
    merged = {**old, **new}
    if old.get("license"):
        merged["license"] = old["license"]
    if "configs" in new:
        merged["configs"] = merge_configs(old.get("configs") or [], new["configs"])
    for name in ("tags", "datasets", "metrics", "task_categories"):
        both = [*(old.get(name) or []), *(new.get(name) or [])]
        if both:
            merged[name] = list(dict.fromkeys(both))
    if "results" in known | stale and "model-index" not in new:
        merged.pop("model-index", None)
    if "training" in known | stale and "differential_privacy" not in new:
        merged.pop("differential_privacy", None)
    data = type(card.data)(**merged, ignore_metadata_errors=True)
    metadata = data.to_yaml(original_order=list(merged))
    return type(card)(f"---\n{metadata}\n---\n{text if text.strip() else card.text}", ignore_metadata_errors=True)


def merge_configs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The configurations of a data set. One that is new keeps the old splits that it does not have."""
    before = {config.get("config_name"): config for config in old}
    merged = []
    for config in new:
        files = before.pop(config["config_name"], {}).get("data_files") or []
        if isinstance(files, dict):
            files = [{"split": split, "path": path} for split, path in files.items()]
        splits = {part["split"] for part in config["data_files"]}
        others = [part for part in files if isinstance(part, dict) and part.get("split") not in splits]
        merged.append({**config, "data_files": [*config["data_files"], *others]})
    return [*merged, *before.values()]


def insert_section(text: str, source: str, part: re.Match[str]) -> str:
    """Adds a part, under its heading in `source`, where the next heading of `source` is in the text, or at its end."""
    heading = source.rindex("\n## ", 0, part.start()) + 1
    section = f"{source[heading : part.end()]}\n"
    following = re.compile(r"^## .*$", re.MULTILINE).search(source, part.end())
    before, found, after = text.partition(f"\n{following[0]}\n") if following else (text, "", "")
    return f"{before.rstrip()}\n\n{section}{found}{after}"
