"""Follow a folder of pictures, so that an index has what the folder has."""

import time
from collections.abc import Callable
from pathlib import Path

from cir_cot.errors import InputError
from cir_cot.picture_files import find_pictures

State = dict[str, tuple[int, int, int]]  # file -> (bytes, time of change in ns, inode)


def state_of(folder: str | Path) -> State:
    """Return size and time of change of each picture file below a folder; nothing is opened."""
    state: State = {}
    for file in sorted(find_pictures(folder).files.values()):
        try:
            facts = (Path(folder) / file).stat()
        except OSError:
            continue  # removed since it was listed
        state[file] = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
    return state


def watch(
    folder: str | Path,
    update: Callable[[], object],
    seconds: float,
    say: Callable[[str], object],
    known: State,
) -> None:
    """Call `update` whenever the pictures of a folder have changed and stopped changing, until interrupted.

    A file that is being written changes from one look to the next, so what changed is taken in at the first look that
    finds it as the look before did.

    Args:
        folder: the pictures.
        update: brings the index up to date.
        seconds: between two looks.
        say: called once with what went wrong in an update; each further look tries again.
        known: what the index has been made of, `state_of`.
    """
    taken_in = known
    before = known
    said = ""
    while True:
        time.sleep(seconds)
        now = state_of(folder) if Path(folder).is_dir() else {}
        settled = now == before
        before = now
        if now == taken_in or not settled:
            continue
        # Another process may write the index just now: the next look tries again.
        try:
            update()
        except InputError as error:
            if str(error) != said:
                said = str(error)
                say(said)
            continue
        taken_in = now
        said = ""
