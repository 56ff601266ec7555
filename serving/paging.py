"""The next page: what was shown before travels with the client, so no service has to remember it.

A mark is a short hash of an item's id: it means the same to every replica and every bundle.
"""

import base64
import binascii
from collections.abc import Sequence
from hashlib import blake2b

MARK_BYTES = 6
MOST_SHOWN = 1_000
"""Items of all pages together; a list that long is no longer read."""


def mark(item_id: str) -> bytes:
    """Stands for the item in a `next`."""
    return blake2b(item_id.encode(), digest_size=MARK_BYTES).digest()


def written(marks: Sequence[bytes]) -> str | None:
    """As clients get it; None where no further page is given."""
    return base64.urlsafe_b64encode(b"".join(marks)).decode() if 0 < len(marks) < MOST_SHOWN else None


def read(text: str) -> tuple[bytes, ...]:
    """What `written` wrote; a `ValueError` otherwise."""
    try:
        content = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        content = b""
    if not content or len(content) % MARK_BYTES or len(content) > MOST_SHOWN * MARK_BYTES:
        raise ValueError("is not what an answer gave as next; ask again without after for the first page")
    return tuple(content[place : place + MARK_BYTES] for place in range(0, len(content), MARK_BYTES))
