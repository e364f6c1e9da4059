"""The distribution `deliberate-lm`: package `lm` and the command `lm`.

Lower bounds are what the tests ran with; upper bounds are known breaks or the
next release that may break by its own rules. Resolved on Python 3.11.
"""

import pathlib

from setuptools import find_packages
from setuptools import setup

HERE = pathlib.Path(__file__).parent

REQUIRED = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "flax>=0.12.8,<0.13",
    "gguf>=0.17",
    "grain>=0.2.18,<0.3",
    "importlib_resources>=6",  # tfds builders import it and do not say so.
    "jax>=0.10,<0.11",  # 0.11.1 removed a class that flax 0.12.8 subclasses.
    "Jinja2>=3.1.6",
    "matplotlib>=3.8",
    "ml-collections>=1.1,<2",
    "numpy>=2.0",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "packaging>=24",
    "PyYAML>=6",
    "rich>=13",
    "scipy>=1.13",
    "sentencepiece>=0.2.1,<0.3",
    "seqio>=0.0.20,<0.1",
    "tensorboardX>=2.6",
    "tensorflow>=2.21,<2.22",  # tensorflow-text is built for one minor each.
    "tensorflow-datasets>=4.9.10,<5",
    "tensorflow-text>=2.21,<2.22",
    "tokenizers>=0.20",
]

NOTEBOOKS = ["ipykernel>=6.29", "ipython>=8", "nbclient>=0.10",
             "nbformat>=5.10"]

# The TPU compiler, which needs no TPU; of the jax that it is made for.
PLAN = ["libtpu>=0.0.42,<0.0.43"]

BUCKETS = ["gcsfs>=2026.9"]  # gs:// paths.

EXTRAS = {
    "plan": PLAN,
    "tpu": ["jax[tpu]>=0.10,<0.11", *BUCKETS],
    "cuda": ["jax[cuda13]>=0.10,<0.11"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "notebooks": NOTEBOOKS,
    "bench": ["accelerate>=1", "torch>=2.5", "transformers>=4.56"],
    "test": NOTEBOOKS + PLAN + BUCKETS + [
        "gcp-storage-emulator>=2026.7", "mypy>=1.15,<3", "pytest>=8",
        "pytest-xdist>=3.6", "ruff>=0.9,<1", "safetensors>=0.4"],
}


def long_description() -> str:
  readme = HERE / "README.md"
  return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="deliberate-lm",
    version="0.1.0",
    description="A language model's whole life in JAX: from text to a model"
    " that thinks before it answers.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # experiments/ and configs/ are run from a checkout, not installed: their
    # names would be anybody's in site-packages.
    packages=find_packages(include=["lm", "lm.*"]),
    package_data={"": ["*.json", "*.jsonl", "*.csv", "*.txt", "*.html",
                       "*.md", "*.c"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lm = lm.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
