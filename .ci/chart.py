"""Looks at what Helm made of the chart, after `.ci/helm` has rendered it: schemas of Kubernetes, references between objects,
the environment against the programs themselves, golden output, the table of values, the schema of values.

With --write, golden output and table are brought up to date instead of compared.
"""

import base64
import difflib
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import programs
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHART = ROOT / "helm"
GOLDEN = CHART / "golden"
PAGE = ROOT / "docs" / "kubernetes.md"
OLDEST = (1, 28)
# The schemas know no objects of operators.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
# Secrets and ConfigMaps that a set of values takes as given.
OUTSIDE = {"everything": {"backends", "inside", "acme", "certificate", "platform", "authorities", "routes"},
           "secure": {"certificate"}, "mapper": {"acme", "platform"}, "shipped": {"platform"}}
faults = []


def fault(text):
    faults.append(text)


def rendered(out):
    """All renderings, by helm and set."""
    for path in sorted(out.glob("helm[34]-*.yaml")):
        objects = [one for one in yaml.safe_load_all(path.read_text()) if one]
        yield path.stem, path, objects


def called(one):
    return f"{one['kind']}/{one['metadata']['name']}"


def versions():
    known = [v for v in kubernetes_validate.utils.all_versions() if tuple(map(int, v.split(".")[:2])) >= OLDEST]
    assert known, "no schemas"
    return known


# Reading the schemas anew for each object takes most of the time.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
validated = set()


def check_schemas(name, objects):
    for one in objects:
        # Most objects are the same out of both Helms and several sets.
        text = json.dumps(one, sort_keys=True)
        if one["kind"] in FOREIGN or text in validated:
            continue
        validated.add(text)
        for version in versions():
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except Exception as error:
                where = ".".join(map(str, getattr(error, "absolute_path", [])))
                fault(f"{name}: {called(one)} in Kubernetes {version}: {where}: {getattr(error, 'message', error)}")
                break


def pod_of(one):
    if one["kind"] == "Pod":
        return one
    if one["kind"] in ("Deployment", "StatefulSet", "Job"):
        return one["spec"]["template"]
    return None


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in selector.items())


def check_references(name, objects):
    """Each selector finds pods, each named port is one of theirs, each Secret and account is there, names are unique."""
    pods = [(one, pod_of(one)) for one in objects if pod_of(one)]
    secrets = {one["metadata"]["name"]: set(one.get("data", {})) for one in objects if one["kind"] == "Secret"}
    accounts = {one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount"}
    configs = {one["metadata"]["name"] for one in objects if one["kind"] == "ConfigMap"}
    seen = [called(one) for one in objects]
    for twice in {it for it in seen if seen.count(it) > 1}:
        fault(f"{name}: {twice} is there twice")
    for one in objects:
        if one["metadata"].get("namespace") != "iot":
            fault(f"{name}: {called(one)} is not in the release's namespace")

    def found(selector):
        return [pod for _, pod in pods if selects(selector, pod["metadata"]["labels"])]

    def ports(pod):
        return {port["name"]: port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", [])}

    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            chosen = found(spec["selector"])
            if not chosen:
                fault(f"{name}: {called(one)} selects no pod")
            for port in spec["ports"]:
                for pod in chosen:
                    if port["targetPort"] not in ports(pod):
                        fault(f"{name}: {called(one)}: no pod has port {port['targetPort']}")
        if one["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = (spec.get("selector") or spec.get("podSelector"))
            if not found(selector["matchLabels"]):
                fault(f"{name}: {called(one)} selects no pod")
        if one["kind"] == "NetworkPolicy":
            for rule in spec.get("ingress", []):
                named = [port["port"] for port in rule.get("ports", []) if isinstance(port["port"], str)]
                for pod in found(spec["podSelector"]["matchLabels"]):
                    for port in named:
                        if port not in ports(pod):
                            fault(f"{name}: {called(one)}: no port {port}")
        if one["kind"] == "HorizontalPodAutoscaler" and f"Deployment/{spec['scaleTargetRef']['name']}" not in seen:
            fault(f"{name}: {called(one)} scales nothing")
        if one["kind"] == "ServiceMonitor":
            services = [s for s in objects if s["kind"] == "Service"
                        and selects(spec["selector"]["matchLabels"], s["metadata"]["labels"])]
            if len(services) != 1 or not any(p["name"] == "admin" for p in services[0]["spec"]["ports"]):
                fault(f"{name}: {called(one)} finds {[called(s) for s in services]}")
    outside = OUTSIDE.get(name.split("-", 1)[1], set())
    for one, pod in pods:
        spec = pod["spec"]
        if spec["serviceAccountName"] not in accounts or spec.get("automountServiceAccountToken") is not False:
            fault(f"{name}: {called(one)}: account {spec['serviceAccountName']}")
        wanted = []
        places = {volume["name"] for volume in spec.get("volumes", [])}
        places |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        if one["kind"] == "StatefulSet" and f"Service/{one['spec']['serviceName']}" not in seen:
            fault(f"{name}: {called(one)} has no Service {one['spec']['serviceName']}")
        for volume in spec.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in outside | configs:
                fault(f"{name}: {called(one)} mounts {volume['configMap']['name']}, which is not made")
            if "secret" in volume and volume["secret"]["secretName"] not in outside:
                fault(f"{name}: {called(one)} mounts {volume['secret']['secretName']}, which is not made")
            for source in volume.get("projected", {}).get("sources", []):
                wanted += [(source["secret"]["name"], item["key"]) for item in source["secret"]["items"]]
        for container in spec["containers"] + spec.get("initContainers", []):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in places:
                    fault(f"{name}: {called(one)}/{container['name']} mounts {mount['name']}, which is no volume")
            for variable in container.get("env", []):
                ref = variable.get("valueFrom", {}).get("secretKeyRef")
                if ref:
                    wanted.append((ref["name"], ref["key"]))
        for secret, key in wanted:
            if secret not in outside and key not in secrets.get(secret, ()):
                fault(f"{name}: {called(one)} wants {key} of Secret {secret}, which is not made")


def check_hardening(name, objects):
    for one in objects:
        pod = pod_of(one)
        if not pod:
            continue
        spec = pod["spec"]
        security = spec["securityContext"]
        if not (security["runAsNonRoot"] and security["seccompProfile"]["type"] == "RuntimeDefault"):
            fault(f"{name}: {called(one)} may run as root")
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container.get("securityContext", {})
            if not (own.get("readOnlyRootFilesystem") and own.get("capabilities") == {"drop": ["ALL"]}
                    and own.get("allowPrivilegeEscalation") is False):
                fault(f"{name}: {called(one)}/{container['name']} is not confined")
            if not container.get("resources", {}).get("requests"):
                fault(f"{name}: {called(one)}/{container['name']} requests nothing")


def resolve(container, objects, files):
    """The environment as the kubelet would make it, and the values that came out of Secrets."""
    secrets = {one["metadata"]["name"]: one.get("data", {}) for one in objects if one["kind"] == "Secret"}
    made = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            value = {"metadata.name": "pod-0", "status.podIP": "10.0.0.7"}[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            ref = source["secretKeyRef"]
            data = secrets.get(ref["name"], {}).get(ref["key"])
            stand_in = "redis://:pw@redis:6379" if "redis" in ref["key"] else "http://etcd:2379"
            value = base64.b64decode(data).decode() if data else stand_in
        else:
            value = variable["value"]
        value = re.sub(r"\$\((\w+)\)", lambda match: made[match[1]], value)
        for mounted in ("/run/penstock-tls", "/run/penstock", "/etc/penstock-ca", "/etc/penstock"):
            value = value.replace(mounted, files)
        made[variable["name"]] = value
    return made


def lay_out_configs(pod, objects, files):
    """ConfigMaps of a pod as files; those from outside have stand-ins already."""
    made = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    for volume in pod["spec"].get("volumes", []):
        for file, text in made.get(volume.get("configMap", {}).get("name"), {}).items():
            (pathlib.Path(files) / file).write_text(text)


def check_programs(name, objects):
    """Each program takes its environment and its flags: it is asked itself."""
    with tempfile.TemporaryDirectory() as files:
        for file in ("cluster-secret", "admin-password", "password", "api-password"):
            (pathlib.Path(files) / file).write_text("x" * 40)
        shutil.copy(ROOT / "mapper" / "examples" / "json.toml", files)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout",
                        "tls.key", "-out", "tls.crt"], cwd=files, check=True, capture_output=True)
        shutil.copy(pathlib.Path(files) / "tls.crt", pathlib.Path(files) / "ca.crt")
        for one in objects:
            pod = pod_of(one)
            for container in (pod["spec"]["containers"] + pod["spec"].get("initContainers", []) if pod else []):
                command = container.get("command", [""])[0]
                if not command.startswith("/usr/bin/penstock"):
                    continue
                check_program(f"{name}: {called(one)}/{container['name']}", one, pod, container, objects, files)


def check_program(where, one, pod, container, objects, files):
    program = pathlib.Path(container["command"][0]).name
    server = one["kind"] in ("Deployment", "StatefulSet")
    lay_out_configs(pod, objects, files)
    env = resolve(container, objects, files) if server else {}
    arguments = [argument.replace("/run/penstock", files) for argument in container.get("args", [])]
    shown, wrong = programs.ask(program, arguments, env)
    faults.extend(f"{where}: {it}" for it in wrong)
    if not server or wrong:
        return
    if program == "penstock-mapper":
        faults.extend(f"{where}: {it}" for it in programs.samples(env["PENSTOCK_CONFIG"]))
    listeners = programs.listeners(shown)
    for port in container["ports"]:
        if port["containerPort"] not in listeners:
            fault(f"{where}: nothing listens on {port['containerPort']} for other machines")
    check_probes(where, container, shown)
    check_grace(where, pod, shown)


def check_probes(where, container, shown):
    """Probes ask for a page of the admin listener, at its port."""
    pages = set(re.findall(r'\.route\("(/\w+)"', (ROOT / "common" / "src" / "admin.rs").read_text()))
    admin = int(re.search(r'^\[admin\]\nlisten = "[^"]*:(\d+)"', shown, re.M)[1])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[kind]["httpGet"]
        if asked["path"] not in pages or ports.get(asked["port"]) != admin:
            fault(f"{where}: {kind} asks {asked}")


def check_grace(where, pod, shown):
    seconds = {key: int(value) for key, value in re.findall(r'(drain_\w+) = "(\d+)s"', shown)}
    needed = seconds["drain_delay"] + seconds["drain_timeout"]
    if pod["spec"]["terminationGracePeriodSeconds"] < needed + 10:
        fault(f"{where}: a drain may take {needed} s, but the pod is killed before")


def promtool(rules):
    """Prometheus's own checker, where it is installed."""
    if not shutil.which("promtool"):
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(rules, file)
        file.flush()
        ran = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
    if ran.returncode:
        fault(f"promtool: {ran.stdout}{ran.stderr}")


def check_alerts(objects):
    """Metrics in alerts are ones that the sources register: without the ending of their kind, as they are registered."""
    sources = "".join(path.read_text() for crate in ("common", "gateway", "router", "mapper")
                      for path in (ROOT / crate / "src").rglob("*.rs"))
    names = set(re.findall(r'"(penstock_\w+)"', sources))
    used = set()
    for one in objects:
        if one["kind"] == "PrometheusRule":
            promtool(one["spec"])
            for rule in one["spec"]["groups"][0]["rules"]:
                used |= set(re.findall(r"\bpenstock_\w+", rule["expr"]))
                if rule["expr"].count("(") != rule["expr"].count(")"):
                    fault(f"alert {rule['alert']}: parentheses")
                if rule["expr"].count("{") != rule["expr"].count("namespace="):
                    fault(f"alert {rule['alert']}: of every namespace")
    for metric in used:
        if not {metric, re.sub(r"_(total|bucket|sum|count)$", "", metric)} & names:
            fault(f"alerts use {metric}, which no program has")
    return used


def masked(text):
    """What is drawn at random is not compared."""
    return re.sub(r"^(  (?:cluster-secret|admin-password|password): )\S+$", r"\1(drawn)", text, flags=re.M)


def same(path, text, write):
    old = path.read_text() if path.exists() else ""
    if write:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    elif old != text:
        lines = difflib.unified_diff(old.splitlines(), text.splitlines(), str(path.relative_to(ROOT)), "now", lineterm="")
        fault("\n".join(lines) + "\n  (meant? make helm-golden)")


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict) and value and not documented(path + (key,)):
            yield from leaves(value, path + (key,))
        else:
            yield path + (key,), value


COMMENTS = {}


def documented(path):
    return path in COMMENTS


def read_comments():
    """Lines `# --` of values.yaml by the path of the value below them."""
    path, text = [], None
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.strip().startswith("# -- "):
            text = line.strip()[5:]
        elif match := re.match(r"^( *)([A-Za-z0-9]+):", line):
            depth = len(match[1]) // 2
            path = path[:depth] + [match[2]]
            if text:
                COMMENTS[tuple(path)] = text
            text = None


def table():
    read_comments()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = ["| value | default | means |", "|---|---|---|"]
    for path, value in leaves(values):
        name = ".".join(path)
        if path not in COMMENTS:
            fault(f"values.yaml: {name} has no line # --")
            continue
        shown = json.dumps(value) if value not in ("", {}, []) else ""
        if isinstance(value, dict) and value:
            shown = "see values.yaml"
        elif shown:
            shown = f"`{shown.strip(chr(34)) if isinstance(value, str) else shown}`"
        rows.append(f"| `{name}` | {shown} | {COMMENTS[path].replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def check_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(path, schema, values):
        known = schema.get("properties")
        if known is None:
            return
        if schema.get("additionalProperties") is not False:
            fault(f"values.schema.json: {path or 'the top'} takes unknown values")
        for name in set(known) ^ set(values) - {"global"}:
            if name != "global":
                fault(f"{path}{name} is in only one of values.yaml and values.schema.json")
        for name, value in values.items():
            if isinstance(value, dict):
                compare(f"{path}{name}.", known.get(name, {}), value)

    compare("", schema, values)


def main():
    out, write = ROOT / sys.argv[1], "--write" in sys.argv[2:]
    used = set()
    for name, path, objects in rendered(out):
        check_schemas(name, objects)
        check_references(name, objects)
        check_hardening(name, objects)
        check_programs(name, objects)
        used |= check_alerts(objects)
        if name == "helm3-required" or name == "helm4-required":
            same(GOLDEN / "defaults.yaml", masked(path.read_text()), write)
    if not used:
        fault("no set of values makes alerts")
    check_schema()
    rows = table()
    page = PAGE.read_text()
    head, rest = page.split("<!-- values: begin -->\n", 1)
    _, tail = rest.split("<!-- values: end -->", 1)
    same(PAGE, f"{head}<!-- values: begin -->\n{rows}\n<!-- values: end -->{tail}", write)
    if faults:
        sys.exit("helm: " + "\nhelm: ".join(faults))
    known = versions()
    print(f"helm: objects are valid in Kubernetes {known[0]} to {known[-1]}; references, environment, alerts, golden and table hold")


main()
