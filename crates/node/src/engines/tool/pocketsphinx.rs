//! pocketsphinx: a waveform as a file, words with times and probabilities on its standard output.

use bytes::Bytes;
use cxmpute_wire::RequestId;
use cxmpute_wire::form::take_apart;
use cxmpute_wire::openai::{Heard, HeardSegment, Word};
use cxmpute_wire::wave::Wave;
use tempfile::NamedTempFile;

use super::{Failed, Tool, words};
use cxmpute_runtime::once::{self, OnceError};

/// What it has to be given: its acoustic model was made of such sound.
const RATE: u32 = 16_000;
/// Most bytes of words.
const OUTPUT: usize = 8 * 1024 * 1024;
/// The model that knows nothing but digits.
const DIGITS: &str = "pocketsphinx-digits";
/// What may be said to it.
const GRAMMAR: &str = "#JSGF V1.0;\ngrammar digits;\npublic <digits> = \
     (zero | one | two | three | four | five | six | seven | eight | nine)+;\n";
/// Least share of a digit's time in which there is sound. The grammar knows nothing but digits, so the decoder puts one
/// into the silence after the last; in real digits, hisses included, there is sound for more than this.
const LEAST_LOUD: f64 = 0.41;
/// What it prints where nobody speaks.
const SILENCE: &str = "<sil>";

/// Writes down what is said.
pub(super) async fn listen(tool: &Tool, request: &RequestId, body: &[u8]) -> Result<Bytes, Failed> {
    let form = take_apart(request, body).ok_or(Failed::Request("the request is no form with sound"))?;
    let wave = Wave::read(form.file).map_err(|_| Failed::Request("the sound is no waveform"))?;
    if wave.rate != RATE || wave.channels != 1 {
        return Err(Failed::Request("the sound must be one channel at 16,000 samples per second"));
    }
    let lend = |bytes: &[u8]| {
        once::lend(bytes).map_err(|error| OnceError::Start { program: "a file for it".into(), error })
    };
    let sound = lend(&wave.pack())?;
    let grammar = if tool.model() == DIGITS { Some(lend(GRAMMAR.as_bytes())?) } else { None };
    let path = |file: &NamedTempFile| file.path().to_string_lossy().into_owned();
    let mut arguments = words(&["-logfn", "/dev/null", "-time", "yes", "-infile"]);
    arguments.push(path(&sound));
    if let Some(grammar) = &grammar {
        // Found by trying on spoken digits: without these it hears short digits in every pause.
        arguments.extend(words(&["-remove_noise", "no", "-wip", "0.0005", "-silprob", "0.5", "-jsgf"]));
        arguments.push(path(grammar));
    }
    let lent: Vec<&NamedTempFile> = [&sound].into_iter().chain(&grammar).collect();
    let printed = tool.run(&arguments, &[], b"", &lent, OUTPUT).await?;
    let mut keep: Box<dyn Fn(f64, f64) -> bool + Send> = Box::new(|_, _| true);
    if grammar.is_some() {
        let loudness = Loudness::of(&wave);
        keep = Box::new(move |start, end| loudness.share(start, end) >= LEAST_LOUD);
    }
    let heard = read(&String::from_utf8_lossy(&printed), keep.as_ref());
    Ok(serde_json::to_vec(&heard).unwrap_or_default().into())
}

/// Reads what it printed: a line with the text of each utterance, and below it a line for each word, such as
/// `two(2) 0.690 1.290 0.98`; what stands in `<>`, `[]` or `()` is no word.
fn read(printed: &str, keep: &(dyn Fn(f64, f64) -> bool + Send)) -> Heard {
    let mut heard = Heard { language: Some("english".to_owned()), ..Heard::default() };
    let mut piece = Piece::default();
    for line in printed.lines() {
        match timed(line) {
            Some((name, start, end, probability)) if keep(start, end) || name.starts_with(['<', '(']) => {
                piece.take(name, start, end, probability);
            }
            Some(_) => {}
            None => {
                piece.close(&mut heard);
            }
        }
    }
    piece.close(&mut heard);
    let texts: Vec<&str> = heard.segments.iter().map(|segment| segment.text.as_str()).collect();
    heard.text = texts.join(" ");
    heard
}

fn timed(line: &str) -> Option<(&str, f64, f64, f64)> {
    let mut parts = line.split_ascii_whitespace();
    let name = parts.next()?;
    let mut number = || parts.next()?.parse::<f64>().ok().filter(|number| number.is_finite());
    let (start, end, probability) = (number()?, number()?, number()?);
    parts.next().is_none().then_some((name, start, end, probability))
}

/// Where there is sound in a recording: one mark for each hundredth of a second.
struct Loudness(Vec<bool>);

impl Loudness {
    /// Marks what is louder than 3 % of the loudest.
    fn of(wave: &Wave<'_>) -> Self {
        let samples: Vec<u16> =
            wave.samples.chunks_exact(2).map(|s| i16::from_le_bytes([s[0], s[1]]).unsigned_abs()).collect();
        let loudest = samples.iter().copied().max().unwrap_or(0);
        let frame = (RATE / 100) as usize;
        let loud = |part: &[u16]| part.iter().any(|level| u32::from(*level) * 100 >= u32::from(loudest) * 3);
        Self(samples.chunks(frame).map(|part| loudest > 0 && loud(part)).collect())
    }

    /// Share of a span, in seconds, in which there is sound.
    fn share(&self, start: f64, end: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "held within the recording"
        )]
        let place = |seconds: f64| ((seconds * 100.0).max(0.0) as usize).min(self.0.len());
        let loud = self.0[place(start)..place(end).max(place(start))].iter().filter(|mark| **mark).count();
        loud as f64 / ((end - start) * 100.0).max(1.0)
    }
}

/// One utterance.
#[derive(Default)]
struct Piece {
    words: Vec<Word>,
    logs: f64,
    silent: f64,
    span: Option<(f64, f64)>,
}

impl Piece {
    fn take(&mut self, name: &str, start: f64, end: f64, probability: f64) {
        let end = end.max(start);
        self.span = Some((self.span.map_or(start, |span| span.0), end));
        let spoken = name.split('(').next().unwrap_or_default();
        if spoken.is_empty() || spoken.starts_with(['<', '[', '+']) || name.starts_with("(NULL)") {
            if name == SILENCE || name.starts_with('<') {
                self.silent += end - start;
            }
            return;
        }
        self.logs += probability.clamp(f64::MIN_POSITIVE, 1.0).ln();
        self.words.push(Word { word: spoken.to_owned(), start, end });
    }

    fn close(&mut self, heard: &mut Heard) {
        let piece = std::mem::take(self);
        let (Some((start, end)), false) = (piece.span, piece.words.is_empty()) else { return };
        let text: Vec<&str> = piece.words.iter().map(|word| word.word.as_str()).collect();
        heard.segments.push(HeardSegment {
            start,
            end,
            text: text.join(" "),
            avg_logprob: Some(piece.logs / piece.words.len() as f64),
            no_speech_prob: Some(if end > start {
                (piece.silent / (end - start)).clamp(0.0, 1.0)
            } else {
                0.0
            }),
            temperature: None,
            tokens: Vec::new(),
        });
        heard.words.extend(piece.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digit_in_silence_is_none() {
        let mut samples: Vec<u8> = (0..16_000_i16).flat_map(|at| (at % 100 * 90).to_le_bytes()).collect();
        samples.extend([1, 0].repeat(16_000));
        let loudness = Loudness::of(&Wave { rate: RATE, channels: 1, samples: &samples });
        assert!(loudness.share(0.2, 0.8) > 0.99 && loudness.share(1.1, 1.9) < 0.01);
        assert!((loudness.share(0.5, 1.5) - 0.5).abs() < 0.02 && loudness.share(5.0, 6.0) < 0.01);
        assert!(Loudness::of(&Wave { rate: RATE, channels: 1, samples: &[0; 640] }).share(0.0, 1.0) < 0.01);
    }

    #[test]
    fn words_and_times_are_read_and_marks_are_left_out() {
        let printed = "two probably\n<s> 0.000 0.250 1.0\ntwo 0.250 0.500 0.5\n(NULL) 0.5 0.5 1.0\n\
            probably(2) 0.500 1.000 1.000000\n<sil> 1.0 2.0 0.9\n[NOISE] 2.0 2.1 0.5\n\nsix\nsix 3.0 3.5 1.0\n";
        let all = |_: f64, _: f64| true;
        let heard = read(printed, &all);
        assert_eq!(heard.text, "two probably six");
        assert_eq!(heard.words.len(), 3);
        let [first, second] = heard.segments.as_slice() else { panic!("{heard:?}") };
        assert_eq!((first.start, first.end, first.text.as_str()), (0.0, 2.1, "two probably"));
        assert!((first.avg_logprob.unwrap() - 0.5_f64.ln() / 2.0).abs() < 1e-9);
        assert!((first.no_speech_prob.unwrap() - 1.25 / 2.1).abs() < 1e-9);
        assert_eq!((second.start, second.end, second.text.as_str()), (3.0, 3.5, "six"));
        assert_eq!(read("", &all).text, "");
        assert_eq!(read("\n<sil> 0.0 1.0 1.0\n", &all).segments, []);
        assert_eq!(read(printed, &|start, _| start < 2.0).text, "two probably");
    }
}
