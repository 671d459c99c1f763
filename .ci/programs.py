"""Asks Penstock's own programs whether they understand the environment and the flags that a deployment gives them. Used by
chart.py and compose.py; takes the programs of a debug build, which `make test` leaves.
"""

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILT = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
SERVERS = {"penstock", "penstock-gateway", "penstock-router", "penstock-mapper"}


def ask(program, arguments, env):
    """What a server has in effect with this environment (else nothing), and what is wrong."""
    path = BUILT / program
    if program not in (ROOT / "image" / "programs").read_text().split():
        return "", [f"{program} is not in the image"]
    if not path.exists():
        return "", [f"{program} is not built: make programs builds it"]
    # Help comes only when every flag before it is understood.
    last = "--print-config" if program in SERVERS else "--help"
    asked = subprocess.run([path, *arguments, last], env={"PATH": os.environ["PATH"], **env}, text=True,
                           capture_output=True, check=False)
    if asked.returncode:
        return "", [f"{program} does not understand it:\n{asked.stderr}"]
    if program not in SERVERS:
        return "", []
    # Empty ones count as left out; the file of settings is no setting.
    given = [variable for variable, value in env.items()
             if variable.startswith("PENSTOCK_") and value and variable != "PENSTOCK_CONFIG"]
    taken = len(re.findall(r" # environment$", asked.stdout, re.M))
    if taken != len(given):
        return asked.stdout, [f"{len(given)} variables given, {taken} taken: {given}\n{asked.stdout}"]
    return asked.stdout, []


def samples(configuration):
    """What is wrong with a mapper's configuration by its own sample messages; `test` connects to nothing."""
    ran = subprocess.run([BUILT / "penstock-mapper", "test", "--config", configuration], env={"PATH": os.environ["PATH"]},
                         text=True, capture_output=True, check=False)
    return [f"penstock-mapper test:\n{ran.stdout}{ran.stderr}"] if ran.returncode else []


def listeners(shown):
    """Ports on which a server with these settings is reached from other machines."""
    found = re.findall(r'listen = "([^"]*):(\d+)"', shown)
    return {int(port) for host, port in found if host not in ("127.0.0.1", "[::1]")}
