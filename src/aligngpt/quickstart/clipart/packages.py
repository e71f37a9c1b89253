"""The Open Clip Art Library from Debian's packages, fetched with apt-get and unpacked into the cache."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from aligngpt.cache import cache_entry, entry_path
from aligngpt.errors import AlignGPTError

PACKAGES = ("openclipart-png", "openclipart-svg")
INSTALLED = Path("/usr/share/openclipart")
SECONDS = 1800
"""How long one call of apt-get or dpkg-deb may take, in seconds."""

INSTEAD = (
    f"or unpack Debian's packages {' and '.join(PACKAGES)} elsewhere and name the folder in `clipart: {{folder: …}}`"
)


class ClipartError(AlignGPTError):
    """The clip art is missing, or there is too little of it; the message says what to do."""


def find_clipart(folder: Path | None = None) -> Path:
    """The folder with `png` and `svg`: the given one, the installed packages, the cache, or else a download.

    Args:
        folder: holds the unpacked packages, at any of the depths `usr/share/openclipart`, `share/openclipart`,
            `openclipart`, or itself; None looks for the packages.

    Raises:
        ClipartError: the folder has no drawings, or the packages cannot be fetched.
        CacheError: the cache cannot be written.
    """
    if folder is not None:
        found = _inside(folder)
        if found is None:
            raise ClipartError(
                f"{folder} does not hold the folders png and svg of the packages {' and '.join(PACKAGES)}; unpack both "
                f"into it with `dpkg-deb -x PACKAGE.deb {folder}`"
            )
        return found
    entry = entry_path("debian", "openclipart")
    found = _inside(INSTALLED) or _inside(entry)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="aligngpt-apt-") as downloads:
        _run(["apt-get", "download", *PACKAGES], Path(downloads))
        archives = sorted(Path(downloads).glob("*.deb"))
        with cache_entry(entry) as made:
            for archive in archives:
                _run(["dpkg-deb", "-x", str(archive), str(made)], Path(downloads))
            if _inside(made) is None:
                raise ClipartError(
                    f"`apt-get download` brought {', '.join(archive.name for archive in archives) or 'nothing'}, which "
                    f"has no folders png and svg; {INSTEAD}"
                )
    found = _inside(entry)
    assert found is not None
    return found


def _inside(folder: Path) -> Path | None:
    for below in ("", "openclipart", "share/openclipart", "usr/share/openclipart"):
        if (folder / below / "png").is_dir() and (folder / below / "svg").is_dir():
            return folder / below
    return None


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])
    what = " ".join(command[:2])
    if program is None:
        raise ClipartError(
            f"the clip art is fetched with {command[0]}, which is not installed (Debian and Ubuntu have it); use such "
            f"a system, {INSTEAD}"
        )
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ClipartError(f"`{what}` did not finish in {SECONDS} s; check the network, {INSTEAD}") from None
    if done.returncode != 0:
        told = " ".join((done.stderr or done.stdout).split())[-500:]
        raise ClipartError(
            f"`{what}` failed ({told or f'exit code {done.returncode}'}); run `apt-get update` and check the network, "
            f"{INSTEAD}"
        )
