"""`datasets.load_dataset`, with one clear message where it fails."""

import errno
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.exceptions import DatasetsError

from ..messages import one_line


LONGEST_REASON = 250


@contextmanager
def clear_errors(argument: str, name: str, split: str, config: str | None) -> Iterator[None]:
    """Turns the errors of `datasets` over a user's data set into clear messages."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        here = "" if Path(name).exists() else " is not a folder or file here, and"
        raise FileNotFoundError(f"`{argument}` {name}{here} cannot be found: {reason(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f"{Path(name, 'README.md')} cannot be read: {reason(error, whole=True)}"
        raise ValueError(f"`{argument}`: the YAML at the top of {where}") from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise ValueError(
            f"`{argument}` {name} needs its own script, which `datasets` no longer runs ({reason(error)}); valid are "
            f"data sets of parquet files or images."
        ) from error
    # The last three occur when entries of a README have the wrong types.
    except (OSError, ValueError, DatasetsError, TypeError, KeyError, AttributeError, tarfile.TarError) as error:
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise ValueError(
                f"`dataset_config_name` {config!r} does not name one of {name}: {reason(error, whole=True)}"
            ) from error
        full = getattr(error.__cause__ or error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        hint = f" ({datasets.config.HF_DATASETS_CACHE}; HF_HOME names another place)" if full else ""
        raise ValueError(f"split {split!r} of {name} cannot be read: {reason(error)}{hint}") from error


def load(argument: str, name: str, split: str, config: str | None = None, **arguments: Any) -> datasets.Dataset:
    with clear_errors(argument, name, split, config):
        return datasets.load_dataset(name=config, split=split, **arguments)


def reason(error: BaseException, whole: bool = False) -> str:
    """The short message of another library's error: its first line, or all lines joined if `whole`."""
    if isinstance(error, DatasetsError) and error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return one_line(" ".join(text.split()) if whole else text.splitlines()[0], LONGEST_REASON)
