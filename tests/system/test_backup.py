"""A guest's disk outlives its server: backup, purge, restore, and what was written is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.system.conftest import Haneul


def test_what_a_guest_wrote_is_there_after_a_restore(make_haneul: Callable[..., Haneul], tmp_path: Path) -> None:
    own, file = make_haneul(), tmp_path / "all.tgz"
    own.up()
    instance, stopped = own.launch(count=2)
    for one in (instance, stopped):
        own.until_ssh(one)
    own.ssh(instance, "echo kept > /root/written; sync")
    own.client().stop_instances(InstanceIds=[stopped])
    own.until(stopped, "stopped")
    own.run("down")
    refused = own.run("backup", "--volumes", str(file), check=False)
    assert refused.returncode == 3 and instance in refused.stderr and "haneul down --instances" in refused.stderr
    own.run("down", "--instances")
    own.run("backup", "--volumes", str(file))
    own.run("down", "--purge")
    assert not own.data.exists()

    own.run("restore", str(file))
    volumes = sorted((own.data / "volumes").iterdir())
    assert len(volumes) == 2
    assert all(path.stat().st_uid and path.stat().st_mode & 0o777 == 0o600 for path in volumes)
    own.up()
    found = own.until(instance, "running")
    own.until_ssh(instance)
    assert own.ssh(instance, "cat /root/written") == "kept"
    assert "PublicIpAddress" in found
    assert own.instance(stopped)["State"]["Name"] == "stopped"
    own.client().start_instances(InstanceIds=[stopped])
    own.until_ssh(stopped)

    # Back to what it was, on the same server: a machine that the backup does not know keeps it from that.
    (later,) = own.launch()
    own.until(later, "running")
    own.run("down")
    refused = own.run("restore", "--replace", str(file), check=False)
    assert refused.returncode == 3 and later in refused.stderr
    own.run("down", "--purge")
