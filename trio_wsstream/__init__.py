"""A WebSocket as a Trio byte stream."""

from typing import TYPE_CHECKING, Any

from ._bridge import BridgeDirection, BridgeEnd, BridgeResult, bridge
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
from ._stream import WsByteStream
from ._version import VERSION

if TYPE_CHECKING:
    from ._serve import WsListener, serve_ws

__all__ = [
    "AbnormalClosure",
    "BridgeDirection",
    "BridgeEnd",
    "BridgeResult",
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
    "bridge",
    "open_ws_stream",
    "serve_ws",
    "wrap_websocket",
]

__version__ = VERSION


def __getattr__(name: str) -> object:
    """A client needs no server: it is imported when it is asked for (PEP 562)."""
    if name in ("WsListener", "serve_ws"):
        from . import _serve

        for each in "WsListener", "serve_ws":
            _found_here(each, getattr(_serve, each))
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _found_here(name: str, public: Any) -> None:
    """Tracebacks and pickles shall name the place where users find it."""
    public.__module__ = __name__
    globals()[name] = public


for _name in __all__:
    if _name in globals():
        _found_here(_name, globals()[_name])
