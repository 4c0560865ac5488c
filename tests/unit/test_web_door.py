"""Which requests are let in, by the name that they call us and the page that they come from."""

from __future__ import annotations

import pytest

from web.door import Door

LOCAL = Door("127.0.0.1", [])
OPEN = Door("0.0.0.0", [])
NAMED = Door("::", ["GPU-1.example", "other:9000"])


def refused(door: Door, method: str = "POST", **headers: str) -> str | None:
    error = door.refusal(method, [(name.encode(), value.encode()) for name, value in headers.items()])
    if error is None:
        return None
    assert error.status == 403
    assert "allowed_hosts in [server]" in error.message
    return error.code


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
@pytest.mark.parametrize("door", [LOCAL, OPEN, NAMED, Door("::1", []), Door("127.0.1.1", ["gpu-1"])])
def test_the_names_of_this_machine_are_always_ours(door: Door, host: str) -> None:
    assert refused(door, host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost:x"]
)
def test_on_a_loopback_address_other_names_are_not(host: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        assert refused(LOCAL, method, host=host) == "unknown_host"
    assert refused(OPEN, host=host) is None


def test_names_that_are_listed_are_accepted_and_then_no_others() -> None:
    for host in ("gpu-1.example", "Gpu-1.Example:80", "other:9000"):
        assert refused(NAMED, host=host) is None
    for host in ("other", "other:9001", "gpu-2.example"):
        assert refused(NAMED, host=host) == "unknown_host"
    assert refused(Door("127.0.0.1", ["gpu-1"]), host="gpu-1:8000") is None


def test_of_two_names_both_must_be_ours() -> None:
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    for order in (headers, headers[::-1]):
        assert LOCAL.refusal("GET", order) is not None


@pytest.mark.parametrize("name", ["host", "origin"])
@pytest.mark.parametrize(
    "values", [("http://localhost", "http://localhost"), ("http://evil.example", "http://localhost")]
)
@pytest.mark.parametrize("door", [LOCAL, OPEN])
def test_nobody_sends_two_of_a_header_that_browsers_send_once(door: Door, name: str, values: tuple[str, str]) -> None:
    said = [value.removeprefix("http://") if name == "host" else value for value in values]
    headers = [(b"host", b"localhost")] * (name == "origin") + [(name.encode(), value.encode()) for value in said]
    for order in (headers, headers[::-1]):
        error = door.refusal("POST", order)
        assert error is not None and error.status in (400, 403)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "localhost", "://localhost", "x://localhost", "data://localhost", "http://evil@localhost", "http://localhost/",
     "http://localhost#", "http://localhost, http://localhost", "http://", "http:///localhost", " http://localhost", "http://localhost\t"],
)  # fmt: skip
def test_an_origin_that_browsers_do_not_write_is_nobodys(origin: str) -> None:
    for door in (LOCAL, OPEN, Door("127.0.0.1", ["localhost"])):
        assert refused(door, host="localhost", origin=origin) == "foreign_origin"


def test_a_long_name_is_said_back_in_part() -> None:
    error = LOCAL.refusal("GET", [(b"host", b"x" * 9000)])
    assert error is not None
    assert len(error.message) < 400
    assert error.message.endswith("add it to allowed_hosts in [server].")


def test_a_client_that_names_nobody_is_no_browser() -> None:
    assert refused(LOCAL) is None


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "https://gpu-1:8000.evil"])
@pytest.mark.parametrize("door", [LOCAL, OPEN])
def test_pages_of_other_sites_may_not_send(door: Door, origin: str) -> None:
    assert refused(door, host="localhost:8000", origin=origin) == "foreign_origin"
    for method in ("GET", "HEAD", "OPTIONS"):
        assert refused(door, method, host="localhost:8000", origin=origin) is None


def test_our_own_page_and_those_that_are_listed_may() -> None:
    assert refused(LOCAL, host="localhost:8000", origin="http://localhost:8000") is None
    assert refused(OPEN, host="Gpu-7", origin="https://gpu-7") is None
    assert refused(NAMED, host="gpu-1.example", origin="https://gpu-1.example:444") is None
    assert refused(Door("127.0.0.1", ["localhost:3000"]), host="localhost:8000", origin="http://localhost:3000") is None
