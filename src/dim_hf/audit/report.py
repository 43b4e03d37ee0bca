"""An audit as tables and pictures of an HTML report, and as a section of a model card."""

import base64
import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..evaluation.html_report import Picture
from ..files import read_json
from ..messages import listed, markdown
from ..weights import module_digest, weights_digest
from .findings import not_tested, summary
from .names import ATTACKS, CANARIES, RATES


AUDIT_FORMAT = 1
NOT_MEASURED = (
    "What it gives away of individual training images has not been measured; `training/audit_dim.py` of dim_hf does "
    "so. What its training guarantees is said under Training."
)
LITTLE_PROOF = (
    "Distances by themselves prove little: an image can be near without being copied, or copied and changed."
)


def read_audit(pipeline: DiffusionPipeline, audit_dir: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """
    The audit in a folder, by default `audit/` of the pipeline's. A test of membership before the pipeline had its
    teacher, which was trained on the real images too, is one of other weights.

    Raises:
        ValueError: If `audit_dir` holds none, or one of other weights; by default such a folder is ignored. Also if
            the audit is damaged.
    """
    folder = Path(audit_dir) if audit_dir else Path(pipeline.name_or_path or "") / "audit"
    audit = read_json(folder / "audit.json") if audit_dir or pipeline.name_or_path else None
    audit = audit if isinstance(audit, dict) and audit.get("format") == AUDIT_FORMAT else None
    if audit and audit.get("weights") == weights_digest(pipeline) and _covers_teacher(audit, pipeline):
        try:
            describe_audit(audit)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'audit.json'} is damaged; valid is what audit_dim.py writes.") from error
        return audit
    if audit_dir:
        what = "is an audit of other weights" if audit else "holds no audit.json of this release"
        raise ValueError(f"`audit_dir` {folder} {what}; valid is an output folder of audit_dim.py.")
    return None


def _covers_teacher(audit: dict[str, Any], pipeline: DiffusionPipeline) -> bool:
    if pipeline.labeler is None or not audit.get("membership"):
        return True
    settings = audit.get("settings")
    return isinstance(settings, dict) and settings.get("labeler") == module_digest(pipeline.labeler)


def describe_privacy(privacy: dict[str, Any] | None, teacher: bool = False) -> str:
    """
    What a training guarantees, whatever an audit finds.

    Args:
        privacy: What the options of a private run record of its release.
        teacher: Whether the pipeline holds a teacher, which is trained on real images.
    """
    if privacy is None:
        return "**no privacy guarantee**; generated images may be close to real ones."
    also = ", nor the teacher in `labeler/`, which was trained on real images" if teacher else ""
    words = {name: markdown(privacy[name]) for name in ("unit", "neighbours", "mechanism", "public")}
    return (
        f"differential privacy with epsilon {privacy['epsilon']:g} and delta {privacy['delta']:g}. Unit: "
        f"{words['unit']} ({words['neighbours']}). Mechanism: {words['mechanism']}; all noisy sums have a "
        f"sensitivity of {privacy['sensitivity']:g} together and noise of standard deviation "
        f"{privacy['noise_std']:.4g}. Taken to be public: {words['public']}. This holds for the generator and its "
        f"images. It does not cover results and audits, which are measured on real images{also}, or a choice among "
        "several such runs."
    )


def describe_audit(audit: dict[str, Any] | None) -> str:
    """The section of a model card, in Markdown."""
    if audit is None:
        return NOT_MEASURED
    lines = [summary(audit), ""]
    # Nothing that lies beside a pipeline is pushed or exported with it.
    found = [f"- {markdown(each['text'])}" for each in audit["findings"] if each.get("where") != "folder"]
    lines += [*found, ""] if found else []
    for table in audit_tables(audit)[1:]:
        rows = ["| " + " | ".join(cells) + " |" for cells in (table["header"], *table["cells"])]
        rows.insert(1, "|" + "---|" * len(table["header"]))
        lines += [f"{table['title']}:", "", *rows, "", markdown(table["text"], 2000), ""]
    lines += ["Not tested:", "", *(f"- {each};" for each in not_tested(audit)[:-1])]
    lines.append(f"- {not_tested(audit)[-1]}.")
    return "\n".join(lines)


def of_folder(audit: dict[str, Any]) -> list[str]:
    """What to know before the folder itself is shared."""
    run = (audit.get("folder") or {}).get("run")
    return [f"The folder also holds {listed(run, 4)} of its run; share an export or a push instead."] if run else []


def audit_tables(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables of an HTML report: `title`, `text`, `header` and `cells`; the first one has no cells."""
    guarantee = f"The training has {describe_privacy(audit['privacy'])}".replace("**", "")
    if not audit.get("run_known", True):
        guarantee = "What the training guarantees is not known here; see the pipeline's card."
    words = [guarantee, summary(audit).replace("**", ""), *(each["text"] for each in audit["findings"])]
    words += of_folder(audit)
    words.append("Not tested: " + "; ".join(not_tested(audit)) + ".")
    tables = [{"title": "What this gives away", "text": " ".join(words), "header": [], "cells": []}]
    if audit.get("copies"):
        tables.append(_copies_table(audit))
    if audit.get("membership"):
        tables.append(_membership_table(audit))
    return tables


def _copies_table(audit: dict[str, Any]) -> dict[str, Any]:
    copies, data = audit["copies"], audit["data"]
    header = ["distance in", "nearest is a training image", "expected", "p", "AuthPct (of held-out)",
              "equal", "near copies (of held-out)"]  # fmt: skip
    cells = []
    for space in ("pixels", "features"):
        figures = copies[space]
        lean = figures["nearer_to_training"]
        cells.append([
            space,
            f"{100 * lean['share']:.1f} % ({100 * lean['interval'][0]:.1f} to {100 * lean['interval'][1]:.1f})",
            f"{100 * lean['expected']:.1f} %",
            f"{lean['p']:.4f}",
            f"{100 * figures['auth_pct']:.1f} % ({100 * figures['auth_pct_of_held_out']:.1f} %)",
            str(figures["equal_to_training"]),
            f"{figures['near_copies_of_training']} ({figures['near_copies_of_held_out']})",
        ])  # fmt: skip
    shared = data.get("training_equal_to_held_out", 0)
    left_out = " Images that are on both sides are left out." if shared else ""
    text = (
        f"{copies['generated']:,} generated images against {data['train'] - shared:,} training and "
        f"{data['held_out']:,} held-out images of their classes ({data['held_out_is']}).{left_out} Features are those "
        f"of a {copies['classifier']} trained on the generated images. Intervals are 95 %, by resampling the distinct "
        "nearest images; p by 10,000 permutations of training and held-out. AuthPct is the share of images that are "
        "farther from their nearest training image than that training image is from its own nearest one. A near copy "
        "is less than half as far from its nearest training image as from its nearest held-out one (in brackets: the "
        f"reverse). {LITTLE_PROOF}"
    )
    return {"title": "Copies", "text": text, "header": header, "cells": cells}


def _membership_table(audit: dict[str, Any]) -> dict[str, Any]:
    membership = audit["membership"]
    header = ["who", "through", "AUC", *(f"TPR at {100 * rate:g} % FPR" for rate in RATES), "members / others"]
    cells = []
    rows = [("this pipeline", membership["pipeline"]), ("runs like it", membership["runs"])]
    for kind, of_attack in membership["canaries"].items():
        tested = {attack: figures for attack, figures in of_attack.items() if figures["auc"] is not None}
        best = sorted(tested, key=lambda attack: -tested[attack]["auc"])[:1]
        rows.append((f"canaries: {CANARIES[kind]}", {attack: tested[attack] for attack in best}))
    for who, of_attack in rows:
        for attack, figures in sorted(of_attack.items(), key=lambda each: list(ATTACKS).index(each[0])):
            if figures["auc"] is None:
                continue
            low, high = figures["auc_interval"]
            rates = []
            for rate in RATES:
                passing = figures["tpr"][str(rate)]
                interval = [f"{100 * bound:.1f}" for bound in passing["interval"]] if passing else []
                rates.append(
                    f"{100 * passing['rate']:.1f} % ({' to '.join(interval)})" if passing else "too few others"
                )
            cells.append([
                who, ATTACKS[attack], f"{figures['auc']:.3f} ({low:.3f} to {high:.3f})", *rates,
                f"{figures['members']:,} / {figures['non_members']:,}",
            ])  # fmt: skip
    share = membership["steps"] / membership["steps_of_the_run"]
    text = (
        f"LiRA (arXiv 2112.03570) with {membership['shadows']} shadow runs of {membership['steps']:,} steps "
        f"({100 * share:.0f} % of the run's) on random halves of all images. This pipeline is attacked offline, by "
        "the shadow runs without the image; runs like it are the shadow runs themselves, each attacked online by the "
        "others. Canaries were planted in these; the attack that finds them best is shown. AUC 0.5 is chance. Its "
        "interval (95 %) resamples images, not trainings; that of a TPR is Clopper and Pearson's (95 %) at the "
        "threshold found, counting images, also where each has several scores."
    )
    return {"title": "Membership in the training images", "text": text, "header": header, "cells": cells}


def audit_pictures(folder: str | os.PathLike, audit: dict[str, Any]) -> list[Picture]:
    """The closest pairs of an audit of copies."""
    path = Path(folder) / "closest.png"
    if not audit.get("copies") or not path.is_file():
        return []
    caption = (
        "The generated images (left of each pair) that are nearest to a training image (right), in pixels, nearest "
        f"first. Those on the right are real: share this picture only if you may share them. {LITTLE_PROOF}"
    )
    return [Picture("Closest pairs", caption, "image/png", base64.b64encode(path.read_bytes()).decode())]
