"""Access to files inside installed packages: the quickstart's weights and data come from a package registry."""

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligngpt.errors import AlignGPTError
from aligngpt.files import sha256_of


class PackageError(AlignGPTError):
    """A package the quickstart reads from is missing or its content is not as expected."""


@dataclass(frozen=True)
class Package:
    """An installed package used only for the files in it; it is never imported.

    Attributes:
        requirement: pip requirement with a pinned version.
        module: name of its top-level folder.
        licence: licence of the files we read, as an SPDX expression or in plain words.
    """

    requirement: str
    module: str
    licence: str

    def folder(self) -> Path:
        """The folder where the package is installed.

        It is located without importing the package, whose dependencies (inference engines, image libraries) are heavy
        and not installed.

        Raises:
            PackageError: it is not installed.
        """
        location = self._location()
        if location is None:
            raise PackageError(f"the package {self.requirement} is not installed; run: {self.install_command}")
        return location

    @property
    def installed(self) -> bool:
        """Whether a package of this name is installed, in whatever version."""
        return self._location() is not None

    def _location(self) -> Path | None:
        spec = importlib.util.find_spec(self.module)
        locations = list(spec.submodule_search_locations or ()) if spec is not None else []
        return Path(locations[0]) if locations else None

    def file(self, name: str, sha256: str) -> Path:
        """Path of a file in the package, after checking its content.

        Args:
            name: path of the file inside the package's folder, with forward slashes.
            sha256: the SHA-256 its content must have, in hexadecimal.

        Raises:
            PackageError: the package or the file is missing, or the content differs.
        """
        path = self.folder() / name
        try:
            with path.open("rb") as file:
                found = sha256_of(file)
        except OSError as error:
            raise PackageError(
                f"{path} of {self.requirement} cannot be read ({error.strerror}); "
                f"run: {self.install_command} --force-reinstall"
            ) from error
        if found != sha256:
            raise PackageError(
                f"{path} is not the file of {self.requirement}: expected SHA-256 {sha256}, found {found}; "
                f"run: {self.install_command} --force-reinstall"
            )
        return path

    @property
    def install_command(self) -> str:
        """The shell command that installs the package."""
        return _install_command([self.requirement], "--no-deps")


def check_installed(packages: Sequence[Package], libraries: Mapping[str, str]) -> None:
    """Check that everything the quickstart reads from is installed, so that one command can install all of it.

    Args:
        packages: used only for the files in them; they are installed without their own requirements.
        libraries: pip requirement of each imported module, by its name; they are installed with their requirements.

    Raises:
        PackageError: something is missing; the message names all of it and the command that installs it.
    """
    files = [package.requirement for package in packages if not package.installed]
    imported = [requirement for module, requirement in libraries.items() if importlib.util.find_spec(module) is None]
    if not files and not imported:
        return
    commands = [_install_command(files, "--no-deps")] if files else []
    if imported:
        commands.append(_install_command(imported))
    names = ", ".join([*files, *imported])
    raise PackageError(f"the quickstart needs packages that are not installed: {names}; run: {' && '.join(commands)}")


def _install_command(requirements: Sequence[str], *options: str) -> str:
    return shlex.join(["pip", "install", *options, *requirements])
