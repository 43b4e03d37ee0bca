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
    with pytest.raises(ValueError, match="`safe_serialization` is False; valid is True alone"):
        push_to_hub(pipeline, "me/x", token="t", safe_serialization=False)
