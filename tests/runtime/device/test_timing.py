from __future__ import annotations

from krl_runtime.device.timing import interleaved


def test_each_call_is_timed_in_each_round():
    now, seen = [0.0], []

    def call(name: str, seconds: float) -> None:
        seen.append(name)
        now[0] += seconds

    blocks = interleaved(
        {"slow": lambda: call("slow", 0.5), "fast": lambda: call("fast", 0.125)},
        rounds=3,
        block_seconds=0.25,
        clock=lambda: now[0],
    )
    assert blocks == {"slow": [500.0] * 3, "fast": [125.0] * 3}
    # In each round an untimed call and a block of one (slow) or two (fast), which a quarter of a second holds.
    assert sorted(seen) == ["fast"] * 9 + ["slow"] * 6
