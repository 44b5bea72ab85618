"""docs/scaling.md agrees with its record, and the record with the current networks."""

import json
import pathlib

import pytest

from benchmarks import scaling

ROOT = pathlib.Path(__file__).parents[2]
DOC = (ROOT / "docs" / "scaling.md").read_text()
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())[
    "results"
]


def table(*rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def network_rows():
    return [
        (
            name,
            f"{cost['pixels']}",
            f"{cost['parameters']:,}",
            f"{cost['forward_flop'] / 1e9:.2f}",
            f"{cost['traffic'] / 1e6:.1f} MB",
            f"{cost['all_reduced_bytes'] / 1e6:.1f} MB",
            f"{cost['batch_norm_bytes'] / 1e6:.2f} MB",
        )
        for name, cost in RESULTS["networks"].items()
    ]


def machine_rows():
    return [
        (
            name,
            f"{machine['chips']}",
            f"{machine['flop'] / 1e12:.4g} TFLOP/s",
            f"{machine['memory'] / 1e9:.0f} GB, {machine['memory_bandwidth'] / 1e9:,.0f} GB/s",
            f"{machine['link_bandwidth'] / 1e9:.0f} GB/s",
            f"{machine['vcpus']:,}",
            ", ".join(f"<{source}>" for source in machine["sources"]),
        )
        for name, machine in RESULTS["machines"].items()
    ]


def update_rows(machine, network):
    return [
        (
            f"{int(batch):,}",
            f"{row['images_per_chip']:.0f}",
            f"{1e3 * row['arithmetic_seconds']:.2f}",
            f"{1e3 * row['memory_seconds']:.2f}",
            f"{1e3 * row['all_reduce_seconds']:.2f}",
            f"{1e3 * row['seconds']:.2f}",
            f"{row['all_reduce_seconds'] / row['seconds']:.0%}",
        )
        for batch, row in RESULTS["updates"][machine][network].items()
    ]


def short_rows(network):
    return [
        (
            machine,
            *(
                f"{1e3 * networks[network][batch]['seconds']:.1f}"
                for batch in ("256", "1024", "8192")
            ),
            f"{networks[network]['256']['all_reduce_seconds'] * 1e3:.2f}",
        )
        for machine, networks in RESULTS["updates"].items()
    ]


def even_rows():
    return [
        (
            name,
            *(
                f"{row[network]:.0f} ({row[network] * scaling.MACHINES[name].chips:,.0f})"
                for network in ("resnet-50", "wrn-32-10-madry")
            ),
        )
        for name, row in RESULTS["even_images"].items()
    ]


def input_rows():
    return [
        (
            name,
            f"{row['images_per_second']:,.0f}",
            f"{scaling.MACHINES[name].vcpus:,}",
            *(
                f"{row['vcpus_busy'][m]:,.0f} ({min(1, row['share_fed'][m]):.0%})"
                for m in ("1", "2", "4", "8")
            ),
        )
        for name, row in RESULTS["inputs"].items()
    ]


def memory_rows():
    return [
        (
            dtype,
            *(
                f"{row[part] / 1e9:.2f} GB"
                for part in ("arguments", "donated", "temporary", "total")
            ),
        )
        for dtype, row in RESULTS["memory"].items()
    ]


TABLES = {
    "networks": network_rows(),
    "machines": machine_rows(),
    **{name: update_rows(name, "resnet-50") for name in scaling.MACHINES},
    "wrn": short_rows("wrn-32-10-madry"),
    "even": even_rows(),
    "inputs": input_rows(),
    "memory": memory_rows(),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_agree_with_the_record(name):
    assert len(TABLES[name]) > 1
    assert table(*TABLES[name]) in DOC


def test_the_figures_of_the_text_agree_with_the_record():
    decoding = RESULTS["decoding"]
    assert f"{decoding['images_per_core_second']:.0f} a second" in DOC
    cost = RESULTS["networks"]["resnet-50"]
    for batch in (256, 8192):
        assert f"{batch * cost['delta_bytes'] / 1e6:,.0f} MB" in DOC
    batch, replays = (RESULTS["memory"]["float32"][x] for x in ("batch", "replays"))
    assert f"Free-{replays}, {batch} images" in DOC


def test_the_record_follows_from_the_current_networks_and_machines():
    costs = {name: scaling.count(name) for name in scaling.NETWORKS}
    again = json.loads(json.dumps(scaling.paper(costs, RESULTS["decoding"])))
    assert again == {name: RESULTS[name] for name in again}
    assert RESULTS.keys() - again.keys() == {"memory"}


def test_the_counts_agree_with_published_ones():
    """They are 4.1 and 6.63 billion multiplications, and torchvision's parameters."""
    resnet, wide = (
        RESULTS["networks"][name] for name in ("resnet-50", "wrn-32-10-madry")
    )
    assert resnet["forward_flop"] / 2e9 == pytest.approx(4.089, abs=1e-3)
    assert wide["forward_flop"] / 2e9 == pytest.approx(6.63, abs=1e-2)
    assert resnet["parameters"] == 25_557_032
    assert wide["parameters"] == 45_901_914


def test_twice_the_batch_doubles_the_work_but_not_the_all_reduce():
    machine = scaling.MACHINES["8 x H100"]
    cost = RESULTS["networks"]["resnet-50"]
    small, large = (scaling.update(machine, cost, batch) for batch in (512, 1024))
    assert large["arithmetic_seconds"] == 2 * small["arithmetic_seconds"]
    assert large["all_reduce_seconds"] == small["all_reduce_seconds"]


def test_free_m_decodes_one_image_for_m_updates():
    machine = scaling.MACHINES["8 x H100"]
    cost = RESULTS["networks"]["resnet-50"]
    busy = scaling.inputs(machine, cost, decoded_per_second=100.0)["vcpus_busy"]
    for m in (2, 4, 8):
        assert busy[1] == pytest.approx(m * busy[m])


def test_a_survivor_of_autoattack_takes_the_passes_of_its_stages():
    """1 + 9 + 9 x 101 + 5,001 forward passes; 101 + 9 x 101 + 9 x 100 gradients."""
    gradients, forward = scaling.survivor_passes("standard", 1910 + 5920 / 3)
    assert (forward, round(gradients, 6)) == (5920, 1910)
    gradients, forward = scaling.survivor_passes("quick", 400.0)
    assert forward == 1 + 9 + 301
    assert gradients == pytest.approx(400 - 311 / 3)


def test_an_evaluation_takes_the_longer_of_arithmetic_and_memory():
    machine = scaling.MACHINES["v5e-8"]
    cost = {"forward_flop": 8e9, "traffic": 1e6}
    row = {"version": "standard", "passes_of_a_survivor": 1910 + 5920 / 3}
    row["passes_of_a_broken_image"] = 30
    found = scaling.evaluation(machine, cost, 8000, 0.25, row)
    work = 0.25 * (2 * 1910 + 5920) + 0.75 * 60
    assert found["seconds"] == pytest.approx(1000 * work * 8e9 / machine.flop)
    assert found["bytes"] == pytest.approx(8000 * work * 1e6)
    assert found["passes_of_an_image"] == pytest.approx(
        0.25 * (1910 + 5920 / 3) + 0.75 * 30
    )
    waits = scaling.evaluation(machine, cost | {"traffic": 1e9}, 8000, 0.25, row)
    assert waits["seconds"] == pytest.approx(1000 * work * 1e9 / 819e9)


def test_a_broken_image_takes_what_survivors_leave_of_the_mean():
    quick = {"robust": 40, "passes_of_a_survivor": 400.0, "passes_of_an_image": 172.0}
    standard = {"robust": 39, "passes_of_a_survivor": 3883.3}
    standard["passes_of_an_image"] = 0.39 * 3883.3 + 0.61 * 50
    measured = {"images": 100, "quick": quick, "standard": standard}
    costs = {
        name: {"forward_flop": 1e9, "traffic": 1e6} for name in scaling.EVALUATIONS
    }
    found = scaling.evaluations(costs, measured)["v5e-8"]["resnet-50"]
    survivors = scaling.EVALUATIONS["resnet-50"][1]
    passes = survivors * (400 + 0.04 * 3883.3) + (1 - survivors) * 20
    assert found["quick"]["passes_of_an_image"] == pytest.approx(passes)
    passes = survivors * 3883.3 + (1 - survivors) * 50
    assert found["standard"]["passes_of_an_image"] == pytest.approx(passes)
