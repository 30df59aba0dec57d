//! A picture as an errand for models that see and talk: a conversation of one question to a node, and of the words that come back
//! what the client wanted. A model's words are no more to be trusted than a node's bytes: boxes and points are parsed strictly.

use bytes::Bytes;
use cxmpute_market::catalogue::{Parameter, Places};
use cxmpute_market::price::Units;
use cxmpute_runtime::random;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::openai::{
    ChatMessage, ChatRequest, Content, ContentPart, ImageUrl, JsonSchemaFormat, ResponseFormat, Role,
};
use cxmpute_wire::sight::{Caption, CaptionLength, Detection, PieceUsage, Pointing, SightAnswer};
use serde_json::json;

use super::errand::{Errand, Misread, Printed, Ticket};
use super::events::{Asked, Claim, Dialect, EventCutter, EventReader, Piece};
use super::job::{Ask, Form, Job, Pictures};
use super::retry::Fault;
use super::rules::Rules;
use super::sight::Wanted;
use super::usage::picture_usage;
use crate::app::App;
use crate::error::ApiResult;
use crate::media::View;

mod found;

use found::{Eye, Found};

/// Bytes of one token's event, with room for engines that talk much around it.
const BYTES_PER_TOKEN: u64 = 1_024;
/// Tokens of an answer's beginning and end.
const AROUND: u64 = 256;
/// Largest event.
const EVENT: usize = 256 * 1024;

/// A picture to look at.
#[derive(Debug)]
pub struct Look {
    job: Job,
    wanted: Wanted,
    eye: Eye,
}

/// What a model said.
#[derive(Debug)]
pub struct Seen {
    text: String,
    found: Found,
    claim: Option<Claim>,
}

/// Most tokens of an answer.
fn limit(wanted: &Wanted) -> u64 {
    match wanted {
        Wanted::Caption(CaptionLength::Short) => 64,
        Wanted::Caption(CaptionLength::Normal) => 160,
        Wanted::Caption(CaptionLength::Long) | Wanted::Points(_) => 512,
        Wanted::Answer(_) | Wanted::Boxes(_) => 1_024,
    }
}

/// The question, in the words of a model that says places in such numbers.
fn question(wanted: &Wanted, places: Places) -> String {
    match wanted {
        Wanted::Caption(CaptionLength::Short) => "Describe this picture in a few words.".to_owned(),
        Wanted::Caption(CaptionLength::Normal) => "Describe this picture in one sentence.".to_owned(),
        Wanted::Caption(CaptionLength::Long) => "Describe this picture in one paragraph.".to_owned(),
        Wanted::Answer(question) => question.clone(),
        Wanted::Boxes(target) if places == Places::Pixels => format!(
            "Locate every {target} in this picture. Answer with JSON and nothing else: {{\"objects\": [{{\"bbox_2d\": [x1, y1, x2, \
             y2], \"label\": \"...\"}}]}}, in pixels. When there is none, the list is empty."
        ),
        Wanted::Points(target) if places == Places::Pixels => format!(
            "Point at every {target} in this picture. Answer with JSON and nothing else: {{\"points\": [{{\"point_2d\": [x, y], \
             \"label\": \"...\"}}]}}, in pixels. When there is none, the list is empty."
        ),
        Wanted::Boxes(target) => format!(
            "Find every {target} in this picture. Answer with JSON and nothing else: {{\"objects\": [{{\"label\": \"...\", \
             \"box\": [left, top, right, bottom], \"confidence\": 0.9}}]}}. Places are parts of the picture's width and height \
             from 0 to 1, and so is the confidence. When there is none, the list is empty."
        ),
        Wanted::Points(target) => format!(
            "Point at every {target} in this picture. Answer with JSON and nothing else: {{\"points\": [{{\"x\": 0.5, \"y\": \
             0.5}}]}}. x and y are parts of the picture's width and height from 0 to 1. When there is none, the list is empty."
        ),
    }
}

/// The shape of an answer that is parsed, for engines that can hold a model to it.
fn shape(wanted: &Wanted, places: Places) -> Option<ResponseFormat> {
    let list = |name: &str, fields: serde_json::Value, required: &[&str]| {
        let item = json!({"type": "object", "properties": fields, "required": required, "additionalProperties": false});
        json!({"type": "object", "properties": {name: {"type": "array", "items": item}}, "required": [name],
            "additionalProperties": false})
    };
    let numbers = |count: usize, of: &serde_json::Value| json!({"type": "array", "items": of, "minItems": count, "maxItems": count});
    let (part, pixel) =
        (json!({"type": "number", "minimum": 0, "maximum": 1}), json!({"type": "integer", "minimum": 0}));
    let label = json!({"type": "string"});
    let schema = match (wanted, places) {
        (Wanted::Caption(_) | Wanted::Answer(_), _) => return None,
        (Wanted::Boxes(_), Places::Parts) => {
            let fields = json!({"label": label, "box": numbers(4, &part), "confidence": part});
            list("objects", fields, &["label", "box", "confidence"])
        }
        (Wanted::Boxes(_), Places::Pixels) => {
            let fields = json!({"bbox_2d": numbers(4, &pixel), "label": label});
            list("objects", fields, &["bbox_2d", "label"])
        }
        (Wanted::Points(_), Places::Parts) => list("points", json!({"x": part, "y": part}), &["x", "y"]),
        (Wanted::Points(_), Places::Pixels) => {
            let fields = json!({"point_2d": numbers(2, &pixel), "label": label});
            list("points", fields, &["point_2d", "label"])
        }
    };
    Some(ResponseFormat::JsonSchema {
        json_schema: JsonSchemaFormat {
            name: "found".to_owned(),
            description: None,
            schema: Some(schema),
            strict: Some(true),
        },
    })
}

impl Look {
    /// A look at a picture, by the model and with the wishes of a ticket.
    #[must_use]
    pub fn new(
        ticket: &Ticket,
        counter: Option<cxmpute_tokens::TokenCounter>,
        view: View,
        wanted: Wanted,
    ) -> Self {
        let eye = Eye { places: ticket.model.places, size: (view.width, view.height) };
        let pictures = Pictures { count: 1, tokens: view.tokens, bytes: view.url.len() };
        let parts = vec![
            ContentPart::ImageUrl { image_url: ImageUrl { url: view.url, detail: None } },
            ContentPart::Text { text: question(&wanted, eye.places) },
        ];
        let request = ChatRequest {
            model: ticket.model.id.clone(),
            messages: vec![ChatMessage::new(Role::User, Content::Parts(parts))],
            temperature: ticket.model.supports(Parameter::Temperature).then_some(0.0),
            response_format: shape(&wanted, eye.places)
                .filter(|_| ticket.model.supports(Parameter::StructuredOutputs)),
            ..ChatRequest::default()
        };
        let job = Job {
            request_id: ticket.request_id.clone(),
            watch: ticket.watch.clone(),
            arrived: ticket.arrived,
            created: 0,
            ask: Ask::Chat(Box::new(request)),
            pictures,
            form: Form::OpenAi,
            rules: Rules::default(),
            model: ticket.model.clone(),
            model_name: ticket.model_name.clone(),
            choices: 1,
            limit: limit(&wanted),
            explicit_limit: true,
            wishes: ticket.wishes.clone(),
            alternatives: Vec::new(),
            counter,
            title: None,
            referer: None,
            force_usage: false,
            timeout: None,
            #[cfg(feature = "sabotage")]
            extra: Vec::new(),
        };
        Self { job, wanted, eye }
    }
}

impl Errand for Look {
    type Answer = Seen;

    fn path(&self) -> WorkPath {
        WorkPath::ChatCompletions
    }

    fn bound(&self) -> Units {
        self.job.opening_units(self.job.prompt_bound(), self.job.limit)
    }

    fn count(&self) -> Units {
        let prompt = match self.job.counter {
            Some(_) => self.job.count_prompt().map_or(0, |tokens| tokens.0),
            None => self.job.prompt_characters(),
        };
        self.job.opening_units(prompt, self.job.limit)
    }

    fn tokens(&self, units: &Units) -> u64 {
        units.prompt.0.saturating_add(units.completion.0)
    }

    fn node_body(&self, _ticket: &Ticket) -> ApiResult<Bytes> {
        // Nothing is asked twice about a picture: no cache is worth a name that tells accounts apart.
        let salt = data_encoding::HEXLOWER.encode(&random::bytes::<8>());
        self.job.clone().node_body(&salt)
    }

    fn max_bytes(&self) -> u64 {
        (self.job.limit + AROUND) * BYTES_PER_TOKEN
    }

    async fn read(&self, app: &App, body: Vec<u8>) -> Result<Seen, Misread> {
        let (text, claim) = read_chat(&body)?;
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::UncheckedShape) {
            return Ok(Seen { found: Found::default(), text, claim });
        }
        let _ = app;
        let found = match &self.wanted {
            Wanted::Caption(_) | Wanted::Answer(_) if text.is_empty() => return Err(Fault::Empty.into()),
            Wanted::Caption(_) | Wanted::Answer(_) => Found::default(),
            Wanted::Boxes(_) => {
                Found { objects: self.eye.read_objects(&text).ok_or(Fault::Schema)?, ..Found::default() }
            }
            Wanted::Points(_) => {
                Found { points: self.eye.read_points(&text).ok_or(Fault::Schema)?, ..Found::default() }
            }
        };
        Ok(Seen { text, found, claim })
    }

    fn delivered(&self, exact: Units, answer: &Seen) -> Units {
        self.job.count(Some(exact.prompt), &[&answer.text], self.job.limit)
    }

    /// The prompt that a node accepted is paid, as in a chat (MR30).
    fn abandoned(&self) -> Units {
        self.job.count(None, &[], 0)
    }

    fn claimed(&self, counted: &Units, answer: &Seen) -> Option<Units> {
        answer.claim.and_then(|claim| self.job.claimed(claim.prompt, claim.completion, counted))
    }

    fn print(&self, ticket: &Ticket, answer: Seen, units: &Units, settled: &Settled) -> Printed {
        let counted = |tokens: u64| self.job.counter.is_some().then_some(tokens);
        let usage = PieceUsage {
            prompt_tokens: counted(units.prompt.0),
            completion_tokens: counted(units.completion.0),
            ..picture_usage(units, &ticket.model.price, settled)
        };
        match &self.wanted {
            Wanted::Caption(_) => Printed::json(&Caption { caption: answer.text, usage }),
            Wanted::Answer(_) => Printed::json(&SightAnswer { answer: answer.text, usage }),
            Wanted::Boxes(_) => Printed::json(&Detection { objects: answer.found.objects, usage }),
            Wanted::Points(_) => Printed::json(&Pointing { points: answer.found.points, usage }),
        }
    }
}

/// The words of a whole stream of events, without marks that terminals obey, and what the node claims.
fn read_chat(body: &[u8]) -> Result<(String, Option<Claim>), Fault> {
    let mut pieces = std::collections::VecDeque::new();
    let mut cutter = EventCutter::new(EVENT);
    let mut reader = EventReader::new(Asked { dialect: Dialect::Chat, choices: 1, logprobs: None });
    // What comes behind the end marker is not read.
    if cutter.push(body, |data| reader.read(data, &mut pieces)).is_err()
        && pieces.back() != Some(&Piece::Done)
    {
        return Err(Fault::Protocol);
    }
    let (mut text, mut claim, mut finished, mut done) = (String::new(), None, false, false);
    for piece in pieces {
        match piece {
            _ if done => break,
            Piece::Text { text: more, .. } => {
                text.extend(more.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t'));
            }
            Piece::Tools { .. } => return Err(Fault::Protocol),
            Piece::Finish { .. } => finished = true,
            Piece::Claim(newest) => claim = Some(newest),
            Piece::Failed { code } => return Err(Fault::reported(code)),
            Piece::Done => done = true,
        }
    }
    if !(finished && done) {
        return Err(Fault::Protocol);
    }
    Ok((text.trim().to_owned(), claim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(parts: &[&str], end: &str) -> Vec<u8> {
        let chunk = |delta: serde_json::Value, finish: serde_json::Value| {
            let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
            format!("data: {}\n\n", json!({"object": "chat.completion.chunk", "choices": choice}))
        };
        let text: String = parts.iter().map(|part| chunk(json!({"content": part}), json!(null))).collect();
        format!("{text}{}{end}", chunk(json!({}), json!("stop"))).into_bytes()
    }

    #[test]
    fn the_words_of_a_model_are_taken_whole_or_not_at_all() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let (text, claim) = read_chat(&events(&[" A red", " ball\u{1b}.\n"], usage)).unwrap();
        assert_eq!((text.as_str(), claim.map(|claim| claim.completion)), ("A red ball.", Some(2)));
        assert_eq!(read_chat(&events(&["A"], "")).unwrap_err(), Fault::Protocol);
        assert_eq!(read_chat(b"data: [DONE]\n\n").unwrap_err(), Fault::Protocol);
        assert_eq!(read_chat(b"").unwrap_err(), Fault::Protocol);
        assert_eq!(
            read_chat(b"data: {\"error\":{\"code\":\"engine_failed\"}}\n\n").unwrap_err(),
            Fault::Engine
        );
    }

    #[test]
    fn what_is_asked_names_what_is_looked_for_and_its_shape_compiles() {
        let boxes = Wanted::Boxes("red ball".to_owned());
        for places in [Places::Parts, Places::Pixels] {
            assert!(question(&boxes, places).contains("every red ball in"));
            for wanted in [boxes.clone(), Wanted::Points("x".to_owned())] {
                let Some(ResponseFormat::JsonSchema { json_schema }) = shape(&wanted, places) else {
                    panic!("{wanted:?}")
                };
                crate::schema::Schema::compile(&json_schema.schema.unwrap()).unwrap();
            }
            assert!(shape(&Wanted::Answer("x".to_owned()), places).is_none());
        }
    }
}
