"""The files for Ray's launchers are what these launchers take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import ray
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """A schema of an object without other properties than these."""
    return {
        "type": "object", "required": list(required), "properties": properties, "additionalProperties": False,
    }  # fmt: skip


def each(items: dict[str, Any]) -> dict[str, Any]:
    """A schema of an array."""
    return {"type": "array", "items": items}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {
    "type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i)?$"},
}  # fmt: skip
CONTAINER = closed(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    ports=each(closed(("containerPort",), containerPort=COUNT, name=TEXT)),
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=each(closed(("mountPath", "name"), name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
VOLUME = closed(
    ("name",), name=TEXT, persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG)
)  # fmt: skip
POD = closed(("spec",), spec=closed(("containers",), containers=each(CONTAINER), volumes=each(VOLUME)))
# the part of KubeRay's RayCluster that the example uses, no looser than v1 of its CRD at commit 017710c; parameters of
# `ray start` are texts there
CLUSTER = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=closed(("name",), name=TEXT),
    spec=closed(
        ("headGroupSpec",),
        rayVersion=TEXT,
        authOptions=closed(mode={"enum": ["disabled", "token"]}),
        headGroupSpec=closed(("template",), rayStartParams=TEXTS, template=POD),
        workerGroupSpecs=each(
            closed(
                ("groupName", "maxReplicas", "minReplicas", "template"),
                groupName=TEXT,
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                rayStartParams=TEXTS,
                template=POD,
            )
        ),
    ),
)


def test_the_cluster_file_is_of_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))

    jsonschema.validate(yaml.safe_load((EXAMPLES / "cluster.yaml").read_text(encoding="utf-8")), schema)


def test_the_manifest_is_of_kuberays_schema_and_each_node_has_a_name_and_a_disk() -> None:
    cluster, *claims = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text(encoding="utf-8"))

    jsonschema.validate(cluster, CLUSTER)

    spec = cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    names = [g["rayStartParams"]["node-name"] for g in groups]
    disks = [g["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] for g in groups]
    assert (names, disks) == (["one", "two", "three"], [c["metadata"]["name"] for c in claims])
    assert {(g["replicas"], g["maxReplicas"]) for g in spec["workerGroupSpecs"]} == {(1, 1)}
    assert spec["authOptions"] == {"mode": "token"}
