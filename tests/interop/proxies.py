"""Real proxies: tinyproxy, squid, microsocks.

Each is a context manager that gives what comes after "//" in its URL, and the running program.
microsocks speaks SOCKS5, the others HTTP; squid's second port is an ``https://`` proxy.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from ..support.programs import Program, free_port, running
from ..support.transports import AUTHORITY
from .peer import need_program

NAME: Final = "inside.invalid"  # Only squid knows this name. It is 127.0.0.1.
USER: Final = "me"


TINYPROXY = """
Port {port}
Listen {host}
LogLevel Info
{more}
"""


@asynccontextmanager
async def tinyproxy(
    *, host: str = "127.0.0.1", password: str = "", only_443: bool = False
) -> AsyncGenerator[tuple[str, Program], None]:
    program = need_program("tinyproxy")
    port = free_port()
    more = f"BasicAuth {USER} {password}\n" if password else ""
    more += "ConnectPort 443\n" if only_443 else ""
    with tempfile.NamedTemporaryFile("w") as configuration:
        configuration.write(TINYPROXY.format(port=port, host=host, more=more))
        configuration.flush()
        command = [program, "-d", "-c", configuration.name]
        async with running(command, "Accepting connections") as proxy:
            yield f"{bracketed(host)}:{port}", proxy


SQUID = """
{port_option} {host}:{port} {tls}
pid_filename none
pinger_enable off
access_log none
cache_log /dev/null
cache deny all
coredump_dir {folder}
hosts_file {folder}/hosts
shutdown_lifetime 0 seconds
{password}
acl SSL_ports port 443
acl CONNECT method CONNECT
{only_443} http_access deny CONNECT !SSL_ports
http_access allow {allowed}
http_access deny all
"""

SQUID_PASSWORD = """
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords
auth_param basic children 1
acl known proxy_auth REQUIRED
"""


@asynccontextmanager
async def squid(
    *, host: str = "127.0.0.1", password: str = "", only_443: bool = False, tls: bool = False
) -> AsyncGenerator[tuple[str, Program], None]:
    """Run squid with rules that admit the tests, or, with ``only_443``, with its own rules."""
    program = need_program("squid")
    port = free_port()
    # squid refuses to run as root, and pytest's own folders are closed to others.
    user = {"user": "proxy", "group": "proxy", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configuration = SQUID.format(
            port_option="https_port" if tls else "http_port",
            host=bracketed(host),
            port=port,
            tls=f"tls-cert={folder}/certificate.pem" if tls else "",
            folder=folder,
            password=SQUID_PASSWORD.format(folder=folder) if password else "",
            only_443="" if only_443 else "#",
            allowed="known" if password else "localhost",
        )
        certificate = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
        files = {
            "squid.conf": configuration.encode(),
            "hosts": f"127.0.0.1 localhost {NAME}\n".encode(),
            "passwords": f"{USER}:{hashlib.md5(password.encode()).hexdigest()}\n".encode(),
            "certificate.pem": certificate.bytes(),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for path in (folder, *(folder / name for name in files)) if user else ():
            shutil.chown(path, "proxy", "proxy")
        # The name keeps its shared memory apart from that of another squid.
        command = [program, "-N", "-d", "1", "-n", f"test{port}", "-f", folder / "squid.conf"]
        # squid says that it accepts connections before it does.
        async with running(command, (host, port), cwd=folder, **user) as proxy:
            try:
                yield f"{'localhost' if tls else bracketed(host)}:{port}", proxy
            finally:  # squid leaves this if it is killed.
                for path in glob.glob(f"/dev/shm/test{port}-*"):
                    os.unlink(path)


@asynccontextmanager
async def microsocks(
    *, host: str = "127.0.0.1", password: str = ""
) -> AsyncGenerator[tuple[str, Program], None]:
    program = need_program("microsocks")
    port = free_port()
    command = [program, "-i", host, "-p", str(port)]
    if password:
        command += ["-u", USER, "-P", password]
    async with running(command, (host, port)) as proxy:
        yield f"{bracketed(host)}:{port}", proxy


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
