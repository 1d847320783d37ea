"""Look through the wheel and the sdist in a folder: what has to be in them, and what must not. Run by `.ci/package`."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
STRAY = ("__pycache__", ".pyc", ".pytest_cache", ".hypothesis", ".egg-info", ".arrow", ".parquet", ".so")


def check(wheel: Path, sdist: Path) -> None:
    """Raise unless both have the files of the commit that belong there, and no others."""
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {line for line in out.splitlines() if (ROOT / line).exists()}
    package = {name for name in tracked if name.startswith("squirrel_torch/")}

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(about).decode())
        extra = set(archive.namelist()) - names
    equal("the wheel", names, package)
    for end in ("/licenses/LICENSE", "/entry_points.txt"):
        if not any(name.endswith(end) for name in extra):
            raise SystemExit(f"the wheel has no {end}")
    if metadata["License-Expression"] != "Apache-2.0" or "Typing :: Typed" not in metadata.get_all("Classifier", []):
        raise SystemExit(f"the metadata names no licence, or not that the package is typed:\n{metadata}")
    if "squirrel_torch/py.typed" not in names:
        raise SystemExit("the wheel has no py.typed")

    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    if stray := [name for name in names if any(part in name for part in STRAY)]:
        raise SystemExit(f"the sdist has {stray}")
    folders = ("squirrel_torch/", "tests/", "examples/", "docs/")
    top = {name for name in tracked if "/" not in name}
    equal("the sdist", names - {"PKG-INFO"}, top | {name for name in tracked if name.startswith(folders)})
    print(f"{wheel.name}: {len(package)} files; {sdist.name}: {len(names)} files")


def equal(what: str, names: set[str], expected: set[str]) -> None:
    """Raise unless the names are those that are expected."""
    if names != expected:
        raise SystemExit(f"{what} lacks {sorted(expected - names)}, and has {sorted(names - expected)} that belongs elsewhere")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (found_wheel,), (found_sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check(found_wheel, found_sdist)
