use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn cut(parts: &[&[u8]]) -> Result<Vec<String>, EventFault> {
    let mut cutter = EventCutter::new(1024);
    let mut events = Vec::new();
    for part in parts {
        cutter.push(part, |data| {
            events.push(data.to_owned());
            Ok(())
        })?;
    }
    Ok(events)
}

#[test]
fn line_ends_comments_and_several_data_lines() {
    let table: [(&[u8], &[&str]); 9] = [
        (b"data: a\n\ndata: b\n\n", &["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
        (b"data: a\r\rdata: b\r\r", &["a", "b"]),
        (b"data: one\ndata: two\n\n", &["one\ntwo"]),
        (b": comment\n\ndata:a\n: more\n\n", &["a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", &["a"]),
        (b"\xef\xbb\xbfdata: a\n\n", &["a"]),
        (b"data\n\n", &[""]),
        (b"data: cut off\n", &[]),
    ];
    for (bytes, want) in table {
        assert_eq!(cut(&[bytes]).unwrap(), want, "{bytes:?}");
    }
}

#[test]
fn large_events_and_bad_bytes_are_faults() {
    let long = [b"data: ".as_slice(), &[b'x'; 2000], b"\n\n"].concat();
    assert_eq!(cut(&[&long]), Err(EventFault::TooLarge));
    let lines = b"data: 0123456789\n".repeat(200);
    assert_eq!(cut(&[&lines]), Err(EventFault::TooLarge));
    let parts: Vec<&[u8]> = std::iter::repeat_n(b"0123456789".as_slice(), 200).collect();
    assert_eq!(cut(&parts), Err(EventFault::TooLarge));
    assert_eq!(cut(&[b"data: \xff\n\n"]), Err(EventFault::NotUtf8));
}

fn read(dialect: Dialect, data: &str) -> Result<Vec<Piece>, EventFault> {
    let mut out = VecDeque::new();
    EventReader::new(Asked { dialect, choices: 2, logprobs: None }).read(data, &mut out).map(|()| out.into())
}

#[test]
fn chunks_become_pieces_and_extra_fields_vanish() {
    let data = r#"{"id":"theirs","model":"other","x":1,"choices":[{"index":1,"delta":{"role":"system","content":"hé"},
        "finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    let want = vec![
        Piece::Text { choice: 1, text: "hé".into(), logprobs: None },
        Piece::Finish { choice: 1, reason: FinishReason::Stop },
        Piece::Claim(Claim { prompt: 3, completion: 2, cached: 0 }),
    ];
    assert_eq!(read(Dialect::Chat, data).unwrap(), want);
    let data = r#"{"choices":[{"text":"ab","index":0,"finish_reason":null}]}"#;
    assert_eq!(
        read(Dialect::Completion, data).unwrap(),
        [Piece::Text { choice: 0, text: "ab".into(), logprobs: None }]
    );
    assert_eq!(read(Dialect::Chat, " [DONE]").unwrap(), [Piece::Done]);
    assert_eq!(
        read(Dialect::Chat, r#"{"error":{"code":"engine_failed","message":"x"}}"#).unwrap(),
        [Piece::Failed { code: Some(Code::EngineFailed) }]
    );
}

#[test]
fn what_a_node_may_not_send_is_a_fault() {
    for data in [
        "",
        "<html>",
        "[]",
        r#"{"choices":[{"index":2,"delta":{"content":"x"}}]}"#,
        r#"{"choices":[{"index":-1,"delta":{"content":"x"}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":7}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"because"}]}"#,
    ] {
        assert_eq!(read(Dialect::Chat, data), Err(EventFault::Shape), "{data}");
    }
}

#[test]
fn an_impossible_claim_is_no_claim() {
    for usage in [
        "{}",
        "7",
        r#"{"prompt_tokens":-1,"completion_tokens":2}"#,
        r#"{"prompt_tokens":1e99,"completion_tokens":2}"#,
        r#"{"prompt_tokens":"1","completion_tokens":2}"#,
        "[1,2,{}]",
    ] {
        assert_eq!(read(Dialect::Chat, &format!(r#"{{"choices":[],"usage":{usage}}}"#)).unwrap(), []);
    }
}

proptest! {
    #[test]
    fn the_events_do_not_depend_on_how_the_bytes_are_split(
        events in proptest::collection::vec("[a-zé世\u{1f600} :]{0,20}", 0..12),
        ends in proptest::collection::vec(0usize..3, 40),
        cuts in proptest::collection::vec(0usize..400, 0..30),
    ) {
        let mut bytes = Vec::new();
        for (i, event) in events.iter().enumerate() {
            let end = ["\n", "\r\n", "\r"][ends[i]];
            bytes.extend_from_slice(format!(": ping{end}data: {event}{end}data: more{end}{end}").as_bytes());
        }
        let whole = cut(&[&bytes]).unwrap();
        let want: Vec<String> = events.iter().map(|event| format!("{event}\nmore")).collect();
        prop_assert_eq!(&whole, &want);
        let mut places: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        places.push(0);
        places.push(bytes.len());
        places.sort_unstable();
        let parts: Vec<&[u8]> = places.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(&cut(&parts).unwrap(), &want);
    }

    #[test]
    fn an_event_reads_the_same_whatever_came_before_it(
        events in proptest::collection::vec((0usize..8, 0usize..3, ".{0,8}|[a-z\"\\\\{},: ]{0,9}"), 1..30),
    ) {
        let events: Vec<String> = events.iter().map(|(kind, index, text)| {
            let text = serde_json::to_string(text).unwrap();
            match kind {
                0 => format!(r#"{{"choices":[{{"index":{index},"delta":{{}},"finish_reason":"stop"}}]}}"#),
                1 => format!(r#"{{"usage":{{"prompt_tokens":1,"completion_tokens":2}},"choices":[{{"index":{index},"delta":{{"content":{text}}}}}]}}"#),
                2 => format!(r#"{{"choices":[{{"delta":{{"role":{text},"content":{text}}},"index":{index}}}],"usage":null}}"#),
                3 => format!(r#"{{"choices":[{{"index":{index},"delta":{{"content":{text}}},"finish_reason":"length"}}]}}"#),
                _ => format!(r#"{{"id":"x","choices":[{{"index":{index},"delta":{{"content":{text}}},"finish_reason":null}}]}}"#),
            }
        }).collect();
        let mut reader = EventReader::new(Asked { dialect: Dialect::Chat, choices: 2, logprobs: None });
        for event in &events {
            let mut out = VecDeque::new();
            let known = reader.read(event, &mut out).map(|()| Vec::from(out));
            prop_assert_eq!(known, read(Dialect::Chat, event), "{}", event);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0usize..2000) {
        let at = at.min(bytes.len());
        let _ = cut(&[&bytes[..at], &bytes[at..]]);
    }
}
