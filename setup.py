"""Packaging of dim_hf: its parts and what it needs; metadata and the settings of tools are in pyproject.toml."""

from setuptools import setup


ROOMS = ["audit", "classifiers", "data", "distillation", "evaluation", "hub", "models", "privacy", "streams"]

setup(
    # `pipelines/` at the top of the repository is the package `dim_hf.pipelines`.
    packages=["dim_hf", *(f"dim_hf.{room}" for room in ROOMS), "dim_hf.pipelines"],
    package_dir={"dim_hf": "src/dim_hf", "dim_hf.pipelines": "pipelines"},
    package_data={"dim_hf": ["py.typed"], "dim_hf.evaluation": ["report.html"], "dim_hf.hub": ["model_card.md"]},
    # Lower bounds; constraints.txt pins the releases that were tested.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "diffusers>=0.41",
        "accelerate>=1.10",
        "datasets>=4.0",
        "transformers>=5.20",
        "timm>=1.0.31",
        "evaluate>=0.4.6",
        "huggingface_hub>=1.32",
        "safetensors>=0.8",
        "filelock>=3.12",
        "numpy>=1.26",
        "pillow>=11.3",
        "psutil>=5.9",
        "pyarrow>=15",
        "pyyaml>=6",
        "scikit-learn>=1.5",
        "joblib>=1.4",
        "scipy>=1.11",
        "tqdm>=4.66",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "tensorboard>=2.18",
    ],
    extras_require={
        # The accountant of `--privacy_epsilon`.
        "privacy": ["dp-accounting>=0.6"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            # Where there are wheels; the fuzzer is skipped elsewhere.
            "atheris>=2.3; sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.15'",
            "ruff>=0.15",
            "mypy>=1.15",
            "build>=1.2",
            # The page in space/ and its test.
            "gradio>=6.31",
            "playwright>=1.60",
        ],
    },
)
