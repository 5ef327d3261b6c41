"""Rates and percentiles of the account."""

import numpy as np
import pytest

from dino_perception.ros.frame_statistics import SAMPLES, WINDOW_S, Account, Rate, Spread


def test_a_steady_rate_is_found_before_and_after_the_window_is_full():
    for length in (1.0, 3 * WINDOW_S):
        rate = Rate()
        times = np.arange(100.0, 100.0 + length, 0.1)
        for now in times:
            rate.tick(now)
        assert rate.hz(times[-1]) == pytest.approx(10, rel=0.02)
        assert rate.total == len(times)


def test_a_rate_falls_to_zero_when_events_end_and_starts_afresh_after_it():
    rate = Rate()
    assert rate.hz(0.0) == 0.0
    for now in np.arange(0, 10, 0.1):
        rate.tick(now)
    assert 0 < rate.hz(12.0) < 10
    assert rate.hz(10.0 + WINDOW_S) == 0.0
    for now in np.arange(100, 101, 0.05):
        rate.tick(now)
    assert rate.hz(100.95) == pytest.approx(20, rel=0.02)


def test_percentiles_are_those_of_the_latest_values():
    spread = Spread()
    for value in np.concatenate([np.full(100, 1e6), np.arange(SAMPLES)]):
        spread.add(value, 0.0)
    assert spread.percentiles() == pytest.approx(np.percentile(np.arange(SAMPLES), (50, 95, 99)))


def test_a_stage_that_no_longer_runs_is_not_listed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dino_perception.ros.frame_statistics.time.monotonic", lambda: now[0])
    account = Account(["front"])
    account.spent({"backbone": 10.0, "depth": 2.0})
    now[0] = WINDOW_S
    account.spent({"backbone": 20.0})
    assert set(account.latencies()) == {"backbone", "depth"}
    now[0] += 0.1
    assert account.latencies() == {"backbone": pytest.approx((15.0, 19.5, 19.9))}
