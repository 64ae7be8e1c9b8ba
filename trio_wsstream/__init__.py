"""A WebSocket as a Trio byte stream."""

from ._config import HalfClose, StreamConfig, TextPolicy
from ._errors import (
    AbnormalClosure,
    ConnectionLost,
    HalfCloseIgnored,
    KeepaliveTimeout,
    ProtocolViolation,
    ProxyRejected,
    TakeoverError,
    TextRejected,
    WsStreamError,
)
from ._events import (
    CloseReceived,
    ErrorOccurred,
    EventsLost,
    PingReceived,
    PongReceived,
    StreamClosed,
    TextReceived,
    WsEvent,
)
from ._handshake import WsRequest
from ._open import open_ws_stream, wrap_websocket
from ._serve import WsListener, serve_ws
from ._stream import WsByteStream

__all__ = [
    "AbnormalClosure",
    "CloseReceived",
    "ConnectionLost",
    "ErrorOccurred",
    "EventsLost",
    "HalfClose",
    "HalfCloseIgnored",
    "KeepaliveTimeout",
    "PingReceived",
    "PongReceived",
    "ProtocolViolation",
    "ProxyRejected",
    "StreamClosed",
    "StreamConfig",
    "TakeoverError",
    "TextPolicy",
    "TextReceived",
    "TextRejected",
    "WsByteStream",
    "WsEvent",
    "WsListener",
    "WsRequest",
    "WsStreamError",
    "open_ws_stream",
    "serve_ws",
    "wrap_websocket",
]
