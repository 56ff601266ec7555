"""Thousands of requests made up from the description of the API: `python -m benchmarks.api_contract BUNDLE`.

Schemathesis against a service process: examples, edges, random right and wrong requests, and sequences of requests.
An answer of 5xx, or one that the description does not have, ends the run with 1. Once with the description as it is,
once with names of fields and items that the bundle knows, or most requests would end in a 404 or 422.
"""

import argparse
import copy
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.running import Running, running
from recsys.bundle import open_bundle

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ITEMS = 20


def main() -> None:
    """Starts the service and sends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--examples", type=int, default=500, help="random requests of each operation, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with running(arguments.bundle, folder / "log", state=folder / "state.sqlite") as service:
            plain = json.load(urllib.request.urlopen(f"{service.address}/openapi.json"))
            known = narrowed(plain, bundle.items.columns, bundle.catalog.item_ids[:ITEMS].to_list())
            failed = [_run(service, folder, part, arguments.examples, arguments.seed) for part in (plain, known)]
        if any(failed) or "Traceback" in (folder / "log").read_text(encoding="utf-8"):
            sys.exit(1)


def narrowed(description: dict[str, Any], fields: Sequence[str], item_ids: Sequence[str]) -> dict[str, Any]:
    """The same API, of which only these fields and items are asked: requests that get past the first look."""
    description = copy.deepcopy(description)
    schemas = description["components"]["schemas"]
    ids = {"type": "string", "enum": list(item_ids)}
    for name in ("RecommendRequest", "BoostMessage"):
        schemas[name]["properties"]["filter"]["propertyNames"] = {"enum": list(fields)}
    recommend = schemas["RecommendRequest"]["properties"]
    recommend["fields"]["items"] = {"type": "string", "enum": list(fields)}
    recommend["exclude"]["items"] = recommend["history"]["anyOf"][0]["items"] = ids
    schemas["RecommendRequest"]["required"] = ["history"]
    schemas["QuotaMessage"]["properties"]["field"] = {"type": "string", "enum": list(fields)}
    schemas["EventMessage"]["properties"]["item_id"] = ids
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if path.endswith("{item_id}") and parameter["name"] == "item_id":
                    parameter["schema"] = ids
    return description


def _run(service: Running, folder: Path, description: dict[str, Any], examples: int, seed: int) -> int:
    """Exit status of `schemathesis run`."""
    written = folder / "openapi.json"
    written.write_text(json.dumps(description), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(written), "--url", service.address]
    command += ["--checks", CHECKS, "--max-examples", str(examples), "--seed", str(seed)]
    return subprocess.run(command, check=False, cwd=folder).returncode


if __name__ == "__main__":
    main()
