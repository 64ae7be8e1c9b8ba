"""Tests with other WebSocket programs at the other end, on real sockets.

Such a program is a *peer*. It lives in ``peers/`` and runs as a subprocess, as server, as client or
as both. Its two arguments are PEM files: a certificate for localhost with its key, and the
authority that issued it. It writes JSON to its standard output, one object a line:

- First it writes ``{"version": ...}``, with ``port`` and ``tls_port`` if it has servers.
- At the end of every connection it writes what it saw: ``id`` from the URL's query, ``code`` and
  ``reason`` of the end, ``received`` and ``sent`` (bytes), ``received_sha256``, ``sent_sha256``,
  ``subprotocol``, and ``late`` (see below).

If it can be a client, it connects to each URL that comes as a line on its standard input. It ends
when its standard input ends. The path of a URL says what the peer does with the connection, as
server and as client, and the query has the arguments:

==================================  ================================================================
``/echo``                           sends back each message
``/receive``                        receives until the end, then tries to send ``late``, and
                                    reports the exception that this met, or ``sent``
``/receive?pause=2``                the same, but after the first message it sends ``paused`` and
                                    reads nothing for 2 s
``/receive?delay=0.01``             the same, but it reads nothing for 0.01 s after each message
``/send?sizes=0,1,...``             sends messages of these sizes, then closes with 1000
``/fragments?sizes=0,1,...``        sends one message in frames of these sizes, then the same
``/flood``                          sends messages of 64 KiB while it receives, until it cannot;
                                    reports the exception that this met as ``late``
``/close?code=4002&reason=bye``     closes upon the first message
``/ping?payload=abc``               sends a Ping upon the first message, ``pong`` upon its Pong
``/abort``                          drops TCP upon the first message
==================================  ================================================================

A peer may know more behaviours; then the comment at the top of its program lists them. A library
may be unable to do some of those above; then `Checks.cannot` names them.

A server knows the subprotocol ``bytes``. A client offers the subprotocols that ``subprotocols=a,b``
in the query names.
"""
