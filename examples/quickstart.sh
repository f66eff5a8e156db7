#!/bin/sh
# Install the package into a virtual environment of its own, serve a few pictures on 127.0.0.1, and load them twice.
# The second run asks about four of them and is told "304 Not Modified"; about the fifth it need not even ask.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Installing into $scratch (removed at the end) ..."
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "$here/.."
PATH="$scratch/venv/bin:$PATH"

cd "$scratch"
mkfifo addresses # ends when the server has printed its whole list: nothing to wait for, nothing to guess
python "$here/serve.py" "$here/pictures" >addresses &
server=$!
cat addresses >urls.txt

echo
echo '$ cat urls.txt'
cat urls.txt
echo
echo '$ loader urls.txt images -v'
loader urls.txt images -v
echo
echo '$ loader urls.txt images -v    # again'
loader urls.txt images -v --results second-run.csv

echo
for picture in "$here"/pictures/*; do
    cmp "$picture" "images/${picture##*/}"
done
test "$(grep -c ',fresh,' second-run.csv)" -eq "$(grep -c . urls.txt)"
echo "All images are byte for byte those of examples/pictures, and the second run found each of them fresh."
