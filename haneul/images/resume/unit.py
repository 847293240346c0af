"""The resume unit of an image: what makes a clone of a booted machine an instance of its own (`resume.c`).

A machine that is booted to be a template has `haneul.template` on its kernel's command line. Its guest boots as far as nothing of one
instance matters: no network. Then the unit waits. What it was kept from, a clone does after it has answered, in
the background.
"""

from __future__ import annotations

from pathlib import Path

#: Of the words between the server and the unit (`resume.c`); image.json has it as `resume`.
PROTOCOL = 2
#: The port between them (qemu_command.py has it too).
PORT = "haneul.resume"

TINY_SCRIPTS = {
    "lib/haneul/resumed": """\
#!/bin/sh
# The instance has answered; the rest is what a boot does anyway.
exec 3<&-
exec /lib/haneul/boot resumed
""",
}


FLAG = "/run/haneul/template"
_PROGRAM = "/usr/lib/haneul/resume"

#: What is not there yet in a template, and is started in its clone: whatever would ask for an address, make an identity or
#: show one.
_AFTERWARDS = (
    "cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service",
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service", "getty@.service", "serial-getty@.service",
)  # fmt: skip

#: What the image's user may, until cloud-init has said the same.
_SUDO = "/etc/sudoers.d/90-haneul-resumed"
#: Where cloud-init's first stage writes which instance this is.
_INSTANCE = "/run/cloud-init/.instance-id"
#: The template's SSH host key, and where sshd looks for one first; haneul makes none of this type.
_TEMPLATE_KEY = "/run/haneul/template-key"
_FIRST_KEY = "/etc/ssh/ssh_host_rsa_key"
_KEEP_KEYS = "/etc/cloud/cloud.cfg.d/99_haneul_resumed.cfg"

#: In a boot targets keep this order. In a clone they have been reached already.
_ORDER = {
    "cloud-config.service": "After=cloud-init.service\n",
    "systemd-networkd.service": "After=cloud-init-local.service\n",
}

DEBIAN_UNITS = ("haneul-template.service", "haneul-resume.service")

DEBIAN_FILES = {
    **{
        f"etc/systemd/system/{unit}.d/haneul.conf": f"[Unit]\nConditionPathExists=!{FLAG}\n{_ORDER.get(unit, '')}"
        for unit in _AFTERWARDS
    },
    # Who logs in comes before what goes on in the background.
    **{
        f"etc/systemd/system/{unit}.d/haneul-weight.conf": "[Service]\nCPUWeight=20\n"
        for unit in _AFTERWARDS
        if unit.startswith("cloud-")
    },
    # In the template sshd listens already, to nobody: its clone then has neither systemd's start nor sshd's own to wait for. The key that it
    # wants for that is shown to nobody: the process of a connection reads the keys of then.
    "etc/systemd/system/ssh.service.d/haneul.conf": f"""\
[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'if [ -e {FLAG} ]; then ssh-keygen -q -t ed25519 -N "" -f {_TEMPLATE_KEY} && ln -sf {_TEMPLATE_KEY} {_FIRST_KEY}; else exec /usr/sbin/sshd -t; fi'
""",
    # In whichever boot that is; but an instance of an image that was made of this one has keys of its own.
    "etc/systemd/system/cloud-init.service.d/haneul-resumed.conf": f"""\
[Service]
ExecStartPre=-/bin/sh -c '[ ! -e {_INSTANCE} ] || grep -qsxF "# $$(cat {_INSTANCE})" {_KEEP_KEYS} || rm -f {_KEEP_KEYS}'
ExecStartPost=-/bin/sh -c 'rm -f {_KEEP_KEYS}; [ ! -e /etc/sudoers.d/90-cloud-init-users ] || rm -f {_SUDO}'
""",
    "etc/systemd/system/haneul-template.service": f"""\
[Unit]
Description=This boot is that of a template
DefaultDependencies=no
ConditionKernelCommandLine=haneul.template
After=systemd-remount-fs.service
Before=cloud-init-local.service systemd-networkd.socket systemd-timesyncd.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mkdir -p /run/haneul
ExecStart=/bin/touch {FLAG}

[Install]
WantedBy=sysinit.target
""",
    "etc/systemd/system/haneul-resume.service": f"""\
[Unit]
Description=Become an instance of its own
ConditionPathExists={FLAG}
After=getty.target dbus.service systemd-logind.service systemd-resolved.service systemd-user-sessions.service

[Service]
Type=simple
ExecStartPre=/usr/lib/haneul/prepare
ExecStartPre=-/sbin/modprobe virtio_console
ExecStart={_PROGRAM} {PORT} eth0 admin /usr/lib/haneul/resumed
TimeoutStartSec=infinity
ExecStopPost=-/bin/systemctl kill -s CONT systemd-journald.service
ExecStopPost=-/bin/udevadm control --start-exec-queue
KillMode=process

[Install]
WantedBy=multi-user.target
""",
}

DEBIAN_SCRIPTS = {
    # What an instance needs at once is read from the disk now, and nothing that is made on the way stays.
    "usr/lib/haneul/prepare": f"""\
#!/bin/sh
export LC_ALL=C.UTF-8
/usr/bin/python3 /usr/lib/haneul/default-user
# Clones of a template without it would never let anybody in: then there shall be none.
systemctl start ssh.service || exit 1
rm {_TEMPLATE_KEY} {_TEMPLATE_KEY}.pub
# They are started in the clone, in their order.
systemctl stop cloud-final.service cloud-init.target
keys=/run/haneul/keys
mkdir -m 700 $keys
ssh-keygen -q -t ed25519 -N '' -f $keys/host
ssh-keygen -q -t ed25519 -N '' -f $keys/user
# The journal of a template ends by the signal that leaves in its sockets what its clone has said.
mkdir -p /run/systemd/system/systemd-journald.service.d
printf '[Service]\\nKillSignal=SIGKILL\\nSuccessExitStatus=KILL\\n' >/run/systemd/system/systemd-journald.service.d/haneul.conf
systemctl daemon-reload
# The user's own manager is there when the user comes: it takes an emulated processor seconds to start.
mount -t tmpfs -o size=64k,mode=755 tmpfs /var/lib/systemd/linger
loginctl enable-linger admin
# A login, as every part of it will be needed; over a pipe: the kernel's secrets of TCP, which are made once, shall not be every clone's.
home=$(getent passwd admin | cut -d: -f6)
install -d -m 700 -o admin -g admin $home/.ssh
install -m 600 -o admin -g admin $keys/user.pub $home/.ssh/authorized_keys
ssh -q -i $keys/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \\
    -o "ProxyCommand=/usr/sbin/sshd -i -h $keys/host" admin@localhost sudo true
rm -rf $keys $home/.ssh
# What udev would do of a new card comes after the first login too.
udevadm control --stop-exec-queue
/usr/bin/python3 -c 'import cloudinit.cmd.main, cloudinit.sources.DataSourceEc2, cloudinit.config.cc_ssh'
for name in wtmp btmp lastlog; do : >/var/log/$name; done
mv /etc/sudoers.d/90-cloud-init-users {_SUDO}
rm -f /var/lib/systemd/random-seed /var/log/cloud-init*.log $home/.cache/motd.legal-displayed $home/.sudo_as_admin_successful
rmdir $home/.cache 2>/dev/null
sync
exit 0
""",
    # The user that cloud-init would make for every instance of this image, made by cloud-init's own hands.
    "usr/lib/haneul/default-user": """\
from cloudinit import stages
from cloudinit.distros import ug_util

init = stages.Init(ds_deps=[])
init.read_cfg()
users, groups = ug_util.normalize_users_groups(init.cfg, init.distro)
for name, config in users.items():
    init.distro.create_user(name, **config)
""",
    "usr/lib/haneul/resumed": f"""\
#!/bin/sh
# The instance has answered. What a first boot would have done otherwise is done now; none of it is waited for by anybody.
export LC_ALL=C.UTF-8
if [ -e /run/haneul/user-data ]; then
    # User data says who may log in: there is nobody until cloud-init has read it.
    loginctl disable-linger admin
    loginctl terminate-user admin
    userdel -f -r admin 2>/dev/null
    rm -f {_SUDO}
else
    # The keys that the server gave stay, also if cloud-init comes to them in another boot.
    printf '# %s\\nssh_deletekeys: false\\n' "$1" >{_KEEP_KEYS}
fi
# The server says when, by hanging up: who waits to log in, here or at another instance, comes before the rest.
# The journal cannot wait for as long as that: from the 90th second on systemd's watchdog takes the one that was stopped for dead, and who
# says something to it waits when its sockets are full.
timeout 60 cat <&3 >/dev/null
sync
# The kernel's messages go to the journal again, which is a new one: of this machine, this boot and this name.
rm -rf /var/log/journal/* /run/log/journal/* /run/systemd/journal/kernel-seqnum
systemctl restart systemd-journald.service
cat <&3 >/dev/null
exec 3<&-
udevadm control --start-exec-queue
udevadm trigger --type=devices --subsystem-match=block --subsystem-match=net
# The address and the route that are there stay until DHCP has given the same.
mkdir -p /run/systemd/network/10-cloud-init-eth0.network.d
printf '[Network]\\nKeepConfiguration=static\\n' >/run/systemd/network/10-cloud-init-eth0.network.d/haneul.conf
# In this order: what comes later waits for what was ordered before.
systemctl start --no-block cloud-init.target systemd-networkd.service systemd-networkd.socket systemd-timesyncd.service getty.target
systemctl start cloud-init.service
if [ -e /run/haneul/user-data ]; then systemctl restart --no-block ssh.service; fi
/lib/systemd/systemd-update-utmp reboot
loginctl disable-linger admin 2>/dev/null
umount -l /var/lib/systemd/linger
""",
}


def source() -> str:
    return Path(__file__).with_name("resume.c").read_text()
