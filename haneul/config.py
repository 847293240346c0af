"""The settings: one frozen value, read from `haneul.toml` and from `HANEUL_*` variables.

Every field of `Settings` is a key of the file and, in capitals behind `HANEUL_`, a variable. A variable wins
over the file, the file over the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from haneul.errors import SettingsError
from haneul.model.region import has_form

SYSTEM_DATA = Path("/var/lib/haneul")


def _is_root() -> bool:
    return os.geteuid() == 0


def default_data() -> Path:
    """`/var/lib/haneul` for root, and for others where it is there; else below the home directory (fake drivers)."""
    if _is_root() or SYSTEM_DATA.exists():
        return SYSTEM_DATA
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local/share"))) / "haneul"


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"text": text})


@dataclass(frozen=True)
class Settings:
    data: Path = field(default_factory=default_data, metadata={"text": "directory of everything that haneul keeps"})
    images: Path | None = _setting(None, "directory of the built images (default: DATA/images)")
    host: str = _setting("127.0.0.1", "address of the API")
    port: int = _setting(4566, "port of the API")
    auth: Literal["signed", "open"] = _setting("signed", "`open` accepts any credentials, on loopback only")
    drivers: Literal["auto", "fake"] = _setting("auto", "`fake` runs the whole cloud without any guest")
    accelerator: Literal["auto", "tcg", "kvm"] = _setting(
        "auto", "`auto` uses KVM where a probe has booted a guest with it"
    )
    warm: Literal["auto", "off"] = _setting(
        "auto",
        "`auto`: machines go on from templates of their image and shape, made in the background; `off`: each boots",
    )
    warm_max_mib: int = _setting(
        2048, "memory that templates may take, in MiB, and twice that on disk; the least recently used goes first"
    )
    tcg_buffer_mib: int = _setting(
        128,
        "memory of each emulated instance's QEMU for translated code (its tb-size), in MiB: a part of memory_overhead_mib",
    )
    generation_fallback: Literal["emulate", "refuse"] = _setting(
        "emulate", "HVM types on a server without KVM: run them emulated, or refuse them"
    )
    uplink: Literal["none", "nat"] = _setting("none", "`nat` lets guests reach beyond this machine")
    account: str = _setting("000000000000", "the account of the keys that the first start makes")
    region: str = _setting("us-east-1", "the region that `haneul env` names")
    more_regions: str = _setting(
        "", "names of further regions, with commas: each is a name space of its own beside AWS's"
    )
    database: str = _setting("", "database URL: `postgresql://…` (default: SQLite in DATA)")
    durable: Literal["auto", "yes", "no"] = _setting(
        "auto", "what was answered survives a power cut (`auto`: yes, but for fake drivers)"
    )
    unknown_image: str = _setting("refuse", "`refuse`, or the name of the image that stands in for an unknown AMI id")
    public_pool: str = _setting("auto", "CIDR of the public addresses (`auto`: a /23 of 198.18.0.0/15, by DATA)")
    stop_seconds: int = _setting(90, "how long a guest may take to shut down before it is forced")
    after_reboot: Literal["start", "stop"] = _setting(
        "start", "instances that ran when the server went down: start them again, or leave them stopped"
    )
    vcpu_overcommit: int = _setting(16, "vCPUs that may be promised for each of the server's")
    memory_reserve_mib: int = _setting(1024, "memory of the server that instances never get")
    memory_overhead_mib: int = _setting(160, "memory that one instance costs beyond its own")
    quota_accounts: int = _setting(1000, "accounts that clients of the open door may make up")
    quota_instances: int = _setting(20000, "instances of one account in one region")
    quota_vcpus: int = _setting(100000, "vCPUs of one account's running instances in one region")
    quota_key_pairs: int = _setting(5000, "key pairs of one account in one region")
    quota_security_groups: int = _setting(2500, "security groups of one account in one region")
    quota_rules: int = _setting(60, "rules of one security group in each direction")
    quota_groups_per_interface: int = _setting(5, "security groups of one network interface")
    quota_tags: int = _setting(50, "tags of one resource")
    quota_placement_groups: int = _setting(500, "placement groups of one account in one region")
    quota_launch_templates: int = _setting(5000, "launch templates of one account in one region")
    quota_launch_template_versions: int = _setting(10000, "versions of one launch template")
    import_max_gib: int = _setting(256, "the largest disk that `haneul image import` takes, as its guest sees it (GiB)")
    import_max_file_gib: int = _setting(64, "the largest file that is imported, and that becomes of it (GiB)")
    forms_mib: int = _setting(96, "memory for answers' parts that are kept until their resource changes")
    log_format: Literal["text", "json"] = _setting("text", "form of the lines of haneul's log")
    audit: Literal["off", "writes", "all"] = _setting("writes", "which calls DATA/audit.jsonl records")
    audit_mib: int = _setting(256, "disk space for the audit, at most; the oldest records go first")
    terminated_seconds: int = _setting(3600, "how long a terminated instance stays describable")
    token_seconds: int = _setting(86400, "how long a client token is remembered")

    @property
    def image_directory(self) -> Path:
        return self.images if self.images is not None else self.data / "images"

    @property
    def extra_regions(self) -> frozenset[str]:
        return frozenset(name.strip() for name in self.more_regions.split(",") if name.strip())

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'haneul.db'}"

    @property
    def is_durable(self) -> bool:
        return self.durable == "yes" or (self.durable == "auto" and self.drivers != "fake")

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Source:
    """Where a setting's value came from: `default`, the file's path, or the variable's name."""

    name: str
    value: Any
    origin: str
    text: str


def _parse(name: str, kind: Any, value: Any, origin: str) -> Any:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and value not in choices:
        wanted = ", ".join(choices)
        raise SettingsError(f"{origin}: {name} = {value!r} is not one of: {wanted}")
    if kind is int:
        try:
            return int(value)
        except (TypeError, ValueError):
            raise SettingsError(f"{origin}: {name} = {value!r} is not a whole number") from None
    if kind is Path or kind == (Path | None):
        return Path(str(value)).expanduser().absolute()
    return str(value)


def config_file(environment: Mapping[str, str]) -> Path | None:
    """`HANEUL_CONFIG`, else `haneul.toml` in this directory, else `/etc/haneul/haneul.toml`."""
    named = environment.get("HANEUL_CONFIG")
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"HANEUL_CONFIG names {named}, which is not a file")
        return Path(named)
    for candidate in (Path("haneul.toml"), Path("/etc/haneul/haneul.toml")):
        if candidate.is_file():
            return candidate
    return None


def sources(environment: Mapping[str, str] | None = None) -> list[Source]:
    """Every setting with its value and where that came from. Raises `SettingsError`."""
    environment = os.environ if environment is None else environment
    path = config_file(environment)
    try:
        written = tomllib.loads(path.read_text()) if path else {}
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise SettingsError(f"{path}: {error}") from None
    hints = get_type_hints(Settings)
    known = {one.name: one for one in fields(Settings)}
    for name in written:
        if name not in known:
            raise SettingsError(f"{path}: there is no setting {name!r}; `haneul config` lists them")
    found = []
    defaults = Settings()
    for name, one in known.items():
        value, origin = getattr(defaults, name), "default"
        if name in written:
            value, origin = _parse(name, hints[name], written[name], str(path)), str(path)
        variable = f"HANEUL_{name.upper()}"
        if environment.get(variable):
            value, origin = _parse(name, hints[name], environment[variable], variable), variable
        found.append(Source(name, value, origin, one.metadata["text"]))
    return found


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in force. Raises `SettingsError` with the place of the mistake."""
    return _checked(Settings(**{one.name: one.value for one in sources(environment)}))


#: All others are at least 1.
_LEAST = dict.fromkeys(
    ("stop_seconds", "memory_reserve_mib", "memory_overhead_mib", "forms_mib", "terminated_seconds"), 0
) | {"tcg_buffer_mib": 16}


def _checked(settings: Settings) -> Settings:
    if not 0 <= settings.port <= 65535:
        raise SettingsError(f"port = {settings.port} is not a port")
    if 0 < settings.memory_overhead_mib < settings.tcg_buffer_mib:
        raise SettingsError(
            f"tcg_buffer_mib = {settings.tcg_buffer_mib} is more than memory_overhead_mib = {settings.memory_overhead_mib}, "
            "which an instance is counted with beyond its own memory: lower the one or raise the other"
        )
    for name in ("import_max_gib", "import_max_file_gib"):
        if not 1 <= getattr(settings, name) <= 16384:
            raise SettingsError(f"{name} = {getattr(settings, name)} is not a size from 1 to 16384 GiB")
    for one in fields(settings):
        value = getattr(settings, one.name)
        if one.name != "port" and type(value) is int and value < _LEAST.get(one.name, 1):
            raise SettingsError(f"{one.name} = {value} is too small: at least {_LEAST.get(one.name, 1)}")
    for name in sorted(settings.extra_regions | {settings.region}):
        if not has_form(name):
            raise SettingsError(f"{name!r} is not a region's name (like eu-west-1)")
    if len(settings.account) != 12 or not settings.account.isdigit():
        raise SettingsError(f"account = {settings.account!r} is not twelve digits")
    if settings.auth == "open" and settings.host not in ("127.0.0.1", "::1", "localhost"):
        raise SettingsError(f"auth = 'open' is for loopback only, host is {settings.host!r}: use auth = 'signed'")
    return settings
