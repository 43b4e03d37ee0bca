"""The results of an evaluation, a line of JSON for each classifier: what is there need not be run again."""

import json
import os
from dataclasses import asdict
from typing import Any

from ..classifiers import local_fingerprint
from ..data.image_data import ImageData
from ..files import read_json_lines
from .sources import Source


# Of results and of the latents of fixed sets. To be raised by one with any change after which the same settings give
# other figures: of streams, recipes, augmentation, classifiers' initial weights, how latents are chosen or moved, how
# a classifier is scored. What has another number is left where it is and made anew.
EVALUATION_FORMAT = 1


def describe_job(source: Source, classifier: str, seed: int, test: ImageData) -> dict[str, Any]:
    """All that decides the result of one classifier, as JSON values."""
    job = source.identity(seed) | {
        "classifier": classifier,
        "ipc": source.ipc,
        "seed": seed,
        "recipe": asdict(source.judge.recipe),
        "test": test.fingerprint,
        "format": EVALUATION_FORMAT,
    }
    if content := local_fingerprint(classifier):
        job["local"] = content
    return job


def job_key(job: dict[str, Any]) -> str:
    """One string for all that decides the result of a job."""
    return json.dumps(job, sort_keys=True)


def read_results(path: str | os.PathLike) -> tuple[dict[str, dict[str, Any]], int]:
    """
    The results in a file, if there is one; a line that an interruption cut short is not one of them.

    Returns:
        Those of this format by their jobs' keys, and the number of others, which are not used.

    Raises:
        ValueError: If a line is something else, naming the file.
    """
    results, others = {}, 0
    for record in read_json_lines(path):
        if not (
            isinstance(record, dict)
            and isinstance(record.get("job"), dict)
            and isinstance(record.get("accuracy"), float)
            and isinstance(record.get("seconds"), float)
        ):
            raise ValueError(
                f"`--output_dir` holds {path}, which is not by evaluate_dim.py: it has the line "
                f"{json.dumps(record)[:60]}; valid is an output folder of evaluate_dim.py or a new one."
            )
        if record["job"].get("format") == EVALUATION_FORMAT:
            results[job_key(record["job"])] = record
        else:
            others += 1
    return results, others
