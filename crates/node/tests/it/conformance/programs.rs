//! Programs of the rows: where they are, and scripts in their place.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cxmpute_runtime::config::env_var;

/// The engine program: from the folder that `scripts/test` names, else beside this test's.
pub fn builtin() -> PathBuf {
    let folder = env_var("CXMPUTE_BIN_DIR").map_or_else(
        || {
            let own = Path::new(env!("CARGO_BIN_EXE_cxmpute-provider"));
            own.parent().unwrap().to_owned()
        },
        PathBuf::from,
    );
    let program = folder.join("cxmpute-engine");
    assert!(
        program.is_file(),
        "{} is missing: run scripts/test, or cargo build -p cxmpute-engine",
        program.display()
    );
    program
}

/// llama.cpp's server, where `scripts/test` found or built one.
#[expect(clippy::print_stderr, reason = "a skip is visible")]
pub fn llama_server() -> Option<PathBuf> {
    let found = env_var("CXMPUTE_LLAMA_SERVER").map(PathBuf::from).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: CXMPUTE_LLAMA_SERVER names no llama-server; scripts/llama-server builds one");
    }
    found
}

/// The tiny model's folder and file.
pub fn tiny() -> (PathBuf, &'static str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model");
    (folder.canonicalize().unwrap(), "cxm-tiny-q8.gguf")
}

/// A script under this name.
pub fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program that says why it fails. What it can, it still says.
pub fn failing(dir: &Path, name: &str, real: &Path) -> PathBuf {
    let real = beside(dir, real);
    let text = format!(
        "case $1 in --help|--version) exec {real} \"$@\" ;; esac\necho {} >&2; exit 3",
        super::REASON,
        real = real.display()
    );
    script(dir, name, &text)
}

/// A program that becomes the real one once the file `go` lies beside it.
pub fn waiting(dir: &Path, name: &str, real: &Path) -> PathBuf {
    let real = beside(dir, real);
    let text = format!(
        "case $1 in --help|--version) exec {real} \"$@\" ;; esac\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec {real} \"$@\"",
        real = real.display(),
        go = dir.join("go").display()
    );
    script(dir, name, &text)
}

/// A llama-server that says nothing of unix sockets.
pub fn without_sockets(dir: &Path, real: &Path) -> PathBuf {
    let real = beside(dir, real);
    let text = format!(
        "case $1 in --help) {real} --help | sed 's/[.]sock//g'; exit ;; esac\nexec {real} \"$@\"",
        real = real.display()
    );
    script(dir, "llama-server", &text)
}

/// A copy beside the script: a confined engine sees no other folder.
fn beside(dir: &Path, real: &Path) -> PathBuf {
    let copy = dir.join("real");
    std::fs::copy(real, &copy).unwrap();
    copy
}

/// A program with vLLM's documented command line in front of the built-in engine; `before` is done first of all.
pub fn vllm(dir: &Path, before: &str) -> PathBuf {
    let engine = dir.join("engine");
    std::fs::copy(builtin(), &engine).unwrap();
    let text = format!(
        r#"case $1 in --version) echo 0.11.0; exit ;; esac
{before}
refuse() {{ echo "vllm: error: $*" >&2; exit 2; }}
[ "$1" = serve ] || refuse "invalid choice: $1"
model=$2; shift 2
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || refuse "$1 expects one argument"
  case $1 in
    --served-model-name) name=$2 ;;
    --max-model-len) context=$2 ;;
    --max-num-seqs) slots=$2 ;;
    --gpu-memory-utilization) share=$2 ;;
    --tensor-parallel-size) [ "$2" = 1 ] || refuse "world size is larger than the number of GPUs" ;;
    --uds) listen=unix:$2 ;;
    *) refuse "unrecognized arguments: $1" ;;
  esac
  shift 2
done
[ "$share" = 0.28 ] || refuse "a share of $share"
[ "$CUDA_VISIBLE_DEVICES" = 0 ] || refuse "sees the cards $CUDA_VISIBLE_DEVICES"
[ -f "$model/model.safetensors" ] && [ -f "$model/config.json" ] || refuse "$model holds no model"
exec {engine} --listen "$listen" --model "$name=$model/model.safetensors" --slots "$slots" --queue 0   --context "$context" --pace 30"#,
        engine = engine.display()
    );
    script(dir, "vllm", &text)
}
