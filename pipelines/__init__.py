"""The pipeline of the package: the class that every saved pipeline carries, and what only the package can do."""

import os
from typing import Any

from dim_hf.models import DiMGenerator, DiMLabeler

from . import pipeline_dim
from .pipeline_dim import DiMPipelineOutput


__all__ = ["DiMPipeline", "DiMPipelineOutput"]


class DiMPipeline(pipeline_dim.DiMPipeline):
    __doc__ = pipeline_dim.DiMPipeline.__doc__

    # A saved pipeline names the source files beside its weights, which diffusers would run once it is told to trust
    # them. These two put the installed classes in their place.
    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        return super()._dict_from_json_file(json_file) | {"_class_name": cls.__name__}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        installed = {
            name: [network.__module__, network.__name__]
            for name, network in (("generator", DiMGenerator), ("labeler", DiMLabeler))
            if name in config_dict
        }
        return super().extract_init_dict(config_dict | installed, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, storage: str | None = None, **kwargs: Any) -> str:
        """Pushes the pipeline with a model card and a sample grid; see [`dim_hf.hub.push.push_to_hub`]."""
        # The card needs more than making images does.
        from dim_hf.hub.push import push_to_hub

        return push_to_hub(self, repo_id, *args, **(kwargs | {"storage": storage}))
