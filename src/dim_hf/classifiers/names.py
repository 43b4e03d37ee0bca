"""The parts of a classifier's name: library, model and options."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any


LIBRARIES = ("timm", "transformers")


def split_name(name: str) -> tuple[str, str, dict[str, Any]]:
    """
    Splits `library/model:option=value,option=value`.

    Returns:
        The library (`""` for the networks of `CLASSIFIERS`), the model, and its options with values read as JSON, or
        else left as words.

    Raises:
        ValueError: If an option has no value.
    """
    library, _, rest = name.partition("/")
    if library not in LIBRARIES:
        library, rest = "", name
    model, colon, text = rest.partition(":")
    options: dict[str, Any] = {}
    # A comma inside a list is not followed by `option=`.
    for part in re.split(r",(?=\w+=)", text) if colon else []:
        option, equals, value = part.partition("=")
        if not (option and equals and value):
            raise ValueError(f"classifier {name!r} has the option {part!r}; options are `:option=value,option=value`.")
        try:
            options[option] = json.loads(value)
        except json.JSONDecodeError:
            options[option] = {"True": True, "False": False}.get(value, value)
    return library, model, options


def public_name(name: str) -> str:
    """
    A classifier's name, or an entry of a pool, for publication: a local path becomes `transformers/(local folder)`.
    """
    found = re.fullmatch(r"transformers/(?P<model>[^:]*?)(?P<rest>(@\d+)?(:.*)?)", name)
    if found is None:
        return name
    model = found["model"]
    # A repository on the Hub is `name` or `namespace/name`.
    local = model.startswith(("/", "~", ".")) or model.count("/") > 1 or Path(model).is_dir()
    return f"transformers/(local folder){found['rest']}" if local else name


def local_fingerprint(name: str) -> str | None:
    """
    A hash of the content of `transformers/<local folder>`; `None` for any other name, which means the same everywhere.
    It includes the weights only with `pretrained=true`.
    """
    library, model, options = split_name(name)
    folder = Path(model)
    if library != "transformers" or not folder.is_dir():
        return None
    of_weights = ["processor_config.json", "preprocessor_config.json", "*.safetensors"]
    read = ["config.json", *(of_weights if options.get("pretrained") else [])]
    digest = hashlib.sha256()
    for path in sorted(path for pattern in read for path in folder.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
