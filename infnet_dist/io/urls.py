"""Secrets in URLs: found, so that run files with them are refused, and left out of messages."""

import re
from urllib.parse import parse_qsl, unquote

# A chain such as simplecache::s3://bucket; the :: in an address such as [::1] parts nothing.
_LINKS = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:::|://))")
_SECRET_OPTION = re.compile(
    r"key|secret|token|pass|pwd|^pw$|auth|cred|signature|^sig$|^sas|session", re.IGNORECASE
)
# Where what stands before @ is a name: the container, or who logs in.
_NAMED_USERS = {"abfs", "abfss", "az", "wasb", "wasbs", "hdfs", "viewfs", "sftp", "ssh"}
_NO_PORTS = {"s3", "s3a", "s3n", "gs", "gcs"}
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")


def without_secrets(url: str) -> str:
    """A path as it is; a URL without user, password and options, any of which may be a secret."""
    return "::".join(_bare(link) for link in _LINKS.split(url))


def secrets_in(url: str) -> list[str]:
    """What in a URL is a secret, in words that don't repeat it; nothing in a path."""
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

    A password may hold / ? # and @ unescaped, as the secret keys of S3 do. So where a colon comes
    first that begins no port, all up to the last @ is taken for it.
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
