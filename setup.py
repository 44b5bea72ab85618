"""Install freeadv_jax; pyproject.toml holds the metadata."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["freeadv_jax", "freeadv_jax.*"]),
        "freeadv_jax.configs",
    ],
    # The wheel holds configs/ inside the package, where --config=NAME finds them.
    package_dir={"freeadv_jax.configs": "configs"},
    package_data={
        "freeadv_jax": ["py.typed"],
        "freeadv_jax.gallery": ["*.jinja"],
        "freeadv_jax.report": ["*.jinja"],
        "freeadv_jax.weights": ["robustbench.json"],
    },
)
