"""Which user data leave an image's own user alone."""

from __future__ import annotations

import base64
import gzip

import pytest

from haneul.model.user_data import decides_who_logs_in


def _decides(text: str | bytes) -> bool:
    return decides_who_logs_in(base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode())


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nuseradd other\n",
        "#cloud-config\npackages: [nginx]\nruncmd:\n- [ls]\n# a comment\n\nwrite_files:\n  - path: /x\n    users: no\n",
        "#cloud-config\r\nhostname: web\r\n",
    ],
)
def test_scripts_and_plain_settings_leave_it(text: str) -> None:
    assert not _decides(text)
    assert not decides_who_logs_in(None) and not decides_who_logs_in("")


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\nusers: []\n",
        '#cloud-config\n"users": []\n',
        "#cloud-config\n{users: []}\n",
        "#cloud-config\n? users\n: []\n",
        "#cloud-config\n'us\\x65rs': []\n",
        "#cloud-config\nusers : []\n",
        "#cloud-config\n users: []\n",
        "#cloud-config\nmounts:\n- [/dev/xvdb, /home]\n",
        '#cloud-config\nmounts:\n- [/dev/xvdb, "\\x2fhome"]\n',
        "#cloud-config\nbootcmd:\n- useradd other\n",
        "#!/x: y\nMIME-Version: 1.0\nContent-Type: text/cloud-config\n\nusers: []\n",
        "#cloud-config\nwrite_files:\n- path: /etc/ssh/sshd_config.d/port.conf\n  content: Port 2222\n",
        "#cloud-config\n\tusers: []\n",
        "#cloud-config\n--- {users: []}\n",
        "#cloud-config\nruncmd: [a]\nssh_deletekeys: false\n",
        "#cloud-config\nsystem_info: {default_user: {name: me}}\n",
        "#cloud-config\nmerge_how: dict(replace)\n",
        "#cloud-config\npassword: secret\n",
        "## template: jinja\n#cloud-config\nruncmd: []\n",
        "#include\nhttp://example.com/\n",
        "Content-Type: multipart/mixed; boundary=x\n",
        "#cloud-boothook\n#!/bin/sh\n",
        "#cloud-config-archive\n- content: x\n",
        gzip.compress(b"#!/bin/sh\n", mtime=0),
        b"\xff\xfe",
        "nonsense",
    ],
)
def test_whatever_is_not_seen_through_decides(text: str | bytes) -> None:
    assert _decides(text)


def test_text_that_is_no_base64_decides() -> None:
    assert decides_who_logs_in("#")
