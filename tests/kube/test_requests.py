import orjson
import pytest

from controller.kube import requests
from controller.kube.apierror import ApiError
from controller.kube.requests import Selection
from controller.model.objects import CRD, SECRET, JsonObject


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../secrets/x", "a%2fb"])
def test_a_name_never_leads_to_another_path(name: str):
    with pytest.raises(ApiError) as caught:
        requests.read(CRD, name, namespace=None, metadata_only=False)
    assert caught.value.invalid
    with pytest.raises(ApiError):
        requests.read(SECRET, "x", namespace=name, metadata_only=False)


def test_a_watch_asks_for_bookmarks_and_an_end():
    selection = Selection(SECRET, "ns", "a=b", "metadata.name=x", metadata_only=True)
    request = requests.watch(
        selection, resource_version="7", timeout_seconds=300, send_initial_events=False
    )
    assert request.path == "/api/v1/namespaces/ns/secrets"
    assert dict(request.query) == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "300",
        "labelSelector": "a=b",
        "fieldSelector": "metadata.name=x",
        "resourceVersion": "7",
    }
    assert request.headers == {"Accept": requests.METADATA}


def test_a_streaming_list_says_how_new_it_must_be():
    request = requests.watch(
        Selection(SECRET), resource_version="", timeout_seconds=300, send_initial_events=True
    )
    query = dict(request.query)
    assert query["sendInitialEvents"] == "true"
    assert query["resourceVersionMatch"] == "NotOlderThan"
    assert "resourceVersion" not in query


def test_a_page_after_the_first_carries_no_version():
    request = requests.list_page(
        Selection(CRD), resource_version=None, limit=5, continue_token="t", tries=1
    )
    assert dict(request.query) == {"limit": "5", "continue": "t"}
    assert request.label == ("list", "customresourcedefinitions.apiextensions.k8s.io")


def test_what_may_be_sent_twice():
    path = "/x"
    named = requests.create(SECRET, {"metadata": {"name": "a"}}, namespace="n", dry_run=False)
    made_up = requests.create(
        SECRET, {"metadata": {"generateName": "a"}}, namespace="n", dry_run=False
    )
    applied = requests.apply(path, SECRET, {}, field_manager="m", force=True, dry_run=True)
    tested: list[JsonObject] = [
        {"op": "test", "path": "/a", "value": 1},
        {"op": "remove", "path": "/a"},
    ]
    assert named.repeatable
    assert not made_up.repeatable
    assert applied.repeatable
    assert requests.json_patch(path, SECRET, tested).repeatable
    assert not requests.json_patch(path, SECRET, tested[1:]).repeatable
    assert not requests.merge_patch(path, SECRET, {}).repeatable
    assert requests.delete(path, SECRET, uid=None, propagation="Background").repeatable
    assert ("dryRun", "All") in applied.query


def test_a_deletion_names_the_very_object():
    request = requests.delete("/x", SECRET, uid="u", propagation="Foreground")
    assert orjson.loads(request.body or b"") == {
        "propagationPolicy": "Foreground",
        "preconditions": {"uid": "u"},
    }


def test_bytes_are_sent_as_they_are():
    assert requests.create(SECRET, b"{ }", namespace="n", dry_run=False).body == b"{ }"


def test_any_request_is_counted_by_the_first_part_of_its_path():
    request = requests.raw("POST", "/apis/g/v1/things", query=(), headers=None, body=b"")
    assert request.label == ("post", "/apis")
    assert not request.repeatable
