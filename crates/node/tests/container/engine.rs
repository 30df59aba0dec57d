//! An engine for the test of containers: one static program of the standard library, all that its image holds.
//!
//! `engine --socket PATH --model NAME [--says TEXT]`. It speaks enough of OpenAI's shapes on a unix socket, and two more
//! things that a user may ask in a chat: `report` tells what it can see and do from inside, `eat` takes memory until
//! somebody ends it. `--end` makes it end at once.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

struct Settings {
    socket: String,
    model: String,
    says: String,
}

fn main() {
    let mut settings = Settings { socket: String::new(), model: String::new(), says: "Hello there, friend.".into() };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_default();
        match name.as_str() {
            "--socket" => settings.socket = value(),
            "--model" => settings.model = value(),
            "--says" => settings.says = value(),
            "--end" => {
                eprintln!("no such device");
                std::process::exit(3);
            }
            other => panic!("unknown argument {other}"),
        }
    }
    let listener = UnixListener::bind(&settings.socket).expect("the socket");
    println!("listening as {}", settings.model);
    let settings = Arc::new(settings);
    for connection in listener.incoming() {
        let (connection, settings) = (connection.expect("a connection"), settings.clone());
        std::thread::spawn(move || serve(connection, &settings));
    }
}

fn serve(mut connection: UnixStream, settings: &Settings) -> Option<()> {
    let mut bytes = Vec::new();
    let mut block = [0u8; 16 * 1024];
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match connection.read(&mut block).ok()? {
            0 => return None,
            count => bytes.extend_from_slice(&block[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok())
        .unwrap_or(0);
    while bytes.len() < head_end + length {
        match connection.read(&mut block).ok()? {
            0 => return None,
            count => bytes.extend_from_slice(&block[..count]),
        }
    }
    let body = String::from_utf8_lossy(&bytes[head_end..]).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    match path {
        "/health" => whole(&mut connection, 200, "{\"state\":\"awake\"}"),
        "/v1/models" => {
            whole(&mut connection, 200, &format!("{{\"object\":\"list\",\"data\":[{{\"id\":\"{}\"}}]}}", settings.model))
        }
        "/v1/chat/completions" => chat(&mut connection, &body, settings),
        _ => whole(&mut connection, 404, "{\"error\":{\"message\":\"no such path\"}}"),
    }
}

fn whole(connection: &mut UnixStream, status: u16, body: &str) -> Option<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    connection.write_all((head + body).as_bytes()).ok()
}

fn chat(connection: &mut UnixStream, body: &str, settings: &Settings) -> Option<()> {
    let asks = |word: &str| body.contains(&format!("\"{word}\""));
    if asks("eat") {
        eprintln!("eating");
        eat();
    }
    let text = if asks("report") { report() } else { settings.says.clone() };
    let model = &settings.model;
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    let usage = format!(
        "{{\"prompt_tokens\":1,\"completion_tokens\":{0},\"total_tokens\":{1}}}",
        words.len(),
        words.len() + 1
    );
    if !body.replace(' ', "").contains("\"stream\":true") {
        let answer = format!(
            "{{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"{model}\",\"choices\":[{{\"index\":0,\
             \"message\":{{\"role\":\"assistant\",\"content\":{}}},\"finish_reason\":\"stop\"}}],\"usage\":{usage}}}",
            quoted(&text)
        );
        return whole(connection, 200, &answer);
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    connection.write_all(head.as_bytes()).ok()?;
    let mut event = |choices: &str, more: &str| {
        let event = format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"{model}\",\
             \"choices\":[{choices}]{more}}}\n\n"
        );
        connection.write_all(event.as_bytes()).ok()
    };
    for word in words {
        event(&format!("{{\"index\":0,\"delta\":{{\"content\":{}}},\"finish_reason\":null}}", quoted(word)), "")?;
    }
    event("{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}", "")?;
    event("", &format!(",\"usage\":{usage}"))?;
    connection.write_all(b"data: [DONE]\n\n").ok()
}

/// Takes memory until the kernel ends the process; gives up after a while, where nobody does.
fn eat() {
    let mut eaten = Vec::new();
    for _ in 0..64 {
        // Every page is written, so that it is really there.
        eaten.push(vec![1u8; 16 << 20]);
    }
    eprintln!("nobody ended me after {} MiB", eaten.len() * 16);
}

/// What this process can see and do, one `name=value` per word.
fn report() -> String {
    let mut report = String::new();
    let mut say = |name: &str, value: String| {
        let _ = write!(report, "{name}={} ", value.replace([' ', '\n', '\t'], ","));
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?");
        line.trim_start_matches(':').split_whitespace().next().unwrap_or("?").to_owned()
    };
    for name in ["Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"] {
        say(name, line(name));
    }
    let network = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let interfaces: Vec<&str> =
        network.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    say("interfaces", interfaces.join(","));
    for (name, path) in [("root", "/probe"), ("models", "/models/probe"), ("tmp", "/tmp/probe"), ("proc", "/proc/sys/kernel/hostname")]
    {
        let written = match File::create(path).and_then(|mut file| file.write_all(b"x")) {
            Ok(()) => "writable".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        say(name, written);
    }
    say("model", fs::read_to_string("/models/a/weights.bin").unwrap_or_else(|error| format!("{:?}", error.kind())));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let bound: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(3);
            let (from, to, options) = (words.next()?, words.next()?, words.next()?);
            let own = ["/proc", "/sys", "/dev", "/etc/"].iter().any(|system| to.starts_with(system));
            (!own && !from.is_empty()).then(|| format!("{to}:{}", options.split(',').next().unwrap_or_default()))
        })
        .collect();
    say("mounts", bound.join(","));
    let sockets: Vec<&str> =
        ["/var/run/docker.sock", "/run/docker.sock"].into_iter().filter(|path| fs::metadata(path).is_ok()).collect();
    say("docker", sockets.len().to_string());
    let devices: Vec<String> = fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("nvidia") || name.contains("kvm") || name.starts_with("vd") || name.starts_with("sd"))
        .collect();
    say("devices", devices.len().to_string());
    say("cpu", limit(&["/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu.max"]));
    say("memory", limit(&["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"]));
    say("swap", limit(&["/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/memory.swap.max"]));
    let environment: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    say("environment", environment.join(","));
    say("threads", threads().to_string());
    report.trim_end().to_owned()
}

fn limit(files: &[&str]) -> String {
    files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_else(|| "?".into()).trim().to_owned()
}

/// How many threads may be there at the same time, up to 300.
fn threads() -> usize {
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut started = Vec::new();
    for _ in 0..300 {
        let stop = stop.clone();
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
        });
        match thread {
            Ok(thread) => started.push(thread),
            Err(_) => break,
        }
    }
    let count = started.len();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for thread in started {
        let _ = thread.join();
    }
    count
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => {}
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
