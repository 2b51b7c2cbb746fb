"""httpx's own tests, with our client and response in the place of httpx's: `make httpx-suite`.

The tests are those of the httpx that is installed. They are fetched from the package index into the virtual
environment, once, and none of them is kept in this repository. `differences.py` says which may fail, and why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import httpx

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def fetched() -> Path:
    """The folder with the tests of the httpx that is installed."""
    name = f"httpx-{httpx.__version__}"
    if f"httpx=={httpx.__version__} " not in (HERE / "sdist.txt").read_text():
        sys.exit(f"{name} is installed, whose tests are not those that {HERE.name}/sdist.txt names")
    folder = Path(sys.prefix) / name
    if not folder.exists():
        sys.stderr.write(f"Fetching the tests of {name} ...\n")
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        with tempfile.TemporaryDirectory(dir=sys.prefix) as temporary:
            pip += ["--no-binary=httpx", "--require-hashes", f"--requirement={HERE / 'sdist.txt'}"]
            if subprocess.run(pip, cwd=temporary).returncode:
                sys.exit("they could not be fetched: the first run needs a package index that has httpx's source")
            with tarfile.open(Path(temporary) / f"{name}.tar.gz") as archive:
                archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not before Python 3.11.4
                archive.extractall(temporary)
            (Path(temporary) / name).rename(folder)
    return folder


def main() -> int:
    folder = fetched().resolve()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the plugins of this project's own tests
    sys.path[:0] = [str(folder), str(ROOT)]  # `tests` is httpx's here
    import plugin
    import pytest

    os.chdir(folder)
    arguments = [f"--config-file={HERE / 'pytest.ini'}", f"--rootdir={folder}", *(sys.argv[1:] or ["tests"])]
    return pytest.main(arguments, plugins=[plugin])


if __name__ == "__main__":
    sys.exit(main())
