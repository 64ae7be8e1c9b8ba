"""Go's NetConn, of ``nhooyr.io/websocket``, now ``github.com/coder/websocket``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import ClassVar, Final

import pytest
import trio

from trio_wsstream import StreamConfig

from .checks import Checks, HalfClose, sha256
from .conftest import Meet
from .peer import HERE, missing, need_program

GOPATH: Final = Path("/usr/share/gocode")  # of Debian's packages


class TestNetConn(Checks):
    half_close = HalfClose(
        late="failed to write msg: WebSocket closed: received close frame: "
        'status = StatusNormalClosure and reason = "half-close"'
    )
    abrupt_code = None
    ping_payload = b"1"  # a counter

    program: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def build(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        go = need_program("go", "golang-go")
        if not (GOPATH / "src/nhooyr.io/websocket").exists():
            missing("nhooyr.io/websocket", "apt-get install golang-nhooyr-websocket-dev")
        cls.program = tmp_path_factory.mktemp("go") / "netconn"
        subprocess.run(
            [go, "build", "-o", cls.program, HERE / "peers" / "netconn.go"],
            env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH)},
            check=True,
        )

    @classmethod
    def command(cls) -> list[str]:
        return [str(cls.program)]

    @pytest.mark.parametrize("code", [1000, 1001, 1011, 4002])
    async def test_the_same_codes_are_the_end_for_both(self, meet: Meet, code: int) -> None:
        async with meet("/receive") as met:
            await met.stream.aclose(code)
            report = await met.report()
        assert (report.end == "EOF") is (code in (1000, 1001))

    async def test_without_a_close_there_is_no_end(self, meet: Meet) -> None:
        async with meet("/receive") as met:
            await trio.aclose_forcefully(met.stream)
            report = await met.report()
        assert report.end != "EOF"

    async def test_it_reads_messages_of_32_kib_unless_told_otherwise(self, meet: Meet) -> None:
        """`StreamConfig.max_message_size` suits it; else it fails the connection with 1009."""
        data = os.urandom(1_000_003)
        config = StreamConfig(max_message_size=32768)
        async with meet("/receive", limit="default", config=config) as met:
            await met.stream.send_all(data)
            await met.stream.aclose()
            report = await met.report()
        assert report.received_sha256 == sha256(data)
        async with meet("/receive", limit="default") as met:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await met.stream.send_all(data)
            report = await met.report()
        assert report.end == "failed to read: read limited at 32769 bytes"
