"""Published weights where there is no network: from the cache of the hub client, or not at all, and at once."""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

import huggingface_hub.constants


@contextlib.contextmanager
def quick_without_network() -> Iterator[None]:
    """Let the hub client look into its cache at once when there is no network, instead of retrying for a minute."""
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    logging.getLogger("timm").setLevel(logging.ERROR)
    if not urllib.request.getproxies():
        try:
            host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
            socket.create_connection((host, 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
