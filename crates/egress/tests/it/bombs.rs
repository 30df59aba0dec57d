//! F4: bodies that are too large, unpack to too much, never end or come too slowly.

use std::io::Write as _;
use std::time::{Duration, Instant};

use cxmpute_egress::{Limits, Wanted};
use cxmpute_runtime::Tasks;

use crate::findings::Findings;
use crate::site::{Asked, Play, Site};
use crate::stage::{Bad, World, limits};

const DECODED: &str = "decoded bytes stay within limit and ratio";
const IN_TIME: &str = "the deadline holds";
const TYPES: &str = "the declared type decides";
/// What the bombs unpack to. Far above every limit, small enough for the variant that keeps it all.
const BOMB_BYTES: usize = 16 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_millis(700);

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(plain).unwrap();
    packer.finish().unwrap()
}

fn brotli(plain: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    brotli::CompressorWriter::new(&mut packed, 4096, 5, 22).write_all(plain).unwrap();
    packed
}

/// Text that packs to a tenth: it stays below the ratio.
fn prose(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ["alpha ", "beta ", "gamma ", "delta ", "epsilon ", "zeta "][(state >> 24) as usize % 6]
    };
    std::iter::repeat_with(|| word().bytes()).flatten().take(bytes).collect()
}

fn packed(coding: &str, body: Vec<u8>) -> Play {
    Play::Say(200, vec![("content-encoding", coding.into()), ("content-type", "text/html".into())], body)
}

fn play(asked: &Asked) -> Play {
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    match asked.path.as_str() {
        "/gzip-bomb" => packed("gzip", gzip(&vec![0; BOMB_BYTES])),
        "/deflate-bomb" => packed("deflate", {
            let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            packer.write_all(&vec![0; BOMB_BYTES]).unwrap();
            packer.finish().unwrap()
        }),
        "/brotli-bomb" => packed("br", brotli(&vec![0; BOMB_BYTES])),
        "/large-prose" => packed("gzip", gzip(&prose(6 * 1024 * 1024))),
        "/prose" => packed("br", brotli(&prose(4 * 1024 * 1024))),
        "/announced" => Play::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\nbegin".to_vec()),
        "/unannounced" => Play::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 65_536]),
        "/endless-chunks" => {
            Play::Endless(chunked, [b"10000\r\n".to_vec(), vec![b'x'; 65_536], b"\r\n".to_vec()].concat())
        }
        "/one-endless-chunk" => {
            Play::Endless([chunked, b"fffffffff\r\n".to_vec()].concat(), vec![b'x'; 65_536])
        }
        "/endless-head" => Play::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x-more: and more\r\n".to_vec()),
        "/endless-line" => Play::Endless(b"HTTP/1.1 200 ".to_vec(), vec![b'x'; 1024]),
        "/slow-body" => Play::Trickle(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Duration::from_millis(50)),
        "/slow-head" => Play::Trickle(b"HTTP/1.1 200 OK\r\nx: ".to_vec(), Duration::from_millis(50)),
        "/silent" => Play::Silence,
        "/image" => Play::Say(200, vec![("content-type", "image/png".into())], b"<html>no".to_vec()),
        "/untyped" => Play::Say(200, vec![], b"<html>no".to_vec()),
        "/html" => {
            Play::Say(200, vec![("content-type", "Text/HTML; charset=utf-8".into())], b"\x89PNG".to_vec())
        }
        "/cut-short" => Play::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()),
        "/nonsense" => Play::Raw(b"this is no HTTP at all\r\n\r\n".to_vec()),
        "/damaged" => packed("gzip", b"\x1f\x8b\x08\0 this is no gzip".to_vec()),
        "/twice" => packed("gzip, br", gzip(b"x")),
        "/zstd" => packed("zstd", b"x".to_vec()),
        _ => Play::text("fine"),
    }
}

async fn gate(bad: Bad) -> Findings {
    let mut findings = Findings::new("F4");
    let tasks = Tasks::new();
    let site = Site::start(&tasks, play).await;
    let decoded_bytes = Limits::default().decoded_bytes;
    for (path, codes) in [
        ("/gzip-bomb", &["ratio_exceeded", "too_large"][..]),
        ("/deflate-bomb", &["ratio_exceeded", "too_large"]),
        ("/brotli-bomb", &["ratio_exceeded", "too_large"]),
        ("/large-prose", &["too_large"]),
        ("/announced", &["too_large"]),
        ("/unannounced", &["too_large"]),
        ("/endless-chunks", &["too_large"]),
        ("/one-endless-chunk", &["too_large"]),
        ("/endless-head", &["protocol_error"]),
        ("/endless-line", &["protocol_error"]),
        ("/cut-short", &["protocol_error"]),
        ("/nonsense", &["protocol_error"]),
        ("/damaged", &["decoding_failed"]),
        ("/twice", &["encoding_unknown"]),
        ("/zstd", &["encoding_unknown"]),
    ] {
        if bad.is_some() && path.contains("nounced") || bad.is_some() && path.contains("chunk") {
            // What never ends would fill the memory of a variant that does not count.
            continue;
        }
        let world = World::two_hosts(site.address);
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &Wanted::default()).await;
        findings.count += 1;
        let kept = got.as_ref().map_or(0, |page| page.body.len());
        let code = got.map_err(|error| error.code()).map(|page| page.status);
        let right = code.is_err_and(|code| codes.contains(&code)) && kept <= decoded_bytes;
        findings.check(DECODED, right, format!("{path}: {code:?}, {kept} bytes kept"));
    }
    let world = World::two_hosts(site.address);
    let got = world.fetcher(bad).get("http://a.example.com/prose", &Wanted::default()).await;
    findings.check(
        "an ordinary packed page is read whole",
        got.is_ok_and(|page| page.body.len() == 4 * 1024 * 1024),
        "",
    );
    slow(bad, &site, &mut findings).await;
    types(bad, &site, &mut findings).await;
    findings
}

async fn slow(bad: Bad, site: &Site, findings: &mut Findings) {
    for path in ["/slow-body", "/slow-head", "/silent"] {
        let world =
            World { limits: Limits { deadline: DEADLINE, ..limits() }, ..World::two_hosts(site.address) };
        let begun = Instant::now();
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &Wanted::default()).await;
        let took = begun.elapsed();
        findings.count += 1;
        let code = got.map_err(|error| error.code()).map(|page| page.status);
        let right = code == Err("timed_out") && took >= DEADLINE && took < DEADLINE * 4;
        findings.check(IN_TIME, right, format!("{path}: {code:?} after {took:?}"));
    }
}

async fn types(bad: Bad, site: &Site, findings: &mut Findings) {
    let wanted = Wanted { types: vec!["text/html".into()], ..Wanted::default() };
    for (path, taken) in [("/image", false), ("/untyped", false), ("/html", true)] {
        let world = World::two_hosts(site.address);
        let got = world.fetcher(bad).get(&format!("http://a.example.com{path}"), &wanted).await;
        findings.count += 1;
        let right = match &got {
            Ok(page) => taken && page.content_type.as_deref() == Some("Text/HTML; charset=utf-8"),
            Err(error) => !taken && error.code() == "type_refused",
        };
        findings.check(TYPES, right, format!("{path}: {got:?}"));
    }
}

#[tokio::test]
async fn f4_bombs_endless_bodies_and_slow_hosts_are_cut() {
    gate(None).await.must_hold();
}

#[cfg(feature = "sabotage")]
#[tokio::test]
async fn sabotaged_f4_catches_a_count_of_packed_bytes_only() {
    let bad = Some(cxmpute_egress::sabotage::Sabotage::NoDecodedCount);
    gate(bad).await.must_break(DECODED, "no decoded count");
}
