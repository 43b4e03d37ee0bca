"""Clear messages for what goes wrong between here and the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx


def check_characters(token: str | bool | None, argument: str) -> None:
    """Raises a `ValueError` that does not show the token if it has characters that no token has, such as a newline."""
    if isinstance(token, str) and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            f"{argument} holds a space, a line break or another character that no token has; give only the token."
        )


@contextmanager
def clear_hub_errors(repo_id: str) -> Iterator[None]:
    """Raises one `OSError` that says why a repository cannot be loaded from the Hub."""
    try:
        yield
    except (OSError, httpx.HTTPError, EntryNotFoundError) as error:
        raise OSError(
            f"{repo_id!r} is not a local folder and cannot be loaded from the Hub: {hub_reason(error)}"
        ) from error


def hub_reason(error: BaseException) -> str:
    """The reason for an error of the Hub's client, in one sentence."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in chain:
        if isinstance(each, RevisionNotFoundError):
            return "the repository has no such `revision`."
        if isinstance(each, RemoteEntryNotFoundError):
            return f"the repository has no file {str(each.response.url).rpartition('/')[2]}."
        if isinstance(each, RepositoryNotFoundError):
            return "there is no such repository, or it is private and the token does not give access to it."
        if isinstance(each, HfHubHTTPError) and each.response.status_code == 401:
            return "the token is not valid; log in with `hf auth login`, or set HF_TOKEN."
        if isinstance(each, HfHubHTTPError) and each.response.status_code == 403:
            return "the token does not give the right to do this; it needs write access to the repository."
        if isinstance(each, httpx.LocalProtocolError):
            # Its text would show the token.
            return "a header of the request is not valid; check that HF_TOKEN holds only the token."
        if isinstance(each, httpx.TransportError):
            return f"the connection to {constants.ENDPOINT} failed ({str(each) or type(each).__name__})."
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain) and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so only the cache is used."
    if any(isinstance(each, LocalEntryNotFoundError) for each in chain):
        return "it is not in the cache, and `local_files_only` prevents a download."
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:397]}..."
