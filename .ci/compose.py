"""Checks compose.yaml as far as that goes without Docker: every service's flags and environment against the programs, health
checks, published ports, and what waits for what.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import programs
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
faults = []


def interpolated(text, given):
    """As Compose does it, with these variables in the environment."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: given.get(match[1]) or match[2], text)
    return re.sub(r"\$\{(\w+):\+([^}]*)\}", lambda match: match[2] if given.get(match[1]) else "", text)


def environment(service, files, given):
    pairs = service.get("environment", {}).items()
    return {name: interpolated(str(value), given).replace("/run/secrets", files) for name, value in pairs}


def text_of(config, given):
    if "file" in config:
        return (ROOT / interpolated(config["file"], given)).read_text()
    return interpolated(config["content"], given)


def check(name, service, configs, files, given):
    program, *arguments = service["command"]
    if not program.startswith("penstock"):
        return
    mounted = {config["target"].rsplit("/", 1)[1]: text_of(configs[config["source"]], given)
               for config in service["configs"]}
    for file in pathlib.Path(files).iterdir():
        file.unlink()
    for file, text in mounted.items():
        (pathlib.Path(files) / file).write_text(text)
    env = environment(service, files, given)
    arguments = [argument.replace("/run/secrets", files) for argument in arguments]
    for argument in [*arguments, *env.values()]:
        if argument.startswith(files) and not pathlib.Path(argument).exists():
            faults.append(f"{name} wants {argument.removeprefix(files)}, which is not mounted")
    shown, wrong = programs.ask(program, arguments, env)
    faults.extend(f"{name}: {it}" for it in wrong)
    if program not in programs.SERVERS or wrong:
        return
    listening = programs.listeners(shown)
    probe = service["healthcheck"]["test"]
    asked, more = programs.ask(probe[1], probe[2:], {})
    faults.extend(f"{name}: health check: {it}" for it in more)
    wanted = [int(probe[-1].rsplit(":", 1)[1]), *(int(port.rsplit(":", 1)[1]) for port in service["ports"])]
    faults.extend(f"{name}: nothing listens on {port}" for port in wanted if port not in listening)
    if not all(port.startswith("127.0.0.1:") for port in service["ports"]):
        faults.append(f"{name}: known passwords must not be reachable from other machines")


def sending(outside):
    """The variables of a mapper whose API has a certificate of its own."""
    certificate = pathlib.Path(outside) / "ca.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=platform", "-keyout", "/dev/null",
                    "-out", certificate], check=True, capture_output=True)
    return {"MAPPER_DRY_RUN": "false", "API_URL": "https://platform", "API_USER": "t1/user", "API_PASSWORD": "password",
            "API_CA_FILE": str(certificate)}


def main():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    hosts = []
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as outside:
        for name, service in services.items():
            if "command" not in service:
                faults.append(f"{name} has no command")
                continue
            check(name, service, compose["configs"], files, {})
            if name == "mapper":
                # As one that really sends.
                check(name, service, compose["configs"], files, sending(outside))
            hosts += [port.rsplit(":", 1)[0] for port in service.get("ports", [])]
            for waited, how in service.get("depends_on", {}).items():
                other = services.get(waited, {})
                if how["condition"] == "service_healthy" and "test" not in other.get("healthcheck", {}):
                    faults.append(f"{name} waits for {waited}, which has no health check")
    faults.extend(f"{host} is published twice" for host in {host for host in hosts if hosts.count(host) > 1})
    if faults:
        sys.exit("compose: " + "\ncompose: ".join(faults))
    print(f"compose: {len(services)} services; their flags, environment, health checks and ports hold")


main()
