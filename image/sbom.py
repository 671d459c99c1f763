"""Prints what is inside the given programs, as CycloneDX 1.5 in JSON: every crate that is linked into one of them, with version,
licence, checksum and what needs what. Made from Cargo.lock and cargo's own resolution, so it can't differ from the build; the
same sources give the same bytes.
"""

import json
import pathlib
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEATURES = "penstock-gateway/cluster,penstock-router/cluster"


def resolution():
    about = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    target = next(line.removeprefix("host: ") for line in about.splitlines() if line.startswith("host: "))
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--features", FEATURES,
               "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def linked(programs, nodes, packages):
    """Identifiers of packages reachable from the programs without dependencies of tests and build scripts."""
    seen, left = set(), [i for i, p in packages.items() if p["name"] in programs and p["source"] is None]
    if len(left) != len(programs):
        sys.exit(f"sbom: no such program among {programs}")
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            left += [d["pkg"] for d in nodes[one]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    return seen


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version'].replace('+', '%2B')}"


def component(package, checksums):
    made = {
        "type": "library" if package["source"] else "application",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
    }
    if package.get("license"):
        # "MIT/Apache-2.0" is how crates wrote OR once.
        made["licenses"] = [{"expression": " ".join(package["license"].replace("/", " OR ").split())}]
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return made


def libc():
    """The one part that is no crate: programs are linked with it statically."""
    name, version = subprocess.run(["getconf", "GNU_LIBC_VERSION"], check=True, capture_output=True, text=True).stdout.split()
    return {"type": "library", "bom-ref": f"pkg:generic/{name}@{version}", "name": name, "version": version,
            "purl": f"pkg:generic/{name}@{version}", "licenses": [{"expression": "LGPL-2.1-or-later"}]}


def main():
    programs = sys.argv[1:]
    found = resolution()
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}
    inside = sorted(linked(programs, nodes, packages), key=lambda i: purl(packages[i]))
    version = next(p["version"] for p in packages.values() if p["name"] == "penstock")
    components = [*(component(packages[i], checksums) for i in inside), libc()]
    dependencies = [{"ref": purl(packages[i]), "dependsOn": sorted(
        {purl(packages[d["pkg"]]) for d in nodes[i]["deps"] if d["pkg"] in inside})} for i in inside]
    whole = {"type": "container", "bom-ref": "penstock-image", "name": "penstock", "version": version}
    ours = sorted(purl(packages[i]) for i in inside if packages[i]["name"] in programs and not packages[i]["source"])
    contents = json.dumps([components, dependencies], sort_keys=True)
    print(json.dumps({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, contents)}",
        "version": 1,
        "metadata": {"component": whole},
        "components": components,
        "dependencies": [{"ref": "penstock-image", "dependsOn": [*ours, components[-1]["bom-ref"]]}, *dependencies],
    }, indent=1))


main()
