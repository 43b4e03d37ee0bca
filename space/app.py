"""
Opens a page on distilled data sets: draw a digit and have it read, look at generated images of any class, and watch a
classifier learn from them.

    make space
    DIM_PIPELINE=out/flowers DIM_DATASET=path/to/flowers make space

The page lists the pipelines in distilled/ and the one in `DIM_PIPELINE`, a folder or Hub id, on which it opens.
`DIM_DATASET` is the data set of its test images, as `--dataset_name` of the scripts. It opens on 127.0.0.1, or on
`GRADIO_SERVER_NAME`, with and without a network.
"""

import os
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen


SHIPPED = Path(__file__).resolve().parents[1] / "distilled"
# Seconds that a page without a network takes longer to open, at most.
LONGEST_WAIT = 4.0
# Runs that wait for their turn, and browsers whose classifier is kept.
MOST_WAITING = 32


def main() -> None:
    # The libraries of Hugging Face read it once, when they are imported. Offline they use their caches at once, where
    # a network that swallows packets would keep them waiting for minutes.
    if "HF_HUB_OFFLINE" not in os.environ and not answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        os.environ["HF_HUB_OFFLINE"] = "1"
    from gradio import processing_utils
    from guard import MOST_BYTES, Guard
    from page import CSS, build_page, load_pipelines, theme
    from PIL import Image
    from starlette.middleware import Middleware
    from unseen import real_images

    named = os.environ.get("DIM_PIPELINE") or None
    dataset = os.environ.get("DIM_DATASET") or None
    try:
        pipelines = load_pipelines(SHIPPED, named)
        first = next(iter(pipelines))
        unseen = {first: real_images(pipelines[first], dataset)} if dataset else {}
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    # Pillow refuses twice as many pixels: a few bytes may say that they are a huge image.
    Image.MAX_IMAGE_PIXELS = 2**24
    # Gradio would download any file that a message names by its address, of any size.
    processing_utils.async_ssrf_protected_download = refuse_download
    page = build_page(pipelines, unseen)
    # One run of each kind at a time; calls that would pass the queue are not taken.
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    page.launch(
        share=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
        app_kwargs={"middleware": [Middleware(Guard)]},
        max_file_size=MOST_BYTES,
        state_session_capacity=MOST_WAITING,
        enable_monitoring=False,
    )


async def refuse_download(url: str, cache_dir: str) -> str:
    raise ValueError("An address in place of a file is not taken.")


def answers(address: str, patience: float = LONGEST_WAIT) -> bool:
    """Whether an HTTP server, behind any proxy of the environment, answers at all within `patience` seconds."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=patience).close()
        except HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.append(True)

    # A name server that is silent is not bound by the timeout of a connection.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(answered)


if __name__ == "__main__":
    main()
