"""The data registry: a git + DVC repository of its own under the state root.

A dataset (a shard's clips, a shard x variant of pairs, a model) is one directory with one ``.dvc`` pointer
beside it. The pointer is the commit point: it is moved away before the directory is replaced and written last,
so that a dataset without a pointer does not exist. A replacement that a crash cuts short is undone by the next
one (or by `xdub doctor --repair`): the version before it is there again, as it was. The pointer's hash is the
one identity of the dataset: Dagster's data version, MLflow's dataset digest, what gates and model cards name.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import yaml

from model_code.errors import InputError
from model_code.files import write_json, write_text
from xdub_platform.locks import held

if TYPE_CHECKING:
    from dvc.fs import FileSystem

log = logging.getLogger(__name__)

JOURNAL = "replacing.json"
"""In the folder of what a replacement puts aside: what was to be replaced by what."""
IGNORED = (".trash/", "*.part")
"""What git must not see."""
REMOTE = "store"
"""DVC's name for the remote."""
BUNDLE = "registry.bundle"
"""At the remote, beside the data: the git repository with its tags."""
GIT_IDENTITY = ("-c", "user.name=xdub", "-c", "user.email=xdub@localhost")


@dataclass(frozen=True)
class Dataset:
    """A committed directory of the registry, or a registered model's files (`source` mlflow) as an input beside it."""

    name: str
    path: Path
    version: str
    size: int
    n_files: int
    source: Literal["dvc", "mlflow"] = "dvc"


class DvcStore(dg.ConfigurableResource):
    """Adds, finds and publishes datasets.

    Args:
        root: The registry's folder.
        remote_url: A DVC remote (folder or ``s3://``); empty keeps only the local cache.
        s3_endpoint: Endpoint of an S3-compatible server; empty means AWS.

    Example:
        >>> store = DvcStore(root=str(settings.path("registry")))
        >>> store.put("clips/shard-00000", settings.path("work", "new")).version
        'b1281892a48b41c504411dd26af4e35b.dir'
    """

    root: str
    remote_url: str = ""
    s3_endpoint: str = ""

    @property
    def folder(self) -> Path:
        """The registry as a path."""
        return Path(self.root)

    def path(self, name: str) -> Path:
        """Where the dataset `name` lies, committed or not."""
        return self.folder / "data" / name

    def get(self, name: str) -> Dataset | None:
        """The committed dataset, or None."""
        try:
            pointer = yaml.safe_load(self._pointer(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not pointer:  # opened by a process that was killed before it wrote
            return None
        out = pointer["outs"][0]
        return Dataset(name, self.path(name), out["md5"], int(out.get("size", 0)), int(out.get("nfiles", 1)))

    def committed_at(self, name: str) -> float | None:
        """When the present version of `name` was committed, in seconds since 1970; None if there is none."""
        return self._pointer(name).stat().st_mtime if self.get(name) else None

    def names(self, prefix: str) -> list[str]:
        """Committed datasets under `prefix`, sorted: ``names("clips")``."""
        base = self.folder / "data"
        return sorted(str(path.relative_to(base))[: -len(".dvc")] for path in (base / prefix).rglob("*.dvc"))

    def put(self, name: str, source: Path) -> Dataset:
        """Commits the directory `source` as the dataset `name`; `source` is moved.

        Args:
            name: Asset and partition, such as ``companion_pairs/shard-00000/relit``.
            source: A finished directory on the registry's file system.

        Raises:
            FileNotFoundError: `source` is missing or empty.
        """
        if not source.is_dir() or not any(source.iterdir()):
            raise FileNotFoundError(f"{source} holds nothing to commit as {name}")
        with self.locked():
            self._ensure()
            self.undo()
            target, pointer = self.path(name), self._pointer(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = self.trash / uuid.uuid4().hex
            plan = {"name": name, "source": str(source), "inode": source.stat().st_ino, "files": _sizes(source)}
            write_json(aside / JOURNAL, plan)
            if pointer.exists():
                pointer.rename(aside / "pointer")
            if target.exists():
                target.rename(aside / "data")
            source.rename(target)
            self._add(target)
            shutil.rmtree(aside)
        dataset = self.get(name)
        assert dataset is not None, f"DVC wrote no pointer for {target}"
        log.info("committed %s as %s", name, dataset.version)
        return dataset

    def record(self, name: str, kind: str, value: dict[str, Any]) -> None:
        """Writes a small record about the present version of `name` beside the data (gate results, model card)."""
        dataset = self.get(name)
        if dataset is None:
            raise FileNotFoundError(f"no dataset {name} in {self.folder}")
        write_json(self._record_path(name, kind), {"version": dataset.version, **value})

    def recorded(self, name: str, kind: str) -> dict[str, Any] | None:
        """What `record` wrote, if it speaks of the version that is there now; else None."""
        dataset, path = self.get(name), self._record_path(name, kind)
        if dataset is None or not path.is_file():
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if value.get("version") == dataset.version else None

    @property
    def lock_file(self) -> Path:
        """Held while the registry changes."""
        return self.folder.parent / f".{self.folder.name}.lock"

    @property
    def trash(self) -> Path:
        """What replacements put aside, each in a folder of its own, while they last."""
        return self.folder / ".trash"

    def cut_short(self) -> list[str]:
        """Datasets whose replacement a crash left undone; the caller holds the lock."""
        plans = (json.loads(path.read_text(encoding="utf-8")) for path in self.trash.glob(f"*/{JOURNAL}"))
        return sorted(plan["name"] for plan in plans)

    def recover(self) -> None:
        """Undoes replacements that a crash cut short: the version before is there again."""
        if self.trash.is_dir() and any(self.trash.iterdir()):
            with self.locked():
                self.undo()

    def undo(self) -> None:
        """`recover` for a caller that holds the lock."""
        for aside in self.trash.glob("*"):
            if (aside / JOURNAL).is_file():
                self._undo_one(aside, json.loads((aside / JOURNAL).read_text(encoding="utf-8")))
            shutil.rmtree(aside)
        rwlock = self.folder / ".dvc" / "tmp" / "rwlock"
        if rwlock.is_file() and not rwlock.read_text(encoding="utf-8").strip():
            rwlock.unlink()  # cut off while DVC wrote it; DVC would refuse every command

    def _undo_one(self, aside: Path, plan: dict[str, Any]) -> None:
        """Each step may be the last one before the next crash; the pointer comes last."""
        if self.get(plan["name"]) is not None:
            return
        target, source = self.path(plan["name"]), Path(plan["source"])
        if target.is_dir() and ((aside / "data").is_dir() or target.stat().st_ino == plan["inode"]):
            # DVC may have been at its files: only what is complete goes back to where its maker looks for it.
            usable = _sizes(target) == plan["files"] and not (source.is_dir() and any(source.iterdir()))
            if usable:
                source.parent.mkdir(parents=True, exist_ok=True)
                target.rename(source)
            else:
                target.rename(aside / "new")
        if (aside / "data").is_dir():
            (aside / "data").rename(target)
        if (aside / "pointer").is_file():
            (aside / "pointer").replace(self._pointer(plan["name"]))
        log.warning("%s: its replacement was cut short; what was there before is back", plan["name"])

    def publish(self, tag: str, message: str) -> str:
        """Commits every pointer and record in the registry's git and tags it; returns the commit.

        A remote gets the data, and the git repository with all tags as one file, `BUNDLE`: a clone of it and a
        `dvc pull` there are the registry again. The same tag again goes on where a publication broke off, as long
        as nothing has changed since.

        Raises:
            InputError: The tag names something else.
        """
        with self.locked():
            self._ensure()
            self.undo()
            if self.remote_url:
                self._take_over_tags()
            self._git("add", "--all", ".")
            changed = bool(self._git("status", "--porcelain"))
            taken = tag in self._git("tag").split()
            if taken and (changed or tag not in self._git("tag", "--points-at", "HEAD").split()):
                raise InputError(f"the tag '{tag}' names an earlier publication", "choose another")
            if changed:
                self._git(*GIT_IDENTITY, "commit", "--quiet", "--message", message)
            if not taken:
                self._git(*GIT_IDENTITY, "tag", "--annotate", tag, "--message", message)
            if self.remote_url:
                self._push()
            return self._git("rev-parse", "HEAD")

    def usage(self) -> tuple[set[str], int]:
        """Versions of all present datasets and those of tags, and how many bytes in DVC's cache belong to none of them.

        The caller holds the lock.
        """
        from dvc.repo import Repo

        self._ensure()
        with Repo(str(self.folder)) as repo:
            versions = {str(out.hash_info.value) for _ in repo.brancher(all_tags=True) for out in repo.index.outs}
            # By force: not to be asked about tags of another registry, whose data are at the remote alone.
            used = {str(each.value) for found in repo.used_objs(all_tags=True, force=True).values() for each in found}
            cache = repo.cache.local
            unused = [Path(cache.oid_to_path(each)) for each in cache.all() if each not in used]
            return versions, sum(path.stat().st_size for path in unused)

    def collect_garbage(self) -> None:
        """Has DVC clear its cache of the rest; the caller holds the lock."""
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            repo.gc(workspace=True, all_tags=True, force=True)

    def _pointer(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(f"{path.name}.dvc")

    def _record_path(self, name: str, kind: str) -> Path:
        return self.folder / "records" / name / f"{kind}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the registry meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.lock_file):
            yield

    def _ensure(self) -> None:
        """Creates the repository at first use; what it is told is ours every time, since settings change."""
        from dvc.config import Config
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # its advice on git is for people at a shell
        home = self.folder / ".dvc"
        if not (home / Config.CONFIG).is_file():
            self._git("init", "--quiet", "--initial-branch=main")
            Repo.init(str(self.folder), force=True).close()
        config = Config(str(home), validate=False)
        for level, ours in self._config().items():
            known = config.read(level)
            wanted = {section: _changed(known.get(section, {}), values) for section, values in ours.items()}
            if any(wanted[section] != known.get(section, {}) for section in wanted):
                with config.edit(level) as edited:
                    edited.update(wanted)
        ignored = self.folder / ".gitignore"
        lines = ignored.read_text(encoding="utf-8").splitlines() if ignored.is_file() else []
        if not set(IGNORED) <= set(lines):
            write_text(ignored, "\n".join([*dict.fromkeys([*lines, *IGNORED]), ""]))

    def _config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """DVC's settings by level, as its files spell them; None takes one away. Only `repo` is committed."""
        remote = {"url": self.remote_url}
        if self.s3_endpoint and self.remote_url.startswith("s3://"):
            remote["endpointurl"] = self.s3_endpoint
        return {
            "repo": {
                "cache": {"type": ["reflink", "hardlink", "symlink"]},
                "core": {
                    "analytics": "false",
                    "autostage": "false",
                    "check_update": "false",
                    "site_cache_dir": None,  # once committed, though it is a machine's own
                    "remote": REMOTE if self.remote_url else None,
                },
                "remote": {REMOTE: remote if self.remote_url else None},
            },
            "local": {"core": {"site_cache_dir": str(self.folder / ".dvc" / "tmp" / "site")}},
        }

    def _add(self, target: Path) -> None:
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            repo.scm_context.quiet = True
            repo.add(str(target))

    def _take_over_tags(self) -> None:
        """Tags that another registry published there, one that was lost perhaps: the bundle is replaced whole."""
        with self._bundle() as (remote, there, here):
            if remote.exists(there):
                remote.get_file(there, here)
                self._git("fetch", "--quiet", here, "refs/tags/*:refs/tags/*")

    def _push(self) -> None:
        """The data first, of every tag: an earlier one's push may have failed, and the bundle names it too."""
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            repo.push(all_tags=True)
        with self._bundle() as (remote, there, here):
            self._git("bundle", "create", "--quiet", here, "HEAD", "--branches", "--tags")
            remote.put_file(here, there)

    @contextmanager
    def _bundle(self) -> Iterator[tuple[FileSystem, str, str]]:
        """The remote's file system, the bundle's path there, and one here for the time of the block."""
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo, TemporaryDirectory() as scratch:
            remote = repo.cloud.get_remote()
            yield remote.fs, remote.fs.join(remote.path, BUNDLE), str(Path(scratch) / BUNDLE)

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"git {' '.join(arguments)} in {self.folder}: {done.stderr.strip()}")
        return done.stdout.strip()


def _sizes(folder: Path) -> dict[str, int]:
    """Every file's size by its path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _changed(known: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section with these values; None takes one away."""
    return {name: value for name, value in {**known, **values}.items() if value is not None}
