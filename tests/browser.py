"""A browser for tests: the one that is there, or Debian's, which `make` installs before them.

`python -m tests.browser` installs it where that can be done without asking anybody: as root, on
Debian, with its package index within reach. Elsewhere it says what to install, and tests skip.
"""

import os
import platform
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOW = "install Chromium, such as by `apt-get install chromium`"


def find() -> str | None:
    """The browser's program."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def can_install() -> bool:
    """Whether this machine is Debian, and ours."""
    try:
        system = platform.freedesktop_os_release()["ID"]
    except OSError:
        return False
    return system == "debian" and os.geteuid() == 0


def install() -> None:
    """Debian's Chromium and what it cannot do without."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(
            ["apt-get", "--quiet=2", "-o", "Acquire::http::Timeout=20", *step],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def main() -> None:
    if find() is not None:
        return
    if not can_install():
        print(f"No browser for the tests of pages, which skip; {HOW}", file=sys.stderr)
        return
    print("Installing Chromium for the tests of pages", file=sys.stderr)
    try:
        install()
    except subprocess.CalledProcessError as error:
        # Without an index at hand all other tests still run.
        print(f"apt-get failed ({error.returncode}); {HOW}", file=sys.stderr)


if __name__ == "__main__":
    main()
