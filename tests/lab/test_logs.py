"""Logs are read line by complete line, from a mark on."""

from __future__ import annotations

import json

from tests.lab import logs

EVENT = {
    "verb": "patch",
    "stage": "ResponseComplete",
    "requestURI": "/apis/apps/v1/namespaces/n/deployments/d/status?fieldManager=m",
    "user": {"username": "system:serviceaccount:n:m"},
    "userAgent": "crossdock/0.1",
    "objectRef": {
        "apiGroup": "apps",
        "resource": "deployments",
        "subresource": "status",
        "namespace": "n",
        "name": "d",
    },
    "responseStatus": {"code": 200},
}
ACCESS = (
    '127.0.0.1 - - [23/Nov/2026:19:39:27 +0000] "HEAD /v2/a/b/manifests/1 HTTP/1.1" 404 95 "" '
    '"crane/v0.22.1 go"\n'
)


def test_an_audit_event_tells_who_did_what_to_which_object(tmp_path):
    log = tmp_path / "audit"
    log.write_text(json.dumps(EVENT) + "\n")
    (event,) = logs.audit_events(log)
    assert event.user == "system:serviceaccount:n:m"
    assert event.agent == "crossdock/0.1"
    assert (event.verb, event.code, event.writes) == ("patch", 200, True)
    assert (event.resource, event.subresource) == ("apps/deployments", "status")
    assert (event.namespace, event.name) == ("n", "d")
    assert event.raw == EVENT


def test_a_request_without_an_object_has_empty_fields_and_reads_only(tmp_path):
    log = tmp_path / "audit"
    event = EVENT | {"verb": "get", "requestURI": "/version"}
    event.pop("objectRef")
    log.write_text(json.dumps(event) + "\n")
    (found,) = logs.audit_events(log)
    assert (found.resource, found.name, found.writes) == ("", "", False)


def test_only_what_follows_the_offset_is_read_and_no_half_line(tmp_path):
    log = tmp_path / "audit"
    line = json.dumps(EVENT) + "\n"
    log.write_text(line * 3 + line[:20])
    assert len(list(logs.audit_events(log, len(line)))) == 2


def test_a_registry_request_tells_method_path_status_size_and_agent(tmp_path):
    log = tmp_path / "access"
    log.write_text("something else\n" + ACCESS)
    (request,) = logs.registry_requests(log)
    assert request == logs.RegistryRequest(
        time="23/Nov/2026:19:39:27 +0000",
        method="HEAD",
        path="/v2/a/b/manifests/1",
        status=404,
        size=95,
        agent="crane/v0.22.1 go",
    )


def test_a_log_that_is_not_there_holds_nothing(tmp_path):
    assert list(logs.audit_events(tmp_path / "none")) == []
    assert list(logs.registry_requests(tmp_path / "none")) == []
