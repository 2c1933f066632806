"""Turn Kubernetes' published OpenAPI of ``apps/v1`` into a structural schema of DeploymentSpec.

A CustomResourceDefinition may not use ``$ref`` or ``allOf`` with a reference, and its lists of type
``map`` need keys that are required or have a default; Kubernetes' own document has neither limit.
Source: Kubernetes' rules of structural schemas.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

DEPLOYMENT_SPEC = "io.k8s.api.apps.v1.DeploymentSpec"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"

NUMBER = r"(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
QUANTITY_PATTERN = rf"^(\+|-)?{NUMBER}(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?{NUMBER}))?$"

STRING: Schema = {"type": "string"}
KEPT = (
    "type",
    "format",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)

# The parts of an object's metadata that make sense in a template.
EMBEDDED_METADATA: Schema = {
    "type": "object",
    "properties": {
        "annotations": {"type": "object", "additionalProperties": STRING},
        "finalizers": {"type": "array", "items": STRING},
        "labels": {"type": "object", "additionalProperties": STRING},
        "name": STRING,
        "namespace": STRING,
    },
}

# Keys of map lists that the API server of a Deployment tolerates missing; a schema must not.
REQUIRED_KEYS = {"hostAliases": "ip", "imagePullSecrets": "name"}


def int_or_string(pattern: str = "") -> Schema:
    """Return the schema of a number that may be written as text."""
    schema: Schema = {
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
    }
    return schema | ({"pattern": pattern} if pattern else {})


def structural(openapi: Schema, name: str = DEPLOYMENT_SPEC) -> Schema:
    """Return the structural schema of a named type, references inlined, descriptions left out.

    Args:
        openapi: the OpenAPI v3 document of ``apps/v1``, from a release or from an API server.
        name: a type in its ``components.schemas``.
    """
    schemas: dict[str, Schema] = openapi["components"]["schemas"]
    if name == OBJECT_META:
        return EMBEDDED_METADATA
    if name == QUANTITY:
        return int_or_string(QUANTITY_PATTERN)
    if name == INT_OR_STRING:
        return int_or_string()
    return _convert(openapi, schemas[name])


def _convert(openapi: Schema, source: Schema) -> Schema:
    reference = _reference(source)
    if reference:
        # Siblings of a reference (a list's or map's type) belong to the place, not to the type.
        return structural(openapi, reference) | {k: source[k] for k in KEPT if k in source}
    schema: Schema = {key: source[key] for key in KEPT if key in source}
    required = source.get("required", [])
    if "properties" in source:
        schema["properties"] = {
            key: _property(openapi, key, value, required=key in required)
            for key, value in sorted(source["properties"].items())
        }
    if "items" in source:
        schema["items"] = _convert(openapi, source["items"])
    if isinstance(source.get("additionalProperties"), dict):
        schema["additionalProperties"] = _convert(openapi, source["additionalProperties"])
    if required:
        schema["required"] = sorted(required)
    return schema


def _reference(source: Schema) -> str:
    holders = [source, *source.get("allOf", [])]
    return next((h["$ref"].rpartition("/")[2] for h in holders if "$ref" in h), "")


def _property(openapi: Schema, key: str, source: Schema, *, required: bool) -> Schema:
    schema = _convert(openapi, source)
    # Defaults of required fields are Go's zero values and would hide what is missing; an empty
    # struct would be stored where nobody wrote one.
    default = source.get("default")
    if default is not None and default != {} and not required:
        schema["default"] = default
    if key in REQUIRED_KEYS:
        items = schema["items"]
        schema["items"] = items | {
            "required": sorted({*items.get("required", []), REQUIRED_KEYS[key]})
        }
    return schema
