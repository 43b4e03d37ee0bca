"""Finds the codec whose images a classifier learns most from, for a given number of bytes."""

import json
import math
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..data import ImageData, holdout
from ..data.images import stratified_order
from ..files import append_json_line, read_json_lines
from ..streams.real import RealStream
from .codecs import CODECS, MISSING_FORMATS, Codec, packed_subset, unpack, unpacked
from .judges import evaluate_accuracy, train_classifier
from .recipe import DeploymentRecipe
from .results import EVALUATION_FORMAT


JUDGE = "convnet3"
# Rounds of successive halving: the share of the recipe's epochs that each codec is trained for, and how many go on.
# 20 codecs, 7 and 2 take less than four whole trainings. Shorter ones would only tell which images are the sharpest,
# as classifiers would not have seen many of them twice.
ROUNDS = ((1 / 16, 7), (3 / 16, 2), (9 / 16, 1))
HELD_OUT, AT_MOST = 0.1, 5000


def best_codec(
    train: ImageData,
    budget: int,
    ipc: int,
    recipe: DeploymentRecipe,
    cache: str | os.PathLike,
    *,
    codecs: Iterable[Codec] = CODECS.values(),
    seed: int = 0,
) -> Codec:
    """
    Chooses the codec for real images within a number of bytes: the one whose images train the best ConvNet-3, scored
    on a tenth of *train* that is never encoded. Test images are not read.

    Args:
        train ([`ImageData`]): The images, with at least two of every class.
        budget (`int`): Bytes of a container.
        ipc (`int`), recipe ([`DeploymentRecipe`]):
            How the final classifiers are trained. Those of the search are trained likewise, for a part of the epochs.
        cache: A file of JSON lines that records each step of the search; recorded steps are not repeated.
        codecs (`Iterable[Codec]`, *optional*): The candidates.
        seed (`int`, *optional*, defaults to 0): Seeds the subsets and classifiers.

    Returns:
        [`Codec`]: The winner of the last round.
    """
    if MISSING_FORMATS:
        warnings.warn(
            f"Pillow was built without {' and '.join(MISSING_FORMATS)} here, so no codec in it is tried; real images "
            "might do better with one.",
            stacklevel=2,
        )
    cache = Path(cache)
    known = {_key(record["job"]): record for record in read_json_lines(cache) if "job" in record}
    part, held_out = holdout(train, HELD_OUT, seed=0)
    if len(held_out) > AT_MOST:
        held_out = held_out.select(stratified_order(held_out.labels.cpu(), seed=0)[:AT_MOST])
    contents: dict[str, bytes] = {}
    start, epochs_trained = time.perf_counter(), 0

    def content_of(codec: Codec) -> bytes:
        if codec.name not in contents:
            contents[codec.name] = packed_subset(part, budget, seed, codec)
        return contents[codec.name]

    def measured(codec: Codec, epochs: int) -> dict[str, Any]:
        """The bytes and images of a codec and, after training, the accuracy."""
        nonlocal epochs_trained
        job = {"data": train.fingerprint, "budget": budget, "codec": codec.name, "ipc": ipc, "seed": seed}
        job |= {"judge": JUDGE, "recipe": asdict(recipe) | {"epochs": epochs}, "format": EVALUATION_FORMAT}
        if (record := known.get(_key(job))) is not None:
            return record
        content = content_of(codec)
        record = {"job": job, "bytes": len(content)}
        if epochs:
            data = unpacked(content, part)
            classifier = train_classifier(
                RealStream(data, ipc, seed, recipe.batch_size),
                JUDGE,
                replace(recipe, epochs=epochs),
                channels=data.channels,
                size=data.size,
                seed=seed,
                device=data.labels.device,
            )
            epochs_trained += epochs
            record |= {"images": len(data), "accuracy": evaluate_accuracy(classifier, held_out)}
        else:
            record["images"] = len(unpack(content)[1])
        cache.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(cache, record)
        return record

    sizes = {codec: measured(codec, 0) for codec in codecs}
    left = _worth_a_trial(sizes, budget)
    tried, accuracy = len(left), math.nan
    for share, go_on in ROUNDS:
        if len(left) > 1:
            found = {codec: measured(codec, max(1, round(share * recipe.epochs)))["accuracy"] for codec in left}
            left = sorted(left, key=lambda codec: found[codec], reverse=True)[:go_on]
            accuracy = found[left[0]]
    if contents and tried > 1:
        print(
            f"best of {tried} codecs for {budget:,} bytes of real images: {left[0].name}, {100 * accuracy:.1f} % of "
            f"{len(held_out):,} held-out train images; the search took {epochs_trained:,} epochs of {JUDGE} and "
            f"{time.perf_counter() - start:,.0f} s"
        )
    elif contents:
        taken = sizes[left[0]]["bytes"]
        print(f"nothing to choose for {budget:,} bytes of real images but {left[0].name}, which takes {taken:,}")
    return left[0]


def _worth_a_trial(sizes: dict[Codec, dict[str, Any]], budget: int) -> list[Codec]:
    """The codecs that fit; among those with identical images, only the one that holds the most."""
    fitting = [codec for codec in sizes if sizes[codec]["bytes"] <= budget]
    fitting = fitting or [min(sizes, key=lambda codec: sizes[codec]["bytes"])]
    best: dict[tuple[Any, ...], Codec] = {}
    for codec in fitting:
        rival = best.setdefault(codec.pixels, codec)
        # Where both hold the whole set, the smaller one.
        if (-sizes[codec]["images"], sizes[codec]["bytes"]) < (-sizes[rival]["images"], sizes[rival]["bytes"]):
            best[codec.pixels] = codec
    return list(best.values())


def _key(job: dict[str, Any]) -> str:
    return json.dumps(job, sort_keys=True)
