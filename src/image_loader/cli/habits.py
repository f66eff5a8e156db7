"""What to type instead of an option that the command does not have, for those who are used to other programs."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

# Options of curl, wget, aria2 and rsync.
_INSTEAD = {
    "use ~/.netrc, or -H @FILE with an Authorization header": (
        "-u -U -n --user --username --pass --passwd --password --password-file --http-user --http-passwd "
        "--http-password --ask-password --use-askpass --netrc --netrc-file --auth --basic --digest --anyauth "
        "--auth-no-challenge --token --bearer --oauth2-bearer --ftp-user --ftp-password --aws-sigv4"
    ),
    "set HTTPS_PROXY and HTTP_PROXY in the environment": (
        "-x --proxy --all-proxy --http-proxy --https-proxy --no-proxy --noproxy --preproxy --socks5 --proxy-user "
        "--proxy-password --proxy-passwd --http-proxy-user --http-proxy-passwd"
    ),
    "use --insecure": "-k --no-check-certificate --check-certificate --no-verify --no-verify-ssl",
    "use --ca-bundle FILE": "--cacert --capath --ca-cert --ca-certificate --ca-directory",
    "client certificates are not supported": "-E --cert --certificate --key --private-key",
    "give the directory as the last argument": (
        "-P -d --directory --directory-prefix --dir --dest --output-dir --output-folder --prefix"
    ),
    "give the list as the first argument; '-' is standard input": (
        "-i -T -K --input --input-file --files-from --url --urls --url-file --url-list --config --force-html"
    ),
    "file names are made from the URLs; give the directory as the last argument": (
        "-O -o -J --out --output --output-document --remote-name --remote-name-all --remote-header-name "
        "--content-disposition --trust-server-names"
    ),
    "not needed: only images that are new or have changed are downloaded": (
        "-N -z --timestamping --time-cond --conditional-get --update --etag-save --etag-compare "
        "--checksum --auto-file-renaming --allow-overwrite --mirror"
    ),
    "use --skip-existing": "-nc --no-clobber --ignore-existing",
    "not needed: a download that was cut off is resumed where the server allows it": (
        "-c -C --continue --continue-at --partial --append --start-pos --resume"
    ),
    "not needed: redirects are followed": "-L --location --location-trusted --follow --max-redirect --max-redirs",
    "use -H 'Name: value'": (
        "-e -b --referer --referrer --cookie --cookies --load-cookies --headers --compressed --compression "
        "--http-accept-gzip"
    ),
    "bytes per second cannot be limited; use --threads and --per-host to reduce the load": (
        "-y --limit-rate --bwlimit --max-download-limit --max-overall-download-limit --lowest-speed-limit --speed-limit"
    ),
    "use --per-host N": "-s --split --max-connection-per-server --max-host-connections",
    "use --threads N": (
        "-j -Z --jobs --parallel --parallel-max --max-concurrent-downloads --max-threads --concurrency --workers"
    ),
    "use --retries N": (
        "--tries --retry --max-tries --retry-max --retry-delay --retry-wait --waitretry --retry-connrefused "
        "--retry-on-http-error --retry-all-errors"
    ),
    "use --timeout SECONDS": "--connect-timeout --read-timeout --dns-timeout --contimeout",
    "use --max-time SECONDS": "-m --deadline --retry-max-time --speed-time --stop",
    "use --delay SECONDS": "-w --wait --random-wait --rate --sleep --interval",
    "use --max-size SIZE": "-Q --quota --max-filesize",
    "leave the URLs out of the list, for example with grep -v": (
        "-R -X -D --exclude --include --reject --accept --reject-regex --accept-regex --exclude-from --filter "
        "--domains --exclude-domains --exclude-directories --include-directories"
    ),
    "web pages are not searched for images; make a list of the URLs of the images": (
        "-r -l -p -np --recursive --level --page-requisites --no-parent --convert-links --span-hosts --spider"
    ),
    "log lines go to standard error; use -v, and 2> FILE to keep them": (
        "-a --log --log-file --logfile --log-level --output-file --append-output --debug --trace --stderr "
        "--console-log-level"
    ),
    "not needed: without -v, only failures are logged; --quiet hides them, too": (
        "-S -nv --silent --show-error --no-verbose --show-progress --progress-bar --no-progress-meter"
    ),
    "not needed: a file gets the time that its server gives": (
        "--archive --times --perms --owner --group --remote-time --no-use-server-timestamps"
    ),
    "use --layout path, host or hash for folders": (
        "-nd -nH --no-directories --force-directories --no-host-directories --protocol-directories --cut-dirs "
        "--create-dirs --relative"
    ),
    "every image is requested with GET": (
        "-F -I -G --request --data --data-raw --form --head --get --method --post-data --post-file --upload-file --json"
    ),
    "requests are made with HTTP/1.1, over IPv4 and IPv6": (
        "-4 -6 --ipv4 --ipv6 --inet4-only --inet6-only --prefer-family --disable-ipv6 --http1.0 --http1.1 --http2 "
        "--http3"
    ),
    "end the command line with '&', or use cron or a systemd timer": "--background --daemon",
    "use --delete": "--delete-after --delete-before --delete-during --delete-excluded --del --prune",
    "use --dry-run": "--simulate --just-print",
    "not needed: an HTTP error is never saved as an image": "--fail --fail-with-body --fail-early",
    "use --version": "-V",
}
HABITS = {name: instead for instead, names in _INSTEAD.items() for name in names.split()}
"""What to type instead of each of them."""


def advice(name: str, flags: Collection[str]) -> str:
    """Return what was probably meant by an unknown option, or nothing; ``flags`` are those that exist.

    >>> advice("--forse", ["--force"]), advice("--user", ["--user-agent"])[:12], advice("--xyz", ["--force"])
    ('did you mean --force?', 'use ~/.netrc', '')
    """
    if name in HABITS:
        return HABITS[name]
    if name.startswith("-") and f"-{name}" in flags:
        return f"did you mean -{name}?"
    for known in (flags, HABITS):
        longer = [each for each in known if each.startswith(name)] if len(name) > len("--x") else []
        if meant := [each for each in longer or _similar(name, known) if _is_negative(each) == _is_negative(name)]:
            return HABITS.get(meant[0], f"did you mean {' or '.join(meant)}?")
    return ""


def _similar(name: str, known: Collection[str]) -> list[str]:
    return get_close_matches(name, [each for each in known if each.startswith("--")], 1, 0.7)


def _is_negative(name: str) -> bool:
    return name.startswith("--no-")
