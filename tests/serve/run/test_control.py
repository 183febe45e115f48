"""What closes the administration of a server."""

from __future__ import annotations

import pytest

from repo_builder.serve.run import control

ALL = "shared-memory,model-repository,trace,logging:repo-builder=k"


@pytest.mark.parametrize(
    ("options", "grpc", "http"),
    [
        ((), ALL, ALL),
        (("--log-verbose", "1"), ALL, ALL),
        (("--http-restricted-api=trace,logging:mine=x",), ALL, "shared-memory,model-repository:repo-builder=k"),
        (("--grpc-restricted-protocol", "shared-memory:a=b"), "model-repository,trace,logging:repo-builder=k", ALL),
        ((f"--http-restricted-api={ALL.replace('repo-builder=k', 'a=b')}",), ALL, None),
    ],
)
def test_what_the_user_restricts_is_the_user_s(options: tuple[str, ...], grpc: str | None, http: str | None) -> None:
    expected = {"--grpc-restricted-protocol": grpc, "--http-restricted-api": http}
    assert control.closing("k", options) == [f"{name}={value}" for name, value in expected.items() if value]


def test_keys_differ_and_survive_a_command_line() -> None:
    keys = {control.new_key() for _ in range(10)}
    assert len(keys) == 10
    assert all(len(key) == 32 and key.isalnum() for key in keys)


def test_the_last_value_of_an_option_counts() -> None:
    options = ["--a=1", "--b", "2", "--a", "3", "--flag"]
    assert control.joined(options) == ["--a=1", "--b=2", "--a=3", "--flag"]
    assert (control.value_of(options, "--a"), control.value_of(options, "--flag")) == ("3", "")
    assert control.value_of(options, "--c") is None
