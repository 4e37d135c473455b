#!/usr/bin/env bash
# What tests/containers needs of Debian, where it is missing; needs root then. Apptainer, which stable
# releases lack, is taken from unstable into build/apptainer, and the system stays as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive

declare -A package=(
    [buildah]=buildah [podman]=podman [runc]=runc [mmdebstrap]=mmdebstrap [git]=git
    [mksquashfs]=squashfs-tools [newuidmap]=uidmap [patchelf]=patchelf
)
missing=()
for tool in "${!package[@]}"; do
    command -v "$tool" > /dev/null || missing+=("${package[$tool]}")
done
if ((${#missing[@]})); then
    apt-get update -qq < /dev/null
    apt-get install -qq --no-install-recommends "${missing[@]}" < /dev/null
fi

prefix=$PWD/build/apptainer
if command -v apptainer > /dev/null || [[ -e $prefix/complete ]]; then
    exit
fi
if [[ -n $(apt-cache madison apptainer) ]]; then
    apt-get install -qq --no-install-recommends apptainer < /dev/null
    exit
fi

# An apt of its own, with the mirror that this machine already uses and its release changed.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror sid main" > "$work/sources.list"
cat > "$work/apt.conf" << CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work";
APT::Sandbox::User "root";
CONF
(
    export APT_CONFIG=$work/apt.conf
    cd "$work"
    apt-get -qq update
    apt-get -qq download apptainer libc6
)
rm -rf "$prefix"
mkdir -p "$prefix/libc"
dpkg-deb -x "$work"/apptainer_*.deb "$prefix"
dpkg-deb -x "$work"/libc6_*.deb "$prefix/libc"

# Its two programs run with the C library that they were made for, and look for etc and var above
# their own folders.
libraries=$(dirname "$(find "$prefix/libc" -name 'ld-linux-*.so.*' -path '*-linux-gnu*' | head -1)")
for program in "$prefix"/usr/bin/apptainer "$prefix"/usr/lib/*/apptainer/bin/starter; do
    patchelf --set-interpreter "$(echo "$libraries"/ld-linux-*)" \
        --force-rpath --set-rpath "$libraries" "$program"
done
for folder in etc var; do
    ln -s "../$folder" "$prefix/usr/$folder"
    ln -s "../../$folder" "$prefix/usr/lib/$folder"
done
# Where this is itself a container, root may lack one of the capabilities that it would ask for.
sed -i 's/^root default capabilities = .*/root default capabilities = no/' \
    "$prefix/etc/apptainer/apptainer.conf"
touch "$prefix/complete"
