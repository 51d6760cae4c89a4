#!/usr/bin/env python3
"""Installs STM for Nuke into a private environment; Nuke's Python is not changed.

    python3 install.py              install, update or repair; quick when there is nothing to do
    python3 install.py --nuke       the same, and let Nuke find the node through ~/.nuke/init.py
    python3 install.py --ofx        the same, and build the effect for OpenFX hosts
    python3 install.py --demo       install, then build a short plate and make mattes of it
    python3 install.py --test       install, then run every check of the project
    python3 install.py --doctor     check the installation; changes nothing
    python3 install.py --uninstall  remove everything that an installation put on this machine

A bootstrap: it finds a suitable Python and calls `stm_plugin/installation`, which needs the standard library
only; `stm host` and `stm doctor` use that package, too. An old Python can still read this file: it prints
that it is too old, or starts a newer one on the same machine.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn, Optional, Sequence, Tuple

SOURCE = Path(__file__).resolve().parent
THIS_PYTHON = (sys.version_info[0], sys.version_info[1])
OLDEST_PYTHON = (3, 11)  # the oldest for which the locked NumPy and SciPy exist
NEWEST_PYTHON = (3, 14)
WANTED_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python")
HANDED_OVER = "STM_INSTALL_HANDED_OVER"  # set for the Python that this one starts


def version_words(version: Tuple[int, ...]) -> str:
    """(3, 11) -> "3.11"."""
    return ".".join(str(number) for number in version[:2])


def python_fits(version: Tuple[int, ...], bits: int) -> bool:
    """Whether the locked packages exist for this Python."""
    return OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON and bits == 64


def probe_python(command: str) -> Optional[str]:
    """The path of the interpreter behind a command name if it fits, else None."""
    found = shutil.which(command)
    if found is None:
        return None
    question = "import sys; print(*sys.version_info[:2], sys.maxsize > 2**32, sys.executable)"
    try:
        answer = subprocess.run(
            [found, "-c", question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=20,
            check=False,
        )
        major, minor, wide, executable = answer.stdout.strip().split(" ", 3)
        fits = python_fits((int(major), int(minor)), 64 if wide == "True" else 32)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return executable if fits else None


def ensure_python(arguments: Sequence[str]) -> None:
    """Return if this Python fits and ignores PYTHON* variables; else start one that does.

    Ends the process with an error if there is none.
    """
    bits = 64 if sys.maxsize > 2**32 else 32
    fits = python_fits(THIS_PYTHON, bits)
    handed_over = os.environ.pop(HANDED_OVER, None) is not None
    if fits and (sys.flags.isolated or handed_over):
        return
    mine = f"Python {platform.python_version()} ({bits} bit)"
    names = () if handed_over or fits else WANTED_PYTHONS
    for other in [sys.executable] if fits else (probe_python(name) for name in names):
        if other is not None:
            if not fits:
                print(f"This is {mine}; continuing with {other}.", flush=True)
            call = [other, "-I", str(Path(__file__).resolve()), *arguments]
            environment = dict(os.environ, **{HANDED_OVER: "1"})
            if os.name == "nt":
                sys.exit(subprocess.call(call, env=environment))
            os.execve(other, call, environment)
    sys.exit(
        f"\nError: The engine needs a 64-bit Python {version_words(OLDEST_PYTHON)} to "
        f"{version_words(NEWEST_PYTHON)}. This is {mine} at {sys.executable}, and no other was found on PATH."
        f"\nInstall Python {version_words(OLDEST_PYTHON)} beside it (nothing else has to use it), then run "
        "this command again with that Python."
    )


if __name__ == "__main__":
    ensure_python(sys.argv[1:])
if python_fits(THIS_PYTHON, 64):  # an older Python could not read these
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(SOURCE))
    from stm_plugin.installation import removal
    from stm_plugin.installation.bundle import Order, make_bundle, open_bundle
    from stm_plugin.installation.ofx_effect import machine_ofx_folder
    from stm_plugin.installation.prefix import (
        HOSTS,
        NUKE,
        OFX,
        ON_WINDOWS,
        PRODUCT,
        InstallationError,
        copy_files,
        default_prefix,
        files_below,
    )
    from stm_plugin.installation.programs import clean_environment
    from stm_plugin.installation.setup import doctor_of_sources, install
    from stm_plugin.installation.steps import DEMO, ENGINE, GROUPS, REVIEW, TRAIN, Installation, Options
    from stm_plugin.installation.targets import TARGETS, named_target
    from stm_plugin.installation.torch_build import AUTO, CHOICES, INDEX_VARIABLE


# --- the verbs ----------------------------------------------------------------------------------------------


def run_demo(at: Installation, out: Path, *, review: bool) -> int:
    """Run the demo, with --review open its page; returns the exit status."""
    command = [str(at.python), "-I", "-m", "stm_plugin.demo", "--out", str(out)]
    command += ["--review"] * review
    with removal.remembering_demo(at.prefix, out):
        return subprocess.call(command, env=clean_environment(), cwd=str(at.prefix.root))


def run_checks(at: Installation, more: Sequence[str]) -> int:
    """Run every check on the checkout; returns 0 only if all pass. pytest runs last."""
    # one process per core; tests/conftest.py puts the files in order
    shared_out = ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]
    checks = (["ruff", "check", "."], ["mypy"], ["pytest", *shared_out, *more])
    environment = clean_environment()
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(at.prefix.cache / "zig"))
    folder = at.source
    if at.options.bundle is not None:  # bundles do not change
        folder = at.prefix.cache / "sources"
        copy_files(files_below(at.source, [item.name for item in at.source.iterdir()]), at.source, folder)
    failed = []
    for arguments in checks:
        print("\n$ python -m {}".format(" ".join(arguments)), flush=True)
        if subprocess.call([str(at.python), "-m", *arguments], env=environment, cwd=str(folder)) != 0:
            failed.append(arguments[0])
    if failed:
        print("Failed: {}".format(", ".join(failed)), flush=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Installs {PRODUCT} into a private environment.",
        epilog="Words after -- go to pytest: install.py --test -- -k colour",
    )
    verbs, nuke, ofx = (parser.add_mutually_exclusive_group() for _ in range(3))
    flags = (
        (verbs, "--demo", "install, then build a plate and make its mattes"),
        (verbs, "--test", "install, then run every check of the project"),
        (verbs, "--doctor", "check the installation; changes nothing"),
        (verbs, "--repair", "check every package and repair damaged ones"),
        (verbs, "--uninstall", "remove everything but your caches and shots"),
        (parser, "--train", "install the ImageNet weights for training, too"),
        (
            parser,
            "--review",
            "install the packages of `stm review`, too; with --demo: open its page on the demo's shot",
        ),
        (nuke, "--nuke", "keep lines in ~/.nuke/init.py that let Nuke find the node"),
        (nuke, "--no-nuke", "remove those lines"),
        (ofx, "--ofx", "build the effect for OpenFX hosts"),
        (ofx, "--no-ofx", "remove the effect"),
    )
    for group, flag, words in flags:
        group.add_argument(flag, action="store_true", help=words)
    machine = machine_ofx_folder()
    words = f"build it, and link it into a folder that hosts search (default: {machine})"
    ofx.add_argument("--ofx-link", type=Path, nargs="?", const=machine, metavar="FOLDER", help=words)
    words = f"the folder to install into (default: {default_prefix()})"
    parser.add_argument("--prefix", type=Path, help=words)
    words = "link the stm command here (default: ~/.local/bin, without --prefix)"
    parser.add_argument("--link-dir", type=Path, help=words)
    words = "the build of torch; auto (default): the registry's, which has CUDA on Linux and none on Windows"
    parser.add_argument("--torch", choices=CHOICES, help=words)
    words = "package index with another build of torch: taken from there only, its hashes not checked "
    words += f"(default: ${INDEX_VARIABLE})"
    parser.add_argument("--torch-index", default="", metavar="URL", help=words)
    words = "collect everything for an installation without a network, for machines like this one"
    verbs.add_argument("--bundle", type=Path, metavar="FOLDER", help=words)
    words = "with --bundle: for machines of this kind"
    parser.add_argument("--platform", choices=sorted(TARGETS), default="", help=words)
    words = "with --bundle: for this version of Python, such as 3.12 (default: this one's)"
    parser.add_argument("--for-python", default="", metavar="VERSION", help=words)
    words = "install from a folder made by --bundle, without a network"
    parser.add_argument("--from", dest="bundle_from", type=Path, metavar="FOLDER", help=words)
    words = "folder of --demo (default: ./stm-demo)"
    parser.add_argument("--out", type=Path, default=Path("stm-demo"), help=words)
    parser.add_argument("pytest", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args(list(arguments))
    if asked.pytest and not asked.test:
        parser.error("words after the options go to pytest and need --test")
    if (asked.platform or asked.for_python) and not asked.bundle:
        parser.error("--platform and --for-python need --bundle")
    return asked


def absolute(path: Path) -> Path:
    """A typed path as an absolute one."""
    return Path(os.path.abspath(str(path.expanduser())))


def options_of(asked: argparse.Namespace) -> Options:
    """The options of an installation from the command line."""
    groups = GROUPS if asked.test else (ENGINE, DEMO) if asked.demo else (ENGINE,)  # type: Tuple[str, ...]
    own = asked.prefix is None
    user_links = None if ON_WINDOWS or not own else Path.home() / ".local" / "bin"
    wanted = {NUKE: asked.nuke, OFX: asked.ofx or asked.ofx_link is not None}
    dropped = {NUKE: asked.no_nuke, OFX: asked.no_ofx}
    return Options(
        source=SOURCE,
        prefix=default_prefix() if own else absolute(asked.prefix),
        groups=groups + (TRAIN,) * asked.train + (REVIEW,) * asked.review,
        torch=asked.torch,
        torch_index=asked.torch_index or os.environ.get(INDEX_VARIABLE, ""),
        link_folder=absolute(asked.link_dir) if asked.link_dir else user_links,
        hosts=tuple(host for host in HOSTS if wanted[host]),
        dropped=tuple(host for host in HOSTS if dropped[host]),
        ofx_folder=absolute(asked.ofx_link) if asked.ofx_link else None,
    )


def stop(_signal: int, _frame: object) -> NoReturn:
    """On SIGTERM end the children and this process as on Ctrl-C."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status."""
    try:
        asked = parse(arguments)
        signal.signal(signal.SIGTERM, stop)
        options = options_of(asked)
        if asked.bundle:
            at = Installation(options._replace(prefix=asked.bundle / ".work", groups=GROUPS))
            target = named_target(asked.platform, asked.for_python)
            order = Order(SOURCE, at.locks(), at.torch_pins(), at.torch_index, asked.torch or AUTO, target)
            make_bundle(absolute(asked.bundle), order)
            return 0
        if asked.bundle_from:
            found = open_bundle(absolute(asked.bundle_from))
            options = options._replace(bundle=found, source=found.sources)
        at = Installation(options)
        if asked.uninstall:
            removal.uninstall(at.prefix, at.options.link_folder)
            return 0
        if asked.doctor:
            return doctor_of_sources(at)
        install(at, repair=asked.repair)
        if asked.demo:
            return run_demo(at, absolute(asked.out), review=asked.review)
        return run_checks(at, asked.pytest) if asked.test else 0
    except InstallationError as error:
        print(f"\nError: {error.what}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
