"""A real haneul: guests boot, in a network namespace that plays the host (scripts/test makes it).

Every wait is for a condition, with a generous deadline: these machines are noisy and emulated.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
from botocore.config import Config

T = TypeVar("T")
HANEUL = Path(sys.executable).with_name("haneul")


def eventually(what: str, ask: Callable[[], T], seconds: float = 60.0, pause: float = 0.2) -> T:
    """The first true answer of `ask`; its exceptions mean "not yet"."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = ask()
        except (OSError, subprocess.SubprocessError, AssertionError, LookupError) as error:
            last = error
        else:
            if answer:
                return answer
            last = answer
        time.sleep(pause)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; last: {last!r}")


class Haneul:
    """One haneul on a data directory of its own, driven as a user drives it."""

    def __init__(self, data: Path, images: Path, **settings: str) -> None:
        self.data = data
        self.port = _free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HANEUL_"))},
            "HANEUL_DATA": str(data),
            "HANEUL_IMAGES": str(images),
            "HANEUL_PORT": str(self.port),
            "HANEUL_ACCELERATOR": "tcg",
            "HANEUL_STOP_SECONDS": "60",
            # Those that boot here need the processors: templates are made where a test is about them.
            "HANEUL_WARM": "off",
            **settings,
        }

    # --- commands ---------------------------------------------------------------------------------------

    def run(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(HANEUL), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"haneul {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self.run("up", "--detach")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json", check=False).stdout)
        return found

    @property
    def pids(self) -> list[int]:
        """The processes of haneul itself: those that hold its lock."""
        from haneul.linux import locks

        return locks.holders(self.data / "haneul.lock")

    def kill(self) -> None:
        """kill -9, as a crash would."""
        for pid in self.pids:
            os.kill(pid, 9)
        eventually("haneul is gone", lambda: not self.pids, 10, 0.02)

    # --- API --------------------------------------------------------------------------------------------

    @property
    def credentials(self) -> tuple[str, str]:
        access_key, secret = (self.data / "identity" / "credentials").read_text().split()
        return access_key, secret

    def client(self, service: str = "ec2", region: str = "us-east-1") -> Any:
        access_key, secret = self.credentials
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=60),
        )

    def aws(self, *arguments: str) -> Any:
        """The unmodified AWS CLI; its JSON."""
        access_key, secret = self.credentials
        environment = self.environment | {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_PAGER": "",
        }
        command = [str(Path(sys.executable).with_name("aws")), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, f"aws {shlex.join(arguments)}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def image(self, name: str) -> str:
        return str(self.client().describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"][0]["ImageId"])

    def instance(self, instance_id: str) -> dict[str, Any]:
        answer = self.client().describe_instances(InstanceIds=[instance_id])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    def until(self, instance_id: str, state: str, seconds: float = 240) -> dict[str, Any]:
        def ask() -> dict[str, Any] | None:
            found = self.instance(instance_id)
            return found if found["State"]["Name"] == state else None

        return eventually(f"{instance_id} is {state}", ask, seconds)

    def open_group(self) -> str:
        """A group that lets everything in."""
        ec2 = self.client()
        found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["open"]}])["SecurityGroups"]
        if found:
            return str(found[0]["GroupId"])
        group = str(ec2.create_security_group(GroupName="open", Description="all")["GroupId"])
        ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        )
        return group

    def launch(self, image: str = "tiny", count: int = 1, **parameters: Any) -> list[str]:
        parameters = {"InstanceType": "t3.nano", "SecurityGroupIds": [self.open_group()]} | parameters
        answer = self.client().run_instances(ImageId=self.image(image), MinCount=count, MaxCount=count, **parameters)
        return [one["InstanceId"] for one in answer["Instances"]]

    # --- guests -----------------------------------------------------------------------------------------

    def ssh(
        self, instance_id: str, command: str, *, user: str = "root", key: Path | None = None, timeout: float = 60
    ) -> str:
        """What a command in the guest prints. Raises `CalledProcessError` or `TimeoutExpired`."""
        address = self.instance(instance_id)["PublicIpAddress"]
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "IdentitiesOnly=yes",
            "ConnectTimeout=5",
        ]
        given = [part for option in options for part in ("-o", option)]
        key = key or self.data / "identity" / "ssh_key"
        done = subprocess.run(
            ["ssh", "-i", str(key), *given, f"{user}@{address}", command],
            capture_output=True, text=True, timeout=timeout, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout.strip()

    def until_ssh(self, instance_id: str, seconds: float = 300, **options: Any) -> None:
        def ask() -> bool:
            return self.ssh(instance_id, "echo in", timeout=30, **options) == "in"

        try:
            eventually(f"{instance_id} answers by SSH", ask, seconds)
        except AssertionError as error:
            output = self.client().get_console_output(InstanceId=instance_id).get("Output", "")
            raise AssertionError(f"{error}\nits console:\n{output[-3000:]}") from None

    def machine_pids(self, instance_id: str) -> list[int]:
        from haneul.linux import locks

        return locks.holders(self.data / "instances" / instance_id / "lock")

    def qemu_pid(self, instance_id: str) -> int:
        pids = self.machine_pids(instance_id)
        return next(pid for pid in pids if "qemu-system" in os.readlink(f"/proc/{pid}/exe"))

    def terminate(self, *ids: str) -> None:
        self.client().terminate_instances(InstanceIds=list(ids))
        for one in ids:
            self.until(one, "terminated")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _why_not() -> str:
    if os.geteuid() != 0:
        return "guests need root"
    if shutil.which("qemu-system-x86_64") is None:
        return "QEMU is not installed"
    if {name for _, name in socket.if_nameindex()} - {"lo"}:
        return "not in a network namespace of its own: run `make test`"
    return ""


@pytest.fixture(scope="session")
def make_haneul() -> Iterator[Callable[..., Haneul]]:
    """Haneuls on data directories of their own, purged at the end."""
    why = _why_not()
    if why:
        pytest.skip(why)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    images = Path(os.environ.get("HANEUL_TEST_IMAGES", "/var/lib/haneul/images"))
    made: list[Haneul] = []

    def make(**settings: str) -> Haneul:
        data = Path(tempfile.mkdtemp(prefix="haneul-test-", dir="/var/tmp"))
        data.chmod(0o711)
        found = Haneul(data, images, **settings)
        made.append(found)
        return found

    yield make
    for one in made:
        if one.data.exists():
            one.run("down", "--purge", check=False)
            shutil.rmtree(one.data, ignore_errors=True)


@pytest.fixture(scope="session")
def haneul(make_haneul: Callable[..., Haneul]) -> Haneul:
    """The haneul that most tests share."""
    found = make_haneul()
    found.up()
    return found


@pytest.fixture
def launch(haneul: Haneul) -> Iterator[Callable[..., str]]:
    """Launch one instance and wait for its SSH; it is terminated after the test."""
    made: list[str] = []

    def one(**parameters: Any) -> str:
        (instance,) = haneul.launch(**parameters)
        made.append(instance)
        haneul.until_ssh(instance)
        return instance

    yield one
    if made:
        haneul.terminate(*made)
