"""The catalogue of instance types, as EC2 describes them."""

from __future__ import annotations

from typing import Any

from haneul.errors import CloudError
from haneul.model.instance_types import InstanceType, instance_types
from haneul.model.region import zone_id, zones
from haneul.services.context import Context, Input, Output, ec2
from haneul.services.describe import matching, page


def find(name: str) -> InstanceType:
    known = instance_types().get(name)
    if known is None:
        raise CloudError("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")
    return known


def _view(one: InstanceType) -> dict[str, Any]:
    nitro = one.hypervisor == "nitro"
    return {
        "InstanceType": one.name,
        "CurrentGeneration": one.current,
        "FreeTierEligible": one.free_tier,
        "SupportedUsageClasses": ["on-demand"],
        "SupportedRootDeviceTypes": ["ebs"],
        "SupportedVirtualizationTypes": [one.virtualization_type],
        "BareMetal": False,
        "Hypervisor": one.hypervisor,
        "ProcessorInfo": {
            "SupportedArchitectures": [one.architecture],
            "SustainedClockSpeedInGhz": one.clock_ghz or None,
        },
        "VCpuInfo": {
            "DefaultVCpus": one.vcpus,
            "DefaultCores": one.cores,
            "DefaultThreadsPerCore": one.threads_per_core,
        },
        "MemoryInfo": {"SizeInMiB": one.memory_mib},
        "InstanceStorageSupported": False,
        "EbsInfo": {
            "EbsOptimizedSupport": "default" if nitro else "unsupported",
            "EncryptionSupport": "unsupported",
            "NvmeSupport": "unsupported",
            "MaximumEbsAttachments": one.most_volumes,
        },
        "NetworkInfo": {
            "NetworkPerformance": one.network,
            "MaximumNetworkInterfaces": one.interfaces,
            "MaximumNetworkCards": 1,
            "DefaultNetworkCardIndex": 0,
            "NetworkCards": [
                {
                    "NetworkCardIndex": 0,
                    "NetworkPerformance": one.network,
                    "MaximumNetworkInterfaces": one.interfaces,
                }
            ],
            "Ipv4AddressesPerInterface": one.addresses_per_interface,
            "Ipv6AddressesPerInterface": 0,
            "Ipv6Supported": False,
            "EnaSupport": "unsupported",
            "EfaSupported": False,
            "EncryptionInTransitSupported": False,
        },
        "PlacementGroupInfo": {"SupportedStrategies": list(one.strategies)},
        "HibernationSupported": False,
        "BurstablePerformanceSupported": one.burstable,
        "DedicatedHostsSupported": False,
        "AutoRecoverySupported": False,
        "SupportedBootModes": ["legacy-bios"],
        "NitroEnclavesSupport": "unsupported",
        "NitroTpmSupport": "unsupported",
    }


_FILTERS = {
    "auto-recovery-supported": "AutoRecoverySupported",
    "bare-metal": "BareMetal",
    "burstable-performance-supported": "BurstablePerformanceSupported",
    "current-generation": "CurrentGeneration",
    "dedicated-hosts-supported": "DedicatedHostsSupported",
    "ebs-info.ebs-optimized-support": "EbsInfo.EbsOptimizedSupport",
    "ebs-info.encryption-support": "EbsInfo.EncryptionSupport",
    "ebs-info.maximum-ebs-attachments": "EbsInfo.MaximumEbsAttachments",
    "ebs-info.nvme-support": "EbsInfo.NvmeSupport",
    "free-tier-eligible": "FreeTierEligible",
    "hibernation-supported": "HibernationSupported",
    "hypervisor": "Hypervisor",
    "instance-storage-supported": "InstanceStorageSupported",
    "instance-type": "InstanceType",
    "memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
    "network-info.encryption-in-transit-supported": "NetworkInfo.EncryptionInTransitSupported",
    "nitro-enclaves-support": "NitroEnclavesSupport",
    "nitro-tpm-support": "NitroTpmSupport",
    "network-info.efa-supported": "NetworkInfo.EfaSupported",
    "network-info.ena-support": "NetworkInfo.EnaSupport",
    "network-info.ipv4-addresses-per-interface": "NetworkInfo.Ipv4AddressesPerInterface",
    "network-info.ipv6-addresses-per-interface": "NetworkInfo.Ipv6AddressesPerInterface",
    "network-info.ipv6-supported": "NetworkInfo.Ipv6Supported",
    "network-info.maximum-network-cards": "NetworkInfo.MaximumNetworkCards",
    "network-info.maximum-network-interfaces": "NetworkInfo.MaximumNetworkInterfaces",
    "network-info.network-performance": "NetworkInfo.NetworkPerformance",
    "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
    "processor-info.sustained-clock-speed-in-ghz": "ProcessorInfo.SustainedClockSpeedInGhz",
    "supported-boot-mode": "SupportedBootModes",
    "supported-root-device-type": "SupportedRootDeviceTypes",
    "supported-usage-class": "SupportedUsageClasses",
    "supported-virtualization-type": "SupportedVirtualizationTypes",
    "vcpu-info.default-cores": "VCpuInfo.DefaultCores",
    "vcpu-info.default-threads-per-core": "VCpuInfo.DefaultThreadsPerCore",
    "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
}


@ec2
def describe_instance_types(ctx: Context, params: Input) -> Output:
    wanted = params.get("InstanceTypes", ())
    unknown = [name for name in wanted if name not in instance_types()]
    if unknown:
        raise CloudError(
            "InvalidInstanceType", f"The following supplied instance types do not exist: [{', '.join(unknown)}]"
        )
    chosen = [one for name, one in instance_types().items() if not wanted or name in wanted]
    items = matching(ctx, params, map(_view, chosen), _FILTERS, taggable=False)
    shown, token = page(ctx, params, items, lambda item: item["InstanceType"], ids="InstanceTypes")
    return {"InstanceTypes": shown, "NextToken": token}


@ec2
def describe_instance_type_offerings(ctx: Context, params: Input) -> Output:
    kind = params.get("LocationType", "region")
    places = {
        "region": [ctx.region],
        "availability-zone": list(zones(ctx.region)),
        "availability-zone-id": [zone_id(zone) for zone in zones(ctx.region)],
    }.get(kind, [])
    items = [
        {"InstanceType": name, "LocationType": kind, "Location": place} for name in instance_types() for place in places
    ]
    known = {"location": "Location", "instance-type": "InstanceType"}
    wanted = matching(ctx, params, items, known, taggable=False)
    shown, token = page(ctx, params, wanted, lambda item: f"{item['InstanceType']}\0{item['Location']}")
    return {"InstanceTypeOfferings": shown, "NextToken": token}
