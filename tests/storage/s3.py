"""A real S3 server on this machine, for tests: moto's, in a process of its own."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

_SERVER = """
import sys, time
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server._server.server_port, flush=True)
sys.stdin.read()  # until the parent is gone
server.stop()
"""


@contextmanager
def s3_server(seconds: float = 60) -> Iterator[str]:
    """The address of a server that is stopped at the end, also if this process is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"},
    )
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(address, timeout=5):
                    break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.communicate()


def options_for(address: str) -> dict[str, Any]:
    """Storage options of s3fs for the server."""
    return {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": address, "region_name": "us-east-1"}}


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, Any]]:
    """Storage options for a server that runs as long as the tests."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as address:
        yield options_for(address)


@pytest.fixture
def bucket(s3: dict[str, Any]) -> str:
    """The URL of a new bucket."""
    name = f"test-{uuid4().hex}"
    address = s3["client_kwargs"]["endpoint_url"]
    with urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=30):
        return f"s3://{name}"
