//! The files that a program may open, as the kernel's Landlock holds them (landlock(7)): what belongs to the system and
//! what its terms name for reading, its own room for writing, devices for use, nothing else. Where the kernel has enough of
//! it, the program also sends no signals to processes outside, and reaches none of their sockets without a name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};

use super::Terms;

/// What belongs to the system: programs, libraries, settings, the state of the kernel.
const SYSTEM: [&str; 17] = [
    "/bin",
    "/dev",
    "/etc",
    "/gnu/store",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/opt",
    "/proc",
    "/run",
    "/sbin",
    "/snap",
    "/sys",
    "/usr",
    "/var/lib",
];
/// Memory that processes share under a name.
const SHARED: &str = "/dev/shm";
/// Where a program may write that sees these directories alone.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// The rights that are known here. What a kernel lacks of them is left out.
const KNOWN: ABI = ABI::V6;

/// How much of it the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// All.
    Whole,
    /// The files, not signals and sockets.
    Partly,
    /// Nothing.
    Not,
}

/// Takes all other files from this thread and from all that it starts. `alone` says that hidden directories are empty for
/// it and temporary ones its own; else the hidden ones are left out by name.
///
/// # Errors
/// The kernel refuses the rules.
pub fn confine(terms: &Terms, alone: bool) -> Result<Held> {
    let system = SYSTEM.iter().map(PathBuf::from);
    let readable: Vec<PathBuf> = if alone {
        system.collect()
    } else {
        let hidden = super::hidden(terms);
        system.flat_map(|root| without(root, &hidden)).collect()
    };
    let (read, all) = (AccessFs::from_read(KNOWN), AccessFs::from_all(KNOWN));
    // What it may write it may not start.
    let own: BitFlags<AccessFs> = all & !BitFlags::from(AccessFs::Execute);
    let devices = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    // The users of a namespace are written there by whoever makes it.
    let nests = terms.nests.then(|| Path::new("/proc"));
    let shared = Path::new(SHARED);
    let temporary = TEMPORARY.iter().map(Path::new).filter(|_| alone);
    let room = terms.room.iter().chain(&terms.writable).map(PathBuf::as_path);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(readable.iter().chain(&terms.readable), read))?
        .add_rules(path_beneath_rules(room.chain(temporary).chain([shared]), own))?
        .add_rules(path_beneath_rules(["/dev"], devices))?
        .add_rules(path_beneath_rules(nests, AccessFs::ReadFile | AccessFs::WriteFile))?
        .restrict_self()
        .context("Landlock")?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Held::Whole,
        RulesetStatus::PartiallyEnforced => Held::Partly,
        RulesetStatus::NotEnforced => Held::Not,
    })
}

/// A directory as the parts of it in which nothing is hidden.
fn without(root: PathBuf, hidden: &[PathBuf]) -> Vec<PathBuf> {
    let real = root.canonicalize().unwrap_or_else(|_| root.clone());
    if hidden.iter().any(|over| real.starts_with(over)) {
        return Vec::new();
    }
    if !hidden.iter().any(|over| over.starts_with(&real)) {
        return vec![root];
    }
    let entries = std::fs::read_dir(&real).into_iter().flatten().flatten();
    // A link leads somewhere that has, or has not, a place of its own here.
    let entries = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()));
    entries.flat_map(|entry| without(entry.path(), hidden)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_directory_with_something_hidden_in_it_falls_into_its_other_parts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["a/b/key", "a/c", "d"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        let parts = |hidden: &str| {
            let mut parts = without(root.clone(), &[root.join(hidden)]);
            parts.sort();
            parts
        };
        assert_eq!(parts("a/b"), [root.join("a/c"), root.join("d")]);
        assert_eq!(parts("none"), [root.join("a"), root.join("d")]);
        let elsewhere = [PathBuf::from("/elsewhere")];
        assert_eq!(without(root.clone(), &elsewhere), std::slice::from_ref(&root));
        assert_eq!(without(root.join("a"), std::slice::from_ref(&root)), Vec::<PathBuf>::new());
        assert_eq!(without(root.join("d"), &[root.join("a")]), [root.join("d")]);
    }

    #[test]
    fn only_the_terms_files_are_opened_and_only_the_room_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["model", "secret"] {
            std::fs::write(path(name), name).unwrap();
        }
        std::fs::create_dir(path("room")).unwrap();
        let terms = Terms { readable: vec![path("model")], room: Some(path("room")), ..Terms::default() };
        let script = "cd /; for file in model secret room/new; do cat $0/$file; echo x 2>&- >$0/$file; done; \
            cp /bin/true $0/room/true; $0/room/true || echo not started; cat $0/room/new; echo ok >/dev/null; \
            kill -0 $1 || echo no signal";
        let own = std::process::id().to_string();
        let run = |held: bool| {
            let (terms, dir, own) = (terms.clone(), dir.path().to_owned(), own.clone());
            let thread = std::thread::spawn(move || {
                let held = held.then(|| confine(&terms, false).unwrap());
                let done = Command::new("/bin/sh").arg("-c").arg(script).arg(dir).arg(own).output().unwrap();
                (held, String::from_utf8(done.stdout).unwrap())
            });
            thread.join().unwrap()
        };
        let (held, said) = run(true);
        match held.unwrap() {
            Held::Whole => assert_eq!(said, "modelnot started\nx\nno signal\n"),
            Held::Partly => assert!(said.starts_with("modelnot started\nx\n"), "{said}"),
            #[expect(clippy::print_stderr, reason = "a skip is visible")]
            Held::Not => return eprintln!("skipped: this kernel has no Landlock"),
        }
        assert_eq!(std::fs::read_to_string(path("model")).unwrap(), "model");
        assert_eq!(std::fs::read_to_string(path("secret")).unwrap(), "secret");
        let (_, open) = run(false);
        assert!(open.contains("secret") && !open.contains("not started"), "{open}");
    }
}
