"""Whether the trio-websocket and wsproto that are installed can be taken over: ``nox -s guard``.

They work, and then the tests of the takeover pass; or they are refused with `TakeoverError`, and
then the connection is as good as before.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import trio

from trio_wsstream import TakeoverError, WsByteStream

from .support.pairs import connection_pair
from .support.tasks import background


async def refusal() -> TakeoverError | None:
    """The error with which they are refused, if they are."""
    with trio.fail_after(10):
        async with background() as nursery:
            client, server = await connection_pair(nursery)
            try:
                WsByteStream(client, nursery)
            except TakeoverError as error:
                await client.send_message(b"still there?")
                assert await server.get_message() == b"still there?"
                return error
            return None


def main() -> None:
    error = trio.run(refusal)
    if error is not None:
        print(f"refused: {error}")
        return
    # In a process of its own, because pytest must import the helpers of the tests itself.
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_takeover.py"]
    code = subprocess.run(command, check=False).returncode
    names = ("trio-websocket", "wsproto", "trio")
    print("works:" if code == 0 else "FAILS:", *(f"{name} {version(name)}" for name in names))
    sys.exit(code)


if __name__ == "__main__":
    main()
