"""The page in a real browser: the shipped pipelines, a server of its own, and Debian's chromium."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright


ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Milliseconds; it ends what hangs and measures nothing.
PATIENCE = 240_000

pytestmark = [
    pytest.mark.slow,
    # One worker, one server.
    pytest.mark.xdist_group("space_page"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium: `make test` installs Debian's where it runs as root beside apt-get"
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where `space/app.py` answers, with the shipped pipelines and a network that swallows what it is asked."""
    home = tmp_path_factory.mktemp("space")
    with socket.create_server(("127.0.0.1", 0)) as hub, socket.socket() as probe:
        # Gradio looks for a free port itself, but two pages that start at once find the same one.
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        silent = f"http://127.0.0.1:{hub.getsockname()[1]}"
        settings = {"HF_HOME": str(home), "HF_ENDPOINT": silent, "GRADIO_SERVER_PORT": port}
        unset = ("GRADIO_SERVER_NAME", "DIM_DATASET", "DIM_PIPELINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        environment = {name: value for name, value in os.environ.items() if name not in unset} | settings
        server = subprocess.Popen(
            [sys.executable, "-u", ROOT / "space" / "app.py"],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output = ""
            for line in server.stdout:
                output += line
                if found := re.search(r"Running on local URL:\s+(\S+)", line):
                    break
            else:
                pytest.fail(output)
            yield found[1]
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.fixture
def page(address, tmp_path):
    """A fresh browser at the page; nothing outside its server may be asked for."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1200, "height": 1000},
        )
        browser.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page = browser.pages[0]
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert address.startswith("http://127.0.0.1:")
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == []


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def shown_size(page: Page) -> list[int]:
    """Width and height in pixels of the grid that is shown."""
    return page.locator("#grid img").evaluate("image => [image.naturalWidth, image.naturalHeight]")


def clear(page: Page) -> None:
    """Clears the canvas and waits until it can be drawn on again."""
    with page.expect_response(lambda response: "/queue/join" in response.url):
        page.get_by_label("Clear canvas").click()
    expect(page.get_by_text("select the draw tool to start")).to_be_hidden()


def arc(x: int, y: int, radius: int, start: int, end: int) -> list[tuple[float, float]]:
    """Points of an arc around (x, y), clockwise, in degrees from the right."""
    angles = [math.radians(degrees) for degrees in range(start, end + 1, 10)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


THREE = arc(0, -45, 45, -150, 90) + arc(0, 50, 50, -90, 150)
ONE = [(0, 10 * n) for n in range(-10, 11)]


def draw(page: Page, stroke: list[tuple[float, float]]) -> None:
    """Draws one stroke, given by its points from the middle of the canvas."""
    box = page.locator("#drawing canvas").last.bounding_box()
    points = [(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y) for x, y in stroke]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def pick(page: Page, name: str) -> None:
    page.locator("#pipeline input").click()
    page.get_by_role("option", name=name, exact=True).click()


def probability(page: Page, digit: str) -> float:
    """How sure the classifier is of one of the digits that it names."""
    return page.get_by_test_id(f"{digit}-confidence-set").locator("meter").evaluate("meter => meter.value")


def test_train_draw_and_recognise(page):
    # Nothing can be read before there is a drawing and a classifier.
    expect(page.locator("#grid img")).to_be_visible()
    button(page, "Recognise").click()
    expect(page.get_by_text("The canvas is empty; draw a digit first.")).to_be_visible()
    button(page, "Recognise").scroll_into_view_if_needed()
    draw(page, THREE)
    button(page, "Recognise").click()
    expect(page.get_by_text("No classifier has been trained yet; press Train first.")).to_be_visible()

    # Train; a second press changes nothing. The accuracy is seen to rise while training goes on.
    button(page, "Train").click()
    progress = page.locator("#progress")
    expect(progress).to_contain_text("Training: step")
    button(page, "Train").click()
    seen = {}
    while "Trained" not in (text := progress.inner_text()):
        step, accuracy = re.search(r"step (\d+), accuracy ([\d.]+) %", text).groups()
        assert int(step) >= max(seen, default=0), "a second run has begun"
        seen[int(step)] = float(accuracy)
        page.wait_for_timeout(50)
    final = float(re.search(r"step 200, accuracy ([\d.]+) %", text)[1])
    assert len(seen) >= 5
    assert seen[min(seen)] < 60 < 90 < final
    assert "on 500 held-out generated images (no real ones: ylecun/mnist could not be read" in text
    # What was plotted: a line with a point for each of the 20 scores.
    line = page.locator("#curve svg .mark-line path").get_attribute("d")
    assert len(re.findall("[ML]", line)) == 20

    # Recognise what was drawn before, and what is drawn on a cleared canvas.
    answer = page.get_by_test_id("label-output-value")
    button(page, "Recognise").click()
    expect(answer).to_have_text("3")
    assert probability(page, "3") > 0.7
    clear(page)
    draw(page, ONE)
    button(page, "Recognise").click()
    expect(answer).to_have_text("1")
    assert probability(page, "1") > 0.7


def test_another_pipeline_can_be_picked_while_one_is_trained(page):
    progress = page.locator("#progress")
    expect(page.locator("#grid img")).to_be_visible()
    first = page.locator("#grid img").get_attribute("src")
    button(page, "Train").click()
    expect(progress).to_contain_text("Training: step")
    pick(page, "fashion-mnist")
    expect(page.get_by_label("Trouser", exact=True)).to_be_visible()
    expect(page.locator("#grid img")).not_to_have_attribute("src", first)
    expect(page.locator("#drawing")).to_be_hidden()
    expect(progress).to_have_text("Nothing is trained yet.")

    # Two of its classes, three images each.
    clothes = page.locator("#grid img").get_attribute("src")
    for box in page.get_by_role("checkbox").all()[2:]:
        box.uncheck()
    number = page.get_by_label("number input for Images per class", exact=True)
    number.fill("3")
    number.press("Enter")
    button(page, "Generate").click()
    expect(page.locator("#grid img")).not_to_have_attribute("src", clothes)
    width, height = shown_size(page)
    # Of 28 pixels, drawn twice as large.
    assert height == 2 * 60 and 3 * 60 < width < 6 * 60

    # The first classifier is given up, the next one is of clothes. Until the first has ended, the button does nothing.
    while "Nothing is trained yet." in progress.inner_text():
        button(page, "Train").click()
        page.wait_for_timeout(500)
    expect(progress).to_contain_text("zalando-datasets/fashion_mnist could not be read")
    pick(page, "mnist")
    expect(number).to_have_value("10")
    expect(page.locator("#drawing")).to_be_visible()
    expect(progress).to_have_text("Nothing is trained yet.")


def test_wrong_input_is_refused_and_the_previous_result_stays(page):
    expect(page.locator("#grid img")).to_be_visible()
    before = page.locator("#grid img").get_attribute("src")
    for box in page.get_by_role("checkbox").all():
        box.uncheck()
    button(page, "Generate").click()
    expect(page.get_by_text("0 classes are chosen; valid are 1 to 20.")).to_be_visible()
    page.get_by_label("7", exact=True).check()
    page.get_by_label("Seed").first.fill("-1")
    button(page, "Generate").click()
    expect(page.get_by_text("Seed is -1; valid are 0 to 2,147,483,647.")).to_be_visible()
    assert page.locator("#grid img").get_attribute("src") == before
    # The slider's number is brought into its range.
    page.get_by_label("Seed").first.fill("1")
    page.get_by_label("number input for Images per class", exact=True).fill("0")
    button(page, "Generate").click()
    expect(page.locator("#grid img")).not_to_have_attribute("src", before)
    width, height = shown_size(page)
    assert height == 60 and 60 < width < 120
