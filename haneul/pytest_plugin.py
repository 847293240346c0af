"""A cloud for the tests of infrastructure code: the fixture `haneul`, for any project that has haneul installed.

    def test_launch(haneul):
        haneul.ec2.run_instances(ImageId=haneul.image, MinCount=1, MaxCount=1)

One cloud serves the whole session, on a free port of 127.0.0.1 and with data of its own that is removed afterwards. With the
fake drivers no guest runs and everything happens at once; `--haneul-real` boots real guests (root, and the packages that
`haneul doctor` names). Every test has an account of its own, so that tests do not see each other's instances.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FAKE_IMAGE = "ami-0123456789abcdef0"
START_SECONDS = 60.0


@dataclass
class Haneul:
    """A running cloud, seen from one account.

    `endpoint` is the URL for `endpoint_url`; `image` an image that can be launched; `client(service)` a boto3 client, made
    for this account; `ec2` the one for EC2; `environment` the variables that point any AWS tool here.
    """

    endpoint: str
    access_key: str
    secret: str
    account: str
    image: str
    real: bool
    region: str = "us-east-1"
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def client(self, service: str, region: str = "") -> Any:
        import boto3

        key = (service, region or self.region)
        if key not in self._clients:
            self._clients[key] = boto3.client(
                service,
                region_name=key[1],
                endpoint_url=self.endpoint,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret,
            )
        return self._clients[key]

    @property
    def ec2(self) -> Any:
        return self.client("ec2")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("haneul")
    group.addoption("--haneul-real", action="store_true", help="boot real guests instead of fake ones (needs root)")
    group.addoption("--haneul-image", default="tiny", help="with --haneul-real: the image that `haneul.image` names")


def _command(arguments: list[str], environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "haneul", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise pytest.UsageError(f"haneul {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class _Cloud:
    control: Path
    endpoint: str
    image: str
    real: bool
    made: int = 0

    def account(self) -> Haneul:
        """A new account, as `haneul account add` makes one, without the start of a command."""
        self.made += 1
        connection = http.client.HTTPConnection("haneul", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.control))
            connection.request("POST", "/accounts/add", json.dumps({"name": f"test-{self.made}"}))
            answer = connection.getresponse()
            key = json.loads(answer.read())
        if answer.status != 200:
            raise pytest.UsageError(f"haneul gave no account: {key}")
        return Haneul(self.endpoint, key["access_key"], key["secret"], key["account"], self.image, self.real)


@pytest.fixture(scope="session")
def haneul_cloud(request: pytest.FixtureRequest) -> Iterator[_Cloud]:
    """The session's cloud. Tests want `haneul`, which is an account in it."""
    real = bool(request.config.getoption("--haneul-real"))
    # Not below the user's home: machines run under uids of their own and have to reach their disks.
    data = Path(tempfile.mkdtemp(prefix="haneul-test-", dir="/var/tmp" if real else None))
    data.chmod(0o711)
    port = _free_port()
    ours = {"DATA": str(data / "data"), "PORT": str(port), "DRIVERS": "auto" if real else "fake", "UPLINK": "none"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANEUL_")}
    environment |= {f"HANEUL_{name}": value for name, value in ours.items()}
    # Not the settings of the project or of this machine: they may name a real database.
    (data / "haneul.toml").write_text("")
    environment["HANEUL_CONFIG"] = str(data / "haneul.toml")
    if "HANEUL_IMAGES" in os.environ:
        environment["HANEUL_IMAGES"] = os.environ["HANEUL_IMAGES"]
    image = FAKE_IMAGE
    try:
        if real:
            name = str(request.config.getoption("--haneul-image"))
            _command(["image", "build", name], environment)
            image = next(
                one["image_id"]
                for one in json.loads(_command(["image", "list", "--json"], environment))
                if one["disk"] == name
            )
        process = subprocess.Popen([sys.executable, "-m", "haneul", "up"], env=environment, stdout=subprocess.DEVNULL)
        try:
            _wait(process, port)
            yield _Cloud(data / "data" / "control.sock", f"http://127.0.0.1:{port}", image, real)
        finally:
            try:
                if real:
                    _command(["down", "--purge"], environment)
            finally:
                # Also where purging failed: a haneul that nobody stops would outlive the session.
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                process.wait(60)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise pytest.UsageError("haneul did not start; its message is above")
        with (
            contextlib.suppress(OSError),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as one,
        ):
            one.request("GET", "/")
            one.getresponse()
            return
        time.sleep(0.02)
    raise pytest.UsageError(f"haneul does not answer on port {port}")


def _end_instances(ec2: Any) -> None:
    """Real guests hold memory that the next test needs."""
    alive = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=alive)
    ids = [one["InstanceId"] for page in pages for each in page["Reservations"] for one in each["Instances"]]
    for one in ids:
        ec2.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": False})
    if ids:
        ec2.terminate_instances(InstanceIds=ids)
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig={"Delay": 1})


@pytest.fixture
def haneul(haneul_cloud: _Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Haneul]:
    """An empty cloud: an account of its own for each test. AWS tools and SDKs that the test starts find it by themselves."""
    found = haneul_cloud.account()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # boto3's session of its own remembers the credentials of the test before.
    if "boto3" in sys.modules:
        monkeypatch.setattr(sys.modules["boto3"], "DEFAULT_SESSION", None)
    yield found
    if found.real:
        _end_instances(found.ec2)
