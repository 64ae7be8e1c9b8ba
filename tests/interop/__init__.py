"""Real peers, each a subprocess of its own, on real sockets, in the roles that it has.

A peer is a program in ``peers/``. It is started with two arguments, the PEM files of a certificate
(with its key) for localhost and of the authority that issued it. On its standard output it speaks
JSON, one object a line:

- First ``{"version": ...}``, with the ``port`` and ``tls_port`` of its servers if it has that role.
- It connects as a client to each URL that comes as a line on its standard input.
- At every connection's end an object with the ``id`` from the URL's query and what it saw: ``code``
  and ``reason`` of the end, ``received`` and ``sent`` (bytes), ``received_sha256`` and
  ``sent_sha256``, ``subprotocol``, ``late`` (see below).

It ends when its standard input does. What it does with a connection, the URL's path says, in both
roles; its query has the arguments:

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

A peer's program may know more behaviours, which the comment at its top tells. A library may have no
means for some of these; `Checks.cannot` names them.

A server knows the subprotocol ``bytes``; a client offers those that ``subprotocols=a,b`` in the
query names.
"""
