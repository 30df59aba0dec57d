//! Engines that are programs which run once for each request and are no servers: espeak-ng speaks, pocketsphinx listens,
//! tesseract reads. Each answers what the same route of a server would.

mod espeak;
mod pocketsphinx;
mod tesseract;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::DesiredService;
use cxmpute_wire::{Code, RequestId, ServiceKind};
use http::StatusCode;
use tempfile::NamedTempFile;

use super::EngineError;
use super::told::{VERSION_TIME, told};
use crate::supervise::Surroundings;
use cxmpute_runtime::confine::{Confiner, Terms};
use cxmpute_runtime::once::{FILE, MEMORY, Once, OnceError, Running, Sandbox};

/// Longest that one run may take; the gateway's own deadline is usually shorter.
const TIME: Duration = Duration::from_secs(120);
/// Most bytes of a version.
const VERSION_BYTES: usize = 16 * 1024;
/// Where programs are looked for.
const PLACES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"];

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Text to speech.
    Espeak,
    /// Speech to text.
    Pocketsphinx,
    /// Text in pictures.
    Tesseract,
}

impl Program {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Espeak, Self::Pocketsphinx, Self::Tesseract];

    /// Its name in the catalogue.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Espeak => "espeak-ng",
            Self::Pocketsphinx => "pocketsphinx",
            Self::Tesseract => "tesseract",
        }
    }

    /// Name of the file that runs.
    const fn file(self) -> &'static str {
        match self {
            Self::Espeak => "espeak-ng",
            Self::Pocketsphinx => "pocketsphinx_continuous",
            Self::Tesseract => "tesseract",
        }
    }

    /// The kind of work it does.
    #[must_use]
    pub const fn kind(self) -> ServiceKind {
        match self {
            Self::Espeak => ServiceKind::Tts,
            Self::Pocketsphinx => ServiceKind::Stt,
            Self::Tesseract => ServiceKind::Vision,
        }
    }

    /// Where it is installed.
    #[must_use]
    pub fn find(self) -> Option<PathBuf> {
        PLACES.iter().map(|place| PathBuf::from(place).join(self.file())).find(|path| path.is_file())
    }

    /// The first line of what it says of its version; empty when it says nothing.
    pub async fn version_at(self, path: &Path) -> String {
        let said = told(path, self.version(), VERSION_TIME).await.output;
        said.lines().next().unwrap_or_default().chars().take(80).collect()
    }

    /// What makes it say its version, or its help, and end well.
    const fn version(self) -> &'static [&'static str] {
        match self {
            Self::Espeak | Self::Tesseract => &["--version"],
            Self::Pocketsphinx => &["-infile", "/dev/null", "-logfn", "/dev/null"],
        }
    }
}

/// What a run has around it.
#[derive(Clone, Debug)]
pub struct Walls {
    confiner: Option<Confiner>,
    /// Directories in which it finds nothing.
    hidden: Vec<PathBuf>,
    /// What the programs of the system take away where nothing of ours can.
    otherwise: Sandbox,
}

impl Walls {
    /// Those of a node.
    #[must_use]
    pub fn of(around: &Surroundings) -> Self {
        Self::new(around.confiner.clone(), super::private_places(&around.config))
    }

    fn new(confiner: Option<Confiner>, hidden: Vec<PathBuf>) -> Self {
        let otherwise = if confiner.is_none() { Sandbox::probe() } else { Sandbox::default() };
        Self { confiner, hidden, otherwise }
    }

    /// The sandbox of one run that may read these files.
    fn sandbox(&self, lent: &[&NamedTempFile]) -> Sandbox {
        let Some(confiner) = &self.confiner else { return self.otherwise.clone() };
        confiner.sandbox(&Terms {
            hidden: self.hidden.clone(),
            readable: lent.iter().map(|file| file.path().to_owned()).collect(),
            address_space: Some(MEMORY),
            files: Some(FILE),
            ..Terms::default()
        })
    }
}

/// A program that serves one service.
#[derive(Clone, Debug)]
pub struct Tool {
    program: Program,
    path: PathBuf,
    walls: Walls,
    /// Catalogue id of the model.
    model: String,
    /// Runs at a time.
    pub slots: u16,
}

/// What a run made, or makes.
#[derive(Debug)]
pub struct Made {
    /// HTTP status that a server would answer with.
    pub status: StatusCode,
    body: Body,
}

/// An answer.
#[derive(Debug)]
enum Body {
    /// All of it; taken once.
    Whole(Option<Bytes>),
    /// What a program has printed so far, and the program.
    Pieces { first: Option<Bytes>, rest: Box<Running> },
}

impl From<Bytes> for Body {
    fn from(whole: Bytes) -> Self {
        Self::Whole(Some(whole))
    }
}

impl Made {
    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, EngineError>> {
        match &mut self.body {
            Body::Whole(body) => body.take().map(Ok),
            Body::Pieces { first, rest } => match first.take() {
                Some(first) => Some(Ok(first)),
                None => rest
                    .chunk()
                    .await
                    .map(|next| next.map_err(|error| EngineError::Broken(error.to_string()))),
            },
        }
    }
}

/// A request that a tool refuses, or a run that failed.
#[derive(Debug)]
enum Failed {
    /// The request is wrong.
    Request(&'static str),
    /// The run failed.
    Run(OnceError),
}

impl From<OnceError> for Failed {
    fn from(error: OnceError) -> Self {
        Self::Run(error)
    }
}

impl Tool {
    /// The first engine of the plan that is a program of this machine.
    #[must_use]
    pub fn choose(desired: &DesiredService, walls: Walls, slots: u16) -> Option<Self> {
        let program = desired
            .engines
            .iter()
            .find_map(|engine| Program::ALL.into_iter().find(|program| program.name() == engine))
            .filter(|program| program.kind() == desired.kind)?;
        let path = program.find()?;
        Some(Self { program, path, walls, model: desired.model.clone(), slots: slots.max(1) })
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.program.name()
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Succeeds when the program runs.
    ///
    /// # Errors
    /// It does not.
    pub async fn ready(&self) -> Result<(), EngineError> {
        let arguments: Vec<String> = self.program.version().iter().map(|&word| word.to_owned()).collect();
        let once = Once {
            program: &self.path,
            arguments: &arguments,
            environment: &[],
            input: b"",
            output_limit: VERSION_BYTES,
            time: VERSION_TIME,
        };
        match once.run(&self.walls.sandbox(&[])).await {
            // Some programs of this kind know no way to end well without work; that they start is enough.
            Ok(_) | Err(OnceError::Ended { .. }) => Ok(()),
            Err(error) => Err(EngineError::Unreachable(error.to_string())),
        }
    }

    /// Runs the program for one request.
    ///
    /// # Errors
    /// It cannot be started at all.
    pub async fn ask(&self, path: WorkPath, request: &RequestId, body: &[u8]) -> Result<Made, EngineError> {
        let made = match (self.program, path) {
            (Program::Espeak, WorkPath::Speech) => espeak::speak(self, body).await,
            (Program::Pocketsphinx, WorkPath::Transcription) => {
                pocketsphinx::listen(self, request, body).await.map(Body::from)
            }
            (Program::Tesseract, WorkPath::Read) => tesseract::read(self, body).await.map(Body::from),
            _ => Err(Failed::Request("this engine does other work")),
        };
        let (status, body) = match made {
            Ok(body) => (StatusCode::OK, body),
            Err(Failed::Request(message)) => {
                (StatusCode::BAD_REQUEST, refusal(Code::InvalidParameter, message).into())
            }
            Err(Failed::Run(error @ OnceError::Start { .. })) => {
                return Err(EngineError::Unreachable(error.to_string()));
            }
            Err(Failed::Run(error)) => {
                tracing::warn!(engine = self.name(), %error, "a run failed");
                (StatusCode::BAD_GATEWAY, refusal(Code::EngineFailed, "the program failed").into())
            }
        };
        Ok(Made { status, body })
    }

    /// One run with this input and these files; gives what was printed.
    async fn run(
        &self,
        arguments: &[String],
        environment: &[(&str, &str)],
        input: &[u8],
        lent: &[&NamedTempFile],
        output_limit: usize,
    ) -> Result<Vec<u8>, OnceError> {
        let once = Once { program: &self.path, arguments, environment, input, output_limit, time: TIME };
        once.run(&self.walls.sandbox(lent)).await
    }

    /// One run with this input, of which what it prints is taken as it comes.
    fn start(&self, arguments: &[String], input: &[u8], output_limit: usize) -> Result<Running, OnceError> {
        let program = &self.path;
        Once { program, arguments, environment: &[], input, output_limit, time: TIME }
            .start(&self.walls.sandbox(&[]))
    }
}

fn refusal(code: Code, message: &str) -> Bytes {
    serde_json::json!({"error": {"code": code, "message": message}}).to_string().into()
}

fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests;
