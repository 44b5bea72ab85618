import re

import jax

import freeadv_jax
from freeadv_jax.runs.provenance import devices_text, environment


def test_environment_names_versions_devices_and_commit():
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["device_count"] == 8
    assert found["device_kind"] == "cpu"
    assert found["versions"]["freeadv_jax"] == freeadv_jax.__version__
    assert found["commit"] is None or re.fullmatch(
        "[0-9a-f]{40}(-dirty)?", found["commit"]
    )


def test_devices_are_counted_and_named():
    assert devices_text() == "8 cpu devices"
