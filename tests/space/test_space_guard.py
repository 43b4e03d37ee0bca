"""What the page's server refuses: addresses, sizes, floods, and input that no browser sends."""

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
from contextlib import suppress
from pathlib import Path

import guard
import page
import pytest
import unseen
from gradio.components.image_editor import EditorData
from guard import Guard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


ROOT = Path(__file__).parents[2]
SECRET = "nobody outside may read this"


# The middleware by itself.


async def app(scope, receive, send):
    """Reads all of the body and answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"referrer-policy", b"origin")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(guarded, path="/gradio_api/queue/join", bodies=(b"",), headers=(), client="1.2.3.4", method="GET"):
    """The status, headers and text of an answer."""
    sent, left = [], list(bodies)

    async def receive():
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "client": (client, 5)}
    asyncio.run(guarded(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


def test_a_body_is_counted_whatever_its_header_says():
    guarded = Guard(app)
    half = bytes(guard.MOST_BYTES // 2)
    assert ask(guarded, bodies=[half, half])[::2] == (200, str(guard.MOST_BYTES))
    assert ask(guarded, bodies=[half, half, b"x"])[::2] == (413, guard.TOO_LARGE)
    for length in (b"1048577", b"-1", b"9" * 5000, b"x", b""):
        assert ask(guarded, headers=[(b"content-length", length)])[0] == 413
    assert guarded.open.total() == 0


def test_a_flood_of_one_address_is_stopped_and_of_others_is_not():
    now = [0.0]
    guarded = Guard(app, clock=lambda: now[0])
    statuses = [ask(guarded)[0] for _ in range(guard.BURST + 5)]
    assert statuses == [200] * guard.BURST + [429] * 5
    assert ask(guarded, client="5.6.7.8")[0] == 200 and ask(guarded, "/assets/a.js")[0] == 200
    assert ask(guarded, "/config")[0] == 429
    now[0] = 1.0
    assert [ask(guarded)[0] for _ in range(12)] == [200] * 10 + [429] * 2
    now[0] = 10.0**9
    assert [ask(guarded)[0] for _ in range(guard.BURST + 1)][-2:] == [200, 429]


@pytest.mark.parametrize("scheme", ["http:/", "https:/", "HTTPS:/", "ftp:/", "x:"])
def test_no_address_of_the_web_is_fetched(scheme):
    assert ask(Guard(app), f"/gradio_api/file={scheme}/somewhere.example/a.png")[0] == 404
    assert ask(Guard(app), "/gradio_api/file=/tmp/gradio/a/b.png")[0] == 200


def test_another_page_cannot_post():
    from_afar, own = [(b"sec-fetch-site", b"cross-site")], [(b"sec-fetch-site", b"same-origin")]
    assert ask(Guard(app), "/gradio_api/upload", headers=from_afar, method="POST")[0] == 403
    assert ask(Guard(app), "/gradio_api/upload", headers=own, method="POST")[0] == 200
    # A link to the page is followed.
    assert ask(Guard(app), "/", headers=from_afar)[0] == 200


def test_addresses_are_forgotten():
    guarded = Guard(app, clock=lambda: 0.0)
    for i in range(guard.MOST_ADDRESSES + 10):
        assert guarded.may_ask(str(i))
    assert len(guarded.left) == guard.MOST_ADDRESSES and "9" not in guarded.left


def test_connections_are_counted():
    guarded = Guard(app)
    guarded.open["1.2.3.4"] = guard.MOST_OPEN_OF_ONE
    assert ask(guarded)[0] == 503 and ask(guarded, client="5.6.7.8")[0] == 200
    guarded.open["9.9.9.9"] = guard.MOST_OPEN
    assert ask(guarded, client="5.6.7.8")[0] == 503


def test_a_space_is_asked_through_a_proxy(monkeypatch):
    guarded = Guard(app, clock=lambda: 0.0)
    forwarded = [(b"x-forwarded-for", b"6.6.6.6, 7.7.7.7")]
    ask(guarded, headers=forwarded)
    monkeypatch.setenv("SPACE_ID", "me/page")
    ask(guarded, headers=forwarded)
    assert list(guarded.left) == ["1.2.3.4", "7.7.7.7"]


def test_every_answer_has_the_headers_and_keeps_its_own():
    for path in ("/", "/etc/passwd"):
        _, headers, _ = ask(Guard(app), path)
        assert {name.decode() for name in headers} >= guard.HEADERS.keys()
    assert ask(Guard(app), "/")[1][b"referrer-policy"] == b"origin"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "", "file=", "assets", "\\", "\0", "a"])).map("/".join)
)
def test_no_address_climbs(path):
    for prefix in ("/", "/assets/", "/gradio_api/file=", "/gradio_api/"):
        asked = prefix + path
        if ask(Guard(app), asked)[0] == 200:
            assert ".." not in re.split(r"[/=\\]", asked) and "\0" not in asked


# A server as it is started.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of `space/app.py`, run in a folder with a file that it must not serve."""
    home = tmp_path_factory.mktemp("space")
    (home / "secret.txt").write_text(SECRET)
    (home / "temporary" / "link").parent.mkdir()
    (home / "temporary" / "link").symlink_to(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO_", "DIM_"))}
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "space" / "app.py"],
        env=environment
        | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "GRADIO_SERVER_PORT": str(port)}
        | {"GRADIO_TEMP_DIR": str(home / "temporary")},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = ""
        for line in process.stdout:
            output += line
            if "Running on local URL" in line:
                break
        else:
            pytest.fail(output)
        yield port, home
    finally:
        process.terminate()
        process.wait(timeout=30)


def send(port, method, target, body=None, headers=None):
    """Status, headers and body; the target goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, target, skip_host=False, skip_accept_encoding=True)
    sent = {"Content-Length": str(len(body))} if body is not None else {}
    for name, value in (sent | (headers or {})).items():
        connection.putheader(name, value)
    connection.endheaders()
    try:
        if body:
            connection.send(body)
    except (BrokenPipeError, ConnectionResetError):
        pass
    answered = connection.getresponse()
    content = answered.read()
    connection.close()
    return answered.status, {name.lower(): value for name, value in answered.getheaders()}, content


@pytest.mark.slow
@pytest.mark.xdist_group("space_guard")
def test_the_server(server):
    port, home = server
    status, headers, content = send(port, "GET", "/")
    assert (
        status == 200 and headers["content-type"].startswith("text/html") and b"A data set in a generator" in content
    )
    assert headers.items() >= guard.HEADERS.items()

    # Files: of this folder, of the machine, beside the page, through a link, and in every spelling.
    secret, passwd = str(home / "secret.txt"), "/etc/passwd"
    linked, app_file = str(home / "temporary" / "link" / "secret.txt"), str(ROOT / "space" / "app.py")
    for path in (
        secret,
        passwd,
        linked,
        app_file,
        "secret.txt",
        "../secret.txt",
        str(home / "temporary/../secret.txt"),
    ):
        for spelt in (
            path,
            urllib.parse.quote(path, safe=""),
            urllib.parse.quote(urllib.parse.quote(path, safe=""), safe=""),
        ):
            for prefix in (
                "/gradio_api/file=",
                "/gradio_api/file/",
                "/file=",
                "/static/",
                "/assets/",
                "/",
                "/svelte/",
            ):
                if " " not in spelt:
                    status, _, content = send(port, "GET", prefix + spelt)
                    assert status in (400, 403, 404, 405), prefix + spelt
                    assert SECRET.encode() not in content and b"root:" not in content


@pytest.mark.slow
@pytest.mark.xdist_group("space_guard")
def test_what_is_posted_to_the_server(server):
    port, _ = server
    assert send(port, "POST", "/gradio_api/upload", bytes(guard.MOST_BYTES + 1))[0] == 413
    assert send(port, "POST", "/gradio_api/queue/join", b"{}", {"Content-Length": str(2**40)})[0] == 413
    for path in ("/gradio_api/run/show_grid", "/gradio_api/call/show_grid", "/gradio_api/proxy=http://127.0.0.1:1/"):
        assert send(port, "POST", path, b"{}")[0] == 404
    as_json = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[" * 100_000, b"null", b"[1]", b'{"fn_index": 1e999}', b'{"data": 5}', b"\xff\xfe"):
        status, _, content = send(port, "POST", "/gradio_api/queue/join", body, as_json)
        assert 400 <= status < 600 and b"Traceback" not in content and b"site-packages" not in content
    # A drawing may not name a file of the machine.
    config = json.loads(send(port, "GET", "/config")[2])
    reading = next(each["id"] for each in config["dependencies"] if each["api_name"] == "show_reading")
    layer = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    event = {"data": [{"background": None, "layers": [], "composite": layer}, None], "fn_index": reading}
    status, _, content = send(
        port, "POST", "/gradio_api/queue/join", json.dumps(event | {"session_hash": "a"}).encode(), as_json
    )
    if status == 200:
        status, _, content = send(port, "GET", "/gradio_api/queue/data?session_hash=a")
    assert b"root:" not in content and b'"success":true' not in content.replace(b" ", b"")
    # Nor an address, which the server would ask.
    asked = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.5)
        layer["path"] = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        send(port, "POST", "/gradio_api/queue/join", json.dumps(event | {"session_hash": "b"}).encode(), as_json)
        send(port, "GET", "/gradio_api/queue/data?session_hash=b")
        with suppress(TimeoutError):
            asked.append(listening.accept())
    assert not asked
    # It is still there.
    assert send(port, "GET", "/")[0] == 200


@pytest.mark.parametrize("name, size, fits", [("PNG", 320, True), ("WEBP", 1280, True), ("PNG", 1281, False),
                                              ("BMP", 20, False), ("TIFF", 20, False)])  # fmt: skip
def test_only_a_small_drawing_in_a_format_of_browsers_is_decoded(tmp_path, name, size, fits):
    path = str(tmp_path / "x.png")
    Image.new("RGBA" if name != "BMP" else "RGB", (size, size)).save(path, format=name)
    drawn = {"path": path}
    payload = EditorData(background=drawn, layers=[drawn] * 3, composite=drawn)
    read = page.gr.Sketchpad().preprocess
    if not fits:
        with pytest.raises(page.gr.Error, match="not a PNG or WebP image of at most 1280 pixels a side"):
            page.read_drawing(read, payload)
        return
    value = page.read_drawing(read, payload)
    assert value["composite"].shape == (size, size, 4) and not value["layers"] and value["background"] is None


@pytest.mark.parametrize(
    "value", [None, "7", float("nan"), float("inf"), -float("inf"), 1e300, [1], {"a": 1}, 2.5, True + 20]
)
def test_numbers_that_no_browser_sends(value):
    with pytest.raises(page.gr.Error, match="Seed is .*; valid are 1 to 20"):
        page.check_whole("Seed", value, 20)


@pytest.mark.parametrize(
    "named", ["/etc", "../x", ".", "tests", "a/b/c", 5, {"a": "b"}, [["a/b"]], "tests/space", "a/b\n\n# Mine"]
)
def test_a_card_names_only_data_sets_of_the_hub(tmp_path, monkeypatch, named):
    monkeypatch.chdir(ROOT)
    metadata = json.dumps({"datasets": [named]})
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(ValueError, match="it names a data set that is not the id of one on the Hub"):
        unseen.dataset_of_card(str(tmp_path))
