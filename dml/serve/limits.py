"""What every request is held to, before and around the application: ASGI, no framework."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from dml.serve.options import Options

log = logging.getLogger("dml")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
DRAINED = 10  # times the largest upload: what is read of a larger one before it is refused
LINGER = 3  # seconds that this may take
# Nothing from elsewhere, no inline script or style, no frame around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Limits:
    """An ASGI application within limits.

    400: on loopback, a Host that is not loopback (a foreign page that had its name point here: DNS
    rebinding).  408: the body did not arrive within `timeout` seconds.  413: it is longer than `max_upload`
    bytes, by its header or by what arrives.  500: an error that nobody foresaw.  503: `max_requests` are at
    work already.  504: no answer within `timeout` seconds.  All as JSON {"error": ...}, and each response
    has the headers above.
    """

    def __init__(self, app: Any, options: Options):
        self.app, self.options = app, options
        self.active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(self.options, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not self.knows(headers.get(b"host", b"").decode("latin-1")):
            await request.refuse(400, "The Host header names another machine than this one.")
        elif not length.isdigit() or int(length) > self.options.max_upload:
            if b"expect" not in headers:  # else the client waits for leave to send
                await request.drain()
            await request.refuse(413, too_large(self.options))
        elif self.active >= self.options.max_requests:
            await request.refuse(503, "Too many requests at a time. Try again in a second.")
        else:
            self.active += 1
            try:
                await self.held(scope, request)
            finally:
                self.active -= 1

    def knows(self, host: str) -> bool:
        """Whether the name is one by which this server is to be reached."""
        if self.options.host not in LOOPBACK:
            return True
        try:
            return urlsplit(f"//{host}").hostname in LOOPBACK
        except ValueError:
            return False

    async def held(self, scope: Message, request: "Request") -> None:
        """The application, within its time."""
        try:
            async with asyncio.timeout(self.options.timeout):
                await self.app(scope, request.receive, request.send)
        except TimeoutError:
            seconds = f"{self.options.timeout:g} s"
            if not request.arrived:
                await request.refuse(408, f"The upload took longer than {seconds}.")
            else:
                await request.refuse(504, f"There was no answer within {seconds}.")
        except Exception:
            log.exception("Error in %s %s, not foreseen:", scope["method"], scope["path"])
            await request.refuse(500, "The server made a mistake; its log has the details.")


class Request:
    """What one request has received and sent so far."""

    def __init__(self, options: Options, receive: Receive, send: Send):
        self._options, self._receive, self._send = options, receive, send
        self._bytes = 0
        self.arrived = self.started = False

    async def receive(self) -> Message:
        """The next part of the body.  Raises HTTPException: there is too much of it."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self.arrived = not message.get("more_body", False)
            if self._bytes > self._options.max_upload:
                await self.drain()
                raise HTTPException(413, too_large(self._options))
        return message

    async def drain(self) -> None:
        """Let the rest of the body go by, within reason.

        A connection closed with bytes unread is reset, and the client never sees why.
        """
        most = self._bytes + DRAINED * self._options.max_upload
        try:
            async with asyncio.timeout(LINGER):
                while not self.arrived and self._bytes <= most:
                    message = await self._receive()
                    self._bytes += len(message.get("body", b""))
                    self.arrived = not message.get("more_body", False)
        except TimeoutError:
            return  # it takes too long, and is reset

    async def send(self, message: Message) -> None:
        """A part of the response."""
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await self._send(message)

    async def refuse(self, status: int, what: str) -> None:
        """An error as the response, unless another has begun, which then breaks off."""
        if self.started:
            raise RuntimeError(f"the response broke off: {what}")
        body = json.dumps({"error": what}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        if not self.arrived:  # what is still to come is not read
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def too_large(options: Options) -> str:
    """Why a request is refused, and what would not be."""
    return f"The request is larger than {options.max_upload_mb:g} MB. Shrink the image."
