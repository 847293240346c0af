"""The lock that orders writers of a PostgreSQL database."""

from __future__ import annotations

#: An advisory lock's key: any number that no other program uses in this database.
WRITER_LOCK = 0x68616E65756C
