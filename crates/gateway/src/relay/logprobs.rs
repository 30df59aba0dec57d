//! Probabilities of tokens as nodes send them: bounded, finite, and about the text that came with them. They are never
//! billed, so they must not carry an answer of their own.

use cxmpute_wire::openai::{ChatLogprobs, CompletionLogprobs, TokenLogprob};

use super::events::{Dialect, EventFault};
use crate::limits;

/// OpenAI's "practically none".
const LEAST: f64 = -9999.0;
/// Rounding may lift the likeliest token a little above certainty.
const ROUNDING: f64 = 1e-3;

/// Probabilities of the tokens of one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Logprobs {
    /// Of a chat.
    Chat(Vec<TokenLogprob>),
    /// Of a legacy completion.
    Legacy(CompletionLogprobs),
}

impl Logprobs {
    /// Reads what a node sent; `top` is the number of likely tokens that were asked for. None when it holds no token.
    ///
    /// # Errors
    /// It is not what a node may send.
    pub fn read(dialect: Dialect, top: usize, text: &str) -> Result<Option<Self>, EventFault> {
        match dialect {
            Dialect::Chat => {
                let read: Option<ChatLogprobs> = serde_json::from_str(text).map_err(|_| EventFault::Shape)?;
                let Some(mut tokens) = read.and_then(|read| read.content).filter(|list| !list.is_empty())
                else {
                    return Ok(None);
                };
                tokens.iter_mut().try_for_each(|token| check_token(token, top))?;
                Ok(Some(Self::Chat(tokens)))
            }
            Dialect::Completion => {
                let read: Option<CompletionLogprobs> =
                    serde_json::from_str(text).map_err(|_| EventFault::Shape)?;
                let Some(mut lists) = read.filter(|lists| !lists.tokens.is_empty()) else { return Ok(None) };
                check_lists(&mut lists, top)?;
                Ok(Some(Self::Legacy(lists)))
            }
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Chat(tokens) => tokens.len(),
            Self::Legacy(lists) => lists.tokens.len(),
        }
    }

    /// Adds the tokens of a later event.
    pub fn append(&mut self, more: Self) {
        match (self, more) {
            (Self::Chat(all), Self::Chat(more)) => all.extend(more),
            (Self::Legacy(all), Self::Legacy(more)) => {
                all.tokens.extend(more.tokens);
                all.token_logprobs.extend(more.token_logprobs);
                all.text_offset.extend(more.text_offset);
                if let (Some(all), Some(more)) = (&mut all.top_logprobs, more.top_logprobs) {
                    all.extend(more);
                }
            }
            // One answer has one dialect.
            (Self::Chat(_), Self::Legacy(_)) | (Self::Legacy(_), Self::Chat(_)) => {}
        }
    }

    fn write_bytes(&self, out: &mut Vec<u8>) {
        match self {
            Self::Chat(tokens) => {
                for token in tokens {
                    out.extend_from_slice(token.bytes.as_deref().unwrap_or(token.token.as_bytes()));
                }
            }
            Self::Legacy(lists) => {
                for token in &lists.tokens {
                    out.extend_from_slice(token.as_bytes());
                }
            }
        }
    }
}

fn sound(logprob: &mut f64) -> Result<(), EventFault> {
    if !logprob.is_finite() || *logprob > ROUNDING {
        return Err(EventFault::Shape);
    }
    *logprob = logprob.clamp(LEAST, 0.0);
    Ok(())
}

fn fits(text: &str, bytes: Option<&[u8]>) -> Result<(), EventFault> {
    let most = limits::TOKEN_BYTES;
    let bytes = bytes.map_or(0, <[u8]>::len);
    if text.len() <= most && bytes <= most { Ok(()) } else { Err(EventFault::Shape) }
}

fn check_token(token: &mut TokenLogprob, top: usize) -> Result<(), EventFault> {
    fits(&token.token, token.bytes.as_deref())?;
    sound(&mut token.logprob)?;
    // Some engines add the chosen token to the likeliest ones.
    token.top_logprobs.truncate(top);
    token.top_logprobs.iter_mut().try_for_each(|likely| {
        fits(&likely.token, likely.bytes.as_deref())?;
        sound(&mut likely.logprob)
    })
}

fn check_lists(lists: &mut CompletionLogprobs, top: usize) -> Result<(), EventFault> {
    let tokens = lists.tokens.len();
    let listed = lists.top_logprobs.as_ref().is_none_or(|likely| likely.len() == tokens);
    if lists.token_logprobs.len() != tokens || !listed {
        return Err(EventFault::Shape);
    }
    lists.tokens.iter().try_for_each(|token| fits(token, None))?;
    lists.token_logprobs.iter_mut().flatten().try_for_each(sound)?;
    if top == 0 {
        lists.top_logprobs = None;
    }
    for likely in lists.top_logprobs.iter_mut().flatten().flatten() {
        // As many as were asked for, and the chosen one beside them.
        if likely.len() > top.saturating_add(1) {
            return Err(EventFault::Shape);
        }
        for (token, logprob) in likely.iter_mut() {
            fits(token, None)?;
            sound(logprob)?;
        }
    }
    Ok(())
}

/// Holds the tokens of one choice to its text: the text must be what the tokens spell. Tokens may run ahead of the
/// text, because engines hold text back for stop texts and split characters; the text never runs ahead of them.
#[derive(Debug, Default)]
pub struct Follower {
    /// Bytes of tokens whose text has not come yet.
    ahead: Vec<u8>,
    begun: bool,
    /// The text cannot be compared byte by byte any more: a replaced character, or a tool call, came.
    blind: bool,
    tokens: u64,
    /// Characters of the tokens so far, with what stands before the output.
    characters: u64,
}

impl Follower {
    /// A follower of a choice whose output comes after `before` characters of repeated prompt.
    #[must_use]
    pub fn after(before: u64) -> Self {
        Self { characters: before, ..Self::default() }
    }

    /// Takes an event in, and writes the true places of its tokens. `most` is the bound on tokens.
    ///
    /// # Errors
    /// The tokens are not those of the text, or too many.
    pub fn follow(&mut self, text: &str, logprobs: &mut Logprobs, most: u64) -> Result<(), EventFault> {
        self.tokens += logprobs.count() as u64;
        if self.tokens > most {
            return Err(EventFault::Shape);
        }
        if let Logprobs::Legacy(lists) = logprobs {
            lists.text_offset.clear();
            for token in &lists.tokens {
                lists.text_offset.push(self.characters);
                self.characters += token.chars().count() as u64;
            }
        }
        if self.blind || text.contains(char::REPLACEMENT_CHARACTER) {
            self.blind();
            return Ok(());
        }
        logprobs.write_bytes(&mut self.ahead);
        if self.ahead.len() > limits::TOKENS_AHEAD {
            return Err(EventFault::Shape);
        }
        if text.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.begun, true) && !text.starts_with(char::is_whitespace) {
            // Vocabularies with a mark for spaces write one before the first word that decoders drop.
            let spaces = self.ahead.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.ahead.drain(..spaces);
        }
        if !self.ahead.starts_with(text.as_bytes()) {
            return Err(EventFault::Shape);
        }
        self.ahead.drain(..text.len());
        Ok(())
    }

    /// Stops comparing: what comes now is not the plain text of the tokens.
    pub fn blind(&mut self) {
        self.blind = true;
        self.ahead = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Result<Option<Logprobs>, EventFault> {
        Logprobs::read(Dialect::Chat, 1, text)
    }

    fn tokens(texts: &[&str]) -> Logprobs {
        let token = |text: &&str| TokenLogprob {
            token: (*text).to_owned(),
            logprob: -0.5,
            bytes: None,
            top_logprobs: Vec::new(),
        };
        Logprobs::Chat(texts.iter().map(token).collect())
    }

    #[test]
    fn sound_probabilities_are_read_and_cut_to_what_was_asked_for() {
        let read = chat(
            r#"{"content":[{"token":"a","logprob":0.0001,"bytes":[97],"x":1,"top_logprobs":[
                {"token":"a","logprob":0,"bytes":[97]},{"token":"b","logprob":-1e9}]}],"refusal":null,"y":2}"#,
        );
        let Some(Logprobs::Chat(read)) = read.unwrap() else { panic!("chat") };
        assert_eq!((read[0].logprob, read[0].top_logprobs.len()), (0.0, 1));
        assert_eq!(chat("null"), Ok(None));
        assert_eq!(chat(r#"{"content":null}"#), Ok(None));
        let legacy = r#"{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[{"a":-1}],"text_offset":[99]}"#;
        let Ok(Some(Logprobs::Legacy(lists))) = Logprobs::read(Dialect::Completion, 0, legacy) else {
            panic!("legacy")
        };
        assert_eq!(lists.top_logprobs, None, "none were asked for");
    }

    #[test]
    fn impossible_probabilities_are_faults() {
        let long = "x".repeat(limits::TOKEN_BYTES + 1);
        for bad in [
            r#"{"content":[{"token":"a","logprob":0.5}]}"#.to_owned(),
            r#"{"content":[{"token":"a","logprob":1e400}]}"#.to_owned(),
            r#"{"content":[{"token":"a","logprob":null}]}"#.to_owned(),
            r#"{"content":[{"token":7,"logprob":-1}]}"#.to_owned(),
            r#"{"content":[{"token":"a","logprob":-1,"bytes":[256]}]}"#.to_owned(),
            format!(r#"{{"content":[{{"token":"{long}","logprob":-1}}]}}"#),
            "7".to_owned(),
        ] {
            assert_eq!(chat(&bad), Err(EventFault::Shape), "{bad}");
        }
        for bad in [
            r#"{"tokens":["a"],"token_logprobs":[],"top_logprobs":null,"text_offset":[]}"#,
            r#"{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[],"text_offset":[0]}"#,
            r#"{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[{"a":-1,"b":-2,"c":-3}],"text_offset":[0]}"#,
            r#"{"tokens":["a"],"token_logprobs":[2],"top_logprobs":null,"text_offset":[0]}"#,
        ] {
            assert_eq!(Logprobs::read(Dialect::Completion, 1, bad), Err(EventFault::Shape), "{bad}");
        }
    }

    #[test]
    fn tokens_spell_the_text_and_may_run_ahead_of_it() {
        let mut follower = Follower::default();
        follower.follow("The", &mut tokens(&[" The"]), 100).unwrap();
        follower.follow("", &mut tokens(&[" qu", "ick"]), 100).unwrap();
        follower.follow(" quick fox", &mut tokens(&[" fox", " END"]), 100).unwrap();
        let mut follower = Follower::default();
        assert!(follower.follow("secret", &mut tokens(&["other"]), 100).is_err(), "another text");
        let mut follower = Follower::default();
        assert!(follower.follow("more text", &mut tokens(&["more"]), 100).is_err(), "text without tokens");
        let mut follower = Follower::default();
        assert!(follower.follow("", &mut tokens(&["a", "b"]), 1).is_err(), "too many tokens");
        let mut follower = Follower::default();
        let flood = "x".repeat(1000);
        let ends = (0..100).find(|_| follower.follow("", &mut tokens(&[&flood]), 1000).is_err());
        assert!(ends.is_some(), "tokens without any text end somewhere");
    }

    #[test]
    fn split_characters_are_followed_by_their_bytes() {
        let part = |bytes: &[u8]| TokenLogprob {
            token: "\u{fffd}".to_owned(),
            logprob: -1.0,
            bytes: Some(bytes.to_vec()),
            top_logprobs: Vec::new(),
        };
        let mut follower = Follower::default();
        follower.follow("", &mut Logprobs::Chat(vec![part(&[0xc3])]), 9).unwrap();
        follower.follow("é", &mut Logprobs::Chat(vec![part(&[0xa9])]), 9).unwrap();
        follower.follow("\u{fffd}", &mut Logprobs::Chat(vec![part(&[0xff])]), 9).unwrap();
        follower.follow("anything", &mut tokens(&["else"]), 9).unwrap();
    }

    #[test]
    fn places_of_legacy_tokens_are_counted_here() {
        let mut follower = Follower::after(3);
        let read = |text: &str| Logprobs::read(Dialect::Completion, 0, text).unwrap().unwrap();
        let mut first = read(
            r#"{"tokens":["hé","llo"],"token_logprobs":[-1,-1],"top_logprobs":null,"text_offset":[7,7]}"#,
        );
        follower.follow("héllo", &mut first, 9).unwrap();
        let Logprobs::Legacy(lists) = first else { panic!("legacy") };
        assert_eq!(lists.text_offset, [3, 5]);
    }
}
