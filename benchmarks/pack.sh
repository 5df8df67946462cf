#!/bin/bash
# Puts what a machine without a network needs besides this checkout into a folder: wheels of the missing packages, and
# images. Run it where pip reaches a package index:
#
#   bash benchmarks/pack.sh [IMAGES [FREEZE]]
#
# IMAGES  a folder of images that data.source takes, such as a copy of the hub's uoft-cs/cifar10; "" for none
# FREEZE  what `pip list --format=freeze` prints on that machine. Wheels are fetched of what setup.cfg asks for and it
#         lacks or has too old, and of what those need. Without the file it is taken to have all but $MISSING.
#
# Variables: OUT [.carry], PYTHON_VERSION of that machine [3.12], PLATFORM [x86_64], PYTHON to run pip with [python3],
# MISSING, and SKIP: what is in setup.cfg but not needed to train, test and measure.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
images=${1:-} freeze=${2:-}
export OUT=${OUT:-.carry} PYTHON_VERSION=${PYTHON_VERSION:-3.12} PLATFORM=${PLATFORM:-x86_64}
export MISSING=${MISSING:-timm pydantic pydantic-core datasets multiprocess dill typing-extensions typing-inspection annotated-types}
export SKIP=${SKIP:-torch torchvision wandb py7zr}
rm -rf "$OUT/wheels" "$OUT/images"
mkdir -p "$OUT/wheels"
git describe --always --dirty --abbrev=12 --exclude='*' >"$OUT/commit.txt" || rm -f "$OUT/commit.txt"
"${PYTHON:-python3}" - "$freeze" <<'P'
import configparser
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

wheels, version = Path(os.environ["OUT"]) / "wheels", os.environ["PYTHON_VERSION"]
missing, skipped = ({canonicalize_name(name) for name in os.environ[list_].split()} for list_ in ("MISSING", "SKIP"))
there = {}
if freeze := sys.argv[1]:
    pairs = (line.strip().split("==") for line in Path(freeze).read_text().splitlines() if "==" in line)
    there = {canonicalize_name(name): found for name, found in pairs}
environment = {**default_environment(), "python_version": version, "python_full_version": f"{version}.0"}
environment |= {"sys_platform": "linux", "platform_machine": os.environ["PLATFORM"]}
glibc = [f"manylinux_2_{minor}" for minor in (28, 27, 24, 17, 12, 5)] + ["manylinux2014", "manylinux2010", "manylinux1"]
platforms = [word for tag in glibc for word in ("--platform", f"{tag}_{os.environ['PLATFORM']}")]
tag = "cp" + version.replace(".", "")


def is_there(requirement: Requirement) -> bool:
    name = canonicalize_name(requirement.name)
    if freeze:
        return name in there and requirement.specifier.contains(there[name].partition("+")[0], prereleases=True)
    return name not in missing


config = configparser.ConfigParser()
config.read("setup.cfg")
wanted = [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line.strip()]
fetched = set()
while wanted:
    requirement = wanted.pop()
    name = canonicalize_name(requirement.name)
    applies = requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})
    if not applies or name in skipped or name in fetched or is_there(requirement):
        continue
    before = set(wheels.iterdir())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--constraint", "constraints.txt", "--dest", str(wheels)]
    command += ["--python-version", version, "--implementation", "cp", "--abi", tag, "--abi", "abi3", "--abi", "none"]
    subprocess.run([*command, *platforms, "--platform", "any", f"{requirement.name}{requirement.specifier}"], check=True)
    fetched.add(name)
    for wheel in set(wheels.iterdir()) - before:
        print(f"  {wheel.name}", flush=True)
        with zipfile.ZipFile(wheel) as archive:
            file = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
            needed = Parser().parsestr(archive.read(file).decode()).get_all("Requires-Dist") or []
        wanted += map(Requirement, needed)
P
if [ -n "$images" ]; then
    cp -rL "$images" "$OUT/images"
    chmod -R u+w "$OUT/images"
fi
source=synthetic
[ -z "$images" ] || source=$OUT/images
du -sh "$OUT"
cat <<T
On the machine, in a copy of this folder:
  python3 -m pip install --no-index --no-deps --target /tmp/site $OUT/wheels/*.whl
  PYTHONPATH=/tmp/site python3 -m benchmarks.gpu --source $source --minutes 9 --out FOLDER
T
