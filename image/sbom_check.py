"""Is the list of what is inside valid CycloneDX, and does it hold what it must?"""

import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = pathlib.Path(sys.argv[1]).read_text()
wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
if wrong is not None:
    sys.exit(f"sbom: {wrong}")
names = {component["name"] for component in json.loads(text)["components"]}
missing = {"penstock-router", "tokio", "rustls", "redis", "etcd-client", "glibc"} - names
if missing:
    sys.exit(f"sbom: without {sorted(missing)}")
print(f"sbom: valid CycloneDX 1.5, {len(names)} names")
