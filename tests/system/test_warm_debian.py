"""What only a Debian that goes on from a template could get wrong. (Its journeys: test_warm_journeys.py.)"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.conftest import Haneul

pytestmark = pytest.mark.timeout(2400)

#: A unit that says what systemd itself takes for the machine and its boot; the files beside it; what is left of the template.
ASK = """
printf '[Service]\\nType=oneshot\\nExecStart=/bin/echo ids %%m %%b %%H\\n' | sudo tee /run/systemd/system/ask.service >/dev/null
sudo systemctl daemon-reload && sudo systemctl start ask
sudo journalctl -u ask -o cat --no-pager | grep ^ids
echo "ids $(cat /etc/machine-id) $(tr -d - </proc/sys/kernel/random/boot_id) $(hostname)"
ip -d link show eth0 | grep -c permaddr
sudo sh -c 'ls /var/log/journal | wc -l; ls /etc/sudoers.d | grep -c haneul; ls /var/lib/systemd/linger | wc -l'
journalctl --list-boots --no-pager -q | wc -l
ls /etc/ssh/ssh_host_rsa_key /run/haneul/template-key* /etc/cloud/cloud.cfg.d/99_haneul_resumed.cfg 2>/dev/null | wc -l
"""

#: The host keys that sshd shows, beside those in the files.
SHOWN = 'bash -c \'diff <(ssh-keyscan localhost 2>/dev/null | cut -d" " -f2,3 | sort) <(cut -d" " -f1,2 /etc/ssh/ssh_host_*.pub | sort) || true\''


def test_nothing_of_the_template_is_left(make_haneul: Callable[..., Haneul]) -> None:
    haneul = make_haneul(HANEUL_WARM="auto")
    haneul.up()
    haneul.run("image", "warm", "debian-12", "--type", "t3.micro", timeout=1500)
    (one,) = haneul.launch("debian-12", InstanceType="t3.micro")
    haneul.until_ssh(one, 900, user="admin")
    (status,) = haneul.status()["instances"]
    assert status["phase"] == "on, from a template"
    keys = haneul.ssh(one, "cat /etc/ssh/ssh_host_*.pub", user="admin")
    assert haneul.ssh(one, SHOWN, user="admin") == "", "sshd listened in the template, with a key of its own"
    haneul.ssh(one, "cloud-init status --wait", user="admin", timeout=900)
    assert haneul.ssh(one, "cat /etc/ssh/ssh_host_*.pub", user="admin") == keys, "a client knows them already"
    by_systemd, by_files, *counts = haneul.ssh(one, ASK, user="admin", timeout=120).splitlines()
    assert by_systemd == by_files
    assert counts == ["0", "1", "0", "0", "1", "0"]
    assert "SSH HOST KEY" in haneul.client().get_console_output(InstanceId=one)["Output"]
    haneul.terminate(one)
