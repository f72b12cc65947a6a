"""Open the Qdrant server or folder that the kind of an index names: "qdrant:<server or folder>#<collection>"."""

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from cir_cot.errors import InputError

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

PREFIX = "qdrant:"  # of a kind
SERVERS = ("http://", "https://")  # what else stands before a collection is a folder
SPACE = uuid.UUID("6c1d4a52-7d5e-4c0e-9a0c-0d5a3f1b2c11")  # namespace of point ids


def address(kind: str) -> tuple[str, str]:
    """Return (server or folder, collection) of a kind; InputError when it is no address."""
    # A folder may hold a "#", a collection may not.
    place, _, collection = kind.removeprefix(PREFIX).rpartition("#")
    if not place or not collection:
        raise InputError(f"{kind!r} is no address; write qdrant:<server or folder>#<collection>")
    return place, collection


def absolute(kind: str) -> str:
    """Return a kind with the folder of its collection as an absolute path; any other kind is unchanged.

    An index is opened from other working directories than that in which it was built.
    """
    if not kind.startswith(PREFIX):
        return kind
    place, collection = address(kind)
    if place.startswith(SERVERS):
        return kind
    return f"{PREFIX}{Path(place).resolve()}#{collection}"


def point_id(image: str) -> str:
    """Return the id of the point that holds a picture."""
    return str(uuid.uuid5(SPACE, image))


def connect(place: str, collection: str) -> "QdrantClient":
    """Open a server or a folder; InputError when neither is available.

    Args:
        place: address of a server, http:// or https://, or a folder.
        collection: a collection that may be there; asking for it is the first call that reaches the server.
    """
    # The client is an optional package.
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ApiException
    except ImportError:
        raise InputError(
            "a Qdrant collection needs the package: pip install 'cir-cot[qdrant]'"
        ) from None
    try:
        # A folder is locked by the client that has it open.
        if not place.startswith(SERVERS):
            return QdrantClient(path=place)
        key = os.environ.get("QDRANT_API_KEY")
        client = QdrantClient(url=place, api_key=key, check_compatibility=False)
        client.collection_exists(collection)
        return client
    except (RuntimeError, OSError, ValueError, ApiException) as error:
        why = str(error).partition("\n")[0]
        raise InputError(
            f"{place}: no Qdrant collection can be opened here ({why}); start the server, or wait "
            "for whoever has the folder open"
        ) from error
