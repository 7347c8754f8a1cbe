"""A real Postgres for tests: Debian's own server, in a folder and on a port of its own.

`from tests.postgres import postgres, postgres_server` in a test file or a conftest makes both fixtures known there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

USER = "postgres"
SERVER_BINARIES = Path("/usr/lib/postgresql")


class PostgresServer:
    """One cluster of databases, listening on 127.0.0.1 only.

    Args:
        binaries: Folder of initdb and pg_ctl.
        folder: Where everything lies; belongs to the user that runs it.
    """

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries, self._data = binaries, folder / "data"
        self._log = folder / "log"
        self.port = _free_port()
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        """Starts it and waits until it answers."""
        # fsync off: what a test's database says after a power cut is nobody's concern
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._log), "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stops it at once, cutting every connection."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")

    def url(self, name: str = USER) -> str:
        """Address of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def new_database(self) -> str:
        """Creates an empty database; returns its address."""
        name = f"t{uuid.uuid4().hex[:12]}"
        connection = psycopg2.connect(self.url())
        try:
            connection.autocommit = True
            connection.cursor().execute(f'CREATE DATABASE "{name}"')
        finally:
            connection.close()
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.geteuid() == 0:  # initdb and the server refuse to run as root
            command = ["runuser", "-u", USER, "--", *command]
        # A server that inherits a pipe would keep the reader waiting as long as it runs.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(command, stdout=output, stderr=output, check=False, cwd="/")
            output.seek(0)
            assert done.returncode == 0, f"{program}: {output.read()}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries() -> Path:
    found = sorted(SERVER_BINARIES.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("needs the system package postgresql")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; a test that stops it starts it again."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="xdub-postgres-"))  # not below pytest's folder, which only root may enter
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
    server = PostgresServer(binaries, folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> str:
    """Address of a fresh database."""
    return postgres_server.new_database()
