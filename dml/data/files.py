"""Files and directories: what counts as an image, and what is missing of a list."""

import os
from collections.abc import Sequence
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def missing_part(path: Path) -> str:
    """`directory /a/b (the last that exists is /a)`: where a path that does not exist goes wrong."""
    parent = next(p for p in path.parents if p.exists())
    return f"{path}; of its path, {parent} exists"


def visible(name: str) -> bool:
    """Whether a file or directory counts: not hidden, and not what macOS leaves in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file name is that of an image we would open."""
    return visible(name) and name.lower().endswith(EXTENSIONS)


def subdirectories(directory: Path) -> list[str]:
    """Names of the visible directories in `directory`, sorted."""
    with os.scandir(directory) as entries:
        return sorted(e.name for e in entries if visible(e.name) and e.is_dir())


def images_below(directory: Path) -> list[str]:
    """Images at any depth, relative to `directory` in posix form, sorted."""
    found = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [f for f in folders if visible(f)]
        below = Path(folder).relative_to(directory).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + file for file in files if is_image(file)]
    return sorted(found)


def any_image(directory: Path) -> bool:
    """Whether there is an image at any depth."""
    return any(is_image(file) for _, _, files in os.walk(directory) for file in files)


def missing_files(directory: Path, paths: Sequence[str]) -> list[int]:
    """Positions of the paths, relative to `directory` or absolute, at which there is no file.

    Each directory is listed once; files are not asked one by one: 120,000 paths take half a second.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for position, path in enumerate(paths):
        folder, _, file = path.rpartition("/")
        folder = folder or ("/" if path.startswith("/") else "")
        if folder not in listed:
            try:
                with os.scandir(directory / folder) as entries:
                    listed[folder] = {entry.name for entry in entries}
            except (OSError, ValueError):  # no directory, or no name of one (a null character)
                listed[folder] = set()
        # A name may be spelt otherwise than listed (case, Unicode) and still be found.
        if path and file not in listed[folder] and not is_there(directory / path):
            missing.append(position)
    return missing


def is_there(path: Path) -> bool:
    """Whether there is a file; not under a name that is too long to be one."""
    try:
        return path.is_file()
    except OSError:
        return False
