"""Ports: free ones, and ones that are not."""

from __future__ import annotations

import socket

import pytest

from repo_builder.core.errors import ServeError
from repo_builder.serve.run import embedded
from repo_builder.serve.run.ports import Endpoints, settle


def test_zero_picks_free_ports_that_differ() -> None:
    settled = settle(Endpoints(http=0, grpc=0, metrics=0))
    ports = {settled.http, settled.grpc, settled.metrics}
    assert len(ports) == 3
    assert 0 not in ports
    assert settle(settled) == settled


@pytest.mark.parametrize("role", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_its_option(role: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = Endpoints(**{"http": 0, "grpc": 0, "metrics": 0, role: port})
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            settle(wanted)
    assert caught.value.where == f"--{role}-port"


def test_a_port_in_use_on_every_address_is_in_use_here() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(ServeError, match="is in use"):  # noqa: S104
        settle(Endpoints(http=taken.getsockname()[1], grpc=0, metrics=0))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Endpoints(http=40000, grpc=40000), "port 40000 is named twice"),
        (Endpoints(host="no.such.host.invalid", http=0), "'no.such.host.invalid' is no address"),
        (Endpoints(host="192.0.2.1", http=0), "not an address of this machine"),
        (Endpoints(http=70000), "70000 is no port"),
        (Endpoints(http=-1), "-1 is no port"),
    ],
)
def test_what_cannot_be_bound_is_refused(wanted: Endpoints, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        settle(wanted)


@pytest.mark.parametrize(
    ("host", "http"),
    [("127.0.0.1", "127.0.0.1:8000"), ("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("::1", "[::1]:8000")],  # noqa: S104
)
def test_urls_can_be_connected_to(host: str, http: str) -> None:
    endpoints = Endpoints(host=host)
    assert endpoints.http_url == http
    assert endpoints.metrics_url == f"http://{http[:-1]}2/metrics"


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1")])
def test_a_name_becomes_an_address_that_triton_takes(host: str, address: str) -> None:
    assert settle(Endpoints(host=host, http=0, grpc=0, metrics=0)).host == address


def test_an_ipv6_address_is_marked_as_one_for_triton() -> None:
    words = embedded.addresses(Endpoints(host="::1"))
    assert "--http-address=ipv6:::1" in words
    assert "--grpc-address=[::1]" in words
    assert "--metrics-address=ipv6:::1" in words
