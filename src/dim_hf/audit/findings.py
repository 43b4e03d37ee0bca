"""What the figures of an audit say, in plain words."""

import math
from collections.abc import Iterator
from typing import Any

from ..messages import listed
from .names import ATTACKS, CANARIES, SIGNIFICANCE


# An effect that is no chance is a trace up to these sizes, and a leak from them on: the area under the curve, the
# true-positive rate at 1 % false positives, and the share of generated images beyond the expected one.
LEAK_AUC, LEAK_RATE, LEAK_SHARE = 0.6, 0.05, 0.1

NOT_TESTED = [
    "attacks other than those in the table, or with more shadow runs than here: a better attack may find more",
    "people or objects that are on several images, such as all slices of a patient, as one unit",
    "what is true of a class or of the data set as a whole, which the generator is made to give away",
    "whether the training and held-out images differ in other ways than by chance, which looks like a leak here",
]


def find(audit: dict[str, Any]) -> list[dict[str, str]]:
    """
    What an audit has found: a list of `level`, `"leak"` or `"trace"`, and `text`; `where` is `"folder"` for what lies
    beside the pipeline.

    Every figure is held against chance at [`SIGNIFICANCE`] divided by the number of figures, so that an audit of a
    pipeline that gives nothing away finds something in at most one case of a hundred. Only images that equal a
    training image are told in any case.
    """
    found = _of_folder(audit.get("folder"))
    copies, membership = audit.get("copies"), audit.get("membership")
    attacks = [] if membership is None else list(_attacks(membership))
    tests = (2 if copies else 0) + len(attacks)
    if copies:
        found += _of_copies(copies, SIGNIFICANCE / tests)
    for where, attack, figures in attacks:
        found += _of_attack(where, attack, figures, SIGNIFICANCE / tests)
    return sorted(found, key=lambda each: each["level"] != "leak")


def _of_folder(folder: dict[str, Any] | None) -> list[dict[str, str]]:
    if folder is None:
        return []
    found = []
    if folder["discriminator"]:
        found.append({
            "level": "leak",
            "where": "folder",
            "text": f"The folder holds a discriminator ({folder['discriminator']}). It was shown the training images "
            "as real ones and may recognise them; remove it.",
        })  # fmt: skip
    others = [name for name in folder["weights"] if name.rpartition("/")[0] != folder["discriminator"]]
    if others:
        found.append({
            "level": "leak",
            "where": "folder",
            "text": f"The folder holds weights that no image needs: {listed(others, 4)}; remove them.",
        })  # fmt: skip
    return found


def _of_copies(copies: dict[str, Any], significance: float) -> list[dict[str, str]]:
    found = []
    pixels = copies["pixels"]
    if (equal := pixels["equal_to_training"]) > pixels["equal_to_held_out"]:
        text = f"{equal:,} of {copies['generated']:,} generated images equal a training image in every pixel"
        if pixels["equal_p"] >= SIGNIFICANCE:
            text += f", which can be chance where images repeat (p = {pixels['equal_p']:.2g}): look at them"
        found.append({"level": "leak", "text": f"{text}."})
    for space in ("pixels", "features"):
        lean = copies[space]["nearer_to_training"]
        if lean["p"] >= significance:
            continue
        excess = (lean["share"] - lean["expected"]) / max(1 - lean["expected"], 1e-9)
        found.append({
            "level": "leak" if excess >= LEAK_SHARE else "trace",
            "text": f"In {space}, {_percent(lean['share'])} of the generated images are nearest to a training image; "
            f"{_percent(lean['expected'])} would be if none was remembered; it is as if {_percent(excess)} were "
            "copies.",
        })  # fmt: skip
    return found


def _attacks(membership: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where, by which attack, with which figures."""
    for where, of_attack in (
        ("Training images of this pipeline", membership["pipeline"]),
        ("Training images of runs like it", membership["runs"]),
        *((f"Canaries ({CANARIES[kind]})", figures) for kind, figures in membership["canaries"].items()),
    ):
        for attack, figures in of_attack.items():
            if figures["auc"] is not None:
                yield where, attack, figures


def _of_attack(where: str, attack: str, figures: dict[str, Any], significance: float) -> list[dict[str, str]]:
    above = (figures["auc"] - 0.5) / max(figures["auc_deviation"], 1e-9)
    by_area = math.erfc(above / math.sqrt(2)) / 2 < significance
    passing = figures["tpr"]["0.01"]
    by_rate = passing is not None and passing["interval"][0] > 2 * passing["false_positive_rate_at_most"]
    if not (by_area or by_rate):
        return []
    leak = figures["auc"] >= LEAK_AUC or (by_rate and passing["rate"] >= LEAK_RATE)
    rate = f", {_percent(passing['rate'])} of them at 1 % false alarms" if by_rate else ""
    return [{
        "level": "leak" if leak else "trace",
        "text": f"{where} are told from others through {ATTACKS[attack]} (AUC {figures['auc']:.3f}{rate}).",
    }]  # fmt: skip


def summary(audit: dict[str, Any]) -> str:
    """One sentence on the outcome."""
    levels = {each["level"] for each in audit["findings"] if each.get("where") != "folder"}
    tested = [name for name in ("copies", "membership") if audit.get(name)]
    what = {"copies": "copies", "membership": "membership inference"}
    told = " and ".join(what[name] for name in tested)
    if "leak" in levels:
        return f"**It gives away training images**, by tests of {told}."
    if "trace" in levels:
        return f"There are traces of individual training images, small but more than chance, by tests of {told}."
    return f"Tests of {told} found no sign of individual training images. That is not proof that there is none."


def not_tested(audit: dict[str, Any]) -> list[str]:
    """What an audit says nothing about."""
    missing = []
    if not audit.get("membership"):
        missing.append("whether an attacker can tell who was in the training images (membership inference)")
    elif audit["membership"]["shadows"] < 32:
        missing.append(
            f"membership inference at full strength: there were {audit['membership']['shadows']} shadow runs, and "
            "published audits use 64 to 256"
        )
    if audit.get("membership") and audit.get("teacher_known") is False:
        missing.append(
            "the teacher as it was trained: its settings are not on record, so the teachers of shadow runs had "
            "the default ones"
        )
    if not audit.get("copies"):
        missing.append("whether generated images are copies")
    if audit.get("folder") is None:
        missing.append("other files of the repository")
    return missing + NOT_TESTED


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
