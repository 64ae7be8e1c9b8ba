"""A WebSocket as a Trio byte stream."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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
from ._stream import WsByteStream
from ._version import VERSION

if TYPE_CHECKING:
    from ._bridge import BridgeDirection, BridgeEnd, BridgeResult, bridge
    from ._handshake import WsRequest
    from ._open import open_ws_stream, wrap_websocket
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


_LATER: Final = {
    "_bridge": ("BridgeDirection", "BridgeEnd", "BridgeResult", "bridge"),
    "_handshake": ("WsRequest",),
    "_open": ("open_ws_stream", "wrap_websocket"),
    "_serve": ("WsListener", "serve_ws"),
}
"""The modules that are imported when somebody asks for one of these names (PEP 562).

A client needs no server, and a program that opens its connections itself needs none of them.
"""


def __getattr__(name: str) -> object:
    for module_name, names in _LATER.items():
        if name in names:
            module = import_module(f".{module_name}", __name__)
            for each in names:
                _found_here(each, getattr(module, each))
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _found_here(name: str, public: Any) -> None:
    """Tracebacks and pickles shall name the place where users find it."""
    public.__module__ = __name__
    globals()[name] = public


for _name in __all__:
    if _name in globals():
        _found_here(_name, globals()[_name])
