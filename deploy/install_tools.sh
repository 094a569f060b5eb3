#!/usr/bin/env bash
# The programs that tests of alerts, probes and pages need: prometheus, promtool and blackbox_exporter into .tools/bin (Debian's packages,
# unpacked and not installed: no root, nothing started), and Chromium from apt, since a browser brings a hundred libraries with it.
# Repeating it is safe and costs nothing. It never fails the build: a test that misses its tool says so, and fails in CI.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=.tools/bin
packages=(prometheus prometheus-blackbox-exporter)
say() { printf 'tools: %s\n' "$*" >&2; }

have_prometheus() { [[ -x $bin/prometheus && -x $bin/promtool && -x $bin/blackbox_exporter ]]; }
have_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

# Downloads into the current directory. The machine's package lists where it has them; else lists of our own, which need no root.
download() {
  local own=$PWD/apt
  apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}" 2>/dev/null && return
  mkdir -p "$own"/{state/lists/partial,cache/archives/partial}
  local options=(-qq -o "Dir::State=$own/state" -o "Dir::State::status=/var/lib/dpkg/status" -o "Dir::Cache=$own/cache"
    -o APT::Sandbox::User=root -o Acquire::Retries=3)
  apt-get "${options[@]}" update >&2 && apt-get "${options[@]}" download "${packages[@]}" >&2
}

install_prometheus() {
  local work package
  mkdir -p "$bin" && work=$(mktemp -d "$PWD/.tools/new.XXXXXX") || return 1
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" RETURN
  (cd "$work" && download) || return 1
  for package in "$work"/*.deb; do dpkg-deb --extract "$package" "$work/root" || return 1; done
  # Into place by name: whoever runs an older one keeps it until it ends.
  mv -f "$work/root/usr/bin/prometheus" "$work/root/usr/bin/promtool" "$bin/" &&
    mv -f "$work/root/usr/bin/prometheus-blackbox-exporter" "$bin/blackbox_exporter"
}

install_browser() {
  local as=(env DEBIAN_FRONTEND=noninteractive)
  if [[ $(id -u) != 0 ]]; then
    sudo -n true 2>/dev/null || return 1
    as=(sudo -n "${as[@]}")
  fi
  local install=("${as[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends chromium)
  "${install[@]}" >/dev/null 2>&1 && return
  "${as[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update >&2 && "${install[@]}" >/dev/null
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  have_prometheus || say "not Debian: put prometheus, promtool and blackbox_exporter on PATH, or tests of alerts and dashboards are skipped"
  have_browser >/dev/null || say "not Debian: put chromium on PATH, or tests of pages are skipped"
  exit 0
fi
have_prometheus || install_prometheus || say "could not fetch ${packages[*]}: tests of alerts and dashboards are skipped"
have_browser >/dev/null || install_browser || say "no Chromium, and no root to install it (apt-get install chromium): tests of pages are skipped"
exit 0
