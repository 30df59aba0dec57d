//! A transcript as an errand: a waveform to a node, words with times back, checked against the length of the sound and
//! printed as the client asked.

use std::fmt::Write as _;

use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::form;
use cxmpute_wire::openai::{
    DurationUsage, Heard, Segment, TranscriptFormat, Transcription, VerboseTranscription, Word,
};

use super::errand::{Errand, Misread, Printed, Ticket, failure, object};
use super::retry::Fault;
use super::usage::duration_usage;
use crate::app::App;
use crate::error::ApiResult;
use crate::media::Sound;

/// Bytes of JSON that a second of speech may take: nobody says more than 50 words in it, with their times.
const PER_SECOND: u64 = 16 * 1024;
/// Bytes around them.
const ENVELOPE: u64 = 64 * 1024;
/// Bytes of the name of a language.
const LANGUAGE: usize = 64;
/// How far times may lie behind the end of the sound, in seconds.
const SLACK: f64 = 1.0;

/// Sound to write down.
#[derive(Debug)]
pub struct Transcript {
    /// The sound.
    pub sound: Sound,
    /// Language of it, as the client says.
    pub language: Option<String>,
    /// Words that the client expects.
    pub prompt: Option<String>,
    /// Temperature of sampling.
    pub temperature: f64,
    /// How it is printed.
    pub format: TranscriptFormat,
    /// Whether pieces are wanted.
    pub segments: bool,
    /// Whether words are wanted.
    pub words: bool,
}

impl Transcript {
    fn seconds(&self) -> f64 {
        self.sound.length().0 as f64 / 1_000.0
    }

    /// Whether the times go forward and end with the sound.
    fn is_sound(&self, heard: &Heard) -> bool {
        let end = self.seconds() + SLACK;
        let fits = |start: f64, stop: f64| start >= 0.0 && start <= stop && stop <= end;
        let spans = heard.segments.iter().map(|piece| (piece.start, piece.end));
        let words = heard.words.iter().map(|word| (word.start, word.end));
        let plain = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
        let named = |name: &String| name.len() <= LANGUAGE && !name.chars().any(char::is_control);
        spans.chain(words).all(|(start, stop)| fits(start, stop))
            && plain(&heard.text)
            && heard.language.as_ref().is_none_or(named)
            && heard.segments.iter().all(|piece| plain(&piece.text))
            && heard.words.iter().all(|word| plain(&word.word))
    }
}

impl Errand for Transcript {
    type Answer = Heard;

    fn path(&self) -> WorkPath {
        WorkPath::Transcription
    }

    fn bound(&self) -> Units {
        Units::audio(self.sound.length())
    }

    fn node_body(&self, ticket: &Ticket) -> ApiResult<Bytes> {
        let mut fields = vec![
            ("response_format", "verbose_json".to_owned()),
            ("temperature", self.temperature.to_string()),
            ("timestamp_granularities[]", "segment".to_owned()),
        ];
        if self.words {
            fields.push(("timestamp_granularities[]", "word".to_owned()));
        }
        fields.extend(self.language.clone().map(|language| ("language", language)));
        fields.extend(self.prompt.clone().map(|prompt| ("prompt", prompt)));
        let wave = self.sound.wave().pack();
        Ok(form::compose(&ticket.request_id, &ticket.model.id, &fields, &wave).into())
    }

    fn max_bytes(&self) -> u64 {
        ENVELOPE + self.bound().seconds * PER_SECOND
    }

    async fn read(&self, _app: &App, body: Vec<u8>) -> Result<Heard, Misread> {
        if let Some(fault) = failure(&body) {
            return Err(fault.into());
        }
        let heard: Heard = object(&body)?;
        if self.is_sound(&heard) { Ok(heard) } else { Err(Fault::Protocol.into()) }
    }

    /// Listening is paid by the length of what was accepted.
    fn abandoned(&self) -> Units {
        self.bound()
    }

    fn print(&self, ticket: &Ticket, answer: Heard, units: &Units, settled: &Settled) -> Printed {
        let usage = duration_usage(units, &ticket.model.price, settled);
        let plain = |text: String, content_type| Printed { bytes: text.into(), content_type };
        match self.format {
            TranscriptFormat::Json => Printed::json(&Transcription { text: answer.text, usage }),
            TranscriptFormat::Text => plain(format!("{}\n", answer.text), "text/plain; charset=utf-8"),
            TranscriptFormat::Srt => {
                plain(subtitles(&answer, self.seconds(), ','), "text/plain; charset=utf-8")
            }
            TranscriptFormat::Vtt => {
                let text = format!("WEBVTT\n\n{}", subtitles(&answer, self.seconds(), '.'));
                plain(text, "text/vtt; charset=utf-8")
            }
            TranscriptFormat::VerboseJson => Printed::json(&verbose(self, answer, usage)),
        }
    }
}

fn verbose(asked: &Transcript, heard: Heard, usage: DurationUsage) -> VerboseTranscription {
    let segments = heard.segments.into_iter().enumerate().map(|(at, piece)| Segment {
        id: at as u64,
        seek: hundredths(piece.start),
        start: piece.start,
        end: piece.end,
        compression_ratio: compression(&piece.text),
        text: piece.text,
        tokens: piece.tokens,
        temperature: piece.temperature.unwrap_or(0.0),
        avg_logprob: piece.avg_logprob.unwrap_or(0.0).min(0.0),
        no_speech_prob: piece.no_speech_prob.unwrap_or(0.0).clamp(0.0, 1.0),
    });
    let segments: Vec<Segment> = segments.collect();
    let words: Vec<Word> = heard.words;
    VerboseTranscription {
        task: "transcribe".to_owned(),
        language: heard.language.unwrap_or_else(|| asked.language.clone().unwrap_or_default()),
        duration: asked.seconds(),
        text: heard.text,
        segments: asked.segments.then_some(segments),
        words: asked.words.then_some(words),
        usage,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a checked place in a short recording"
)]
fn hundredths(seconds: f64) -> u64 {
    (seconds * 100.0) as u64
}

/// Length of a text over its length compressed: above about 2.4 it repeats itself.
fn compression(text: &str) -> f64 {
    use std::io::Write as _;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    let packed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
    if packed.is_empty() { 1.0 } else { text.len() as f64 / packed.len() as f64 }
}

/// Numbered pieces with their times; a text without pieces is one piece as long as the sound.
fn subtitles(heard: &Heard, length: f64, comma: char) -> String {
    let mut text = String::new();
    let whole = [(0.0, length, heard.text.as_str())];
    let pieces: Vec<(f64, f64, &str)> =
        heard.segments.iter().map(|piece| (piece.start, piece.end, piece.text.trim())).collect();
    let pieces = match (pieces.is_empty(), heard.text.is_empty()) {
        (true, false) => &whole[..],
        _ => &pieces,
    };
    for (at, (start, end, said)) in pieces.iter().enumerate() {
        // An arrow would begin a new piece.
        let said = said.replace("-->", "->");
        let _ = write!(text, "{}\n{} --> {}\n{said}\n\n", at + 1, stamp(*start, comma), stamp(*end, comma));
    }
    text
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a checked place in a short recording"
)]
fn stamp(seconds: f64, comma: char) -> String {
    let ms = (seconds * 1_000.0).round() as u64;
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    format!("{hours:02}:{minutes:02}:{:02}{comma}{:03}", ms / 1_000 % 60, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::HeardSegment;

    use super::*;

    fn asked(seconds: usize) -> Transcript {
        Transcript {
            sound: Sound { samples: vec![0; seconds * 32_000] },
            language: None,
            prompt: None,
            temperature: 0.0,
            format: TranscriptFormat::Json,
            segments: true,
            words: true,
        }
    }

    fn piece(start: f64, end: f64, text: &str) -> HeardSegment {
        HeardSegment { start, end, text: text.to_owned(), ..HeardSegment::default() }
    }

    #[test]
    fn times_lie_within_the_sound_and_go_forward() {
        let asked = asked(10);
        let of = |start, end| Heard { segments: vec![piece(start, end, "x")], ..Heard::default() };
        for (start, end, good) in [
            (0.0, 10.9, true),
            (3.0, 2.0, false),
            (-1.0, 2.0, false),
            (1.0, 12.0, false),
            (f64::NAN, 1.0, false),
        ] {
            assert_eq!(asked.is_sound(&of(start, end)), good, "{start} {end}");
        }
        let words = Heard {
            words: vec![Word { word: "a\u{1b}[2J".into(), start: 0.0, end: 1.0 }],
            ..Heard::default()
        };
        assert!(!asked.is_sound(&words), "no marks that a terminal obeys");
        let named = |name: &str| Heard { language: Some(name.to_owned()), ..Heard::default() };
        assert!(asked.is_sound(&named("english")));
        assert!(!asked.is_sound(&named("a\u{1b}[2J")) && !asked.is_sound(&named(&"long ".repeat(20))));
    }

    #[test]
    fn subtitles_have_numbers_and_times() {
        let heard = Heard {
            text: "one two".into(),
            segments: vec![piece(0.0, 1.5, " one"), piece(61.25, 3_725.001, "two --> three")],
            ..Heard::default()
        };
        assert_eq!(
            subtitles(&heard, 4_000.0, ','),
            "1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n00:01:01,250 --> 01:02:05,001\ntwo -> three\n\n"
        );
        let bare = Heard { text: "all".into(), ..Heard::default() };
        assert_eq!(subtitles(&bare, 2.0, '.'), "1\n00:00:00.000 --> 00:00:02.000\nall\n\n");
        assert_eq!(subtitles(&Heard::default(), 2.0, '.'), "");
    }

    #[test]
    fn a_text_that_repeats_itself_has_a_high_ratio() {
        assert!(compression(&"again ".repeat(100)) > 2.4);
        assert!(compression("seven words that are not the same") < 1.2);
    }
}
