"""Warm launch seen from the API: whose images machines go on from, and what a haneul without templates says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from haneul.errors import CloudError
from haneul.model.image import CatalogueImage
from haneul.reconcile.catalogue import sync_catalogue
from tests.conformance.conftest import FakeCloud
from tests.conformance.test_instances import refused, run


def test_an_accounts_image_is_its_own_and_its_machines_are_of_the_store(start_cloud: Callable[..., FakeCloud]) -> None:
    """Templates are of images of the store, which everybody may launch. An account's image is one of those under its own name:

    nothing that an account has written is in it, and so in no template; and nobody else launches it.
    """
    cloud = start_cloud(drivers="auto", auth="open")  # fake drivers launch any image id
    image = CatalogueImage("debian-12", "Debian", "x86_64", 8, 1.0, "admin")
    with cloud.running.store.write() as tx:
        sync_catalogue(tx, [image])
    owner, other = (cloud.client(aws_access_key_id=f"{n}" * 12, aws_secret_access_key="x") for n in (1, 2))
    root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": image.snapshot_id}}
    mine = owner.register_image(Name="mine", BlockDeviceMappings=[root], RootDeviceName="/dev/xvda")["ImageId"]
    with refused("InvalidAMIID.NotFound"):
        run(other, ImageId=mine)
    (one,) = run(owner, ImageId=mine)
    assignment = cloud.running.control.assignment(cloud.running.lease.server_id)
    assert assignment is not None
    (spec,) = [one for one in assignment.machines if one.image]
    assert (spec.instance_id, spec.image, [disk.image for disk in spec.disks]) == (one, "debian-12", ["debian-12"])


@pytest.mark.parametrize("what", ["list", "order", "sweep"])
def test_a_haneul_without_templates_says_so(fake: FakeCloud, what: str) -> None:
    arguments = {"image": "tiny", "type": "t3.micro"}
    with pytest.raises(CloudError, match="its drivers are fake"):
        asyncio.run(fake.running.templates(what, arguments))
    assert fake.running.status()["templates"] == []


def test_metrics_without_templates(fake: FakeCloud) -> None:
    names: list[Any] = [name for name, *_ in fake.running.gauges()]
    assert not [name for name in names if "template" in name]
