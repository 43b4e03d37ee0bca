"""Packaging of dim_hf: `pipelines/` at the top of the repository is the package `dim_hf.pipelines`."""

from setuptools import setup

setup(
    packages=["dim_hf", "dim_hf.models", "dim_hf.classifiers", "dim_hf.pipelines"],
    package_dir={"dim_hf": "src/dim_hf", "dim_hf.pipelines": "pipelines"},
    package_data={"dim_hf": ["py.typed"]},
)
