"""Setting up Nuke and OpenFX hosts, repairing and undoing it: for `stm host` and for installing."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from stm_plugin.installation.nuke_init import NukeInit
from stm_plugin.installation.ofx_effect import OfxEffect, OfxLink
from stm_plugin.installation.package_managers import RezPackage
from stm_plugin.installation.prefix import NUKE, OFX, Prefix


class HostPart(Protocol):
    """A file or link that a host needs outside the environment."""

    @property
    def host(self) -> str:
        """The host that needs it."""

    @property
    def words(self) -> str:
        """Its name for people."""

    def wanted(self, hosts: Collection[str]) -> bool:
        """Whether it is part of an installation for these hosts."""

    def trouble(self) -> str:
        """Why it is not in order; empty if it is."""

    def add(self) -> None:
        """Make it, also after an interrupted run."""

    def remove(self) -> bool:
        """Remove it, even if it is incomplete; returns whether it existed."""


def host_parts(prefix: Prefix) -> tuple[HostPart, ...]:
    """All parts, in the order in which they are made."""
    return NukeInit(prefix), OfxEffect(prefix), OfxLink(prefix), RezPackage(prefix)


def add_hosts(
    prefix: Prefix, hosts: Collection[str], link_folder: Path | None = None, again: bool = False
) -> bool:
    """Set up hosts, and repair those that were set up before; returns whether anything was done.

    Args:
        prefix: locked by this process.
        hosts: to set up, besides those that are set up.
        link_folder: the folder for a link to the OpenFX effect.
        again: make parts that are in order anew, too.

    Raises:
        InstallationError: one cannot be set up; those before it are.
    """
    did = False
    if link_folder is not None:
        OfxLink(prefix).ask_for(link_folder)
    kept_up = prefix.listed("hosts")
    for part in host_parts(prefix):
        if not part.wanted({*hosts, *kept_up}):
            continue
        if part.host in kept_up and not part.trouble() and not again:
            print(f"  {part.words}: ready", flush=True)
            continue
        print(f"  {part.words} ...", flush=True)
        started = time.monotonic()
        part.add()
        did = True
        print(f"  {part.words}: done in {time.monotonic() - started:.0f} s", flush=True)
    return did


def remove_hosts(prefix: Prefix, hosts: Collection[str]) -> bool:
    """Undo the setup of hosts; returns whether there was any."""
    did = False
    for part in reversed(host_parts(prefix)):
        if part.host in hosts and part.remove():
            did = True
            print(f"  {part.words}: removed", flush=True)
    return did


def where_hosts_look(prefix: Prefix) -> list[str]:
    """One line for each host: how it finds its plug-in, or how to set that up."""
    hosts = prefix.listed("hosts")
    lines = []
    if NUKE in hosts:
        file = NukeInit(prefix).file
        lines.append(f"Nuke finds the node at its next start: {file} names {prefix.nuke}")
    else:
        lines.append(
            f"For Nuke: `stm host nuke --add` (lines in ~/.nuke/init.py), or set NUKE_PATH={prefix.nuke}"
        )
    if OFX in hosts:
        lines.append(f"For OpenFX hosts: OFX_PLUGIN_PATH={prefix.ofx}")
    return lines
