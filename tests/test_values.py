"""Settings, events and errors are values; and the public names are those that were promised."""

from __future__ import annotations

import copy
import math
import pickle
import re
import traceback
import typing
from typing import Any

import attrs
import pytest

import trio_wsstream
from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    ErrorOccurred,
    EventsLost,
    HalfClose,
    KeepaliveTimeout,
    PingReceived,
    PongReceived,
    ProtocolViolation,
    ProxyRejected,
    StreamClosed,
    StreamConfig,
    TakeoverError,
    TextPolicy,
    TextReceived,
    TextRejected,
    WsEvent,
    WsStreamError,
)
from trio_wsstream._version import VERSION

# Settings


def test_the_defaults_are_those_that_were_promised() -> None:
    assert attrs.asdict(StreamConfig()) == {
        "max_message_size": 65536,
        "receive_buffer_size": 262144,
        "text": TextPolicy.REJECT,
        "half_close": HalfClose.AUTO,
        "close_timeout": 10.0,
        "ping_interval": 20.0,
        "ping_timeout": 20.0,
        "end_codes": frozenset({1000, 1005}),
    }
    assert StreamConfig(1, 2, TextPolicy.AS_BYTES, HalfClose.NEVER, 3, 4, 5) == StreamConfig(
        max_message_size=1,
        receive_buffer_size=2,
        text=TextPolicy.AS_BYTES,
        half_close=HalfClose.NEVER,
        close_timeout=3,
        ping_interval=4,
        ping_timeout=5,
    )


def fields_and_values(values: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(field, value) for field, each in values.items() for value in each]


@pytest.mark.parametrize(
    ("field", "value"),
    fields_and_values(
        {
            "max_message_size": [1, 2**40],
            "receive_buffer_size": [1, 2**40],
            "text": list(TextPolicy),
            "half_close": list(HalfClose),
            "close_timeout": [0, 0.0, 1, math.inf],
            "ping_interval": [0.001, 1, math.inf, None],
            "ping_timeout": [0.001, 1, math.inf, None],
        }
    ),
)
def test_a_valid_setting_is_kept(field: str, value: Any) -> None:
    assert getattr(StreamConfig(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    fields_and_values(
        {
            "max_message_size": [1.0, "1", b"1", None, True, math.inf],
            "receive_buffer_size": [1.0, "1", b"1", None, True, math.inf],
            "text": ["reject", None, True, HalfClose.AUTO, TextPolicy],
            "half_close": ["auto", None, True, TextPolicy.REJECT, HalfClose],
            "close_timeout": ["1", None, True, 1j],
            "ping_interval": ["1", False, True, 1j],
            "ping_timeout": ["1", False, True, 1j],
        }
    ),
)
def test_a_setting_of_the_wrong_type_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        StreamConfig(**{field: value})
    assert str(caught.value).startswith(f"{field} must be ")
    assert str(caught.value).endswith(f", not {value!r}")


@pytest.mark.parametrize(
    ("field", "value"),
    fields_and_values(
        {
            "max_message_size": [0, -1],
            "receive_buffer_size": [0, -1],
            "close_timeout": [-1, -1e-9, -math.inf, math.nan],
            "ping_interval": [0, 0.0, -1, -math.inf, math.nan],
            "ping_timeout": [0, 0.0, -1, -math.inf, math.nan],
        }
    ),
)
def test_a_setting_of_the_wrong_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        StreamConfig(**{field: value})
    assert str(caught.value).startswith(f"{field} must be ")
    assert str(caught.value).endswith(f", not {value!r}")


def test_a_setting_can_be_changed_only_in_a_copy_and_is_checked_there() -> None:
    config = StreamConfig()
    for field in attrs.fields(StreamConfig):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(config, field.name, None)
    assert config == StreamConfig()
    assert attrs.evolve(config, close_timeout=1) == StreamConfig(close_timeout=1)
    with pytest.raises(ValueError, match="max_message_size must be at least 1 byte, not 0"):
        attrs.evolve(config, max_message_size=0)


# Events and errors

ERRORS = [
    WsStreamError("what"),
    WsStreamError("another"),
    ProtocolViolation(1002, "what"),
    ProtocolViolation(1007, "what"),
    ProtocolViolation(1002),
    TextRejected(1002, "what"),
    TextRejected(1009, "what"),
    AbnormalClosure(1002, "what"),
    AbnormalClosure(1005),
    ConnectionLost("what"),
    ConnectionLost(),
    KeepaliveTimeout("what"),
    TakeoverError("what"),
]

EVENTS = [
    WsEvent(),
    PingReceived(b""),
    PingReceived(b"payload"),
    PongReceived(b""),
    PongReceived(b"payload"),
    CloseReceived(1000, ""),
    CloseReceived(1000, "bye"),
    CloseReceived(1001, ""),
    TextReceived(""),
    TextReceived("text"),
    ErrorOccurred(ConnectionLost("what")),
    ErrorOccurred(ConnectionLost("another")),
    ErrorOccurred(KeepaliveTimeout("what")),
    EventsLost(1),
    EventsLost(1000),
    StreamClosed(1000, "", True, None),
    StreamClosed(1001, "", True, None),
    StreamClosed(1000, "bye", True, None),
    StreamClosed(1000, "", False, None),
    StreamClosed(1000, "", True, ProtocolViolation(1002, "what")),
    StreamClosed(1000, "", True, ProtocolViolation(1007, "what")),
]

REJECTIONS = [
    ProxyRejected("proxy:3128", "server:443", 407, "what"),
    ProxyRejected("proxy:3128", "server:443", None, "what"),
]

VALUES = [*ERRORS, *EVENTS, *REJECTIONS, StreamConfig(), StreamConfig(max_message_size=1)]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_that_was_pickled_is_the_same(value: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(value, protocol))
        assert again is not value
        assert type(again) is type(value)
        assert again == value
        assert hash(again) == hash(value)
        assert (str(again), repr(again)) == (str(value), repr(value))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_that_was_copied_is_the_same(value: object) -> None:
    for again in (copy.copy(value), copy.deepcopy(value)):
        assert again == value
        assert hash(again) == hash(value)
    assert {value: "found"}[copy.deepcopy(value)] == "found"


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_different_events_and_errors_are_not_equal(value: object) -> None:
    assert [other for other in VALUES if other == value] == [value]
    assert [other for other in VALUES if not other != value] == [value]  # noqa: SIM202


def test_events_and_errors_can_be_in_a_set() -> None:
    assert len({*VALUES, *copy.deepcopy(VALUES)}) == len(VALUES)


@pytest.mark.parametrize("value", [*ERRORS, *EVENTS], ids=repr)
def test_an_event_or_error_is_not_equal_to_the_tuple_of_its_fields(value: object) -> None:
    assert value not in [None, "what", b"payload", 1000, (), Exception("what")]


@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_events_are_frozen(event: WsEvent) -> None:
    before = copy.deepcopy(event)
    for name in [*(field.name for field in attrs.fields(type(event))), "another"]:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, name, None)
    assert event == before


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (PingReceived, ["payload"]),
        (PongReceived, ["payload"]),
        (CloseReceived, ["code", "reason"]),
        (TextReceived, ["text"]),
        (ErrorOccurred, ["error"]),
        (EventsLost, ["count"]),
        (StreamClosed, ["code", "reason", "clean", "error"]),
    ],
)
def test_an_event_has_the_fields_that_were_promised(kind: type[WsEvent], fields: list[str]) -> None:
    assert issubclass(kind, WsEvent)
    assert [field.name for field in attrs.fields(kind)] == fields


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (PingReceived(b"short"), "PingReceived(payload=b'short')"),
        (PingReceived(b"x" * 32), f"PingReceived(payload=b'{'x' * 32}')"),
        (PingReceived(b"x" * 33), f"PingReceived(payload=b'{'x' * 32}'... (33 in all))"),
        (PongReceived(b"x" * 125), f"PongReceived(payload=b'{'x' * 32}'... (125 in all))"),
        (TextReceived("short"), "TextReceived(text='short')"),
        (TextReceived("ä" * 10**6), f"TextReceived(text='{'ä' * 32}'... (1000000 in all))"),
    ],
)
def test_the_repr_of_an_event_shows_only_the_beginning_of_a_long_payload(
    event: WsEvent, shown: str
) -> None:
    assert repr(event) == shown


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (ProtocolViolation(1007, "why"), {"close_code": 1007, "reason": "why"}),
        (ProtocolViolation(1002), {"close_code": 1002, "reason": ""}),
        (TextRejected(1003, "why"), {"close_code": 1003, "reason": "why"}),
        (AbnormalClosure(4000, "why"), {"code": 4000, "reason": "why"}),
        (AbnormalClosure(1005), {"code": 1005, "reason": ""}),
    ],
)
def test_an_error_tells_its_code_and_reason(
    error: WsStreamError, attributes: dict[str, Any]
) -> None:
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert {name: getattr(each, name) for name in attributes} == attributes
        for value in attributes.values():
            assert str(value) in str(each)


@pytest.mark.parametrize(
    "kind",
    [
        ProtocolViolation,
        TextRejected,
        AbnormalClosure,
        ConnectionLost,
        KeepaliveTimeout,
        TakeoverError,
    ],
)
def test_every_error_is_a_stream_error_and_none_is_another(kind: type[WsStreamError]) -> None:
    kinds = {type(error) for error in ERRORS}
    assert {each for each in kinds if issubclass(kind, each)} == {kind, WsStreamError}


# The public names

PUBLIC = {
    "WsByteStream",
    "wrap_websocket",
    "open_ws_stream",
    "StreamConfig",
    "TextPolicy",
    "HalfClose",
    "WsEvent",
    "PingReceived",
    "PongReceived",
    "CloseReceived",
    "TextReceived",
    "ErrorOccurred",
    "EventsLost",
    "StreamClosed",
    "WsStreamError",
    "ProtocolViolation",
    "TextRejected",
    "AbnormalClosure",
    "ConnectionLost",
    "HalfCloseIgnored",
    "bridge",
    "BridgeDirection",
    "BridgeEnd",
    "BridgeResult",
    "KeepaliveTimeout",
    "TakeoverError",
    "WsListener",
    "WsRequest",
    "serve_ws",
    "ProxyRejected",
}


def test_the_public_names_are_those_that_were_promised() -> None:
    assert set(trio_wsstream.__all__) == PUBLIC
    assert len(trio_wsstream.__all__) == len(set(trio_wsstream.__all__))
    for name in trio_wsstream.__all__:
        assert hasattr(trio_wsstream, name)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_says_where_it_is_found(name: str) -> None:
    public = getattr(trio_wsstream, name)
    assert (public.__module__, public.__qualname__) == ("trio_wsstream", name)
    assert pickle.loads(pickle.dumps(public)) is public
    assert typing.get_type_hints(public) is not None  # they are found there, too


def test_a_traceback_names_an_error_as_users_do() -> None:
    shown = "".join(traceback.format_exception(AbnormalClosure(4000, "why")))
    assert shown.startswith("trio_wsstream.AbnormalClosure: the peer closed with code 4000")


def test_the_package_has_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", trio_wsstream.__version__)
    assert trio_wsstream.__version__ == VERSION


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (TextPolicy, ["REJECT", "AS_BYTES", "AS_EVENTS"]),
        (HalfClose, ["AUTO", "ALWAYS", "NEVER", "REQUIRE"]),
    ],
)
def test_the_policies_are_those_that_were_promised(kind: Any, names: list[str]) -> None:
    assert [each.name for each in kind] == names
