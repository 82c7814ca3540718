"""``config.json`` from the Hugging Face hub: the local cache first, then the network. Needs the extra ``hub``.

Only that one file is fetched; code in a repository is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vramcalc.errors import HubError, HubGated, HubMissing, HubOffline
from vramcalc.inputs.hf_config import load

_FILE = "config.json"
_TIMEOUT_S = 5.0
_BY_PATH = "or give a path to its config.json"


def fetch_config(repository: str) -> dict[str, Any]:
    """The configuration of a hub repository.

    Args:
        repository: ``owner/name``.

    Raises:
        HubMissing: no such repository, or none with a ``config.json``.
        HubGated: the repository wants a token with access.
        HubOffline: not in the local cache, and the hub cannot be reached.
        HubError: the extra ``hub`` is not installed, or the hub failed in another way.
        BadConfig: the file is no JSON object.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as err:
        raise HubError(
            f"{repository} is not in the table, and reading the hub needs the extra 'hub': "
            f"pip install '.[hub]', {_BY_PATH}"
        ) from err
    except ValueError as err:
        # The client takes HF_ENDPOINT apart when it is imported.
        raise _offline(repository, f"HF_ENDPOINT is no address ({err}): correct it") from err
    try:
        path = hf_hub_download(repository, _FILE, local_files_only=True)
    except errors.HFValidationError as err:
        raise HubMissing(f"{repository!r} is not a repository name: expected owner/name, {_BY_PATH}") from err
    except errors.LocalEntryNotFoundError:
        path = _download(repository)
    return load(Path(path), f"config.json of {repository}")


def _download(repository: str) -> str:
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Downloading retries for half a minute; asking for the headers first answers at once.
        get_hf_file_metadata(hf_hub_url(repository, _FILE), timeout=_TIMEOUT_S)
        return str(hf_hub_download(repository, _FILE, etag_timeout=_TIMEOUT_S))
    except errors.GatedRepoError as err:
        raise HubGated(f"{repository} is gated: accept its terms on the hub and set HF_TOKEN, {_BY_PATH}") from err
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as err:
        raise _missing(repository) from err
    except errors.LocalEntryNotFoundError as err:
        raise _offline(repository, f"{constants.ENDPOINT} does not answer as a hub does: check HF_ENDPOINT") from err
    except errors.EntryNotFoundError as err:
        raise _missing(repository) from err
    except errors.OfflineModeIsEnabled as err:
        raise _offline(repository, "HF_HUB_OFFLINE is set: unset it") from err
    except errors.HfHubHTTPError as err:
        raise _refused(repository, err.response.status_code) from err
    except (OSError, errors.HTTPError) as err:
        raise _offline(repository, f"{constants.ENDPOINT} cannot be reached: check the connection") from err


def _missing(repository: str) -> HubMissing:
    return HubMissing(
        f"the hub has no {repository} with a {_FILE}: check the name, log in if it is private, {_BY_PATH}"
    )


def _offline(repository: str, why: str) -> HubOffline:
    return HubOffline(f"{repository} is not in the table nor in the local cache, and {why}, {_BY_PATH}")


def _refused(repository: str, status: int) -> HubError:
    if status in (401, 403):
        return HubGated(f"the hub refuses access to {repository} (HTTP {status}): check HF_TOKEN, {_BY_PATH}")
    return HubError(f"the hub failed to give {repository} (HTTP {status}): try again later, {_BY_PATH}")
