"""Checks of arguments. An error names the argument, shows its value, and says what to do."""

from __future__ import annotations

import inspect
import math
import operator
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, SupportsIndex, TypeVar

import trio

_T = TypeVar("_T")


def check_trio() -> None:
    """Raise RuntimeError if no Trio is running."""
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        raise RuntimeError(
            "trio_wsstream needs Trio: run this by trio.run(), or by anyio.run(..., backend='trio')"
        ) from None


def check_nursery(name: str, nursery: object) -> None:
    if not isinstance(nursery, trio.Nursery):
        raise TypeError(
            f"{name} must be a trio.Nursery, not {nursery!r}: "
            "async with trio.open_nursery() as nursery"
        )


def check_half_closeable(name: str, stream: object) -> None:
    if not isinstance(stream, trio.abc.HalfCloseableStream):
        raise TypeError(f"{name} must be a trio.abc.HalfCloseableStream, not {stream!r}")


def check_integer(name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {value!r}") from None


def check_seconds(name: str, value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    assert isinstance(value, int | float)
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")
    return value


def check_several(name: str, value: object) -> None:
    """Raise TypeError for what is not iterable, and for a string, which is so by accident."""
    if isinstance(value, str | bytes):
        kind = type(value).__name__.replace("str", "string")
        raise TypeError(f"{name} must be an iterable of strings, not the single {kind} {value!r}")
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be an iterable of strings, not {value!r}")


def check_buffer(name: str, data: Any) -> memoryview:
    """Return a view of ``data``. An error does not show the data, which may be long or secret."""
    try:
        return memoryview(data)
    except TypeError:
        hint = ": encode it first" if isinstance(data, str) else ""
        raise TypeError(
            f"{name} must be bytes or another buffer, not of type {type(data).__name__}{hint}"
        ) from None


def check_ssl_context(context: object) -> None:
    if not isinstance(context, ssl.SSLContext | None):
        raise TypeError(f"ssl_context must be an ssl.SSLContext or None, not {context!r}")


def check_server_ssl_context(context: ssl.SSLContext | None) -> None:
    check_ssl_context(context)
    if context is not None and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            "ssl_context must be one for a server, not of PROTOCOL_TLS_CLIENT: "
            "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), with a certificate"
        )


def check_function(name: str, function: object, *, is_async: bool = False) -> None:
    kind = "an async function" if is_async else "a function"
    if inspect.iscoroutine(function):
        function.close()
        raise TypeError(f"{name} must be {kind}, not what calling it gives, {function!r}")
    if not callable(function):
        raise TypeError(f"{name} must be {kind}, not {function!r}")
    if not is_async and inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} must be a plain function, not the async function {function!r}")


async def call(name: str, function: Callable[..., Awaitable[_T]], *args: object) -> _T:
    """Call and await a function of the user. If it is not async, raise a TypeError that says so."""
    awaitable = function(*args)
    if not inspect.isawaitable(awaitable):
        raise TypeError(
            f"{name} must be an async function, but {function!r} has returned {awaitable!r}"
        )
    return await awaitable
