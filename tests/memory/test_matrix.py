"""Every setting alone and in pairs: answered without contradiction, or refused."""

from __future__ import annotations

import pytest
from random_jobs import FAMILIES, METHODS, REPLAYED, alone, broken, pairs, values


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_values_to_be_tried_with(method: str) -> None:
    without = [name for name, tried in values(method).items() if not tried]
    assert not without, f"say in random_jobs.EXAMPLES which values of {without} are tried"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_alone_is_answered_or_refused(family: str) -> None:
    jobs = [made for made in alone() if made[0] == family]
    found, answered = broken(jobs, replayed=REPLAYED / 3)
    assert found == []
    assert answered > len(jobs) / 2


@pytest.mark.parametrize("method", METHODS)
def test_every_pair_of_settings_is_answered_or_refused(method: str) -> None:
    jobs = [made for made in pairs() if made[1] == method]
    found, answered = broken(jobs, replayed=REPLAYED / 3)
    assert found == []
    assert answered > len(jobs) / 2
