"""Lists in messages are short and on one line."""

import pytest

from dim_hf.messages import listed


@pytest.mark.parametrize(
    ("values", "most", "text"),
    [
        ([], 8, "none"),
        (["a"], 8, "a"),
        ([2, 10], 8, "2, 10"),
        ("abc", 3, "a, b, c"),
        ("abcd", 3, "a, b, c and 1 more"),
        (iter(range(5000)), 2, "0, 1 and 4,998 more"),
        (["é\n\x00\ud800"], 8, r"é\n\x00\ud800"),
        (["x" * 60, "y" * 61], 8, f"{'x' * 60}, {'y' * 57}..."),
    ],
)
def test_listed(values, most, text):
    assert listed(values, most) == text


def test_the_longest_list_leaves_room_for_a_sentence():
    assert len(listed(["x" * 300] * 5000)) < 520
