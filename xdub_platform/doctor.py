"""What this installation has and lacks."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xdub_platform.settings import Settings, unknown_environment

HERE = Path(__file__).resolve().parent.parent
DISK_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One checked thing.

    Attributes:
        name: What was checked.
        ok: Whether it is in order.
        told: What was found, or what to do.
        needed: Whether the chain cannot run without it.
    """

    name: str
    ok: bool
    told: str
    needed: bool = True


def findings(settings: Settings) -> list[Finding]:
    """Every check, in the order of importance."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("packages", _packages, True),
        ("face cascade", _cascade, True),
        ("Dagster selections", _selection, True),
        ("ffmpeg", _ffmpeg, True),
        ("espeak-ng", _espeak, True),
        ("shipped base", _base, True),
        ("git", lambda: _program("git"), True),
        ("disk", lambda: _disk(settings.state_root), True),
        ("environment", _environment, False),
        ("GPU", _gpu, False),
        ("chromium (browser tests)", lambda: _program("chromium"), False),
        ("PostgreSQL (database tests)", _postgres, False),
    ]
    return [_run(name, check, needed) for name, check, needed in checks]


def _run(name: str, check: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(name, True, check(), needed)
    except Exception as error:  # a broken installation fails in any way; the doctor must go on
        return Finding(name, False, " ".join(str(error).split())[:200] or type(error).__name__, needed)


def _packages() -> str:
    for name in ("assets", "ops", "model_code", "xdub_platform"):
        spec = importlib.util.find_spec(name)
        place = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else Path()
        if place.resolve().parent != HERE:
            raise RuntimeError(f"package {name!r} comes from {place}: uninstall what hides ours")
    return f"from {HERE}"


def _cascade() -> str:
    import cv2

    path = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"
    if cv2.CascadeClassifier(str(path)).empty():
        raise RuntimeError(f"{path} cannot be read: reinstall opencv-python-headless<5 and remove opencv-python")
    return f"OpenCV {cv2.__version__}"


def _selection() -> str:
    import dagster as dg

    dg.AssetSelection.from_string("*")
    return f"Dagster {dg.__version__}"


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _espeak() -> str:
    import espeakng_loader

    return str(espeakng_loader.get_library_path())


def _base() -> str:
    from model_code.base import CLASSES, FOLDER, missing

    if missing():
        raise RuntimeError(f"{', '.join(missing())} missing in {FOLDER}: restore it from git")
    return f"{len(CLASSES)} networks"


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise RuntimeError("not installed")
    return found


def _disk(root: Path) -> str:
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < DISK_GB:
        raise RuntimeError(f"{free:.1f} GB free at {place}: make room for {DISK_GB:.0f}")
    return f"{free:.0f} GB free at {place}"


def _environment() -> str:
    unknown = unknown_environment()
    if unknown:
        raise RuntimeError(f"{', '.join(unknown)} name no setting")
    return "no misspelt XDUB_ variable"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("none; the embedded profile needs none")
    return str(torch.cuda.get_device_name(0))


def _postgres() -> str:
    found = shutil.which("postgres") or next(
        (str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")), None
    )
    if not found:
        raise RuntimeError("not installed")
    return found
