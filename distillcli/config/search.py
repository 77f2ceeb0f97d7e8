"""Where configs are looked for: the user's folders first, then the built-in ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from distillcli.config.home import expand_home
from distillcli.config.ranges import path_exists
from distillcli.config.yaml_files import check_size
from distillcli.errors import UserError

ENVIRONMENT_VARIABLE = "DISTILL_CONFIG_DIR"

_user_folders: list[Path] = []
_registered = False


def builtin_folder() -> Path:
    """The configs inside the installed package or, in a checkout, beside it."""
    package = Path(__file__).resolve().parent.parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def use(folders: Iterable[str]) -> None:
    """Set the user's folders, as given with ``--config-dir``; those of the environment come after them.

    Raises UserError for a folder that does not exist, and for a file that would expand without end.
    """
    from_environment = [part for part in os.environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep) if part]
    sources = [("--config-dir", folder) for folder in folders]
    sources += [(ENVIRONMENT_VARIABLE, folder) for folder in from_environment]
    found = []
    for origin, folder in sources:
        path = Path(expand_home(origin, folder)).absolute()
        if not path_exists(path) or not path.is_dir():
            raise UserError(f"{origin}: {folder} is not a folder; it should hold configs as GROUP/NAME.yaml")
        for file in path.rglob("*.yaml"):
            check_size(file)
        found.append(path)
    _user_folders[:] = found


def folders() -> list[Path]:
    """All config folders; for a name that exists in several, the first one wins."""
    return [*_user_folders, builtin_folder()]


def groups() -> dict[str, dict[str, Path]]:
    """Group -> option -> its YAML file, for everything that can be chosen with ``group=option``.

    A file in a folder of a group is an option with a slash, as in ``experiment=bench/full``.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in folders():
        for file in sorted(folder.rglob("*.yaml")):
            group, _, option = file.relative_to(folder).with_suffix("").as_posix().partition("/")
            if option and group != "hydra":
                found.setdefault(group, {}).setdefault(option, file)
    return found


def register() -> None:
    """Tell Hydra about the user's folders. Hydra's own ``--config-dir`` puts them last, where they never win."""
    global _registered
    if _registered:
        return
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserFoldersFirst(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in _user_folders:
                search_path.prepend("distill", f"file://{folder}", anchor="main")

    Plugins.instance().register(UserFoldersFirst)
    _registered = True
