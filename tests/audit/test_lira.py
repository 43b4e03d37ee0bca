"""LiRA: scores by hand, chance where nothing is to be found, and figures with known answers."""

import math

import pytest
import torch

from dim_hf.audit.lira import (
    IN,
    NEITHER,
    OUT,
    attack_figures,
    clopper_pearson,
    leave_one_out,
    lira_scores,
    standardised,
)


def halves(runs, candidates, seed=0):
    """Membership of complementary pairs."""
    rng = torch.Generator().manual_seed(seed)
    even = torch.rand(runs // 2, candidates, generator=rng) < 0.5
    return torch.stack([even, ~even], dim=1).flatten(0, 1).long()


def test_offline_score_by_hand():
    shadows = torch.tensor([[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]])
    membership = torch.tensor([[OUT, OUT], [OUT, OUT], [IN, NEITHER]])
    scores = lira_scores(torch.tensor([4.0, 1.0]), shadows, membership, online=False)
    # Means 2 and 1; the common variance is (1 + 1 + 1 + 1) / 2.
    assert scores.tolist() == pytest.approx([2 / math.sqrt(2), 0.0])


def test_online_score_is_the_ratio_of_two_normal_densities():
    shadows = torch.tensor([[0.0, 0.0], [2.0, 2.0], [5.0, 5.0], [9.0, 9.0]])
    membership = torch.tensor([[OUT, OUT], [OUT, OUT], [IN, IN], [IN, IN]])
    signal = torch.tensor([3.0, 8.0])
    out, within = torch.distributions.Normal(1.0, 2**0.5), torch.distributions.Normal(7.0, 8**0.5)
    expected = within.log_prob(signal) - out.log_prob(signal)
    assert torch.allclose(lira_scores(signal, shadows, membership, online=True), expected)


def test_each_candidate_has_its_own_variance_with_enough_runs():
    rng = torch.Generator().manual_seed(0)
    shadows = torch.randn(32, 2, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 10.0])
    scores = lira_scores(torch.tensor([3.0, 3.0]), shadows, torch.full((32, 2), OUT), online=False)
    assert scores[0] > 2 and scores[1] < 1


def test_a_candidate_that_every_shadow_saw_has_no_score():
    scores = lira_scores(torch.zeros(2), torch.zeros(2, 2), torch.tensor([[IN, OUT], [IN, OUT]]), online=False)
    assert scores.isnan().tolist() == [True, False]
    figures = attack_figures(scores, torch.tensor([IN, OUT]))
    assert (figures["members"], figures["non_members"], figures["auc"]) == (0, 1, None)


def test_what_a_run_adds_to_all_candidates_is_removed():
    signals = torch.arange(8.0).repeat(2, 1) * torch.tensor([[1.0], [5.0]]) + torch.tensor([[0.0], [7.0]])
    every = torch.ones(8, dtype=torch.bool)
    first, second = standardised(signals, every)
    assert torch.allclose(first, second) and first.median() < 0.01
    # Canaries do not shift the others.
    among = torch.arange(8) < 7
    changed = torch.cat([signals[:, :7], 1000 + signals[:, 7:]], dim=1)
    assert torch.equal(standardised(changed, among)[:, :7], standardised(signals, among)[:, :7])


@pytest.mark.parametrize("runs", [4, 6, 8, 16])
def test_noise_gives_chance_however_few_the_runs(runs):
    membership = halves(runs, 4000)
    signals = torch.randn(runs, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores = leave_one_out(signals, membership)
    images = torch.arange(4000).expand_as(scores)
    figures = attack_figures(scores.flatten(), membership.flatten(), images.flatten())
    assert abs(figures["auc"] - 0.5) < 4 * figures["auc_deviation"] < 0.06
    assert figures["tpr"]["0.01"]["interval"][0] < 0.012


def test_what_members_show_is_found_whatever_each_image_shows():
    membership = halves(8, 500)
    rng = torch.Generator().manual_seed(1)
    # Images differ by much more than membership changes them.
    signals = torch.randn(8, 500, generator=rng) + 20 * torch.randn(500, generator=rng) + 2 * membership
    figures = attack_figures(
        leave_one_out(signals.double(), membership).flatten(), membership.flatten(), torch.arange(500).repeat(8)
    )
    assert figures["auc"] > 0.8 and figures["tpr"]["0.01"]["interval"][0] > 0.03
    raw = attack_figures(signals.flatten(), membership.flatten())
    assert raw["auc"] < 0.6


def test_figures_with_a_known_answer():
    scores = torch.tensor([*range(1000, 1100), *range(1000)], dtype=torch.float64)
    scores[0] = -5
    membership = torch.tensor([IN] * 100 + [OUT] * 1000)
    figures = attack_figures(scores, membership)
    assert figures["auc"] == pytest.approx(0.99)
    # One of 1,000 non-members may pass.
    twice = attack_figures(scores.repeat(2), membership.repeat(2), torch.arange(1100).repeat(2))
    for rate in ("0.001", "0.01"):
        assert figures["tpr"][rate]["rate"] == 0.99
        assert figures["tpr"][rate]["interval"] == pytest.approx(clopper_pearson(99, 100))
        # Two scores of an image are not more certain than one.
        assert twice["tpr"][rate]["rate"] == pytest.approx(0.99)
        assert twice["tpr"][rate]["interval"] == pytest.approx(clopper_pearson(99, 100))
    low, high = figures["auc_interval"]
    assert 0.96 < low < 0.99 <= high <= 1


def test_too_few_non_members_for_a_rate():
    figures = attack_figures(torch.arange(300.0), torch.tensor([IN] * 101 + [OUT] * 199))
    assert figures["tpr"]["0.001"] is None and figures["tpr"]["0.01"] is not None
    assert attack_figures(torch.arange(20.0), torch.tensor([IN] * 10 + [OUT] * 10))["tpr"]["0.01"] is None


def test_few_images_on_their_right_sides_are_no_proof():
    figures = attack_figures(torch.arange(6.0), torch.tensor([OUT] * 3 + [IN] * 3))
    assert figures["auc"] == 1 and figures["auc_deviation"] == pytest.approx((7 / 108) ** 0.5)
    assert attack_figures(torch.arange(2.0), torch.tensor([OUT, IN]))["auc_deviation"] == pytest.approx(0.5)


def test_ties_are_chance():
    figures = attack_figures(torch.zeros(400), torch.tensor([IN, OUT] * 200))
    assert figures["auc"] == 0.5 and figures["tpr"]["0.01"]["rate"] == 0


def test_images_with_several_scores_are_resampled_together():
    scores, membership = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.tensor([IN, OUT] * 25)
    once = attack_figures(scores, membership)
    repeated = attack_figures(scores.repeat(16), membership.repeat(16), torch.arange(50).repeat(16))
    assert repeated["auc"] == pytest.approx(once["auc"])
    # Sixteen copies of a score are not sixteen times the evidence.
    assert repeated["auc_deviation"] == pytest.approx(once["auc_deviation"], rel=0.01)
    assert repeated["tpr"] == once["tpr"] == {"0.001": None, "0.01": None}


def test_the_exact_interval():
    # From the tables of Clopper and Pearson's method.
    assert clopper_pearson(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert clopper_pearson(10, 10)[1] == 1
