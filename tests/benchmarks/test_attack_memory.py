"""benchmarks.attack_memory: its turns and its ratios."""

from benchmarks import attack_memory


def test_the_ratio_is_the_median_over_rounds_without_the_turn_that_compiles(
    monkeypatch,
):
    seconds = {"returned": [9.0, 4.0, 30.0, 2.0], "kept": [1.0, 2.0, 10.0, 4.0]}

    class Timed:
        def __init__(self, build, side, *arguments):
            assert build is attack_memory.Side
            assert arguments == ("run", "data", 8)
            self._side, self._turn = side, 0

        def ask(self, method, name):
            assert (method, name in attack_memory.ATTACKS) == ("attack", True)
            self._turn += 1
            return {"seconds": seconds[self._side][(self._turn - 1) % 4], "pages": 0}

        def close(self):
            pass

    monkeypatch.setattr(attack_memory, "Worker", Timed)
    found = attack_memory.measure("run", "data", 8, rounds=3)
    assert list(found) == ["apgd-t", "fab-t", "square"]
    for row in found.values():
        # 4 / 2, 30 / 10 and 2 / 4.
        assert row["returned / kept"] == 2.0
        assert [turn["seconds"] for turn in row["kept"]] == [2.0, 10.0, 4.0]
