//! System calls that no engine needs, refused by a filter of the kernel (seccomp(2)) that the engine and all it starts
//! keep for ever. What a library may try comes back as `EPERM`, calls that are newer than this list as `ENOSYS`, as on an
//! older kernel: libraries know what to do then. Only a program of another architecture is killed, for its calls have
//! other numbers.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch, apply_filter, sock_filter,
};
use serde::{Deserialize, Serialize};

/// The newest call that is known here (`mseal`, Linux 6.10). From 424 on, all architectures number calls alike; those of
/// the 32-bit numbering on 64-bit processors (x32) lie far above.
const NEWEST: u32 = 462;
/// Takes a thread into being by a block in memory, into which no filter can look; its elder sister says it in a register.
const BY_BLOCK: u32 = 435;
/// Puts characters into a terminal, as if its owner had typed them (ioctl_tty(2)).
const TYPE_FOR_THE_OWNER: u64 = 0x5412;
/// The same for the selection of a console.
const PASTE_FOR_THE_OWNER: u64 = 0x541C;
/// Part of a socket's type that is no flag.
const TYPE_OF_SOCKET: u64 = 0xF;

/// Refused always, whatever their arguments.
const REFUSED: &[i64] = &[
    // Other processes: tracing them, their memory, their files.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The tree of files, and files by number instead of by name.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // The machine: its kernel, its clock, its name, its accounts.
    libc::SYS_kexec_load,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    // Wide doors into the kernel that were broken open before, and that no engine uses.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Refused unless the program makes namespaces of its own.
const NAMESPACES: &[i64] = &[libc::SYS_unshare, libc::SYS_setns, libc::SYS_chroot];

/// What `clone` is told for a namespace of its own.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The sockets that a program may make. Raw ones and those of other families are never among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sockets {
    /// Unix sockets that it answers at; it connects to nothing.
    #[default]
    Door,
    /// Unix and internet sockets.
    Internet,
    /// The same, and it may look at the interfaces of the machine.
    Interfaces,
}

/// What the filter leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Sockets.
    pub sockets: Sockets,
    /// Whether it makes namespaces of its own, as a browser does for its pages.
    pub nests: bool,
}

impl Calls {
    /// Takes the other calls from this thread and from all that it starts. It can gain no rights any more afterwards.
    ///
    /// # Errors
    /// The kernel has no filters, or none is known for this processor.
    pub fn confine(self) -> Result<()> {
        apply_filter(&self.program()?).context("the kernel takes no filter of system calls")
    }

    /// The filter as the kernel takes it.
    fn program(self) -> Result<BpfProgram> {
        let here: TargetArch = std::env::consts::ARCH.try_into()?;
        let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let filter = SeccompFilter::new(self.rules()?, SeccompAction::Allow, refused, here)?;
        let known: BpfProgram = filter.try_into()?;
        let mut program = vec![load_number()];
        program.extend(missing_if(0x25, NEWEST));
        if !self.nests {
            program.extend(missing_if(0x15, BY_BLOCK));
        }
        program.extend(known);
        Ok(program)
    }

    /// What is refused: each call with the arguments it is refused with, or with none for always.
    fn rules(self) -> Result<BTreeMap<i64, Vec<Rule>>> {
        let mut rules: BTreeMap<i64, Vec<Rule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        rules.insert(libc::SYS_socket, self.sockets.refused()?);
        if self.sockets == Sockets::Door {
            rules.insert(libc::SYS_connect, Vec::new());
        }
        let typing = [TYPE_FOR_THE_OWNER, PASTE_FOR_THE_OWNER];
        let typing = typing.map(|order| Rule::new(vec![Condition::new(1, Width::Dword, Is::Eq, order)?]));
        rules.insert(libc::SYS_ioctl, typing.into_iter().collect::<Result<_, _>>()?);
        if !self.nests {
            rules.extend(NAMESPACES.iter().map(|call| (*call, Vec::new())));
            let new = NEW_NAMESPACES.map(|flag| {
                let flag = u64::from(flag.cast_unsigned());
                Rule::new(vec![Condition::new(0, Width::Dword, Is::MaskedEq(flag), flag)?])
            });
            rules.insert(libc::SYS_clone, new.into_iter().collect::<Result<_, _>>()?);
        }
        Ok(rules)
    }
}

impl Sockets {
    /// The arguments with which `socket` is refused.
    fn refused(self) -> Result<Vec<Rule>> {
        let family = |is: Is, family: libc::c_int| {
            Condition::new(0, Width::Dword, is, u64::from(family.cast_unsigned()))
        };
        let families: &[libc::c_int] = match self {
            Self::Door => &[libc::AF_UNIX],
            Self::Internet => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
            Self::Interfaces => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK],
        };
        let others = families.iter().map(|known| family(Is::Ne, *known)).collect::<Result<_, _>>()?;
        let raw = u64::from(libc::SOCK_RAW.cast_unsigned());
        let raw = Condition::new(1, Width::Dword, Is::MaskedEq(TYPE_OF_SOCKET), raw)?;
        let route = u64::from(libc::NETLINK_ROUTE.cast_unsigned());
        let no_route = Condition::new(2, Width::Dword, Is::Ne, route)?;
        Ok(vec![
            Rule::new(others)?,
            // Sockets to the kernel are raw by their nature.
            Rule::new(vec![family(Is::Ne, libc::AF_NETLINK)?, raw])?,
            Rule::new(vec![family(Is::Eq, libc::AF_NETLINK)?, no_route])?,
        ])
    }
}

/// Loads the number of the call (struct `seccomp_data`).
const fn load_number() -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }
}

/// `ENOSYS` where the comparison (0x15: equal, 0x25: greater) of the loaded number with this one holds.
const fn missing_if(compare: u16, number: u32) -> [sock_filter; 2] {
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    [
        sock_filter { code: compare, jt: 0, jf: 1, k: number },
        sock_filter { code: 0x06, jt: 0, jf: 0, k: missing },
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LOCAL: libc::c_int = libc::AF_UNIX;
    const STREAM: libc::c_int = libc::SOCK_STREAM;
    /// Arguments that no kernel does anything for, so that an unfiltered try is harmless.
    const HARMLESS: [i64; 6] = [0; 6];

    /// What the calls answer in a process that a thread with these terms starts: 0 for done, else the number of the error.
    fn tried(calls: Option<Calls>, tries: &[(i64, [i64; 6])]) -> Vec<i32> {
        let said = |(call, arguments): &(i64, [i64; 6])| {
            let arguments: Vec<String> = arguments.iter().map(i64::to_string).collect();
            format!("$! = 0; syscall({call}, {}) < 0 or $! = 0; print $! + 0, qq(\\n);", arguments.join(","))
        };
        let script: String = tries.iter().map(said).collect();
        let thread = std::thread::spawn(move || {
            if let Some(calls) = calls {
                calls.confine().unwrap();
            }
            Command::new("/usr/bin/perl").args(["-e", &script]).output().expect("perl is in every Debian")
        });
        let done = thread.join().unwrap();
        assert!(done.status.success(), "{}: {}", done.status, String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    fn with(first: &[i64]) -> [i64; 6] {
        let mut arguments = HARMLESS;
        arguments[..first.len()].copy_from_slice(first);
        arguments
    }

    #[test]
    fn what_no_engine_needs_is_refused_and_would_have_been_done() {
        // Each with arguments that fail for another reason, or do nothing, where nobody filters.
        let tries: Vec<(i64, [i64; 6])> = [
            (libc::SYS_ptrace, with(&[0])),
            (libc::SYS_process_vm_readv, with(&[i64::from(i32::MAX)])),
            (libc::SYS_mount, HARMLESS),
            (libc::SYS_umount2, HARMLESS),
            (libc::SYS_pivot_root, HARMLESS),
            (libc::SYS_open_tree, with(&[-1])),
            (libc::SYS_move_mount, with(&[-1, 0, -1])),
            (libc::SYS_fsopen, HARMLESS),
            (libc::SYS_mount_setattr, with(&[-1])),
            (libc::SYS_swapon, HARMLESS),
            (libc::SYS_kexec_load, with(&[0, 99])),
            (libc::SYS_init_module, HARMLESS),
            (libc::SYS_finit_module, with(&[-1])),
            (libc::SYS_reboot, HARMLESS),
            (libc::SYS_clock_settime, HARMLESS),
            (libc::SYS_bpf, with(&[99])),
            (libc::SYS_perf_event_open, HARMLESS),
            (libc::SYS_userfaultfd, with(&[-1])),
            (libc::SYS_io_uring_setup, HARMLESS),
            (libc::SYS_add_key, HARMLESS),
            (libc::SYS_keyctl, with(&[99])),
            (libc::SYS_unshare, HARMLESS),
            (libc::SYS_setns, with(&[-1])),
            (libc::SYS_socket, with(&[libc::AF_PACKET.into(), libc::SOCK_RAW.into()])),
            (libc::SYS_socket, with(&[libc::AF_INET.into(), libc::SOCK_RAW.into(), 1])),
            (libc::SYS_socket, with(&[libc::AF_NETLINK.into(), libc::SOCK_RAW.into()])),
            (libc::SYS_socket, with(&[libc::AF_VSOCK.into(), STREAM.into()])),
            (libc::SYS_ioctl, with(&[-1, 0x5412])),
        ]
        .into();
        let refused = tried(Some(Calls { sockets: Sockets::Internet, nests: false }), &tries);
        assert_eq!(refused, vec![libc::EPERM; tries.len()]);
        // The same child without the filter: whoever is root gets another answer to every one of them.
        let open = tried(None, &tries);
        let root = nix::unistd::Uid::current().is_root();
        for ((call, _), answer) in tries.iter().zip(&open) {
            let for_anybody = [libc::SYS_ptrace, libc::SYS_unshare, libc::SYS_keyctl, libc::SYS_add_key];
            if root || for_anybody.contains(call) {
                assert_ne!(*answer, libc::EPERM, "call {call} is refused without a filter");
            }
        }
        assert_eq!(open[0], 0, "tracing is possible without the filter");
    }

    #[test]
    fn a_program_has_the_sockets_of_its_terms_and_namespaces_only_where_it_nests() {
        let new_user = i64::from(libc::CLONE_NEWUSER);
        let tries = [
            (libc::SYS_socket, with(&[LOCAL.into(), STREAM.into()])),
            (libc::SYS_socket, with(&[libc::AF_INET.into(), STREAM.into()])),
            (libc::SYS_socket, with(&[libc::AF_NETLINK.into(), libc::SOCK_RAW.into()])),
            (libc::SYS_socket, with(&[libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 15])),
            (libc::SYS_connect, with(&[-1])),
            (libc::SYS_unshare, HARMLESS),
            // Two flags that contradict each other: refused as such where nobody filters.
            (libc::SYS_clone, with(&[new_user | i64::from(libc::CLONE_FS)])),
            (i64::from(BY_BLOCK), HARMLESS),
            (i64::from(NEWEST) + 1, with(&[-1])),
        ];
        let (no, ok) = (libc::EPERM, 0);
        let (invalid, bad, missing) = (libc::EINVAL, libc::EBADF, libc::ENOSYS);
        for (sockets, nests, wanted) in [
            (Sockets::Door, false, [ok, no, no, no, no, no, no, missing, missing]),
            (Sockets::Internet, false, [ok, ok, no, no, bad, no, no, missing, missing]),
            (Sockets::Interfaces, false, [ok, ok, ok, no, bad, no, no, missing, missing]),
            (Sockets::Interfaces, true, [ok, ok, ok, no, bad, ok, invalid, invalid, missing]),
        ] {
            assert_eq!(tried(Some(Calls { sockets, nests }), &tries), wanted, "{sockets:?} {nests}");
        }
    }

    #[test]
    fn threads_processes_files_and_pipes_are_left() {
        let thread = std::thread::spawn(|| {
            Calls::default().confine().unwrap();
            let busy =
                "echo a | tr a b; (echo c); sh -c 'exec echo d'; cat /proc/self/status | grep Seccomp:";
            let done = Command::new("/bin/sh").args(["-c", busy]).output().unwrap();
            let inner = std::thread::spawn(|| 7).join().unwrap();
            (String::from_utf8(done.stdout).unwrap(), inner)
        });
        assert_eq!(thread.join().unwrap(), ("b\nc\nd\nSeccomp:\t2\n".to_owned(), 7));
    }
}
