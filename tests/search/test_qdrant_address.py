"""An index whose collection lies in a folder opens from any working directory; a server that is gone is one line."""

import socket
import time

import pytest
from toy_retriever import Toy, write_shades

from cir_cot.errors import InputError
from cir_cot.images import list_pictures
from cir_cot.search.build import IndexSettings, build, open_index
from cir_cot.search.qdrant_address import absolute

pytest.importorskip("qdrant_client")


def test_a_collection_in_a_folder_opens_from_any_working_directory(tmp_path, monkeypatch):
    write_shades(tmp_path / "images", [10, 20])
    images = list_pictures(tmp_path / "images")
    settings = IndexSettings("qdrant:store#shop")
    monkeypatch.chdir(tmp_path)
    build(Toy(), images, list(images.files), tmp_path / "index", settings)
    # The same command again is an update.
    build(Toy(), images, list(images.files), tmp_path / "index", settings)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    index = open_index(tmp_path / "index")
    assert len(index) == 2
    index.close()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_servers_and_other_kinds_stay_as_they_are():
    for kind in ("exact", "HNSW32", "qdrant:http://host:6333#shop"):
        assert absolute(kind) == kind


def test_a_server_that_is_gone_is_one_line_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    write_shades(tmp_path / "images", [10])
    images = list_pictures(tmp_path / "images")
    settings = IndexSettings(f"qdrant:http://127.0.0.1:{port}#shop")
    started = time.monotonic()
    with pytest.raises(InputError, match="no Qdrant collection can be opened here") as error:
        build(Toy(), images, list(images.files), tmp_path / "index", settings)
    assert time.monotonic() - started < 5
    assert "\n" not in str(error.value)
