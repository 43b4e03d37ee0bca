"""
Membership inference with shadow runs: LiRA (Carlini et al. 2022, arXiv 2112.03570).

An attacker measures something of a candidate image on the model under attack, and on shadow models that were trained
like it, with and without the candidate. The score says how much more the measurement resembles those with it.
"""

import math
from typing import Any

import torch
from scipy.stats import beta

from .names import RATES


# A variance of its own for each candidate needs as many shadow runs with it, or without it; otherwise all share one.
OWN_VARIANCE = 32
RESAMPLES = 1_000
# Membership of a candidate in a run: trained on it or not, or used for the selection of the pipeline only.
IN, OUT, NEITHER = 1, 0, -1


def standardised(signals: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """
    Signals without what differs between runs for all candidates: median 0, quartiles 1 apart.

    Args:
        signals (`torch.Tensor` of shape `(runs, candidates)`): Of each run.
        among (`torch.Tensor` of shape `(candidates,)`): bool; the candidates whose median and quartiles are taken.
    """
    quartiles = signals[:, among].quantile(torch.tensor([0.25, 0.5, 0.75], dtype=signals.dtype), dim=1)[..., None]
    return (signals - quartiles[1]) / (quartiles[2] - quartiles[0]).clamp(min=1e-12)


def lira_scores(
    signal: torch.Tensor, shadows: torch.Tensor, membership: torch.Tensor, *, online: bool
) -> torch.Tensor:
    """
    The scores of candidates in one run; larger means more probably a member.

    Args:
        signal (`torch.Tensor` of shape `(candidates,)`): Of the run under attack, as [`standardised`] gives it.
        shadows (`torch.Tensor` of shape `(runs, candidates)`): Of the shadow runs.
        membership (`torch.Tensor` of shape `(runs, candidates)`): `IN`, `OUT` or `NEITHER` for each of them.
        online (`bool`): Whether to use the runs with the candidate: the log-likelihood ratio of two normal
            distributions (equation 2). Otherwise, how far the signal lies above those of the runs without it, in their
            standard deviations (equation 4).

    Returns:
        `torch.Tensor` of shape `(candidates,)`: NaN for a candidate that no shadow run was trained without or, online,
        with.
    """
    mean_out, deviation_out = _normal(shadows, membership == OUT)
    above = (signal - mean_out) / deviation_out
    if not online:
        return above
    mean_in, deviation_in = _normal(shadows, membership == IN)
    return (
        above.square() / 2
        + deviation_out.log()
        - ((signal - mean_in) / deviation_in).square() / 2
        - (deviation_in.log())
    )


def _normal(shadows: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each candidate's signals in the chosen runs; NaN where there are none."""
    count = chosen.sum(dim=0)
    mean = torch.where(chosen, shadows, 0.0).sum(dim=0) / count
    squares = torch.where(chosen, shadows - mean, 0.0).square().sum(dim=0)
    if bool((count >= OWN_VARIANCE).all()):
        return mean, (squares / (count - 1)).sqrt().clamp(min=1e-6)
    # One variance for all, with as many degrees of freedom as there are deviations; 1 where each has one run.
    freedom = (count - 1).clamp(min=0).sum()
    variance = squares.sum() / freedom if freedom > 0 else torch.ones((), dtype=shadows.dtype)
    return mean, variance.sqrt().clamp(min=1e-6).expand_as(mean)


def leave_one_out(signals: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
    """
    The online scores `(runs, candidates)` of each run under attack by the others; four runs or more.

    Runs 2k and 2k + 1 have complementary halves. The other one of a pair is left out, too: otherwise there would be
    one run less on the side of the truth, and the noise of its mean would make members seem non-members.

    Args:
        signals, membership (`torch.Tensor` of shape `(runs, candidates)`): See [`lira_scores`].
    """
    rows = []
    for run in range(len(signals)):
        others = torch.arange(len(signals)) // 2 != run // 2
        rows.append(lira_scores(signals[run], signals[others], membership[others], online=True))
    return torch.stack(rows)


def attack_figures(
    scores: torch.Tensor, membership: torch.Tensor, images: torch.Tensor | None = None, seed: int = 0
) -> dict[str, Any]:
    """
    How well scores tell members from non-members.

    Args:
        scores, membership (`torch.Tensor` of shape `(n,)`): What is not `IN` or `OUT`, or has no score, is left out.
        images (`torch.Tensor` of shape `(n,)`, *optional*): The image of each score, where one has several.
        seed (`int`, *optional*, defaults to 0): Seeds the resamples.

    Returns:
        `auc` with its 95 % interval, by resampling images, and its standard deviation; and for each rate in `RATES`
        the true-positive rate at the lowest threshold that at most so many non-members pass, with the 95 % interval of
        Clopper and Pearson for that threshold, and the upper bound of the false-positive rate there. A rate is `None`
        where fewer images than one over it were tested as non-members.
    """
    kept = (membership != NEITHER) & scores.isfinite()
    scores, member = scores[kept].double(), membership[kept] == IN
    images = torch.arange(len(kept))[kept] if images is None else images[kept]
    members, others = int(member.sum()), int((~member).sum())
    figures: dict[str, Any] = {"members": members, "non_members": others}
    if not members or not others:
        return figures | {"auc": None, "auc_interval": None, "tpr": {str(rate): None for rate in RATES}}
    ranks = scores.unique(return_inverse=True)[1]
    figures["auc"] = _auc(ranks, member, torch.ones_like(scores))
    rng = torch.Generator().manual_seed(seed)
    # Each image counts as often as it is drawn, with all of its scores.
    names, of_name = images.unique(return_inverse=True)
    areas = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(names), (len(names),), generator=rng).bincount(minlength=len(names))
        areas.append(_auc(ranks, member, drawn[of_name].double()))
    bounds = torch.tensor(areas, dtype=torch.float64).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    figures["auc_interval"] = bounds.tolist()
    # Resamples of few images, all on their right sides, do not vary; by chance they would (Mann and Whitney 1947).
    by_chance = math.sqrt((members + others + 1) / (12 * members * others))
    resampled = torch.tensor([area for area in areas if area == area])
    figures["auc_deviation"] = max(by_chance, resampled.std().item() if len(resampled) > 1 else 0.0)
    figures["tpr"] = {str(rate): _true_positives(scores, member, images, rate) for rate in RATES}
    return figures


def _auc(ranks: torch.Tensor, member: torch.Tensor, weights: torch.Tensor) -> float:
    """The probability that a member has the larger score, ties counted by half, by the ranks of all scores."""
    length = int(ranks.max()) + 1
    of_members = torch.bincount(ranks[member], weights[member], length)
    of_others = torch.bincount(ranks[~member], weights[~member], length)
    below = of_others.cumsum(0) - of_others / 2
    return float((of_members * below).sum() / (of_members.sum() * of_others.sum()))


def _true_positives(
    scores: torch.Tensor, member: torch.Tensor, images: torch.Tensor, rate: float
) -> dict[str, Any] | None:
    others = scores[~member].sort(descending=True).values
    # Several scores of an image count as one in the intervals, as if they were always equal: rather too wide.
    distinct, distinct_others = len(images[member].unique()), len(images[~member].unique())
    allowed = int(rate * len(others) + 1e-9)
    if rate * distinct_others < 1 - 1e-9:
        return None
    # Above this value are at most `allowed` non-members.
    threshold = others[allowed] if allowed < len(others) else others[-1] - 1
    passed = (scores[member] > threshold).double().mean().item()
    wrong = (others > threshold).double().mean().item()
    return {
        "rate": passed,
        "interval": list(clopper_pearson(passed * distinct, distinct)),
        "false_positive_rate_at_most": clopper_pearson(wrong * distinct_others, distinct_others)[1],
    }


def clopper_pearson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934); `successes` need not be whole."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high
