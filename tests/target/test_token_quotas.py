"""How many tokens a caller may have in a minute: exact over time, whoever asks and however."""

from __future__ import annotations

import random

import pytest
from outrider_runtime.errors import TokenQuotaExceeded
from outrider_target.engine.token_quotas import TokenQuotas

PER_MINUTE = 600
"""Ten a second."""


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> TokenQuotas:
    return TokenQuotas(PER_MINUTE, clock=clock)


def delay(quotas: TokenQuotas, num_tokens: int = 1, account: str = "anna") -> float:
    with pytest.raises(TokenQuotaExceeded, match="600 tokens a minute") as caught:
        quotas.check(account, num_tokens)
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_a_minute_of_tokens_may_be_had_at_once_and_then_as_they_flow(
    quotas: TokenQuotas, clock: Clock
) -> None:
    quotas.take("anna", PER_MINUTE)
    assert delay(quotas) == pytest.approx(0.1, abs=0.002)
    assert delay(quotas, 25) == pytest.approx(2.5, abs=0.002)
    clock.now += 2.5
    quotas.take("anna", 25)
    assert delay(quotas) == pytest.approx(0.1, abs=0.002)


def test_the_delay_is_the_time_after_which_it_fits_and_not_earlier(
    quotas: TokenQuotas, clock: Clock
) -> None:
    quotas.charge("anna", 777)
    seconds = delay(quotas, 123)
    assert seconds == pytest.approx(30.0, abs=0.002)
    clock.now += seconds - 0.01
    delay(quotas, 123)
    clock.now += 0.01
    quotas.take("anna", 123)


def test_what_is_refused_takes_nothing(quotas: TokenQuotas) -> None:
    quotas.take("anna", 500)
    for _ in range(5):
        with pytest.raises(TokenQuotaExceeded):
            quotas.take("anna", 101)
    quotas.take("anna", 100)


def test_an_answer_that_goes_on_is_charged_and_paid_back_first(
    quotas: TokenQuotas, clock: Clock
) -> None:
    quotas.take("anna", 500)
    for _ in range(400):
        quotas.charge("anna", 1)
    assert delay(quotas) == pytest.approx(30.1, abs=0.002)
    clock.now += 30
    assert delay(quotas) == pytest.approx(0.1, abs=0.002)


def test_a_prompt_longer_than_a_minute_waits_for_a_full_bucket_and_not_for_ever(
    quotas: TokenQuotas, clock: Clock
) -> None:
    quotas.charge("anna", 1)
    assert delay(quotas, 6000) == pytest.approx(0.1, abs=0.002)
    clock.now += 0.1
    quotas.take("anna", 6000)
    assert delay(quotas) == pytest.approx(540.1, abs=0.002)


def test_rest_saves_up_no_more_than_a_minute(quotas: TokenQuotas, clock: Clock) -> None:
    quotas.charge("anna", 10)
    clock.now += 3600
    quotas.take("anna", PER_MINUTE)
    delay(quotas)


def test_each_caller_has_a_bucket_of_its_own(quotas: TokenQuotas) -> None:
    quotas.charge("anna", 10_000)
    quotas.take("bert", PER_MINUTE)
    delay(quotas)


def test_without_a_quota_nobody_is_refused() -> None:
    quotas = TokenQuotas(None)
    quotas.charge("anna", 10**12)
    quotas.take("anna", 10**12)


def test_callers_with_full_buckets_take_no_memory(quotas: TokenQuotas, clock: Clock) -> None:
    for number in range(20_000):
        quotas.charge(f"caller {number}", 1)
        clock.now += 0.01
    assert len(quotas._full_at) < 5000
    quotas.charge("anna", 6000)
    for number in range(20_000):
        quotas.charge(f"another {number}", 1)
        clock.now += 0.01
    assert delay(quotas) == pytest.approx(540.1 - 200, abs=0.01)  # who owes is not forgotten


@pytest.mark.parametrize("seed", range(5))
def test_in_the_long_run_nobody_gets_more_than_flows(
    seed: int, quotas: TokenQuotas, clock: Clock
) -> None:
    dice = random.Random(seed)
    began, had, refused = clock.now, 0, 0
    for _ in range(3000):
        prompt, answer = dice.randint(1, 300), dice.randint(0, 500)
        try:
            quotas.take("anna", prompt)
        except TokenQuotaExceeded as error:
            refused += 1
            clock.now += dice.choice([0.1, error.retry_after or 0.0])
        else:
            quotas.charge("anna", answer)
            had += prompt + answer
    flowed = PER_MINUTE + (clock.now - began) * PER_MINUTE / 60
    assert refused > 100
    assert flowed - PER_MINUTE - 300 <= had <= flowed + 500
