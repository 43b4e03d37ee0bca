"""What a push refuses before anything is made; the pushes themselves are in test_hub.py."""

import pytest
import torch

from dim_hf.hub.push import prepare_repository, push_to_hub
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline


@pytest.mark.parametrize("repo_id", ["a/b/c", "my run", "a--b"])
def test_an_id_that_no_repository_can_have_is_refused_by_name(repo_id):
    with pytest.raises(ValueError, match=f"`--hub_model_id` is not valid: .*'{repo_id}'"):
        prepare_repository(repo_id, token="t", private=None)


def test_wrong_arguments_are_refused_before_the_hub_is_asked(tmp_path):
    torch.manual_seed(0)
    pipeline = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)))
    # With a token that no Hub knows, an error of the Hub would come first.
    with pytest.raises(ValueError, match="`evaluation_dir` .* holds no metrics.json"):
        push_to_hub(pipeline, "me/x", token="t", evaluation_dir=tmp_path)
    with pytest.raises(ValueError, match="`safe_serialization` is False; only True is valid"):
        push_to_hub(pipeline, "me/x", token="t", safe_serialization=False)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"pipeline": None}, "`pipeline` is None; valid is a DiMPipeline."),
        ({"pipeline": "out/x"}, "`pipeline` is 'out/x'; valid is a DiMPipeline."),
        ({"repo_id": None}, "`repo_id` is None; valid is `name` or `namespace/name`."),
        ({"repo_id": 3}, "`repo_id` is 3; valid is"),
        ({"repo_id": ""}, "`repo_id` is ''; valid is"),
        ({"repo_id": "a/b/c"}, "`repo_id` is 'a/b/c'; valid is"),
        ({"repo_id": "./run"}, "`repo_id` is './run'; valid is"),
        ({"token": 3}, "`token` is 3; valid is a `str`, or None."),
        ({"variant": True}, "`variant` is True; valid is a `str`, or None."),
        ({"subfolder": 1}, "`subfolder` is 1; valid is a `str`, or None."),
        ({"subfolder": "a/../b"}, "`subfolder` is 'a/../b'; valid are names of folders with / between them."),
        ({"variant": "a/b"}, "`variant` is 'a/b'; valid are letters, digits, hyphens"),
        ({"token": "hf_secret\n"}, "`token` holds a space, a line break or another character"),
        ({"token": "hf_secret\r"}, "`token` holds a space, a line break or another character"),
        ({"token": "hf secret"}, "`token` holds a space, a line break or another character"),
        ({"token": "hf_secrét"}, "`token` holds a space, a line break or another character"),
        ({"commit_message": ["x"]}, "`commit_message` is ['x']; valid is a `str`, or None."),
        ({"private": "yes"}, "`private` is 'yes'; valid are True and False."),
        ({"create_pr": 1}, "`create_pr` is 1; valid are True and False."),
    ],
)
def test_each_wrong_argument_is_named(argument, text):
    arguments = {"pipeline": DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,))), "repo_id": "me/x", "token": "t"}
    with pytest.raises(ValueError) as caught:
        push_to_hub(**(arguments | argument))
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value) and "secr" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_secret\r", "hf_secrét"])
def test_a_token_that_cannot_be_sent_is_not_shown(token):
    for load in (
        lambda: DiMPipeline.from_pretrained("me/x", token=token),
        lambda: DiMPipeline.from_pretrained("me/x", subfolder="a", token=token),
        lambda: prepare_repository("me/x", token, private=None),
    ):
        with pytest.raises(ValueError, match="a line break or another character that no token has") as caught:
            load()
        assert "secr" not in str(caught.value)
