"""What the headers of a response ask for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_http_client.policies.server_limit import asked_pause

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (429, {"retry-after": "7"}, 7.0),
        (503, {"retry-after": "7"}, 7.0),
        (200, {"retry-after": "7"}, None),
        (500, {"retry-after": "7"}, None),
        (429, {"retry-after": "Tue, 14 Nov 2023 22:13:25 GMT"}, 5.0),
        (429, {"retry-after": "soon"}, None),
        (429, {"retry-after": "7", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "90"}, 7.0),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}, 30.0),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000030"}, 30.0),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1600000000"}, 0.0),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "2.5"}, 2.5),
        (200, {"x-ratelimit-remaining": "1", "x-ratelimit-reset": "30"}, None),
        (200, {"x-ratelimit-remaining": "0"}, None),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "+30"}, None),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "nan"}, None),
        (200, {"ratelimit-remaining": "0", "ratelimit-reset": "30"}, 30.0),
        (200, {"ratelimit": '"default";r=0;t=30'}, 30.0),
        (200, {"ratelimit": '"default";r=50;t=30'}, None),
        (200, {"ratelimit": '"burst";r=0;t=3, "daily";r=0;t=30'}, 30.0),
        (200, {"ratelimit": '"burst";r=0;t=3, "daily";r=9;t=30'}, 3.0),
        (200, {"ratelimit": '"default";r=0;t=30;pk=:abc:'}, 30.0),
        (200, {"ratelimit": '"default";r=0'}, None),
        (200, {"ratelimit": '"default";r=0;t=-1'}, None),
        (200, {"ratelimit": "limit=10, remaining=0, reset=30"}, None),
        (200, {}, None),
    ],
    ids=str,
)
def test_headers_ask_for_a_pause(status: int, headers: dict[str, str], pause: float | None) -> None:
    assert asked_pause(status, headers, NOW) == pause


@given(
    status=st.sampled_from([200, 429, 503]),
    name=st.sampled_from(["retry-after", "ratelimit", "x-ratelimit-reset", "ratelimit-reset"]),
    value=st.text() | st.from_regex(r'"[a-z]*";r=[0-9]*;t=[0-9]*', fullmatch=True),
)
def test_garbage_is_never_an_error(status: int, name: str, value: str) -> None:
    headers = {"x-ratelimit-remaining": "0", "ratelimit-remaining": "0", name: value}
    pause = asked_pause(status, headers, NOW)
    assert pause is None or pause >= 0.0
