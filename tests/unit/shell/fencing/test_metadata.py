"""What a fence agent says of itself, held against the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nfq_failover.config.fence import FencePlan
from nfq_failover.shell.fencing.metadata import advice, status
from tests.unit.shell.fencing.test_runner import PEER

XML = """<?xml version="1.0" ?>
<resource-agent name="fence_toy" shortdesc="toy" >
<parameters>
  <parameter name="action" required="1"/>
  <parameter name="ip" required="1" obsoletes="ipaddr"/>
  <parameter name="ipaddr" required="1" deprecated="1"/>
  <parameter name="plug" required="0" obsoletes="port"/>
  <parameter name="password" required="0"/>
</parameters>
<actions>
  <action name="off"/>
  STATUS
</actions>
</resource-agent>
"""


def agent(directory: Path, xml: str = XML, has_status: bool = True, code: int = 0) -> str:
    path = directory / "fence_toy"
    (directory / "xml").write_text(xml.replace("STATUS", '<action name="status"/>' if has_status else ""))
    path.write_text(
        f"#!/bin/sh\ngrep -q '^action=metadata' && exec cat {directory}/xml\necho no such outlet\nexit {code}\n"
    )
    path.chmod(0o700)
    return str(path)


def plan(path: str, verify: bool = True, **parameters: str) -> FencePlan:
    return FencePlan((path,), True, tuple(parameters.items()), verify=verify)


def test_all_is_well(tmp_path: Path) -> None:
    path = agent(tmp_path)
    assert advice(plan(path, ip="192.0.2.1", plug="b", password="x")) == []
    assert advice(plan(path, ipaddr="192.0.2.1", port="b")) == [], "the older names"
    assert advice(FencePlan(("/bin/true",))) == [], "a command is asked nothing"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = agent(tmp_path, has_status=False)
    assert advice(plan(path, pulg="b")) == [
        f"the fence agent {path} has no parameter 'pulg'",
        f"the fence agent {path} needs the parameter 'ip'",
        f"the fence agent {path} has no status, so its 'off' is never believed: set verify = false",
    ]
    assert advice(plan(path, verify=False, ip="x")) == []


@pytest.mark.parametrize("xml", ["", "hello", "<resource-agent name='x'><oops></resource-agent>"])
def test_what_is_no_agent(tmp_path: Path, xml: str) -> None:
    (said,) = advice(plan(agent(tmp_path, xml)))
    assert "describe" in said or "description" in said


def test_no_such_agent() -> None:
    (said,) = advice(plan("/no/such/agent"))
    assert "No such file" in said
    assert "can't be started" in status(plan("/no/such/agent"), PEER)


@pytest.mark.parametrize(("code", "text"), [(0, "b is on"), (2, "b is off"), (1, "whether b is on: no such outlet")])
def test_the_status(tmp_path: Path, code: int, text: str) -> None:
    assert status(plan(agent(tmp_path, code=code)), PEER).endswith(text)


@pytest.mark.skipif(shutil.which("fence_ipmilan") is None, reason="the package fence-agents is not there")
def test_real_agents() -> None:
    assert advice(plan("fence_dummy", status_file="/tmp/x")) == []
    assert advice(plan("fence_virsh", ip="192.0.2.1", username="u", identity_file="/x", ssh="true", plug="b")) == []
    assert advice(plan("fence_ipmilan", ip="192.0.2.1", username="u", lanplus="true", password="x")) == []
    assert [said.split()[-1] for said in advice(plan("fence_virsh", username="u"))] == ["'ip'", "'plug'"]
