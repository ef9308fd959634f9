"""Compiled programs on the disk, so that the second start of a command need not compile again.

Commands call `enable`; importing this package changes nothing, and in a program of one's own it is
one line before the first computation: `trainlib.compile_cache.enable()`.

An entry is code that this process will run. So the folder must belong to this user and to nobody
else, every entry carries a digest that is compared before XLA sees it, and an entry that is cut
off or damaged is deleted and compiled again. Whatever goes wrong here costs a compilation and never
the run. JAX's own cache compares nothing, never replaces a damaged entry, and its bound on the
size takes a lock for every program that is read, which a thousand hosts of a pod would share.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import stat
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainlib.errors import ConfigError, paragraph, shown
from trainlib.paths import resolve

_SETTING = "jax_compilation_cache_dir"
VARIABLE = "VITATTN_MOE_COMPILE_CACHE"
OFF = "off"
HELP = (
    "where compiled programs are kept for the next start, or off; default: "
    f"{VARIABLE}, JAX_COMPILATION_CACHE_DIR, or a folder of the user's cache directory"
)
MOST_BYTES = 2 * 1024**3  # of all entries together; those that were used last stay
_SUFFIX = ".program"
_ENTRY = re.compile(r"[0-9a-f]{40}(\.program|\.[0-9a-f]{16}\.tmp)")  # names of files of ours
_DIGEST = 32  # bytes of SHA-256 before the content
_TOUCHED = 3600.0  # seconds after which the use of an entry is noted again
_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Unusable(Exception):
    """Why a folder cannot be the cache."""


def enable(where: str = "") -> Path | None:
    """Switches the cache of compiled programs on for this process, or off.

    Args:
      where: a directory, or "off". "" takes the environment variable VITATTN_MOE_COMPILE_CACHE; if
        that is not set either, a cache that JAX was given (JAX_COMPILATION_CACHE_DIR) stays as it
        is, and otherwise the cache is a folder of the user's cache directory, `user_directory()`.

    Returns:
      The folder of this machine's programs; None where there is none. The reason is printed as one
      warning line.

    Raises:
      ConfigError: `where` is no path.
    """
    import jax

    asked = where or os.environ.get(VARIABLE, "")
    current = getattr(jax.config, _SETTING)
    if not asked and current and not _is_ours(current):
        return Path(current)
    if asked.lower() == OFF or not (asked or _safe_by_default()):
        _use(None)
        return None
    try:
        root = resolve(asked, "--compile_cache") if asked else user_directory() / "programs"
        folder = _prepared(root.absolute())
    except ConfigError:
        if where:
            raise
        _warn(f"{VARIABLE}={shown(asked)} is no path")
        folder = None
    except (Unusable, OSError, RuntimeError) as error:
        _warn(str(error))
        folder = None
    if folder is not None and not _install():
        _warn("this version of JAX has another cache than the one that is known here")
        folder = None
    _use(folder)
    return folder


def user_directory() -> Path:
    """The directory for what this package may lose and make again: `vitattn-moe` in
    XDG_CACHE_HOME or ~/.cache.

    Raises:
      RuntimeError: this user has no home directory.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path.home() / ".cache"  # as its standard says
    return base / "vitattn-moe"


def _safe_by_default() -> bool:
    """False in a run of several processes on GPUs: they tune kernels together, and one that finds
    its program here would let the others wait for it.
    """
    import jax

    return not (jax.distributed.is_initialized() and jax.default_backend() == "gpu")


def _warn(reason: str) -> None:
    text = f"warning: programs are compiled anew at every start: {reason}. --compile_cache=DIR "
    text += "takes another directory, --compile_cache=off none."
    if text not in _warned:
        _warned.add(text)
        print(paragraph(text), file=sys.stderr, flush=True)


_warned: set[str] = set()


# ------------------------------------------------------------------------------------ the folder
def _prepared(root: Path) -> Path:
    """Makes the folder for programs of this machine below `root`, checks both, and bounds the size
    of all that lies below.

    Raises:
      Unusable: it is not this user's alone, or is no folder.
      OSError: the disk refuses.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = root / machine()
    for path in (root, folder):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _check(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unusable(f"{shown(folder)} cannot be written")
    bound(root)
    return folder


def _check(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise Unusable(f"{shown(path)} is no directory")
    if status.st_uid != os.geteuid():
        raise Unusable(f"{shown(path)} belongs to another user, whose programs would be run")
    if status.st_mode & _OTHERS:
        raise Unusable(
            f"others may write in {shown(path)}, and what they put there would be run "
            f"(`chmod go-w {shown(path)}` ends that)"
        )


def machine() -> str:
    """Names programs that run here: by JAX, and by the kind of processor, since XLA compiles for
    the instructions of the host that it is on, and hosts may share a home directory.
    """
    versions = []
    for package in ("jax", "jaxlib"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(version(package))
    words = (*versions, sys.platform, platform.machine(), *_processor())
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
    return f"jax-{versions[0] if versions else 'unknown'}-{platform.machine()}-{digest}"


def _processor() -> Iterator[str]:
    """What Linux says of the first processor, as far as it does not change from boot to boot; on a
    Mac the version of its kernel, which has the family of the chip.
    """
    if sys.platform == "darwin":
        yield platform.version()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if not line.strip():
                return
            if name.strip() in _KINDS:
                yield f"{name.strip()}={value.strip()}"


_KINDS = frozenset(
    ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    + ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")
)


def bound(root: Path, most: int = MOST_BYTES) -> None:
    """Deletes the entries below `root` that were not used for longest, until the rest holds at most
    `most` bytes, and files that a process left unfinished. What else lies there, for a person may
    name any directory, stays.
    """
    entries: list[tuple[float, int, Path]] = []
    for path in root.glob("jax-*/*"):
        if not _ENTRY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # another process deleted it
            status = path.lstat()
            if path.suffix == _SUFFIX:
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED:
                path.unlink()
    size = sum(size for _, size, _ in entries)
    for _, freed, path in sorted(entries):
        if size <= most:
            return
        size -= freed
        with contextlib.suppress(OSError):
            path.unlink()


# ------------------------------------------------------------------------------------ the entries
class Programs:
    """The entries of one folder, in the place of JAX's own cache of files.

    Args:
      folder: made and checked by `enable`.
    """

    def __init__(self, folder: Path):
        self._path = folder  # JAX names it in its log
        self._written, self._full = 0, False

    def get(self, key: str) -> bytes | None:
        """The content of an entry; None where there is none, or none that can be trusted."""
        path = self._path_of(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not own or status.st_mode & _OTHERS:
                return None
            try:
                content = file.read()
            except OSError:
                return None
            if content[:_DIGEST] == _digest(key, content[_DIGEST:]):
                if time.time() - status.st_mtime > _TOUCHED:
                    with contextlib.suppress(OSError):
                        os.utime(path)
                return content[_DIGEST:]
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Writes an entry as a whole, or says once that the disk refuses."""
        if self._full:
            return
        path = self._path_of(key)
        unfinished = path.with_suffix(f".{os.urandom(8).hex()}.tmp")  # hosts share process numbers
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
                file.write(_digest(key, value) + value)
            os.replace(unfinished, path)
        except OSError as error:
            self._full = True
            with contextlib.suppress(OSError):
                unfinished.unlink()
            _warn(f"{shown(self._path)} cannot be written ({error.strerror})")
            return
        self._written += len(value)
        if self._written > MOST_BYTES // 8:
            self._written = 0
            bound(self._path.parent)

    def _path_of(self, key: str) -> Path:
        return self._path / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{_SUFFIX}"


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()


# ------------------------------------------------------------------------------------ JAX
_folders: set[str] = set()  # those that `enable` checked


def _is_ours(folder: str) -> bool:
    return folder in _folders


def _use(folder: Path | None) -> None:
    """Lets JAX read and write compiled programs in a folder that was checked, or nowhere."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if folder is not None:
        _folders.add(str(folder))
    if getattr(jax.config, _SETTING) == (folder and str(folder)):
        return
    jax.config.update(_SETTING, folder and str(folder))
    compilation_cache.reset_cache()
    if folder is not None:
        # Initialisers and digests are many small programs, which together take as long as a step's.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # XLA would write files of its own there, which nothing compares or bounds.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _install() -> bool:
    """Puts `Programs` in the place of JAX's cache of files, for folders of ours alone. JAX has no
    public name for that; tests see to it that it still asks here. False where it has no such place.
    """
    from jax._src import compilation_cache

    files = getattr(compilation_cache, "get_file_cache", None)
    if files is None:
        return False
    if getattr(files, "ours", False):
        return True

    def get_file_cache(path: str) -> Any:
        return (Programs(Path(path)), path) if _is_ours(path) else files(path)

    get_file_cache.ours = True
    compilation_cache.get_file_cache = get_file_cache
    return True
