"""The page in a real browser: a pipeline distilled in seconds, a server of its own, and Debian's chromium."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import processes
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
    # One worker, one pipeline, one server.
    pytest.mark.xdist_group("space_page"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium: `make test` installs Debian's where it runs as root beside apt-get"
    ),
]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A generator of the digits, small and briefly trained, yet a classifier learns from it."""
    folder = tmp_path_factory.mktemp("space")
    config = folder / "network.json"
    config.write_text('{"block_out_channels": [48], "layers_per_block": [0]}')
    arguments = [
        "--max_train_steps", "400", "--max_match_steps", "0", "--learning_rate", "1e-3", "--discr_learning_rate",
        "1e-3", "--validation_epochs", "1", "--report_to", "none", "--generator_config",
        config, "--discriminator_config", config, "--cache_dir", folder / "cache", "--output_dir", folder / "digits",
        "--validation_steps", "400",
    ]  # fmt: skip
    finished = processes.run([ROOT / "training" / "train_dim.py", *arguments])
    assert finished.returncode == 0, finished.stderr
    return folder / "digits"


@pytest.fixture(scope="module")
def address(pipeline):
    """Where `space/app.py` answers."""
    with socket.socket() as probe:
        # Gradio looks for a free port itself, but two pages that start at once find the same one.
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {"DIM_PIPELINE": str(pipeline), "HF_HOME": str(pipeline.parent), "HF_HUB_OFFLINE": "1"}
    settings["GRADIO_SERVER_PORT"] = port
    unset = ("GRADIO_SERVER_NAME", "DIM_DATASET")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | settings
    server = subprocess.Popen(
        [sys.executable, "-u", ROOT / "space" / "app.py"],
        env=environment,
        cwd=pipeline.parent,
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


ZERO = [(60 * math.cos(math.pi * n / 12), 100 * math.sin(math.pi * n / 12)) for n in range(25)]
BAR = [(0, 10 * n) for n in range(-10, 11)]


def draw(page: Page, stroke: list[tuple[float, float]]) -> None:
    """Draws one stroke, given by its points from the middle of the canvas."""
    box = page.locator("#drawing canvas").last.bounding_box()
    points = [(box["x"] + box["width"] / 2 + x, box["y"] + box["height"] / 2 + y) for x, y in stroke]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def test_generate_train_draw_and_recognise(page):
    # Generate: all ten classes at first, then two of them, three images each.
    expect(page.locator("#grid img")).to_be_visible()
    first = page.locator("#grid img").get_attribute("src")
    for label in ("0", "1", "2", "3", "4", "5", "6", "8"):
        page.get_by_label(label, exact=True).uncheck()
    number = page.get_by_label("number input for Images per class", exact=True)
    number.fill("3")
    number.press("Enter")
    button(page, "Generate").click()
    expect(page.locator("#grid img")).not_to_have_attribute("src", first)
    width, height = shown_size(page)
    assert height == 2 * 52 and 3 * 52 < width < 4 * 52

    # Nothing can be read before there is a drawing and a classifier.
    button(page, "Recognise").click()
    expect(page.get_by_text("The canvas is empty; draw a digit first.")).to_be_visible()
    button(page, "Recognise").scroll_into_view_if_needed()
    draw(page, ZERO)
    button(page, "Recognise").click()
    expect(page.get_by_text("No classifier has been trained yet; press Train first.")).to_be_visible()

    # Train; a second press changes nothing. The accuracy is seen to rise while training goes on.
    number = page.get_by_label("number input for Images per class and epoch", exact=True)
    number.fill("3")
    number.press("Enter")
    button(page, "Train").click()
    progress = page.locator("#progress")
    expect(progress).to_contain_text("Training: step")
    button(page, "Train").click()
    seen = {}
    while "Trained" not in (text := progress.inner_text()):
        step, accuracy = re.search(r"step (\d+), accuracy ([\d.]+) %", text).groups()
        assert int(step) >= max(seen, default=0), "a second run has begun"
        seen[int(step)] = float(accuracy)
        page.wait_for_timeout(20)
    final = float(re.search(r"step 300, accuracy ([\d.]+) %", text)[1])
    assert len(seen) >= 5
    assert seen[min(seen)] < 50 < final
    # What was plotted: a line with a point for each of the 30 scores.
    line = page.locator("#curve svg .mark-line path").get_attribute("d")
    assert len(re.findall("[ML]", line)) == 30

    # Recognise what was drawn before, and what is drawn on a cleared canvas.
    button(page, "Recognise").click()
    expect(page.get_by_test_id("label-output-value")).to_have_text("0")
    clear(page)
    draw(page, BAR)
    button(page, "Recognise").click()
    expect(page.get_by_test_id("label-output-value")).not_to_have_text("0")


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
    assert height == 52 and 52 < width < 104
