"""benchmarks.kernels: its turns, its ratios and its record."""

import pytest

from benchmarks import kernels
from benchmarks.contender import Contender
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json


def test_the_ratio_is_the_median_over_rounds_of_xlas_time_by_onednns(monkeypatch):
    seconds = {"xla": [0.0, 4.0, 30.0, 2.0], "onednn": [0.0, 2.0, 10.0, 4.0]}
    clock = [0.0]

    class Timed(Contender):
        def take(self, calls):
            clock[0] += 2 * (taken := seconds[self.remarks["name"]].pop(0))
            return {"seconds_per_update": taken}

    def on_one_batch(run, *, per_call):
        name = {"name": run.convolutions}
        return Timed(None, None, 2, 1.5, None, name)

    monkeypatch.setattr(kernels, "on_one_batch", on_one_batch)
    monkeypatch.setattr(kernels.time, "process_time", lambda: clock[0])
    row = kernels.measure("small-cnn", "float32", 16, "free-2", rounds=3)
    # In the second round other work slowed both down.
    assert row["xla / onednn"] == {"wall": 2.0, "processor": 2.0}
    assert row["seconds_per_update"] == {
        "xla": {"wall": 4.0, "processor": 4.0},
        "onednn": {"wall": 4.0, "processor": 4.0},
    }
    assert row["compile_seconds"] == {"xla": 1.5, "onednn": 1.5}


@pytest.mark.skipif(onednn.unavailable() is not None, reason="oneDNN is unavailable")
@pytest.mark.parametrize("method", ["free-2", "attack"])
def test_the_record_has_a_row_for_each_network_size_and_type(method, tmp_path, capsys):
    out = tmp_path / "kernels.json"
    given = ["--networks", "small-cnn", "--batch_sizes", "16", f"--method={method}"]
    given += ["--dtypes", "float32", "--rounds=1", f"--out={out}"]
    kernels.main(["kernels", *given])
    results = read_json(out)["results"]
    assert list(results["rows"]) == ["small-cnn, float32, 16"]
    (row,) = results["rows"].values()
    for times in row["seconds_per_update"].values():
        assert min(times.values()) > 0
    assert "small-cnn, float32, 16" in capsys.readouterr().out


def test_without_onednn_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(onednn, "unavailable", lambda: "FREEADV_ONEDNN=0")
    with pytest.raises(InputError, match="unavailable: FREEADV_ONEDNN=0"):
        kernels.main(["kernels"])
