"""What stands between the page and the network: which addresses answer, how often, how much they read, and headers."""

import os
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


# All that the page asks for; the rest of Gradio (proxies, monitoring, editing, calls that pass the queue) stays shut.
OPEN = re.compile(
    r"/|/config/?|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json|/pwa_icon(/\d+)?|/(assets|static|svelte)/.+|"
    # Gradio would fetch a file whose name is an address of the web, and hand it on.
    r"/gradio_api/(info/?|app_id/?|startup-events|upload|upload_progress|file=(?!.*:/).+|heartbeat/\w+|reset/?|cancel|"
    r"queue/(join|data)|theme\.css)"
)
# A canvas is some 20 KB.
MOST_BYTES = 2**20
# Questions to the program, not files of the page: at first, and then per second and address.
BURST, PER_SECOND = 100, 10.0
# A page that is open keeps two.
MOST_OPEN, MOST_OPEN_OF_ONE = 256, 32
MOST_ADDRESSES = 4096

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    # Gradio has inline scripts, and its plots compile theirs. A Space is shown in a frame of the Hub.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; "
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
    ),
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class TooLargeError(Exception):
    """A request has a longer body than it said."""


class Guard:
    """
    Middleware of ASGI that refuses a request with a status and one line of text, or adds `HEADERS` to its answer.

    Args:
        app: What is guarded.
        clock: Seconds, for the limit of requests per second.
    """

    def __init__(self, app: Any, clock: Callable[[], float] = time.monotonic):
        self.app, self.clock = app, clock
        # Of each address: the requests that it may still make, and when that was known.
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.open: Counter[str] = Counter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        address = address_of(scope)
        if refused := self.refusal(scope, address):
            await answer(send, *refused)
            return
        started, read = False, 0

        async def receive_bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BYTES:
                raise TooLargeError
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name for name, _ in message.get("headers", [])}
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *(h for h in added if h[0] not in own)]}
            await send(message)

        self.open[address] += 1
        try:
            await self.app(scope, receive_bounded, send_with_headers)
        except TooLargeError:
            if not started:
                await answer(send, 413, TOO_LARGE)
        finally:
            self.open[address] -= 1
            self.open += Counter()

    def refusal(self, scope: Message, address: str) -> tuple[int, str] | None:
        """Why a request is refused, by what is known before its body: a status and a line of text."""
        path = scope["path"]
        if not OPEN.fullmatch(path) or re.search(r"[\\\0]|(^|/|=)\.\.(/|$)", path):
            return 404, "There is nothing here."
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > MOST_BYTES:
            return 413, TOO_LARGE
        if self.open[address] >= MOST_OPEN_OF_ONE or self.open.total() >= MOST_OPEN:
            return 503, "Too many pages are open; close one, or try again later."
        headers = dict(scope["headers"])
        # A browser sends a file to any address that a page names, and only says so.
        if scope.get("method") == "POST" and headers.get(b"sec-fetch-site") == b"cross-site":
            return 403, "Requests of other pages are not taken."
        if not re.match("/(assets|static|svelte)/", path) and not self.may_ask(address):
            return 429, f"Too many requests; valid are {PER_SECOND:g} per second."
        return None

    def may_ask(self, address: str) -> bool:
        """Whether this address has a request left; takes one."""
        now = self.clock()
        left, known = self.left.pop(address, (BURST, now))
        left = min(BURST, left + PER_SECOND * (now - known))
        self.left[address] = (left - 1 if left >= 1 else left, now)
        if len(self.left) > MOST_ADDRESSES:
            self.left.popitem(last=False)
        return left >= 1


TOO_LARGE = f"The request is too large; valid are at most {MOST_BYTES:,} bytes."


def address_of(scope: Message) -> str:
    """Who asks. In a Space this is what the last proxy, which is the Hub's, has added."""
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1")
    if forwarded and "SPACE_ID" in os.environ:
        return forwarded.rpartition(",")[2].strip()
    return (scope.get("client") or ("unknown", 0))[0]


async def answer(send: Send, status: int, text: str) -> None:
    headers = {"content-type": "text/plain; charset=utf-8", "connection": "close", **HEADERS}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": text.encode()})
