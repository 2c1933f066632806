"""Schemas of the kinds of ``pkg.crossplane.io``: field tables of specs and statuses.

Source: Crossplane's package API (``pkg.crossplane.io`` v1 and v1beta1).
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

PACKAGE_RULE = (
    r"self.matches('^[^\\.\\/]+(\\.[^\\.\\/]+)+(\\/[^\\/:@]+)+(:[^:@]+(@sha256.+)?|@sha256.+)$')"
)
EXAMPLE_DIGEST = "1234567890abcdef" * 4
PACKAGE_MESSAGE = (
    "must be a fully qualified image name, including the registry, repository, and tag or digest."
    " For example, 'registry.example.com/repo/package:tag' or"
    f" 'registry.example.com/repo/package[:tag]@sha256:{EXAMPLE_DIGEST}'."
)


def field(kind: str, description: str, **more: Any) -> Schema:
    """Return the schema of one field; ``format`` may stand behind a colon (``integer:int64``)."""
    name, _, form = kind.partition(":")
    return {"type": name, **({"format": form} if form else {}), "description": description, **more}


def text(description: str, **more: Any) -> Schema:
    return field("string", description, **more)


def flag(description: str, **more: Any) -> Schema:
    return field("boolean", description, **more)


def count(description: str, **more: Any) -> Schema:
    return field("integer:int64", description, **more)


def obj(description: str, required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "description": description, "properties": properties}
    return schema | ({"required": sorted(required)} if required else {})


def array(description: str, items: Schema, **more: Any) -> Schema:
    return {"type": "array", "description": description, "items": items, **more}


def string_map(description: str) -> Schema:
    return field("object", description, additionalProperties={"type": "string"})


def secret_name(description: str) -> Schema:
    reference = obj(description, name=text("Name of the Secret.", default=""))
    return reference | {"x-kubernetes-map-type": "atomic"}


CONDITION = obj(
    "One observation about the object.",
    ("lastTransitionTime", "reason", "status", "type"),
    type=text("What is observed; at most one condition of each type."),
    status=text("True, False or Unknown."),
    reason=text("One word for why the condition has this status."),
    message=text("What a person needs to know, and do, about it."),
    lastTransitionTime=field("string:date-time", "When the condition last changed."),
    observedGeneration=count("The metadata.generation that the condition speaks of."),
)

CONDITIONS = array(
    "Current observations about the object.",
    CONDITION,
    **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
)

APPLIED_IMAGE_CONFIGS = array(
    "The ImageConfigs that took part in handling the image, and what each was used for.",
    obj(
        "An ImageConfig and its use.",
        ("name", "reason"),
        name=text("Name of the ImageConfig."),
        reason=text(
            "What it was used for: SetImagePullSecret, VerifyImage, RewriteImage or"
            " ConfigureRuntime."
        ),
    ),
)


def runtime_config_reference(description: str, **more: Any) -> Schema:
    return (
        obj(
            description,
            ("name",),
            apiVersion=text(
                "API version of the runtime configuration.", default="pkg.crossplane.io/v1beta1"
            ),
            kind=text("Kind of the runtime configuration.", default="DeploymentRuntimeConfig"),
            name=text("Name of the runtime configuration."),
        )
        | more
    )


RUNTIME_CONFIG_REF = runtime_config_reference(
    "The runtime configuration that shapes the Deployment, Service and ServiceAccount of the"
    " package's runtime.",
    default={"name": "default"},
)

PULL_SETTINGS: dict[str, Schema] = {
    "packagePullSecrets": array(
        "Secrets in the package manager's namespace with credentials for the package's registry.",
        secret_name("A reference to a Secret."),
    ),
    "packagePullPolicy": text(
        "When to ask the registry for the package: Always, IfNotPresent or Never.",
        default="IfNotPresent",
    ),
    "ignoreCrossplaneConstraints": flag(
        "Install the package even if it asks for another version of Crossplane.", default=False
    ),
    "skipDependencyResolution": flag(
        "Do not check or install what the package depends on.", default=False
    ),
    "commonLabels": string_map(
        "Labels for the package's revisions and for every object in the package."
    ),
    "commonAnnotations": string_map(
        "Annotations for the package's revisions and for every object in the package."
    ),
}


def package_spec(*, runtime: bool) -> Schema:
    """Return the spec of a Provider, Function or (without runtime) Configuration."""
    rule = {"rule": PACKAGE_RULE, "message": PACKAGE_MESSAGE}
    properties: dict[str, Schema] = {
        "package": text(
            "The package's OCI image, with registry, repository and tag or digest.",
            **{"x-kubernetes-validations": [rule]},
        ),
        "revisionActivationPolicy": text(
            "Who activates a new revision: Automatic (the package manager) or Manual (a person).",
            default="Automatic",
        ),
        "revisionHistoryLimit": count(
            "How many inactive revisions to keep; 0 keeps all.", default=1
        ),
        **PULL_SETTINGS,
    }
    if runtime:
        properties["runtimeConfigRef"] = RUNTIME_CONFIG_REF
    return obj("What to install, and how.", ("package",), **properties)


PACKAGE_STATUS = obj(
    "What the package manager observed.",
    conditions=CONDITIONS,
    currentRevision=text("Name of the newest revision of the package."),
    currentIdentifier=text("The spec.package that the current revision was made from."),
    resolvedPackage=text("The image that is used, after ImageConfigs rewrote its name."),
    appliedImageConfigRefs=APPLIED_IMAGE_CONFIGS,
)


def revision_spec(*, runtime: bool) -> Schema:
    """Return the spec of a revision; those of Configurations have no runtime."""
    properties: dict[str, Schema] = {
        "desiredState": text("Active (the revision controls its objects) or Inactive."),
        "image": text("The package's OCI image as the package names it."),
        "revision": count("The revision's number; a newer revision has a higher one."),
        **PULL_SETTINGS,
    }
    if runtime:
        properties |= {
            "runtimeConfigRef": RUNTIME_CONFIG_REF,
            "tlsServerSecretName": text(
                "Name of the Secret with the runtime's server certificate."
            ),
            "tlsClientSecretName": text(
                "Name of the Secret with the runtime's client certificate."
            ),
        }
    required = ("desiredState", "image", "revision")
    return obj("Which image the revision runs, and whether it is active.", required, **properties)


OBJECT_REFERENCE = obj(
    "An object of the package.",
    ("apiVersion", "kind", "name"),
    apiVersion=text("The object's API version."),
    kind=text("The object's kind."),
    name=text("The object's name."),
    uid=text("The object's UID."),
)


def revision_status(*, runtime: bool, endpoint: bool) -> Schema:
    """Return the status of a revision; only Functions have an endpoint."""
    properties: dict[str, Schema] = {
        "conditions": CONDITIONS,
        "objectRefs": array("The objects that the revision owns.", OBJECT_REFERENCE),
        "foundDependencies": count("How many packages this one depends on."),
        "installedDependencies": count("How many of them are installed."),
        "invalidDependencies": count("How many are installed in a version that does not fit."),
        "appliedImageConfigRefs": APPLIED_IMAGE_CONFIGS,
        "resolvedImage": text("The image that is used, after ImageConfigs rewrote its name."),
        "capabilities": array(
            "What the package says it can do, such as safe-start.", {"type": "string"}
        ),
    }
    if runtime:
        properties |= {
            "tlsServerSecretName": text("Name of the Secret with the server certificate in use."),
            "tlsClientSecretName": text("Name of the Secret with the client certificate in use."),
        }
    if endpoint:
        properties["endpoint"] = text("The gRPC target at which the function is called.")
    return obj("What the package manager observed.", **properties)


PACKAGE_TYPES = ["Configuration", "Provider", "Function"]


def _package_type(description: str) -> Schema:
    return text(description, enum=PACKAGE_TYPES)


LOCK_DEPENDENCY = obj(
    "A package that a locked package depends on.",
    ("constraints", "package"),
    package=text("OCI image name without tag or digest."),
    apiVersion=text("API version of the package kind."),
    kind=text("The package kind."),
    type=_package_type("Deprecated form of apiVersion and kind."),
    constraints=text("A range of semantic versions, or a digest."),
)

LOCK_PACKAGES = array(
    "The packages that are installed.",
    obj(
        "An installed package.",
        ("dependencies", "name", "source", "version"),
        name=text("Name of the package's revision."),
        apiVersion=text("API version of the package kind."),
        kind=text("The package kind."),
        type=_package_type("Deprecated form of apiVersion and kind."),
        source=text("OCI image name without tag or digest."),
        version=text("Tag or digest of the image."),
        dependencies=array("What the package depends on, in its own order.", LOCK_DEPENDENCY),
    ),
)

LOCK_STATUS = obj("What dependency resolution observed.", conditions=CONDITIONS)

KEY_AUTHORITY = obj(
    "Accept signatures made with this key.",
    ("hashAlgorithm", "secretRef"),
    secretRef=obj(
        "Where the public key is.",
        ("key", "name"),
        name=text("Name of a Secret in the package manager's namespace."),
        key=text("The entry of the Secret that holds the key."),
    ),
    hashAlgorithm=text("The hash algorithm of the signatures.", default="sha256"),
)

KEYLESS_AUTHORITY = obj(
    "Accept signatures made with short-lived certificates of these identities.",
    ("identities",),
    identities=array(
        "The identities to accept.",
        obj(
            "An identity: exact values or regular expressions.",
            issuer=text("The issuer of the identity."),
            subject=text("The subject of the identity."),
            issuerRegExp=text("Expression for the issuer; used instead of issuer."),
            subjectRegExp=text("Expression for the subject; used instead of subject."),
        ),
    ),
    insecureIgnoreSCT=flag("Accept certificates without a signed certificate timestamp."),
)

COSIGN = obj(
    "How to verify Cosign signatures.",
    ("authorities",),
    authorities=array(
        "Who may have signed; one of them is enough.",
        obj(
            "A signer.",
            ("name",),
            name=text("A name for messages."),
            key=KEY_AUTHORITY,
            keyless=KEYLESS_AUTHORITY,
            attestations=array(
                "Attestations that must be present and signed as well.",
                obj(
                    "An attestation.",
                    ("name", "predicateType"),
                    name=text("A name for messages."),
                    predicateType=text("The type of its predicate."),
                ),
            ),
        ),
    ),
)

IMAGE_CONFIG_SPEC = obj(
    "Settings for the images that match.",
    ("matchImages",),
    matchImages=array(
        "Which images the settings apply to; of several ImageConfigs with a setting, the one with"
        " the longest matching prefix is used.",
        obj(
            "A rule that images match.",
            ("prefix",),
            type=text("How to match.", enum=["Prefix"], default="Prefix"),
            prefix=text("How the image's name must start."),
        ),
        **{
            "x-kubernetes-validations": [
                {
                    "rule": "size(self) > 0",
                    "message": "matchImages should have at least one element.",
                }
            ]
        },
    ),
    registry=obj(
        "How to talk to the registry.",
        authentication=obj(
            "How to authenticate.",
            ("pullSecretRef",),
            pullSecretRef=secret_name(
                "A Secret in the package manager's namespace with the registry's credentials."
            ),
        ),
    ),
    verification=obj(
        "Signatures that the images must carry.",
        ("provider",),
        provider=text("Who verifies.", enum=["Cosign"]),
        cosign=COSIGN,
    ),
    rewriteImage=obj(
        "Another name under which to fetch the images.",
        ("prefix",),
        prefix=text("What the matching prefix is replaced with."),
    ),
    runtime=obj(
        "How to run the images.",
        configRef=runtime_config_reference(
            "The runtime configuration to use instead of the package's own."
        ),
    ),
)


def _template_metadata(what: str) -> Schema:
    return obj(
        f"Metadata of the {what}.",
        name=text(f"Name of the {what}."),
        annotations=string_map(f"Annotations of the {what}."),
        labels=string_map(f"Labels of the {what}."),
    )


def runtime_config_spec(deployment_spec: Schema) -> Schema:
    """Return the spec of a DeploymentRuntimeConfig around a structural DeploymentSpec."""
    return obj(
        "How packages with a runtime are run.",
        deploymentTemplate=obj(
            "What the runtime's Deployment starts from.",
            metadata=_template_metadata("Deployment"),
            spec=deployment_spec
            | {
                "description": "A spec of apps/v1 Deployment. The container named package-runtime"
                " runs the package."
            },
        ),
        serviceTemplate=obj(
            "What the runtime's Service starts from.", metadata=_template_metadata("Service")
        ),
        serviceAccountTemplate=obj(
            "What the runtime's ServiceAccount starts from.",
            metadata=_template_metadata("ServiceAccount"),
        ),
    )
