"""Lint: each check, the checks of each kind of package, and what metadata may say."""

from __future__ import annotations

import pytest

from controller.model import lint
from controller.model.content import Entry, ParsedPackage
from controller.model.lint import Kinded
from controller.model.manifest import Duplicate

PROVIDER = Kinded("meta.pkg.crossplane.io/v1", "Provider")
CONFIGURATION = Kinded("meta.pkg.crossplane.io/v1", "Configuration")
FUNCTION = Kinded("meta.pkg.crossplane.io/v1beta1", "Function")
CRD = Kinded("apiextensions.k8s.io/v1", "CustomResourceDefinition")
OLD_CRD = Kinded("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition")
MRD = Kinded("apiextensions.crossplane.io/v1alpha1", "ManagedResourceDefinition")
XRD = Kinded("apiextensions.crossplane.io/v1", "CompositeResourceDefinition")
XRD_V2 = Kinded("apiextensions.crossplane.io/v2", "CompositeResourceDefinition")
COMPOSITION = Kinded("apiextensions.crossplane.io/v1", "Composition")
POLICY = Kinded("apiextensions.crossplane.io/v1alpha1", "ManagedResourceActivationPolicy")
OPERATION = Kinded("ops.crossplane.io/v1alpha1", "Operation")
CRON = Kinded("ops.crossplane.io/v1alpha1", "CronOperation")
WATCH = Kinded("ops.crossplane.io/v1alpha1", "WatchOperation")
VALIDATING = Kinded("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration")
MUTATING = Kinded("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration")
OBJECTS = [
    CRD,
    OLD_CRD,
    MRD,
    XRD,
    XRD_V2,
    COMPOSITION,
    POLICY,
    OPERATION,
    CRON,
    WATCH,
    VALIDATING,
    MUTATING,
]


def meta(kind="Provider", **spec):
    return {
        "apiVersion": "meta.pkg.crossplane.io/v1",
        "kind": kind,
        "metadata": {"name": "p"},
        "spec": spec,
    }


class TestIsProvider:
    def test_successful(self):
        assert lint.is_package(PROVIDER, "Provider") is None

    def test_err_not_provider(self):
        assert lint.is_package(CRD, "Provider") == "package meta type is not Provider"


class TestIsConfiguration:
    def test_successful(self):
        assert lint.is_package(CONFIGURATION, "Configuration") is None

    def test_err_not_configuration(self):
        fault = "package meta type is not Configuration"
        assert lint.is_package(CRD, "Configuration") == fault


class TestIsFunction:
    def test_successful(self):
        assert lint.is_package(FUNCTION, "Function") is None

    def test_err_not_function(self):
        assert lint.is_package(PROVIDER, "Function") == "package meta type is not Function"


class TestIsCRD:
    @pytest.mark.parametrize("obj", [CRD, OLD_CRD])
    def test_successful(self, obj):
        assert lint.is_crd(obj) is None

    def test_err_not_crd(self):
        assert lint.is_crd(CONFIGURATION) == "object is not a CRD"


class TestIsXRD:
    @pytest.mark.parametrize("obj", [XRD, XRD_V2])
    def test_successful(self, obj):
        assert lint.is_xrd(obj) is None

    def test_err_not_xrd(self):
        assert lint.is_xrd(CRD) == "object is not an XRD"


class TestIsComposition:
    def test_successful(self):
        assert lint.is_composition(COMPOSITION) is None

    def test_err_not_composition(self):
        assert lint.is_composition(CRD) == "object is not a Composition"


@pytest.mark.parametrize(
    ("check", "accepted", "fault"),
    [
        (lint.is_mrd, MRD, "object is not an MRD"),
        (
            lint.is_activation_policy,
            POLICY,
            "object is not an ManagedResourceActivationPolicy",
        ),
        (lint.is_operation, OPERATION, "object is not an Operation"),
        (lint.is_cron_operation, CRON, "object is not a CronOperation"),
        (lint.is_watch_operation, WATCH, "object is not a WatchOperation"),
        (
            lint.is_validating_webhook,
            VALIDATING,
            "object is not an ValidatingWebhookConfiguration",
        ),
        (lint.is_mutating_webhook, MUTATING, "object is not a MutatingWebhookConfiguration"),
    ],
)
def test_the_other_checks(check, accepted, fault):
    assert check(accepted) is None
    assert check(PROVIDER) == fault


class TestLinter:
    def test_successful_no_op(self):
        assert lint.lint(ParsedPackage(meta())) == []

    @pytest.mark.parametrize("obj", [CRD, COMPOSITION])
    def test_successful_with_checks(self, obj):
        assert lint.any_of(obj, [lint.is_crd, lint.is_composition]) is None

    def test_error_with_checks(self):
        fault = "object did not pass any of the linters with following errors: "
        fault += "object is not a CRD, object is not an XRD"
        assert lint.any_of(COMPOSITION, [lint.is_crd, lint.is_xrd]) == fault


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("Provider", [CRD, OLD_CRD, MRD, VALIDATING, MUTATING]),
        ("Configuration", [XRD, XRD_V2, COMPOSITION, POLICY, OPERATION, CRON, WATCH]),
        ("Function", [CRD, OLD_CRD]),
    ],
)
def test_each_kind_of_package_accepts_its_objects_and_no_others(kind, accepted):
    assert [obj for obj in OBJECTS if lint.lint_object(kind, obj) is None] == accepted
    assert lint.lint_object(kind, FUNCTION) is not None


def test_a_function_names_one_check():
    assert lint.lint_object("Function", XRD) == "object is not a CRD"


class TestValidate:
    def test_a_package_of_its_kind_without_a_spec_is_valid(self):
        bare = {"apiVersion": "meta.pkg.crossplane.io/v1", "kind": "Function"}
        assert lint.validate("Function", bare) == []

    def test_a_full_package_is_valid(self):
        dependencies = [
            {"provider": "a/b", "version": ">=v1.0.0"},
            {"apiVersion": "v1", "kind": "Function", "package": "c/d", "version": "not linted"},
        ]
        full = meta(
            crossplane={"version": ">=v2.0.0-0"},
            dependsOn=dependencies,
            capabilities=["safe-start"],
        )
        assert lint.validate("Provider", full) == []

    def test_another_kind_is_refused(self):
        assert lint.validate("Provider", meta("Function")) == ["package meta type is not Provider"]

    def test_a_constraint_that_is_none_is_refused(self):
        faults = lint.validate("Provider", meta(crossplane={"version": "x.y"}))
        prefix = "package version constraints are poorly formatted: "
        assert faults == [prefix + 'improper constraint: "x.y"']

    def test_all_fields_of_a_wrong_type_are_named(self):
        bad = meta(
            crossplane={"version": 2}, dependsOn=[1, {"package": []}, {}], capabilities=["a", 1]
        )
        bad["metadata"]["labels"] = {"x": 1}
        assert lint.validate("Function", bad) == [
            "package meta type is not Function",
            "metadata.labels.x is not text",
            "spec.crossplane.version is not text",
            "spec.capabilities[1] is not text",
            "spec.dependsOn[0] is not an object",
            "spec.dependsOn[1].package is not text",
        ]

    @pytest.mark.parametrize(
        ("dependency", "fault"),
        [
            ({"version": "v1"}, "spec.dependsOn[0] names no package"),
            (None, "spec.dependsOn[0] names no package"),
            ({"package": "a/b"}, "spec.dependsOn[0].version is missing"),
        ],
    )
    def test_a_dependency_that_says_too_little_is_refused(self, dependency, fault):
        assert lint.validate("Provider", meta(dependsOn=[dependency])) == [fault]

    def test_a_spec_that_is_no_object_is_refused(self):
        assert lint.validate("Provider", meta() | {"spec": []}) == ["spec is not an object"]


class TestLint:
    def test_names_what_is_not_installed_or_occurs_twice_or_cannot_be_met(self):
        entry = Entry(COMPOSITION.kind, COMPOSITION.api_version, "c", "", 0, 1, 2)
        dependency = {"package": "a/b", "version": "x.y"}
        duplicate = Duplicate('key "x" occurs twice', 3, 9)
        package = ParsedPackage(meta(dependsOn=[dependency]), (), (entry,), (duplicate,))
        first, *rest = lint.lint(package)
        assert first.startswith("Composition c is not installed from a Provider package: object ")
        assert rest == [
            'document 3, line 9: key "x" occurs twice',
            'dependency a/b: version is poorly formatted: improper constraint: "x.y"',
        ]

    def test_a_functions_input_types_belong_there(self):
        entry = Entry(CRD.kind, CRD.api_version, "c", "", 0, 1, 2)
        assert lint.lint(ParsedPackage(meta("Function"), (), (entry,))) == []

    def test_a_digest_is_a_version_of_a_dependency(self):
        dependency = {"package": "a/b", "version": "sha256:" + "0" * 64}
        assert lint.dependency_faults(meta(dependsOn=[dependency])) == []


class TestCrossplaneVersion:
    def test_fits(self):
        package = meta(crossplane={"version": ">=v2.0.0"})
        assert lint.check_crossplane_version(package, "v2.3.1") is None

    def test_no_constraint_fits_all(self):
        assert lint.check_crossplane_version(meta(), "") is None

    def test_does_not_fit(self):
        package = meta(crossplane={"version": ">=v2.0.0"})
        assert lint.check_crossplane_version(package, "v1.20.0") == (
            'package is not compatible with Crossplane version (v1.20.0): it needs ">=v2.0.0"'
        )

    @pytest.mark.parametrize("version", ["", "main"])
    def test_an_unknown_version_does_not_pass_in_silence(self, version):
        package = meta(crossplane={"version": ">=v2.0.0"})
        fault = lint.check_crossplane_version(package, version)
        assert fault is not None
        expected = f"package is not compatible with Crossplane version ({version}): "
        assert fault.startswith(expected)
