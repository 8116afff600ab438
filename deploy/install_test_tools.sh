#!/usr/bin/env bash
# Installs what the tests judge flairnode with: a real Orthanc, DCMTK, dicom3tools, poppler, Chromium
# and PostgreSQL, from Debian's packages, without starting a single service. Does nothing when all are there.
set -euo pipefail

needed=()
need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || needed+=("$2")
}
need Orthanc orthanc
need dciodvfy dicom3tools
need pdftotext poppler-utils
need chromium chromium
[ -x /usr/bin/dcmsend ] || needed+=(dcmtk)
[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || needed+=(orthanc-dicomweb)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || needed+=(postgresql)

if [ ${#needed[@]} -eq 0 ]; then
    echo "test tools: all installed"
    exit 0
fi

install="apt-get install -y --no-install-recommends ${needed[*]}"
if [ "$(id -u)" -eq 0 ]; then
    sudo=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo=(sudo -n)
else
    printf 'The tests need these Debian packages: %s\nAs root, run:  apt-get update && %s\n' \
        "${needed[*]}" "$install" >&2
    exit 1
fi

# Debian starts a service when its package is installed. policy-rc.d exit 101 forbids it, so that
# installing the tests opens no port on the machine. A policy that is already there is left alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
    # shellcheck disable=SC2064  # expanded now on purpose: these are the values to undo
    trap "${sudo[*]} rm -f $policy" EXIT
fi
echo "test tools: installing ${needed[*]}"
"${sudo[@]}" apt-get update -qq
# shellcheck disable=SC2086  # a list of words
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive $install >/dev/null
