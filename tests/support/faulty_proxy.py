"""A proxy before a server, over real sockets, that harms the requests it is told to harm, by their number."""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import HTTPConnection
from typing import TypeAlias
from urllib.parse import urlsplit

STATUSES = {429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}
STATUSES |= {504: "Gateway Timeout"}
DRIPS = 8


class Exchange:
    """One request with its connection, and what can be done to it."""

    def __init__(self, proxy: FaultyProxy, connection: socket.socket) -> None:
        self.proxy = proxy
        self.connection = connection
        self.random = proxy.random
        self.head, self.body = b"", b""

    def read_head(self) -> bool:
        while b"\r\n\r\n" not in self.head:
            received = self.connection.recv(65536)
            if not received:
                return False
            self.head += received
        self.head, _, self.body = self.head.partition(b"\r\n\r\n")
        return True

    def read_body(self) -> None:
        length = int(self._headers().get("content-length", 0))
        while len(self.body) < length:
            received = self.connection.recv(65536)
            if not received:
                raise ConnectionError("the client has hung up")
            self.body += received

    def forward(self) -> tuple[int, str, bytes]:
        """Let the server do what was asked, and return what it answers."""
        method, path, _ = self.head.split(b"\r\n")[0].decode().split(" ")
        upstream = HTTPConnection(self.proxy.upstream, timeout=30)
        upstream.request(method, path, self.body, {"Content-Type": "application/json"})
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        return response.status, response.reason, content

    def send(self, status: int, reason: str, body: bytes, headers: str = "", length: int | None = None) -> None:
        self.connection.sendall(self.make_head(status, reason, len(body) if length is None else length, headers) + body)

    def make_head(self, status: int, reason: str, length: int, headers: str = "") -> bytes:
        fixed = f"Content-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n"
        return f"HTTP/1.1 {status} {reason}\r\n{fixed}{headers}\r\n".encode()

    def reset(self) -> None:
        """Close the connection with a RST, whatever is under way."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _headers(self) -> dict[str, str]:
        lines = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return {name.strip().lower(): value.strip() for name, _, value in lines}


Fault: TypeAlias = Callable[[Exchange], None]


class FaultyProxy(socketserver.ThreadingTCPServer):
    """Passes everything on, but the requests whose numbers are in `plan`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, upstream: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.random = random.Random(seed)
        self.plan: dict[int, Fault] = {}
        self.always: Fault | None = None
        self.requests = 0
        self.harmed = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def take_fault(self) -> Fault | None:
        with self.lock:
            fault = self.plan.get(self.requests) or self.always
            self.requests += 1
            self.harmed += fault is not None
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent when a client hangs up."""

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(socketserver.BaseRequestHandler):
    server: FaultyProxy

    def handle(self) -> None:
        exchange = Exchange(self.server, self.request)
        if not exchange.read_head():
            return
        fault = self.server.take_fault()
        if fault is not None:
            fault(exchange)
        else:
            exchange.read_body()
            exchange.send(*exchange.forward())


def refuse(status: int, *retry_after: str) -> Fault:
    """Answer with an error before anything is done, in Qdrant's words or in those of a proxy."""

    def fault(exchange: Exchange) -> None:
        exchange.read_body()
        bodies = [b'{"status": {"error": "not now"}, "time": 0.0}', b"<html><title>not now</title></html>", b""]
        headers = f"Retry-After: {exchange.random.choice(retry_after)}\r\n" if retry_after else ""
        exchange.send(status, STATUSES[status], exchange.random.choice(bodies), headers)

    return fault


def refuse_with_a_time(exchange: Exchange) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(milliseconds=200), usegmt=True)
    refuse(429, "0", "0", soon, "Sat, 21 Nov 2020 12:00:00 GMT")(exchange)


def reset(exchange: Exchange) -> None:
    """Break off: in the middle of the request, before the answer, or in the middle of the answer."""
    moment = exchange.random.randrange(3)
    if moment:
        exchange.read_body()
    if moment == 2:
        status, reason, body = exchange.forward()
        head = exchange.make_head(status, reason, len(body))
        exchange.connection.sendall((head + body)[: exchange.random.randrange(1, len(head + body))])
        time.sleep(0.005)  # a RST overtakes what the other side has not read
    exchange.reset()


def stall(exchange: Exchange) -> None:
    """Stay silent for longer than the client waits, with the request done or not."""
    exchange.read_body()
    if exchange.random.random() < 0.5:
        exchange.forward()
    exchange.proxy.closing.wait(60)


def truncate(exchange: Exchange) -> None:
    """Answer with the beginning of the answer, which says of itself that it is longer, or that it is whole.

    An error that calls itself whole is taken at its word: what the client cannot read of a 4xx is not sent again.
    """
    exchange.read_body()
    status, reason, body = exchange.forward()
    cut = body[: exchange.random.randrange(len(body))]
    lies = status == 200 and exchange.random.random() < 0.5
    exchange.send(status, reason, cut, length=len(cut) if lies else len(body))


def lose_answer(exchange: Exchange) -> None:
    """Do what was asked, and say that it failed, or nothing."""
    exchange.read_body()
    exchange.forward()
    choice = exchange.random.randrange(3)
    if choice == 0:
        exchange.send(504, STATUSES[504], b"<html>upstream took too long</html>")
    elif choice == 1:
        exchange.reset()


def drip(exchange: Exchange) -> None:
    """Answer rightly, a few bytes at a time."""
    exchange.read_body()
    status, reason, body = exchange.forward()
    whole = exchange.make_head(status, reason, len(body)) + body
    size = max(1, len(whole) // DRIPS)
    seconds = exchange.random.choice([0.002, 0.002, 0.04])  # eight of the last are longer than a request may be silent
    for start in range(0, len(whole), size):
        exchange.connection.sendall(whole[start : start + size])
        time.sleep(seconds)


def answer_version(version: str) -> Fault:
    def fault(exchange: Exchange) -> None:
        exchange.read_body()
        status, reason, body = exchange.forward()
        exchange.send(status, reason, body.replace(b'"1.16.0"', f'"{version}"'.encode()))

    return fault
