"""Secrets in URLs: detected, so that run files are rejected, and removed from messages."""

import re
from urllib.parse import parse_qsl, unquote

# A chain such as simplecache::s3://bucket; the :: in an address such as [::1] is no separator.
_LINKS = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:::|://))")
_SECRET_OPTION = re.compile(
    r"key|secret|token|pass|pwd|^pw$|auth|cred|signature|^sig$|^sas|session", re.IGNORECASE
)
# Schemes whose part before @ is a name: the container, or the login.
_NAMED_USERS = {"abfs", "abfss", "az", "wasb", "wasbs", "hdfs", "viewfs", "sftp", "ssh"}
_NO_PORTS = {"s3", "s3a", "s3n", "gs", "gcs"}
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


def without_secrets(url: str) -> str:
    """A URL without user, password and options, which may be secrets; a path is unchanged."""
    return "::".join(_bare(link) for link in _LINKS.split(url))


def secrets_in(url: str) -> list[str]:
    """Kinds of secrets in a URL, without the secrets; empty for a path."""
    found = []
    for link in _LINKS.split(url):
        scheme, mark, _ = link.partition("://")
        if not mark:
            continue
        user, _, options = _parts(link)
        name, colon, password = unquote(user).partition(":")
        if password or (colon and not name):
            found.append("a password")
        elif name and name != "anonymous" and scheme.lower() not in _NAMED_USERS:
            found.append("a user")
        for option, _ in parse_qsl(options.replace(";", "&"), keep_blank_values=True):
            if _SECRET_OPTION.search(option):
                found.append(f"the option {option!r}" if option.isidentifier() else "an option")
    return found


def _bare(link: str) -> str:
    scheme, mark, _ = link.partition("://")
    return f"{scheme}://{_parts(link)[1]}" if mark else link


def _parts(link: str) -> tuple[str, str, str]:
    """User and password, host and path, options.

    A password may contain / ? # and @ unescaped, as secret keys of S3 do. If a colon that begins no
    port comes first, everything up to the last @ is the password.
    """
    scheme, _, rest = link.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user = ""
    if "@" in host and ":" not in unquote(host.partition("@")[0]):
        user, _, rest = rest.partition("@")
    elif "@" in host or _HOST.fullmatch(host) is None or (scheme in _NO_PORTS and ":" in host):
        user, at, after = rest.rpartition("@")
        user, rest = (user, after) if at else (rest, "")
    path, _, options = rest.partition("?")
    return user, path, options
