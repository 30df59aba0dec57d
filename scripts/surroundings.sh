# What scripts/test and scripts/demo share: where things are, what is missing, and saying so before installing it.
# Sourced, not run.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cxmpute
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
# cargo and its plugins may live where a fresh shell does not look.
PATH=$PATH:$HOME/.cargo/bin

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "This needs root and there is no sudo: $*"; fi
}

# need_debian WHY PACKAGE...   installs what dpkg does not know as installed
need_debian() {
  local why=$1 missing=() package; shift
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  command -v apt-get >/dev/null || die "Missing: ${missing[*]} ($why), and there is no apt-get to install them with."
  say "Installing ${missing[*]}: $why."
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
    || die "apt-get could not install ${missing[*]}."
}

# need_program PROGRAM PACKAGE WHY   installs PACKAGE when PROGRAM is nowhere
need_program() { command -v "$1" >/dev/null || need_debian "$3" "$2"; }

need_rust() {
  command -v cargo >/dev/null || die "There is no Rust toolchain: install one from your distribution or with rustup, then run this again."
  need_program cc gcc "the bundled SQLite and ring are C"
  command -v cc >/dev/null && echo 'int main(void){return 0;}' | cc -x c - -o /dev/null 2>/dev/null || need_debian "the C library's headers" libc6-dev
}

# venv NAME PACKAGE...   a Python environment in the cache; prints its python
venv() {
  local name=$1; shift
  local folder=$cache/venv-$name stamp
  stamp=$(for argument in "$@"; do [ -f "$argument" ] && cat "$argument" || echo "$argument"; done)
  if [ "$(cat "$folder/.holds" 2>/dev/null)" != "$stamp" ]; then
    need_program python3 python3 "a client of the suite is written in Python"
    python3 -c 'import ensurepip' 2>/dev/null || need_debian "Python packages are kept in an environment of their own" python3-venv
    say "Installing the Python packages $* into $folder: they are clients of the suite, not of the product."
    rm -rf "$folder"
    python3 -m venv "$folder" >&2 && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 \
      || die "pip could not install $*."
    printf '%s' "$stamp" >"$folder/.holds"
  fi
  printf '%s\n' "$folder/bin/python"
}

# copy_programs FOLDER   the programs just built, safe from the next build
copy_programs() {
  mkdir -p "$1"
  local program
  for program in cxmpute cxmpute-provider cxmpute-engine cxmpute-demo; do
    cp -f "$CARGO_TARGET_DIR/debug/$program" "$1/$program.new" && mv -f "$1/$program.new" "$1/$program" || return 1
  done
}
