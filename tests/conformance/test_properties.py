"""What holds for all operations alike: tokens, pages, filters, dry runs, ids, kept forms, states."""

from __future__ import annotations

import datetime as dt
import json
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from haneul.api import protocol
from haneul.services.context import OPERATIONS
from haneul.services.describe import documented_filters
from haneul.store import tables
from tests.conformance import generate
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import AMI, get, refused, run, wait

DESCRIBES = {
    "describe_instances": ("Reservations.Instances", "InstanceId"),
    "describe_instance_status": ("InstanceStatuses", "InstanceId"),
    "describe_volumes": ("Volumes", "VolumeId"),
    "describe_volume_status": ("VolumeStatuses", "VolumeId"),
    "describe_network_interfaces": ("NetworkInterfaces", "NetworkInterfaceId"),
    "describe_security_groups": ("SecurityGroups", "GroupId"),
    "describe_security_group_rules": ("SecurityGroupRules", "SecurityGroupRuleId"),
    "describe_subnets": ("Subnets", "SubnetId"),
    "describe_vpcs": ("Vpcs", "VpcId"),
    "describe_key_pairs": ("KeyPairs", "KeyPairId"),
    "describe_images": ("Images", "ImageId"),
    "describe_tags": ("Tags", "ResourceId"),
    "describe_launch_templates": ("LaunchTemplates", "LaunchTemplateId"),
    "describe_placement_groups": ("PlacementGroups", "GroupId"),
    "describe_route_tables": ("RouteTables", "RouteTableId"),
    "describe_internet_gateways": ("InternetGateways", "InternetGatewayId"),
    "describe_network_acls": ("NetworkAcls", "NetworkAclId"),
    "describe_dhcp_options": ("DhcpOptions", "DhcpOptionsId"),
    "describe_instance_types": ("InstanceTypes", "InstanceType"),
    "describe_instance_type_offerings": ("InstanceTypeOfferings", "InstanceType"),
}


def _walk(answer: dict[str, Any], path: str) -> list[dict[str, Any]]:
    found: list[Any] = [answer]
    for part in path.split("."):
        found = [item for one in found for item in one.get(part, [])]
    return found


def _all(ec2: Any, name: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = getattr(ec2, name)(**parameters)
    for reservation in answer.get("Reservations", ()):
        for one in reservation["Instances"]:
            one["ReservationId"] = reservation["ReservationId"]
    return _walk(answer, DESCRIBES[name][0])


@pytest.fixture(scope="module")
def town(start_cloud: Callable[..., FakeCloud]) -> FakeCloud:
    """A cloud with something of everything in it."""
    cloud = start_cloud()
    ec2 = cloud.client()
    ec2.create_key_pair(KeyName="k*ey", KeyType="ed25519")
    ec2.create_key_pair(KeyName="key2", KeyType="ed25519")
    group = ec2.create_security_group(GroupName="town", Description="a [town]")["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="10.0.0.0/8")
    ec2.create_placement_group(GroupName="near", Strategy="cluster")
    ec2.create_launch_template(LaunchTemplateName="one", LaunchTemplateData={"ImageId": AMI, "InstanceType": "t3.nano"})
    ids = [
        *run(ec2, 3, KeyName="k*ey", SecurityGroupIds=[group], TagSpecifications=_tagged("web", team="sky")),
        *run(
            ec2, 2, InstanceType="m5.large", TagSpecifications=_tagged("db", team=""), Placement={"GroupName": "near"}
        ),
        *run(ec2, 2, KeyName="key2", EbsOptimized=True, ClientToken="tok?en", UserData="x"),
        *run(ec2, 1, NetworkInterfaces=[{"DeviceIndex": 0, "AssociatePublicIpAddress": False}]),
    ]
    wait(ec2, "instance_running", *ids)
    ec2.stop_instances(InstanceIds=ids[1:2])
    ec2.terminate_instances(InstanceIds=ids[5:6])
    wait(ec2, "instance_stopped", ids[1])
    wait(ec2, "instance_terminated", ids[5])
    ec2.create_tags(Resources=[group, *ids[:2]], Tags=[{"Key": "a*b", "Value": "v?"}, {"Key": "empty", "Value": ""}])
    return cloud


def _tagged(name: str, **more: str) -> list[dict[str, Any]]:
    labels = [{"Key": key, "Value": value} for key, value in {"Name": name, **more}.items()]
    return [{"ResourceType": kind, "Tags": labels} for kind in ("instance", "volume", "network-interface")]


# --- filters ----------------------------------------------------------------------------------------


def _matches(pattern: str, text: str) -> bool:
    """The naive model of a filter's value: one expression, piece by piece."""
    pieces = re.findall(r"\\.|[*?]|[^*?\\]", pattern, re.DOTALL)
    made = "".join({"*": ".*", "?": "."}.get(one, re.escape(one[1:] if len(one) == 2 else one)) for one in pieces)
    return re.fullmatch(made, text, re.DOTALL) is not None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
    return str(value)


def _leaves(item: Any) -> set[str]:
    """Every scalar anywhere in an item, as filters compare them."""
    if isinstance(item, dict):
        return {text for value in item.values() for text in _leaves(value)}
    if isinstance(item, list):
        return {text for value in item for text in _leaves(value)}
    return {_text(item)}


def _paths() -> dict[str, dict[str, str]]:
    """Operation -> filter -> path into its answer's items, from the services themselves."""
    from haneul.services.ec2 import images
    from haneul.services.ec2.instances import describe as instances
    from haneul.services.ec2.instances import types as instance_types
    from haneul.services.ec2.network import acls, interfaces, routes, security_groups, subnets, vpcs
    from haneul.services.ec2.storage import volumes

    return {
        "describe_instances": instances._FILTERS,
        "describe_instance_status": instances._STATUS_FILTERS,
        "describe_volumes": volumes._FILTERS,
        "describe_security_groups": security_groups._FILTERS,
        "describe_images": images._FILTERS,
        "describe_instance_types": instance_types._FILTERS,
        "describe_network_interfaces": interfaces._NETWORK_INTERFACES_PATHS,
        "describe_vpcs": vpcs._VPCS_PATHS,
        "describe_subnets": subnets._SUBNETS_PATHS,
        "describe_route_tables": routes._ROUTE_TABLES_PATHS,
        "describe_network_acls": acls._NETWORK_ACLS_PATHS,
    }


def _at(item: Any, path: str) -> list[str]:
    head, _, rest = path.partition(".")
    if isinstance(item, list):
        return [text for one in item for text in _at(one, path)]
    if isinstance(item, dict):
        return _at(item[head], rest) if head in item else []
    return [_text(item)] if not path and item != "" else []


def _values_to_try(texts: set[str], rng: random.Random) -> list[str]:
    found = sorted(texts)
    chosen = rng.sample(found, min(3, len(found)))
    wild = [text[: len(text) // 2] + "*" for text in chosen] + [f"?{text[1:]}" for text in chosen if text]
    return [
        *chosen,
        *wild,
        "*",
        "no-such-value",
        "".join(f"\\{c}" if c in "*?\\" else c for c in chosen[0]) if chosen else "x",
    ]


def test_filters_agree_with_a_naive_model(town: FakeCloud, record_tally: Callable[[str], None]) -> None:
    """Every filter that has a meaning here, with values that match, do not, and match by wildcards."""
    ec2, rng, tried = town.client(), random.Random(7), 0
    for name, paths in _paths().items():
        key = DESCRIBES[name][1]
        extra = {"IncludeAllInstances": True} if name == "describe_instance_status" else {}
        items = _all(ec2, name, **extra)
        for one, path in paths.items():
            known = {item[key]: _at(item, path) for item in items}
            for value in _values_to_try({text for texts in known.values() for text in texts}, rng):
                wanted = {ident for ident, texts in known.items() if any(_matches(value, text) for text in texts)}
                found = {item[key] for item in _all(ec2, name, Filters=[{"Name": one, "Values": [value]}], **extra)}
                assert found == wanted, (name, one, value)
                tried += 1
    record_tally(f"filters against a naive model: {tried} requests, 0 differences")


def test_tag_filters_agree_with_a_naive_model(town: FakeCloud, record_tally: Callable[[str], None]) -> None:
    ec2, tried = town.client(), 0
    names = [("tag:Name", ["web"]), ("tag:Name", ["w*", "d?"]), ("tag:team", [""]), ("tag:team", ["*"]), ("tag:a*b", ["v\\?"]),
             ("tag:empty", [""]), ("tag-key", ["Name"]), ("tag-key", ["a\\*b"]), ("tag-key", ["*"]), ("tag-value", ["sky", "db"]),
             ("tag-value", ["?"]), ("tag:nothing", ["*"])]  # fmt: skip
    for name in ("describe_instances", "describe_volumes", "describe_network_interfaces", "describe_security_groups"):
        key = DESCRIBES[name][1]
        items = _all(ec2, name)
        for one, values in names:
            wanted = set()
            for item in items:
                for tag in item.get("Tags", item.get("TagSet", [])):
                    text = tag["Key"] if one == "tag-key" else tag["Value"]
                    if (one.startswith("tag:") and tag["Key"] != one[4:]) or not any(_matches(v, text) for v in values):
                        continue
                    wanted.add(item[key])
            assert {item[key] for item in _all(ec2, name, Filters=[{"Name": one, "Values": values}])} == wanted, (
                name,
                one,
            )
            tried += 1
    record_tally(f"tag filters against a naive model: {tried} requests, 0 differences")


def test_several_filters_and(town: FakeCloud) -> None:
    ec2 = town.client()
    both = [{"Name": "tag:Name", "Values": ["web"]}, {"Name": "instance-state-name", "Values": ["stopped", "pending"]}]
    (one,) = _all(ec2, "describe_instances", Filters=both)
    assert one["State"]["Name"] == "stopped"
    assert _all(ec2, "describe_instances", Filters=[*both, {"Name": "architecture", "Values": ["arm64"]}]) == []
    assert _all(ec2, "describe_instances", InstanceIds=[one["InstanceId"]], Filters=both[:1]) == [one]
    with refused("InvalidInstanceID.NotFound"):
        ec2.describe_instances(InstanceIds=[one["InstanceId"], "i-0123456789abcdef0"], Filters=both)


def test_every_documented_filter_is_taken(town: FakeCloud, record_tally: Callable[[str], None]) -> None:
    """Also those on what no resource here has: they match nothing. Others are refused."""
    ec2, tried = town.client(), 0
    for operation in OPERATIONS.names("ec2"):
        shape = protocol.operation_model("ec2", operation).input_shape
        field = next((one for one in ("Filters", "Filter") if shape is not None and one in shape.members), "")
        if not field or not operation.startswith("Describe") or set(shape.required_members):
            continue
        call = getattr(ec2, _snake(operation))
        needed = {"Versions": ["$Latest"]} if operation == "DescribeLaunchTemplateVersions" else {}
        for name in sorted(documented_filters(operation)):
            if name in ("tag",):
                continue
            call(**{field: [{"Name": name, "Values": ["no-such-value"]}]}, **needed)
            tried += 1
        with pytest.raises(ClientError, match="no-such-filter"):
            call(**{field: [{"Name": "no-such-filter", "Values": ["x"]}]}, **needed)
    record_tally(f"documented filters taken: {tried}")


def _snake(name: str) -> str:
    from botocore import xform_name

    return str(xform_name(name))


def test_filters_of_what_is_shown_have_a_meaning(town: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented filters without a meaning here, each looked at: no answer has what they ask for."""
    from haneul.services import describe

    ec2, found, documented = town.client(), {}, describe.documented_filters
    nothing = {_camel(one.operation) for one in __import__("haneul.services.ec2.absent", fromlist=["_LIST"])._LIST}
    monkeypatch.setattr(describe, "documented_filters", lambda operation: frozenset())
    for operation in OPERATIONS.names("ec2"):
        shape = protocol.operation_model("ec2", operation).input_shape
        if (
            shape is None
            or "Filters" not in shape.members
            or not operation.startswith("Describe")
            or operation in nothing
        ):
            continue
        needed = {"Versions": ["$Latest"]} if operation == "DescribeLaunchTemplateVersions" else {}
        for name in sorted(documented(operation)):
            try:
                getattr(ec2, _snake(operation))(Filters=[{"Name": name, "Values": ["x"]}], **needed)
            except ClientError as error:
                assert "is invalid" in str(error)
                found.setdefault(operation, []).append(name)
    assert found == json.loads((Path(__file__).parent / "filters_of_nothing.json").read_text())


def test_limits_of_filters(ec2: Any) -> None:
    with refused("FilterLimitExceeded"):
        ec2.describe_instances(Filters=[{"Name": "vpc-id", "Values": [str(n) for n in range(201)]}])
    with refused("InvalidParameterValue"):
        ec2.describe_instances(Filters=[{"Name": "vpc-id", "Values": []}])


def _plans(cloud: FakeCloud, call: Callable[[], Any]) -> list[str]:
    """How SQLite finds the rows of every SELECT of a call."""
    seen: list[tuple[str, Any]] = []
    engine = cloud.running.store.engine

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "FROM" in statement:
            seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        call()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        plans = [
            driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall() for statement, parameters in seen
        ]
    return [str(row[3]) for plan in plans for row in plan]


@pytest.mark.parametrize(
    ("parameters", "index"),
    [
        ({"InstanceIds": ["$id"]}, "sqlite_autoindex_instances_1"),
        ({"Filters": [{"Name": "tag:Name", "Values": ["web"]}]}, "ix_tags_value"),
        ({"Filters": [{"Name": "private-ip-address", "Values": ["172.31.0.9"]}]}, "ix_interfaces_address"),
        ({"Filters": [{"Name": "ip-address", "Values": ["198.18.0.9"]}]}, "sqlite_autoindex_interfaces"),
        (
            {"Filters": [{"Name": "network-interface.network-interface-id", "Values": ["eni-1"]}]},
            "sqlite_autoindex_interfaces_1",
        ),
        ({"Filters": [{"Name": "reservation-id", "Values": ["r-1"]}]}, "ix_instances_reservation"),
        ({"Filters": [{"Name": "image-id", "Values": [AMI]}]}, "ix_instances_"),
        ({"MaxResults": 5}, "ix_instances_scope"),
    ],
)
def test_an_index_serves_where_it_can(
    start_cloud: Callable[..., FakeCloud], town: FakeCloud, parameters: dict[str, Any], index: str
) -> None:
    ec2 = town.client()
    one = _all(ec2, "describe_instances")[0]["InstanceId"]
    parameters = json.loads(json.dumps(parameters).replace("$id", one))
    plans = _plans(town, lambda: ec2.describe_instances(**parameters))
    mine = [plan for plan in plans if "SCAN" in plan and not re.search("access_keys|servers|revision", plan)]
    assert not mine, mine
    assert any(index in plan for plan in plans), plans


# --- pages ------------------------------------------------------------------------------------------


def test_pages_hold_everything_once(town: FakeCloud) -> None:
    ec2 = town.client()
    for name, (path, key) in DESCRIBES.items():
        shape = protocol.operation_model("ec2", _camel(name)).input_shape
        if "MaxResults" not in shape.members:
            continue
        whole = [(one[key], one.get("Key"), one.get("Location")) for one in _all(ec2, name)]
        paged: list[Any] = []
        parameters: dict[str, Any] = {"MaxResults": 5}
        while True:
            answer = getattr(ec2, name)(**parameters)
            found = _walk(answer, path)
            assert len(found) <= 5
            paged += [(one[key], one.get("Key"), one.get("Location")) for one in found]
            if not answer.get("NextToken"):
                break
            parameters["NextToken"] = answer["NextToken"]
        assert paged == whole, name


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def test_pages_are_stable_while_rows_come_and_go(start_cloud: Callable[..., FakeCloud]) -> None:
    """What is there from the first page to the last is seen exactly once, whatever comes and goes meanwhile."""
    cloud = start_cloud(terminated_seconds=0)
    ec2, rng = cloud.client(), random.Random(3)
    stay = run(ec2, 23)
    go = run(ec2, 9)
    wait(ec2, "instance_running", *stay, *go)
    seen: list[str] = []
    token, filters = None, [{"Name": "instance-type", "Values": ["t3.*"]}]
    for number in range(100):
        more = {"NextToken": token} if token else {}
        answer = ec2.describe_instances(MaxResults=5, Filters=filters, **more)
        seen += [one["InstanceId"] for one in _walk(answer, "Reservations.Instances")]
        if go and number % 2 == 0:
            ec2.terminate_instances(InstanceIds=[go.pop(rng.randrange(len(go)))])
        if number % 2:
            run(ec2, 1) if number < 5 else None
        token = answer.get("NextToken")
        if not token:
            break
    assert [one for one in seen if one in stay] == stay
    assert len(seen) == len(set(seen))


def test_tokens_are_ours_alone(town: FakeCloud) -> None:
    ec2 = town.client()
    token = ec2.describe_instances(MaxResults=5)["NextToken"]
    for other in (token[:-4] + "AAAA", "x", token + "=", "e30=", token.upper()):
        with refused("InvalidNextToken"):
            ec2.describe_instances(MaxResults=5, NextToken=other)
    with refused("InvalidNextToken"):
        ec2.describe_volumes(MaxResults=5, NextToken=token)
    with refused("InvalidNextToken"):
        town.client(region="eu-west-1").describe_instances(MaxResults=5, NextToken=token)
    for most, code in ((4, "InvalidParameterValue"), (1001, "InvalidParameterValue")):
        with refused(code):
            ec2.describe_instances(MaxResults=most)


# --- ids --------------------------------------------------------------------------------------------


def test_one_unknown_id_fails_the_whole_describe(town: FakeCloud) -> None:
    ec2, tried = town.client(), 0
    for name, (_, key) in DESCRIBES.items():
        shape = protocol.operation_model("ec2", _camel(name)).input_shape
        field = next((one for one in (f"{key}s", "InstanceIds", "DhcpOptionsIds") if one in shape.members), "")
        items = _all(ec2, name)
        if not field or not items or key in ("InstanceType", "ResourceId"):
            continue
        known = items[0][key]
        call = getattr(ec2, name)
        call(**{field: [known]})
        with pytest.raises(ClientError, match=r"NotFound|Unknown") as error:
            call(**{field: [known, known.rpartition("-")[0] + "-0fffffffffffffff9"]})
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        if key != "KeyPairId":
            with pytest.raises(ClientError, match="Malformed"):
                call(**{field: [known, "nonsense"]})
        tried += 1
    assert tried >= 12


# --- dry runs ---------------------------------------------------------------------------------------


def _dump(cloud: FakeCloud) -> str:
    """Everything in the store but what the control plane keeps for itself."""
    with cloud.running.store.read() as tx:
        rows = {
            one.name: sorted(json.dumps(row, default=str) for row in tx.select(one))
            for one in tables.metadata.sorted_tables
        }
    for name in ("revision", "servers"):
        rows.pop(name)
    return json.dumps(rows)


def test_dry_runs_change_nothing_whatever_is_asked(town: FakeCloud, record_tally: Callable[[str], None]) -> None:
    """Every operation with a DryRun, with generated values and with values that would do something."""
    ec2, codes = town.client(), []
    (one,) = run(ec2)
    wait(ec2, "instance_status_ok", one)
    group = ec2.describe_security_groups(GroupNames=["town"])["SecurityGroups"][0]["GroupId"]
    real: list[tuple[str, dict[str, Any]]] = [
        ("run_instances", {"ImageId": AMI, "MinCount": 1, "MaxCount": 1}),
        ("run_instances", {"MinCount": 1, "MaxCount": 1, "LaunchTemplate": {"LaunchTemplateName": "one"}, "ClientToken": "dry"}),
        ("terminate_instances", {"InstanceIds": [one]}), ("stop_instances", {"InstanceIds": [one]}),
        ("reboot_instances", {"InstanceIds": [one]}), ("monitor_instances", {"InstanceIds": [one]}),
        ("create_tags", {"Resources": [one], "Tags": [{"Key": "dry", "Value": "run"}]}),
        ("delete_tags", {"Resources": [group]}), ("delete_key_pair", {"KeyName": "key2"}),
        ("create_key_pair", {"KeyName": "dry", "KeyType": "ed25519"}),
        ("create_security_group", {"GroupName": "dry", "Description": "d"}),
        ("authorize_security_group_ingress", {"GroupId": group, "IpProtocol": "udp", "FromPort": 1, "ToPort": 1, "CidrIp": "1.2.3.4/32"}),
        ("revoke_security_group_ingress", {"GroupId": group, "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "10.0.0.0/8"}),
        ("create_placement_group", {"GroupName": "dry"}),
        ("delete_launch_template", {"LaunchTemplateName": "one"}),
        ("create_launch_template", {"LaunchTemplateName": "dry", "LaunchTemplateData": {"InstanceType": "t3.nano"}}),
        ("create_launch_template_version", {"LaunchTemplateName": "one", "LaunchTemplateData": {"InstanceType": "t3.nano"}}),
        ("modify_instance_attribute", {"InstanceId": one, "DisableApiStop": {"Value": True}}),
        ("modify_instance_metadata_options", {"InstanceId": one, "HttpTokens": "required"}),
        ("modify_instance_credit_specification", {"InstanceCreditSpecifications": [{"InstanceId": one, "CpuCredits": "standard"}]}),
        ("create_fleet", {"Type": "instant", "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": {"LaunchTemplateName": "one", "Version": "1"}}], "TargetCapacitySpecification": {"TotalTargetCapacity": 1}}),
    ]  # fmt: skip
    before = _dump(town)
    for name, parameters in real:
        with refused("DryRunOperation") as error:
            getattr(ec2, name)(DryRun=True, **parameters)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    for operation in OPERATIONS.names("ec2"):
        shape = protocol.operation_model("ec2", operation).input_shape
        if shape is None or "DryRun" not in shape.members:
            continue
        for number in range(3):
            parameters = generate.value(shape, random.Random(f"{operation}{number}"), every=False) | {"DryRun": True}
            try:
                getattr(ec2, _snake(operation))(**parameters)
                raise AssertionError(f"{operation} did it: {parameters}")
            except ClientError as error:
                codes.append(error.response["Error"]["Code"])
    assert _dump(town) == before
    record_tally(f"dry runs that changed nothing: {len(real) + len(codes)}")


# --- client tokens ----------------------------------------------------------------------------------

TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[dict[str, Any]], Any]]] = {
    "run_instances": (
        {"ImageId": AMI, "MinCount": 2, "MaxCount": 2}, {"InstanceType": "t3.small"},
        lambda answer: [one["InstanceId"] for one in answer["Instances"]],
    ),
    "create_launch_template": (
        {"LaunchTemplateName": "token", "LaunchTemplateData": {"InstanceType": "t3.nano"}}, {"VersionDescription": "other"},
        lambda answer: answer["LaunchTemplate"]["LaunchTemplateId"],
    ),
    "create_fleet": (
        {"Type": "instant", "TargetCapacitySpecification": {"TotalTargetCapacity": 2},
         "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": {"LaunchTemplateName": "token-base", "Version": "$Latest"}}]},
        {"ExcessCapacityTerminationPolicy": "termination"},
        lambda answer: (answer["FleetId"], answer["Instances"][0]["InstanceIds"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_client_tokens_everywhere(start_cloud: Callable[..., FakeCloud], tmp_path: Path, name: str) -> None:
    """Same token, same answer; other parameters are refused; concurrent ones give one result; a restart changes nothing."""
    parameters, other, read = TOKENS[name]
    cloud = start_cloud(tmp_path)
    ec2 = cloud.client()
    data = {"ImageId": AMI, "InstanceType": "t3.nano"}
    ec2.create_launch_template(LaunchTemplateName="token-base", LaunchTemplateData=data)
    found: list[Any] = []
    call = lambda client: read(getattr(client, name)(**parameters, ClientToken="t1"))  # noqa: E731
    threads = [threading.Thread(target=lambda: found.append(call(cloud.client()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(one == found[0] for one in found)
    with refused("IdempotentParameterMismatch"):
        getattr(ec2, name)(**(parameters | other), ClientToken="t1")
    with refused("InvalidParameterValue"):
        getattr(ec2, name)(**parameters, ClientToken="x" * 65)
    cloud.stop()
    again = start_cloud(tmp_path, port=0)
    assert call(again.client()) == found[0]
    count = sum(len(r["Instances"]) for r in again.client().describe_instances()["Reservations"])
    assert count == (0 if name == "create_launch_template" else 2)


def test_a_token_of_a_refused_request_may_be_used_again(ec2: Any) -> None:
    with refused("InvalidKeyPair.NotFound"):
        run(ec2, ClientToken="again", KeyName="nobody-yet")
    ec2.create_key_pair(KeyName="nobody-yet", KeyType="ed25519")
    (one,) = run(ec2, ClientToken="again", KeyName="nobody-yet")
    assert run(ec2, ClientToken="again", KeyName="nobody-yet") == [one]


# --- kept forms -------------------------------------------------------------------------------------


class _Changes(RuleBasedStateMachine):
    """Whatever changes, an answer from kept forms is the answer that is made anew."""

    cloud: FakeCloud

    def __init__(self) -> None:
        super().__init__()
        self.ec2 = self.cloud.client()
        self.ids = run(self.ec2, 2)
        wait(self.ec2, "instance_status_ok", *self.ids)
        self.group = self.ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]

    def teardown(self) -> None:
        self.ec2.terminate_instances(InstanceIds=self.ids)

    @rule(at=st.integers(0, 1), key=st.sampled_from("ab"), value=st.sampled_from(["", "x", "é"]))
    def tag(self, at: int, key: str, value: str) -> None:
        volume = get(self.ec2, self.ids[at])["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        self.ec2.create_tags(Resources=[self.ids[at], volume, self.group], Tags=[{"Key": key, "Value": value}])

    @rule(at=st.integers(0, 1))
    def untag(self, at: int) -> None:
        self.ec2.delete_tags(Resources=[self.ids[at]])

    @rule(at=st.integers(0, 1), check=st.booleans())
    def source_check(self, at: int, check: bool) -> None:
        self.ec2.modify_instance_attribute(InstanceId=self.ids[at], SourceDestCheck={"Value": check})

    @rule(at=st.integers(0, 1), keep=st.booleans())
    def mapping(self, at: int, keep: bool) -> None:
        mapping = {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": keep}}
        self.ec2.modify_instance_attribute(InstanceId=self.ids[at], BlockDeviceMappings=[mapping])

    @rule(at=st.integers(0, 1))
    def turn(self, at: int) -> None:
        one = self.ids[at]
        if get(self.ec2, one)["State"]["Name"] == "running":
            self.ec2.stop_instances(InstanceIds=[one])
            wait(self.ec2, "instance_stopped", one)
        else:
            self.ec2.start_instances(InstanceIds=[one])
            wait(self.ec2, "instance_running", one)

    @rule(at=st.integers(0, 1))
    def lost(self, at: int) -> None:
        """The machine of a stopped instance is gone from its server, with all that was known of it."""
        if get(self.ec2, self.ids[at])["State"]["Name"] == "stopped":
            self.cloud.world.remove("machine", self.ids[at])

    @rule(port=st.integers(1, 5))
    def rules(self, port: int) -> None:
        rule = {"GroupId": self.group, "IpProtocol": "tcp", "FromPort": port, "ToPort": port, "CidrIp": "10.0.0.0/8"}
        try:
            self.ec2.authorize_security_group_ingress(**rule)
        except ClientError:
            self.ec2.revoke_security_group_ingress(**rule)

    @rule()
    def monitor(self) -> None:
        self.ec2.monitor_instances(InstanceIds=self.ids[:1])

    @invariant()
    def kept_is_true(self) -> None:
        """Nothing may change between the two answers, so a report that comes in the middle gets a second chance."""
        for name in (
            "describe_instances",
            "describe_volumes",
            "describe_network_interfaces",
            "describe_security_groups",
        ):
            for _ in range(5):
                kept = _all(self.ec2, name)
                forms, self.cloud.running.cloud.forms = self.cloud.running.cloud.forms, None
                fresh = _all(self.ec2, name)
                self.cloud.running.cloud.forms = forms
                if kept == fresh:
                    break
            assert kept == fresh, name


def test_kept_forms_are_never_stale(start_cloud: Callable[..., FakeCloud]) -> None:
    _Changes.cloud = start_cloud()
    quick = settings(
        max_examples=12,
        stateful_step_count=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(_Changes, settings=quick)


# --- states -----------------------------------------------------------------------------------------


def test_no_state_is_skipped(fake: FakeCloud, ec2: Any) -> None:
    """What each answer promises is what comes next: create and change verbs answer the first state, never the last."""
    answer = ec2.run_instances(ImageId=AMI, MinCount=1, MaxCount=1)["Instances"][0]
    one = answer["InstanceId"]
    assert answer["State"] == {"Code": 0, "Name": "pending"}
    wait(ec2, "instance_running", one)
    for verb, list_name, states in (
        ("stop_instances", "StoppingInstances", ("running", "stopping")),
        ("start_instances", "StartingInstances", ("stopped", "pending")),
        ("terminate_instances", "TerminatingInstances", ("running", "shutting-down")),
    ):
        (change,) = getattr(ec2, verb)(InstanceIds=[one])[list_name]
        assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == states
        wait(
            ec2,
            {"stop": "instance_stopped", "start": "instance_running"}.get(verb.split("_")[0], "instance_terminated"),
            one,
        )
