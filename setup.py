"""Install freeadv_jax; pyproject.toml holds the metadata."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["freeadv_jax", "freeadv_jax.*"]),
    package_data={"freeadv_jax": ["py.typed"], "freeadv_jax.report": ["*.jinja"]},
)
