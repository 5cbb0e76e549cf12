# SPDX-License-Identifier: MIT
"""The environments of tools/quickstart and tools/test: a virtual environment in a work folder with this checkout
installed, made or brought up to date only if needed. Standard library only."""
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "csrc", "ggml_patch", "pyggmlq", "tools/build_cffi.py")
"""What an installed package depends on."""


def ensure(work, requirements):
    """The Python of ``<work>/venv``, with `requirements` installed: words for pip, of which "." is this checkout.

    Prints what it does. CalledProcessError if a step fails: `output` is why, with advice, and `cmd` the log.
    """
    folder = work / "venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed.txt"
    wanted = f"{sys.version.split()[0]} {' '.join(requirements)} {hash_of(SOURCES)}"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    log = work / "logs" / "environment.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    if not works(python):
        print(f"making an environment in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        step([sys.executable, "-m", "venv", str(folder)], log,
             "this Python cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)")
    if stamp.exists():
        stamp.unlink()
    print(f"installing pyggmlq and its tools into it: {' '.join(requirements)}", flush=True)
    words = [str(ROOT) + word[1:] if word.startswith(".") else word for word in requirements]
    step([str(python), "-m", "pip", "install", "--disable-pip-version-check", *words], log,
         "installing pyggmlq failed (a missing Python.h comes with the package python3-dev)")
    stamp.write_text(wanted)
    return python


def works(python):
    """Whether `python` starts: a moved folder or an upgraded system leaves environments that do not."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        return python.exists() and subprocess.call([str(python), "-c", "import pip"], **quiet) == 0
    except OSError:
        return False


def hash_of(names):
    """One hash over the content of files and folders of the checkout."""
    digest = hashlib.sha256()
    for name in names:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def step(command, log, failure):
    """Run `command`, its output appended to `log`; CalledProcessError(cmd=log, output=`failure`) if it fails."""
    with log.open("ab") as out:
        out.write(f"$ {' '.join(command)}\n".encode())
        out.flush()
        status = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    if status != 0:
        # pip's own last words only say that there was an error: the first that says which
        telling = r"^.*(?:Error: |\berror: (?!subprocess-exited|metadata-generation)|CMake Error).*$"
        said = re.findall(telling, log.read_text(errors="replace"), re.MULTILINE) or ["see the log"]
        reason = said[0].strip(" |")
        raise subprocess.CalledProcessError(status, log, f"{failure}\n  reason    {reason}")
