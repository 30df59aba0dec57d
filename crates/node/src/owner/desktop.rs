//! What the desktop knows of its owner: whether somebody sits at a graphical session (logind), and whether the network costs
//! by the byte (`NetworkManager`). Both are asked on the system bus by programs that come with systemd; where these or the
//! services behind them are missing, nothing is sensed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cxmpute_wire::Timestamp;

/// Time for one answer, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);
/// Sessions of these types have a screen; those of terminals are seen at the terminals.
const GRAPHICAL: [&str; 3] = ["x11", "wayland", "mir"];

/// The programs that are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// systemd's `busctl`.
    pub busctl: PathBuf,
    /// systemd's `loginctl`.
    pub loginctl: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self { busctl: "/usr/bin/busctl".into(), loginctl: "/usr/bin/loginctl".into() }
    }
}

impl Programs {
    /// Whether the network is metered, or `NetworkManager` guesses so: its property `Metered`, which is that of the
    /// connection with the default route. False where it is not known. Blocks.
    #[must_use]
    pub fn is_metered(&self) -> bool {
        const NAME: &str = "org.freedesktop.NetworkManager";
        let words = [
            "--system",
            "--timeout=2",
            "get-property",
            NAME,
            "/org/freedesktop/NetworkManager",
            NAME,
            "Metered",
        ];
        answer(&self.busctl, &words).is_some_and(|said| is_metered(&said))
    }

    /// Time since somebody used a graphical session that is in the foreground; `None` where there is none. Blocks.
    #[must_use]
    pub fn idle(&self, now: Timestamp) -> Option<Duration> {
        let list = answer(&self.loginctl, &["list-sessions", "--no-legend", "--no-pager"])?;
        let mut words = vec!["show-session"];
        words.extend(list.lines().filter_map(|line| line.split_whitespace().next()));
        if words.len() == 1 {
            // Without a name it would tell of the whole machine.
            return None;
        }
        for property in ["Type", "Class", "State", "IdleHint", "IdleSinceHint"] {
            words.extend(["-p", property]);
        }
        idle(&answer(&self.loginctl, &words)?, now)
    }
}

/// `NMMetered` as `busctl` prints it: 1 is yes, 3 a guess that it is; 0 is unknown, 2 and 4 are no.
fn is_metered(said: &str) -> bool {
    matches!(said.trim(), "u 1" | "u 3")
}

/// The least time over all graphical sessions of people, from the properties that `loginctl show-session` prints, one group
/// per session. A session that is not idle is in use now; `IdleSinceHint` is in microseconds since 1970.
fn idle(properties: &str, now: Timestamp) -> Option<Duration> {
    let of_session = |group: &str| {
        let value = |key: &str| group.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let seen =
            GRAPHICAL.contains(&value("Type")?) && value("Class")? == "user" && value("State")? == "active";
        if !seen {
            return None;
        }
        if value("IdleHint")? != "yes" {
            return Some(Duration::ZERO);
        }
        let since = value("IdleSinceHint")?.parse().ok().map(Duration::from_micros)?;
        let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
        Some(now.saturating_sub(since))
    };
    properties.split("\n\n").filter_map(of_session).min()
}

/// What a program prints, if it ends well and in time.
fn answer(program: &Path, words: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(words).env_clear().env("LC_ALL", "C");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => {
                let mut said = String::new();
                std::io::Read::read_to_string(child.stdout.as_mut()?, &mut said).ok()?;
                return Some(said);
            }
            Ok(None) => std::thread::sleep(STEP),
            Ok(Some(_)) | Err(_) => return None,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that prints `text` when its arguments are exactly `words`.
    fn stand_in(dir: &Path, name: &str, answers: &[(&str, &str)]) -> PathBuf {
        let path = dir.join(name);
        let cases: String =
            answers.iter().map(|(words, text)| format!("'{words}') printf '{text}' ;;\n")).collect();
        std::fs::write(&path, format!("#!/bin/sh\ncase \"$*\" in\n{cases}*) exit 1 ;;\nesac\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn session(kind: &str, class: &str, state: &str, idle: &str, since: u64) -> String {
        format!("Type={kind}\nClass={class}\nState={state}\nIdleHint={idle}\nIdleSinceHint={since}\n")
    }

    #[test]
    fn a_network_is_metered_when_its_manager_says_or_guesses_so() {
        let asked = "--system --timeout=2 get-property org.freedesktop.NetworkManager \
                     /org/freedesktop/NetworkManager org.freedesktop.NetworkManager Metered";
        for (said, expected) in
            [("u 0", false), ("u 1", true), ("u 2", false), ("u 3", true), ("u 4", false), ("s \"1\"", false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let busctl = stand_in(dir.path(), "busctl", &[(asked, &format!("{said}\\n"))]);
            let programs = Programs { busctl, ..Programs::default() };
            assert_eq!(programs.is_metered(), expected, "{said}");
        }
        let gone = Programs { busctl: "/nonexistent/busctl".into(), ..Programs::default() };
        assert!(!gone.is_metered());
    }

    #[test]
    fn the_sessions_of_a_machine_are_asked_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let shown = "show-session 2 c1 -p Type -p Class -p State -p IdleHint -p IdleSinceHint";
        let told = [
            session("tty", "user", "active", "no", 0),
            session("wayland", "user", "active", "yes", 1_000_000_000),
        ];
        let answers = [
            ("list-sessions --no-legend --no-pager", "  2 1000 ann - tty1\\n c1 1000 ann seat0 tty2\\n"),
            (shown, &told.join("\n").replace('\n', "\\n")),
        ];
        let loginctl = stand_in(dir.path(), "loginctl", &answers);
        let programs = Programs { loginctl, ..Programs::default() };
        assert_eq!(programs.idle(Timestamp(1_060_000)), Some(Duration::from_secs(60)));
        let nobody = stand_in(dir.path(), "nobody", &[("list-sessions --no-legend --no-pager", "")]);
        assert_eq!(Programs { loginctl: nobody, ..Programs::default() }.idle(Timestamp(0)), None);
        let broken = stand_in(dir.path(), "broken", &[]);
        assert_eq!(Programs { loginctl: broken, ..Programs::default() }.idle(Timestamp(0)), None);
    }

    #[test]
    fn the_graphical_session_that_was_used_last_counts() {
        let minutes = |count: u64| count * 60_000_000;
        let now = Timestamp(60 * 60_000);
        let text = |sessions: &[String]| sessions.join("\n");
        let idle_for = |count: u64| session("x11", "user", "active", "yes", minutes(60 - count));
        let least = |sessions: &[String]| idle(&text(sessions), now).map(|idle| idle.as_secs() / 60);
        assert_eq!(least(&[]), None);
        assert_eq!(least(&[idle_for(5)]), Some(5));
        assert_eq!(least(&[idle_for(5), idle_for(3)]), Some(3));
        assert_eq!(least(&[idle_for(5), session("wayland", "user", "active", "no", minutes(1))]), Some(0));
        // The greeter, a session in the background, and one without a screen say nothing.
        let others = [
            session("x11", "greeter", "active", "no", 0),
            session("wayland", "user", "online", "no", 0),
            session("tty", "user", "active", "no", 0),
            session("x11", "user", "closing", "no", 0),
        ];
        assert_eq!(least(&others), None);
        assert_eq!(least(&["Type=x11\nClass=user\n".to_owned()]), None, "what is not said is not guessed");
    }

    #[test]
    fn a_program_that_hangs_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hangs");
        std::fs::write(&path, "#!/bin/sh\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(answer(&path, &[]), None);
    }
}
