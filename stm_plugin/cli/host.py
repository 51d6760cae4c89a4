"""`stm host`: connects Nuke and OpenFX hosts with this installation, or disconnects them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from stm_plugin.installation.hosts import add_hosts, remove_hosts, where_hosts_look
from stm_plugin.installation.ofx_effect import machine_ofx_folder
from stm_plugin.installation.package_managers import RezPackage, module_file, take_away
from stm_plugin.installation.prefix import NUKE, OFX, REZ, InstallationError, Prefix, own_prefix, remove_tree

app = typer.Typer(help="Connect Nuke and OpenFX hosts with this installation.", no_args_is_help=True)

_Add = Annotated[bool, typer.Option("--add/--remove", help="Set it up, or undo that.")]
_Root = Annotated[Path | None, typer.Option("--prefix", help="The installation, if not this command's own.")]


@app.command("nuke")
def nuke(add: _Add, prefix: _Root = None) -> None:
    """Keep lines in ~/.nuke/init.py that let Nuke find the node."""
    _change(_installation(prefix), NUKE, add)


@app.command("ofx")
def ofx(
    add: _Add,
    link: Annotated[
        Path | None, typer.Option(help=f"Link it into this folder, too, e.g. {machine_ofx_folder()}.")
    ] = None,
    prefix: _Root = None,
) -> None:
    """Build the effect for OpenFX hosts on this machine."""
    _change(_installation(prefix), OFX, add, None if link is None else link.expanduser().absolute())


@app.command("rez")
def rez(
    add: _Add,
    to: Annotated[
        Path | None, typer.Option("--to", help="A folder of REZ_PACKAGES_PATH; --remove: all if not given.")
    ] = None,
    prefix: _Root = None,
) -> None:
    """Write a package for rez: the variables that choose this version."""
    found = _complete(prefix)
    package = RezPackage(found)
    folder = None if to is None else to.expanduser().absolute()
    is_ours = os.access(found.root, os.W_OK)
    if not add:
        if folder is not None and (file := package.file(folder)) not in package.recorded:
            print(f"{file}: {'removed' if take_away(file) else 'does not exist'}")
        elif is_ours:
            _change(found, REZ, add)
        return
    if folder is None:
        raise InstallationError("Which folder?", hint="Name one of REZ_PACKAGES_PATH with --to.")
    if is_ours:
        with found.locked():
            package.ask_for(folder)
    else:
        package.write(folder)
    print(f"{package.file(folder)}\n`rez env stm_for_nuke` finds it with {folder} in REZ_PACKAGES_PATH.")


@app.command("modules")
def modules(prefix: _Root = None) -> None:
    """Print a file for environment modules: the variables that choose this version."""
    print(module_file(_complete(prefix)), end="")


def _installation(root: Path | None) -> Prefix:
    """The installation to connect.

    Raises:
        InstallationError: there is none, or it is an administrator's.
    """
    prefix = _complete(root)
    if not os.access(prefix.root, os.W_OK):
        raise InstallationError(
            f"{prefix.root} is not writable for you, so it cannot record your hosts.",
            hint=f"Set NUKE_PATH={prefix.nuke} and OFX_PLUGIN_PATH={prefix.ofx} where hosts are started.",
        )
    return prefix


def _complete(root: Path | None) -> Prefix:
    """The installation to use. InstallationError if there is none."""
    prefix = Prefix(own_prefix() if root is None else root.expanduser().absolute())
    if prefix.python is None:
        raise InstallationError(
            f"There is no complete installation in {prefix.root}.",
            hint="Run `python3 install.py`, or name an installation with --prefix.",
        )
    return prefix


def _change(prefix: Prefix, host: str, add: bool, link: Path | None = None) -> None:
    with prefix.locked():
        try:
            did = add_hosts(prefix, {host}, link) if add else remove_hosts(prefix, {host})
        finally:
            remove_tree(prefix.temporary)
    if not did:
        print("Nothing to do.")
    for line in where_hosts_look(prefix):
        print(line)
