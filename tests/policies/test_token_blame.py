"""When a 401 is the token's fault."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_http_client.policies.token_blame import FIRST_DOUBT, LONGEST_DOUBT, TokenBlame


def refused_again(blame: TokenBlame, now: float) -> None:
    """A call gets a 401, and another one when it is made again with a new token."""
    assert blame.reject(now, replayable=True)
    blame.replace(now)
    blame.judge(now, helped=False)


def blamed_from(blame: TokenBlame, now: float) -> float:
    """When a 401 is the token's fault again, to a tenth of a second."""
    while not blame.reject(now, replayable=True):
        now = round(now + 0.1, 1)
    return now


def test_the_first_401_is_the_tokens_fault() -> None:
    assert TokenBlame().reject(0.0, replayable=True)


def test_a_token_that_was_accepted_may_be_revoked_at_once() -> None:
    blame = TokenBlame()
    for _ in range(10):
        assert blame.reject(0.0, replayable=True)
        blame.replace(0.0)
        blame.accept()


def test_a_token_that_has_helped_may_be_revoked_at_once() -> None:
    blame = TokenBlame()
    refused_again(blame, 0.0)
    for now in (5.0, 5.0, 5.0):
        assert blame.reject(now, replayable=True)
        blame.replace(now)
        blame.judge(now, helped=True)
    refused_again(blame, 5.0)
    assert blamed_from(blame, 5.0) == 5.0 + FIRST_DOUBT, "what was in vain long ago no longer counts"


def test_all_401s_until_the_replacement_is_there_are_one() -> None:
    blame = TokenBlame()
    assert all(blame.reject(float(now), replayable=True) for now in range(10))
    assert blame.is_rejected
    blame.replace(10.0)
    assert not blame.is_rejected


@pytest.mark.parametrize("accepted", [False, True])
def test_each_replacement_in_vain_doubles_the_doubt_whatever_other_calls_get(accepted: bool) -> None:
    blame, now, waits = TokenBlame(), 0.0, []
    for _ in range(8):
        refused_again(blame, now)
        if accepted:
            blame.accept()
        following = blamed_from(blame, now)
        waits.append(round(following - now, 1))
        blame.is_rejected = False  # it was only asked
        now = following
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_DOUBT, LONGEST_DOUBT, LONGEST_DOUBT]


def test_a_replacement_that_no_call_can_judge_counts_as_in_vain() -> None:
    blame = TokenBlame()
    for now, until in ((0.0, 1.0), (1.0, 3.0), (3.0, 7.0)):
        assert blame.reject(now, replayable=False)
        blame.replace(now)
        blame.accept()
        assert not blame.reject(until - 0.1, replayable=False)


@given(
    st.lists(
        st.tuples(st.sampled_from(["accept", "reject", "one-shot", "replace", "in vain"]), st.floats(0, 3)), max_size=60
    )
)
def test_without_any_help_replacements_are_ever_rarer(events: list[tuple[str, float]]) -> None:
    """Whatever else happens: no more of them than the doubt allows, once one was in vain."""
    blame, now, replaced = TokenBlame(), 0.0, []
    for event, passed in events:
        now += passed
        match event:
            case "accept":
                blame.accept()
            case "reject" | "one-shot":
                blame.reject(now, replayable=event == "reject")
            case "replace" if blame.is_rejected:
                blame.replace(now)
                blame.judge(now, helped=False)
                replaced.append(now)
            case "in vain":
                blame.judge(now, helped=False)
    for number, (before, after) in enumerate(itertools.pairwise(replaced)):
        assert after - before >= min(FIRST_DOUBT * 2**number, LONGEST_DOUBT) - 1e-9
