"""The hostile upstream does what it says, seen by a raw socket or by plain httpx."""

from __future__ import annotations

import base64
import gzip
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.hostile import tables
from tests.hostile.generated import chaos_choice, fuzzed_response
from tests.hostile.scenarios import retry_after_values
from tests.hostile.upstream import HostileUpstream, running
from tests.hostile.wire import MIB


@pytest.fixture
def engine() -> None:
    """There is no client of ours here."""


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=1.5, trust_env=False) as client:
        yield client


def talk(
    up: HostileUpstream,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: str = "",
    listener: str = "main",
    timeout: float = 2.0,
    most: int = 4_000_000,
    until: bytes | None = None,
) -> tuple[bytes, str]:
    """All bytes that the server sends (at least up to `until`), and how it ended: fin, rst, silent or most."""
    with socket.create_connection((up.host, up.ports[listener]), timeout=timeout) as sock:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}"
        if body:
            head += f"Content-Length: {len(body)}\r\n"
        got = b""
        try:
            sock.sendall(head.encode("latin-1") + b"\r\n" + body)
            while len(got) < most and (until is None or until not in got):
                data = sock.recv(65536)
                if not data:
                    return got, "fin"
                got += data
        except TimeoutError:
            return got, "silent"
        except ConnectionError:
            return got, "rst"
        return got, "most"


def wait_for(condition: Callable[[], bool], seconds: float = 3.0) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# -- one exchange


def test_echo_is_exact(upstream: HostileUpstream, client: httpx.Client) -> None:
    reply = client.post(
        upstream.url("/echo/a/b?x=1&x=2"), content=b"\x00\xffbody", headers=[("X-A", "1"), ("X-A", "2")]
    ).json()
    assert (reply["method"], reply["target"]) == ("POST", "/echo/a/b?x=1&x=2")
    assert reply["query"] == [["x", "1"], ["x", "2"]]
    assert base64.b64decode(reply["body_b64"]) == b"\x00\xffbody"
    assert [v for k, v in reply["headers"] if k == "X-A"] == ["1", "2"]


def test_chunked_requests_and_expect_are_understood(upstream: HostileUpstream, client: httpx.Client) -> None:
    assert client.post(upstream.url("/echo"), content=iter([b"one", b"two"])).json()["body"] == "onetwo"
    got, _ = talk(upstream, "/echo", method="POST", body=b"hi", headers="Expect: 100-continue\r\nConnection: close\r\n")
    assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_respond_and_raw_send_what_they_are_told(upstream: HostileUpstream, client: httpx.Client) -> None:
    reply = client.get(upstream.url("/respond?status=418&header=X-A:%20b&body=tea"))
    assert (reply.status_code, reply.headers["x-a"], reply.text) == (418, "b", "tea")
    split = b"\r\nX-Split: yes\r\n"
    assert split in talk(upstream, "/respond?header=X-A:a%0d%0aX-Split:%20yes", until=split)[0]
    # By a socket of its own: /raw closes its connection unannounced, and a client may reuse it before it knows.
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nZ"
    assert talk(upstream, "/raw?b64=" + quote(base64.b64encode(data).decode())) == (data, "fin")
    assert client.get(upstream.url("/status/503?retry_after=7")).headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("path", "sent", "end"),
    [
        ("/reset", b"", "rst"),
        ("/close", b"", "fin"),
        ("/reset-mid-headers", b"X-Half: abc", "rst"),
        ("/close-mid-headers", b"X-Half: abc", "fin"),
        ("/reset-mid-body", b"x" * 100, "rst"),
        ("/close-mid-body", b"x" * 100, "fin"),
        ("/respond-then-reset", b'{"ok": true}', "rst"),
        ("/idle-close?after=0.01", b'{"ok": true}', "fin"),
        ("/hang?seconds=0.1", b"", "fin"),
        ("/no-length", b"until the end", "fin"),
        ("/no-length?reset=1", b"until the end", "rst"),
    ],
)
def test_connection_ends_as_named(upstream: HostileUpstream, path: str, sent: bytes, end: str) -> None:
    got, how = talk(upstream, path)
    assert got.endswith(sent)
    assert how == end


@pytest.mark.parametrize("path", ["/hang", "/hang-headers", "/hang-mid-body", "/drip", "/drip-headers"])
def test_client_that_goes_away_is_seen(upstream: HostileUpstream, path: str) -> None:
    talk(upstream, path + "?key=h&seconds=30", timeout=0.2, most=20 if "drip" in path else 10_000)
    assert wait_for(lambda: upstream.key("h")["outcomes"] == {"client-gone": 1})
    assert upstream.key("h")["in_flight"] == 0


def test_special_listeners(upstream: HostileUpstream) -> None:
    with httpx.Client(timeout=0.3, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(upstream.url("/ok", "refused"))
        with pytest.raises(httpx.ConnectTimeout):
            client.get(upstream.url("/ok", "blackhole"))
        for name in ("accept_reset", "accept_close", "banner"):
            with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
                client.get(upstream.url("/ok", name))
        with pytest.raises(httpx.ReadTimeout):
            client.get(upstream.url("/ok", "accept_hang"))


def test_trap_takes_the_next_request_on_the_same_connection(upstream: HostileUpstream, client: httpx.Client) -> None:
    assert client.get(upstream.url("/trap?mode=close")).status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(upstream.url("/count/post"), content=b"x")
    assert upstream.key("post")["count"] == 1
    assert client.post(upstream.url("/count/post"), content=b"x").json()["count"] == 2


def test_uploads_meet_their_faults(upstream: HostileUpstream, client: httpx.Client) -> None:
    assert client.post(upstream.url("/sink"), content=b"a" * MIB).json()["length"] == MIB
    with pytest.raises(httpx.TransportError):
        client.post(upstream.url("/reset-mid-upload"), content=b"a" * 30 * MIB)
    got, _ = talk(upstream, "/early", method="POST", body=b"x" * 100)
    assert got.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("name", list(tables.BAD_HEADS))
def test_bad_heads_are_sent_as_written(upstream: HostileUpstream, name: str) -> None:
    assert talk(upstream, f"/bad-head/{name}") == (tables.BAD_HEADS[name], "fin")


@pytest.mark.parametrize("name", list(tables.BAD_CHUNKS))
def test_bad_chunks_are_sent_as_written(upstream: HostileUpstream, name: str) -> None:
    got, how = talk(upstream, f"/chunked-bad/{name}")
    assert got.endswith(tables.BAD_CHUNKS[name])
    assert how == "fin"


@pytest.mark.parametrize("name", list(tables.JSON_BODIES))
def test_json_bodies_are_sent_as_written(upstream: HostileUpstream, client: httpx.Client, name: str) -> None:
    assert client.get(upstream.url(f"/json/{name}")).content == tables.JSON_BODIES[name]


@pytest.mark.parametrize("kind", ["gzip", "deflate", "br", "zstd", "nested"])
def test_bombs_decode_to_what_they_say(upstream: HostileUpstream, client: httpx.Client, kind: str) -> None:
    with client.stream("GET", upstream.url(f"/bomb/{kind}?mb=16")) as reply:
        total = sum(len(part) for part in reply.iter_bytes())
    assert total == int(reply.headers["x-decoded-length"])
    assert total / int(reply.headers["content-length"]) > 900


def test_endless_answers_are_bounded_by_their_budget(upstream: HostileUpstream) -> None:
    assert talk(upstream, "/infinite-headers")[1] == "most"
    assert talk(upstream, "/interim?n=-1&seconds=30", most=100_000)[1] == "most"
    got, how = talk(upstream, "/infinite?mb=1&seconds=0.1", most=10_000_000)
    assert how == "fin"
    assert MIB <= len(got) < MIB + 1000


def test_surplus_bytes_are_sent(upstream: HostileUpstream) -> None:
    def bytes_of(path: str, until: bytes) -> bytes:
        return talk(upstream, path, until=until)[0]

    assert bytes_of("/desync", b"POISON").count(b"HTTP/1.1 200 OK") == 2
    assert bytes_of("/body-on/204", b"forbidden").endswith(b"forbidden")
    assert bytes_of("/length-short", b"hello world").endswith(b"Content-Length: 5\r\n\r\nhello world")
    got, _ = talk(upstream, "/coding/members", headers="Connection: close\r\n")
    assert gzip.decompress(got.split(b"\r\n\r\n", 1)[1]) == b"hello world"


# -- paths with a memory


def test_flaky_fails_first_and_the_key_counts(upstream: HostileUpstream, client: httpx.Client) -> None:
    replies = [client.get(upstream.url("/flaky?fail=2&status=503&retry_after=1&key=k")) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [503, 503, 200]
    assert replies[0].headers["retry-after"] == "1"
    assert upstream.key("k")["count"] == 3
    assert upstream.key("k")["statuses"] == {"503": 2, "200": 1}
    assert len(upstream.key("k")["gaps"]) == 2


def test_sequence_takes_one_step_a_request(upstream: HostileUpstream, client: httpx.Client) -> None:
    url = upstream.url("/sequence/s?steps=503,429:2,reset,200")
    assert client.get(url).status_code == 503
    assert client.get(url).headers["retry-after"] == "2"
    with pytest.raises(httpx.ReadError):
        client.get(url)
    assert [client.get(url).status_code for _ in range(2)] == [200, 200]


@pytest.mark.parametrize("name", list(retry_after_values()))
def test_retry_after_is_sent_as_named(upstream: HostileUpstream, name: str) -> None:
    got, _ = talk(upstream, f"/retry-after/{name}", headers="Connection: close\r\n")
    assert got.startswith(b"HTTP/1.1 429")
    value = got.split(b"Retry-After: ")[1].split(b"\r\n")[0].decode()
    assert name.startswith("date") or value == retry_after_values()[name]


def test_ledger_counts_effects_and_deduplicates_by_key(upstream: HostileUpstream, client: httpx.Client) -> None:
    for key, headers, effects in (("a", {}, 2), ("b", {"Idempotency-Key": "same"}, 1)):
        with pytest.raises(httpx.ReadError):
            client.post(upstream.url(f"/effect/{key}"), headers=headers)
        assert client.post(upstream.url(f"/effect/{key}"), headers=headers).json()["effects"] == effects
    assert upstream.stats()["ledgers"]["b"]["by_idempotency_key"] == {"same": 2}


def test_limited_answers_429_above_its_rate(upstream: HostileUpstream, client: httpx.Client) -> None:
    codes = [client.get(upstream.url("/limited/l?rate=0.1&burst=2")).status_code for _ in range(4)]
    assert codes == [200, 200, 429, 429]


def test_outage_begins_with_the_first_request(upstream: HostileUpstream, client: httpx.Client) -> None:
    assert client.get(upstream.url("/outage/o?down=0.1")).status_code == 503
    assert wait_for(lambda: client.get(upstream.url("/outage/o?down=0.1")).status_code == 200)


def test_tokens_are_issued_checked_and_revoked(upstream: HostileUpstream, client: httpx.Client) -> None:
    form = {"grant_type": "client_credentials", "client_id": "id", "client_secret": "s3cret"}
    reply = client.post(upstream.url("/oauth/token?realm=r&check=id:s3cret"), data=form).json()
    bearer = {"Authorization": f"Bearer {reply['access_token']}"}
    assert client.get(upstream.url("/oauth/protected?realm=r"), headers=bearer).status_code == 200
    client.get(upstream.url("/oauth/revoke?realm=r"))
    assert client.get(upstream.url("/oauth/protected?realm=r"), headers=bearer).status_code == 401
    assert client.post(upstream.url("/oauth/token?realm=r&check=id:other"), auth=("id", "s3cret")).status_code == 401
    assert upstream.stats()["token_realms"]["r"] == {
        "calls": 2, "peak_in_flight": 1, "issued": 0, "accepted": 1, "rejected": 1,
    }  # fmt: skip


def test_redirects_and_cookies(upstream: HostileUpstream) -> None:
    with httpx.Client(timeout=2, trust_env=False, follow_redirects=True) as client:
        assert client.get(upstream.url("/redirect?n=3")).json()["path"] == "/echo"
        with pytest.raises(httpx.TooManyRedirects):
            client.get(upstream.url("/redirect-loop"))
        assert client.get(upstream.url("/redirect-cross"), headers={"X-Tag": "t4g"}).json()["listener"] == "other"
        client.get(upstream.url("/cookie/login?user=bob"))
        assert client.get(upstream.url("/cookie/whoami")).json()["cookie"] == "session=bob"
    assert [hit["listener"] for hit in upstream.search("t4g")] == ["main", "other"]


# -- what the server saw


@pytest.mark.parametrize("name", ["", "a", "ab", "abc"])
def test_secrets_are_found_in_base64_at_any_alignment(
    upstream: HostileUpstream, client: httpx.Client, name: str
) -> None:
    client.get(upstream.url("/ok"), auth=(name, "hunter2-secret!"))
    client.get(upstream.url("/ok"), params={"p": "hunter2-secret!"})
    assert len(upstream.search("hunter2-secret!")) == 2


def test_generated_faults_are_pure_functions_of_the_seed(upstream: HostileUpstream, client: httpx.Client) -> None:
    plan = [chaos_choice("7", index) for index in range(50)]
    assert len(set(plan)) > 20
    assert talk(upstream, "/fuzz?seed=5")[0] == fuzzed_response("5")
    assert client.get(upstream.url(f"/chaos?seed=7&n={plan.index('/ok')}")).json() == {"ok": True}


def test_odd_requests_do_not_kill_the_server(upstream: HostileUpstream, client: httpx.Client) -> None:
    for data in (b"\x00" * 5000, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbroken\r\n\r\n"):
        with socket.create_connection((upstream.host, upstream.ports["main"]), timeout=2) as sock:
            sock.sendall(data)
    assert client.get(upstream.url("/ok")).status_code == 200
    assert wait_for(lambda: len(upstream.stats()["bad_requests"]) == 3)


def test_connections_are_counted_and_can_be_dropped(upstream: HostileUpstream, client: httpx.Client) -> None:
    client.get(upstream.url("/ok"))
    assert upstream.stats()["connections"]["open"] == 1
    assert upstream.drop_connections() == 1
    assert wait_for(lambda: upstream.open_connections() == 0)


def test_tls_mutual_tls_and_a_certificate_for_another_host() -> None:
    def get(up: HostileUpstream, context: ssl.SSLContext) -> httpx.Response:
        with httpx.Client(verify=context, trust_env=False) as client:
            return client.get(up.url("/ok", "tls"))

    with running(tls=True, require_client=True) as up:
        with pytest.raises(httpx.ConnectError):
            get(up, ssl.create_default_context())
        context = ssl.create_default_context(cafile=up.certs["ca.pem"])
        with pytest.raises(httpx.HTTPError):
            get(up, context)
        context.load_cert_chain(up.certs["client.pem"], up.certs["client.key"])
        assert get(up, context).status_code == 200
    with running(tls=True, tls_name="wronghost") as up:
        context = ssl.create_default_context(cafile=up.certs["ca.pem"])
        with pytest.raises(httpx.ConnectError, match=r"Hostname mismatch|IP address mismatch"):
            get(up, context)
