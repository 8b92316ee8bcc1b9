"""Decoders that some images kill: what product code must survive and cannot be asked to do itself.

Python imports a module `sitecustomize` at its start, if there is one on its path. A child that
finds this folder there obeys marked bodies. In-process: `poison(monkeypatch, tmp_path)`. For a
command in a process of its own: put the folder that `poison_folder` fills into `PYTHONPATH`.
"""

import sys
from pathlib import Path

import pytest

KILLS = b"KILL"
ABORTS = b"ABRT"
HANGS = b"HANG"
RAISES = b"RAIS"
BABBLES = b"BABL"
LIES = b"LIES"
BURNS = b"BURN"

_SITECUSTOMIZE = """
import sys

if any(name.startswith("visual_search.decode") for name in sys.orig_argv):
    import os, signal, time
    from visual_search.decode import pixels

    honest = pixels.decode

    def decode(body, **limits):
        match bytes(body[:4]):
            case b"KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"ABRT":
                os.abort()
            case b"HANG":
                time.sleep(600)
            case b"RAIS":
                raise ZeroDivisionError("outside what is caught")
            case b"BURN":
                start = time.process_time()
                while time.process_time() < start + 0.3:
                    pass
            case b"BABL":
                os.write(1, b"no JSON at all" + bytes([10]))
            case b"LIES":
                os.write(1, b'{"cpu_s": 0, "height": 100000000, "width": 100000000}' + bytes([10]))
        return honest(body, **limits)

    pixels.decode = decode
"""


def poison_folder(folder: Path) -> Path:
    """Fill `folder` so that Python processes with it on their path decode as described above."""
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return folder


def poison(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make decoders started from now on obey marked bodies."""
    monkeypatch.setattr(sys, "path", [str(poison_folder(folder)), *sys.path])
