"""Binaries: which programs a lab needs, where each is looked for, and in which order."""

from __future__ import annotations

import enum
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import fetch, gobuild
from tests.lab.errors import LabError

GO = Path(__file__).parent / "go"
KUBERNETES = "1.36.3"
ETCD = "3.6.8"
KWOK = "0.8.0"
REGISTRY = "3.1.2"
CRANE = "0.22.1"
HELM = "4.3.1"
FOLDERS = ("CROSSDOCK_LAB_BIN", "KUBEBUILDER_ASSETS")


@dataclass(frozen=True, slots=True)
class Binary:
    """One program: how it is built, where its release lies and how a foreign copy is known.

    ``module`` is a folder of ``go/``; ``stamps`` are linker values that make the program tell its
    version; ``says`` is what ``--version`` must print for a copy from PATH to be taken: an equal
    name says little.
    """

    name: str
    module: str
    package: str
    version: str
    says: str
    release: fetch.Release
    stamps: Mapping[str, str] = field(default_factory=dict)
    asks: tuple[str, ...] = ("--version",)


def _kubernetes(name: str) -> Binary:
    major, minor, _ = KUBERNETES.split(".")
    base = "k8s.io/component-base/version"
    return Binary(
        name=name,
        module="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        version=KUBERNETES,
        says=r"Kubernetes v1\.(3[3-9]|[4-9]\d)\.",
        release=fetch.Release(
            url=f"https://dl.k8s.io/v{KUBERNETES}/bin/{{os}}/{{arch}}/{name}",
            checksum="{url}.sha256",
        ),
        stamps={
            f"{base}.gitVersion": f"v{KUBERNETES}",
            f"{base}.gitMajor": major,
            f"{base}.gitMinor": minor,
            "k8s.io/client-go/pkg/version.gitVersion": f"v{KUBERNETES}",
        },
    )


_GITHUB = "https://github.com"
CATALOGUE: Mapping[str, Binary] = {
    binary.name: binary
    for binary in (
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        Binary(
            name="etcd",
            module="tools",
            package="go.etcd.io/etcd/server/v3",
            version=ETCD,
            says=r"etcd Version: 3\.([5-9]|\d\d)\.",
            release=fetch.Release(
                url=f"{_GITHUB}/etcd-io/etcd/releases/download/v{ETCD}/"
                f"etcd-v{ETCD}-{{os}}-{{arch}}.tar.gz",
                checksum="{folder}/SHA256SUMS",
            ),
        ),
        Binary(
            name="registry",
            module="tools",
            package="github.com/distribution/distribution/v3/cmd/registry",
            version=REGISTRY,
            says=r"distribution/distribution/v3 v?3\.",
            release=fetch.Release(
                url=f"{_GITHUB}/distribution/distribution/releases/download/v{REGISTRY}/"
                f"registry_{REGISTRY}_{{os}}_{{arch}}.tar.gz",
                checksum="{url}.sha256",
            ),
            stamps={"github.com/distribution/distribution/v3/version.version": f"v{REGISTRY}"},
        ),
        Binary(
            name="crane",
            module="tools",
            package="github.com/google/go-containerregistry/cmd/crane",
            version=CRANE,
            says=r"^v?0\.(19|[2-9]\d)",
            release=fetch.Release(
                url=f"{_GITHUB}/google/go-containerregistry/releases/download/v{CRANE}/"
                "go-containerregistry_{Os}_{machine}.tar.gz",
                checksum="{folder}/checksums.txt",
            ),
            stamps={"github.com/google/go-containerregistry/cmd/crane/cmd.Version": CRANE},
            asks=("version",),
        ),
        Binary(
            name="kwok",
            module="tools",
            package="sigs.k8s.io/kwok/cmd/kwok",
            version=KWOK,
            says=r"v0\.([8-9]|\d\d)\.",
            # Its releases hold no checksum file; GitHub tells the digests of what was uploaded.
            release=fetch.Release(
                url=f"{_GITHUB}/kubernetes-sigs/kwok/releases/download/v{KWOK}/kwok-{{os}}-{{arch}}",
                checksum=f"https://api.github.com/repos/kubernetes-sigs/kwok/releases/tags/v{KWOK}",
            ),
            stamps={"sigs.k8s.io/kwok/pkg/consts.Version": f"v{KWOK}"},
        ),
        Binary(
            name="helm",
            module="helm",
            package="helm.sh/helm/v4/cmd/helm",
            version=HELM,
            says=r"v?4\.",
            release=fetch.Release(
                url=f"https://get.helm.sh/helm-v{HELM}-{{os}}-{{arch}}.tar.gz",
                checksum="{url}.sha256sum",
            ),
            stamps={"helm.sh/helm/v4/internal/version.version": f"v{HELM}"},
            asks=("version", "--short"),
        ),
    )
}
LAB = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "registry")
TOOLS = ("crane",)


class Source(enum.Enum):
    """Where a binary comes from, in the order of preference."""

    FOLDER = "an explicit folder"
    PATH = "PATH"
    CACHE = "the cache"
    DOWNLOAD = "a download of the official release"
    BUILD = "a build from Go modules"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about one binary before it is decided where to take it from."""

    folder: Path | None = None
    path: Path | None = None
    cache: Path | None = None
    downloadable: bool = False
    buildable: bool = False


def choose(facts: Facts) -> tuple[Source, Path | None]:
    """Decide where a binary is taken from.

    Args:
        facts: what was found.

    Returns:
        The source and, for one that is there already, its path.
    """
    for source, found in (
        (Source.FOLDER, facts.folder),
        (Source.PATH, facts.path),
        (Source.CACHE, facts.cache),
    ):
        if found is not None:
            return source, found
    if facts.downloadable:
        return Source.DOWNLOAD, None
    return (Source.BUILD if facts.buildable else Source.NOWHERE), None


def cache_root(environment: Mapping[str, str]) -> Path:
    """Name the folder that keeps the lab's binaries between runs."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "crossdock" / "lab"


def module_folder(root: Path, module: str) -> Path:
    """Name the cache folder of one Go module: by the hash of what pins its content."""
    content = b"".join((GO / module / name).read_bytes() for name in ("go.mod", "go.sum"))
    return root / hashlib.sha256(content).hexdigest()[:16]


def resolve(
    names: Iterable[str],
    *,
    environment: Mapping[str, str] | None = None,
    announce: Callable[[str], None],
    downloader: fetch.Downloader | None = None,
) -> dict[str, Path]:
    """Find each binary, or download or build it.

    Args:
        names: names of CATALOGUE.
        environment: the variables that say where to look; this process's own by default.
        announce: called with one line of progress at a time.
        downloader: how releases are fetched; the official sites by default.

    Returns:
        The path of each binary.

    Raises:
        LabError: some can neither be found nor obtained; the message says how to help.
    """
    variables = os.environ if environment is None else environment
    fetcher = downloader or fetch.Downloader.of(variables, announce=announce)
    found: dict[str, Path] = {}
    wanted: dict[str, list[Binary]] = {}
    nowhere: list[Binary] = []
    for binary in (CATALOGUE[name] for name in names):
        source, path = _obtain(binary, variables=variables, fetcher=fetcher, announce=announce)
        if path is not None:
            found[binary.name] = path
        elif source is Source.BUILD:
            wanted.setdefault(binary.module, []).append(binary)
        else:
            nowhere.append(binary)
    if nowhere:
        raise LabError(missing(nowhere))
    return found | _build(wanted, variables=variables, announce=announce)


def _obtain(
    binary: Binary,
    *,
    variables: Mapping[str, str],
    fetcher: fetch.Downloader,
    announce: Callable[[str], None],
) -> tuple[Source, Path | None]:
    """Find one binary or download it; without a path it is to be built or cannot be had."""
    source, path = choose(look(binary, variables=variables, announce=announce))
    if path is not None:
        return source, path
    buildable = shutil.which("go", path=variables.get("PATH")) is not None
    reachable = fetcher.reachable(binary.release)
    source, _ = choose(Facts(downloadable=reachable, buildable=buildable))
    if source is not Source.DOWNLOAD:
        return source, None
    folder = _downloads(cache_root(variables), binary)
    path = fetcher.obtain(binary.release, name=binary.name, folder=folder)
    return (source, path) if path is not None else choose(Facts(buildable=buildable))


def absent(names: Iterable[str]) -> tuple[str, ...]:
    """Tell which binaries would have to be downloaded or built."""

    def there(binary: Binary) -> bool:
        return choose(look(binary, variables=os.environ, announce=lambda _: None))[1] is not None

    return tuple(name for name in names if not there(CATALOGUE[name]))


def look(binary: Binary, *, variables: Mapping[str, str], announce: Callable[[str], None]) -> Facts:
    """Look for a binary in the places that need neither network nor compiler."""
    root = cache_root(variables)
    folders = [Path(variables[name]) for name in FOLDERS if variables.get(name)]
    explicit = _first(folder / binary.name for folder in folders)
    if explicit is not None:
        return Facts(folder=explicit)
    on_path = shutil.which(binary.name, path=variables.get("PATH", ""))
    if on_path is not None:
        if suits(binary, Path(on_path)):
            return Facts(path=Path(on_path))
        announce(f"{on_path} is not the {binary.name} that the lab needs: passed over")
    cached = (module_folder(root, binary.module) / "bin", _downloads(root, binary))
    return Facts(cache=_first(folder / binary.name for folder in cached))


def suits(binary: Binary, path: Path) -> bool:
    """Ask a copy from PATH for its version and tell whether the lab can use it."""
    try:
        answer = subprocess.run(
            [path, *binary.asks], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(binary.says, answer.stdout + answer.stderr) is not None


def missing(binaries: Iterable[Binary]) -> str:
    """Say what is missing and every way to get it."""
    lines = [f"  {binary.name} {binary.version}" for binary in binaries]
    return "\n".join(
        (
            "the lab needs these programs, and can neither download them nor build them:",
            *lines,
            "One of these helps:",
            "  - install Go 1.26 or newer (https://go.dev/dl): then they are built, once;",
            "  - put them into one folder and name it: export CROSSDOCK_LAB_BIN=/that/folder;",
            "  - allow this machine to reach https://dl.k8s.io and https://github.com.",
        )
    )


def _build(
    wanted: Mapping[str, list[Binary]],
    *,
    variables: Mapping[str, str],
    announce: Callable[[str], None],
) -> dict[str, Path]:
    root = cache_root(variables)
    found: dict[str, Path] = {}
    total = sum(len(each) for each in wanted.values())
    for module, members in wanted.items():
        targets = [gobuild.Target(each.name, each.package, each.stamps) for each in members]
        found |= gobuild.build(
            targets,
            module=GO / module,
            folder=module_folder(root, module),
            environment=variables,
            announce=announce,
            count=(len(found), total),
        )
    return found


def _downloads(root: Path, binary: Binary) -> Path:
    return root / "releases" / f"{binary.name}-{binary.version}"


def _first(candidates: Iterable[Path]) -> Path | None:
    return next((path for path in candidates if os.access(path, os.X_OK) and path.is_file()), None)
