"""Installing and checking a whole installation from a checkout of the sources."""

from __future__ import annotations

import os
import sys
import time

from stm_plugin.installation.doctor import closed_to_others, doctor
from stm_plugin.installation.hosts import add_hosts, remove_hosts, where_hosts_look
from stm_plugin.installation.ofx_effect import OfxEffect
from stm_plugin.installation.prefix import PRODUCT, is_our_link, read_stamp, remove_tree, write_stamp
from stm_plugin.installation.steps import STEPS, CommandStep, EnvironmentStep, Installation
from stm_plugin.installation.torch_build import advice, check_wanted, has_nvidia_driver


def install(at: Installation, repair: bool = False) -> None:
    """Bring the installation to the state of this checkout; does only the missing steps."""
    started = time.monotonic()
    check_wanted(at.torch, at.torch_index, sys.platform)
    with at.prefix.locked():
        at.prefix.open()
        at.prefix.log.write_text("", encoding="utf-8")
        print(f"{PRODUCT}: installing into {at.prefix.root}", flush=True)
        words = advice(sys.platform, at.torch, at.torch_index, has_nvidia_driver())
        if words and at.options.bundle is None and not STEPS[1].ready(at):
            print(f"  {words}", flush=True)
        try:
            did = remove_hosts(at.prefix, at.options.dropped)
            did = run_steps(at, repair) or did
            if at.options.bundle is not None:
                OfxEffect(at.prefix).bring(at.options.bundle.effect)
            did = add_hosts(at.prefix, at.options.hosts, at.options.ofx_folder, again=repair) or did
        finally:
            if CommandStep().ready(at):  # environments of earlier installations are not in use any more
                for folder in at.prefix.root.glob("env-*"):
                    if folder != at.environment:
                        remove_tree(folder)
                remove_tree(at.prefix.temporary)
    print(f"Installed in {time.monotonic() - started:.0f} s." if did else "Nothing to do.")
    print_where(at)


def run_steps(at: Installation, repair: bool) -> bool:
    """Do every step that is not done; returns whether there was any."""
    did = False
    for number, step in enumerate(STEPS, start=1):
        label = f"[{number}/{len(STEPS)}] {step.words}"
        if step.ready(at) and not (repair and step.name != EnvironmentStep.name):
            print(f"  {label}: ready", flush=True)
            continue
        print(f"  {label} ...", flush=True)
        at_step = time.monotonic()
        write_stamp(step.home(at), step.name, None)
        step.do(at)
        write_stamp(step.home(at), step.name, step.stamp(at))
        did = True
        print(f"  {label}: done in {time.monotonic() - at_step:.0f} s", flush=True)
    return did


def print_where(at: Installation) -> None:
    """Print the path of the command, and how hosts find their plug-ins."""
    link = CommandStep().link(at)
    shown = link if link is not None and link.exists() and is_our_link(link) else at.prefix.launcher
    print(f"The command is {shown}")
    if str(shown.parent) not in os.environ.get("PATH", "").split(os.pathsep):
        print(f"  {shown.parent} is not on PATH: add it there, or call the command by its full name.")
    for line in (*where_hosts_look(at.prefix), closed_to_others(at.prefix)):
        if line:
            print(line, flush=True)


def doctor_of_sources(at: Installation) -> int:
    """Print the state of the installation, and whether it was made from these sources; 0 if all is right."""
    status = doctor(at.prefix)
    if at.prefix.python is None:
        return status
    differing = [step.words for step in STEPS if read_stamp(step.home(at), step.name) != step.stamp(at)]
    if not differing:
        return status
    print(
        f"It was not made from the present sources in {at.source}, but from "
        f"{at.prefix.record().get('source')}. What differs: {', '.join(differing)}."
    )
    print("`python3 install.py` here installs these sources.")
    return 1
