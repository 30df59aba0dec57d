//! Logs to standard error, one line per event, as text or JSON.
//!
//! Values may come from strangers, so control characters are escaped (a log line must not move the reader's cursor
//! or forge another line) and long values are cut.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Longest value that is written; the rest is replaced by `…`.
const VALUE_LIMIT_BYTES: usize = 4096;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// The section `log` of a configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is written: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or directives such as
    /// `info,cxmpute_gateway=debug`.
    pub level: String,
    /// How it is written.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// Logs that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is not one.
    #[error(
        "key `log.level` is {given:?}, expected error, warn, info, debug, trace, off or directives ({message})"
    )]
    Level {
        /// As given.
        given: String,
        /// What the parser says.
        message: String,
    },
    /// A program sets its logs up once.
    #[error("logs are already set up")]
    Already,
}

/// Sets the logs of this process up. Call it once, in `main`.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .map_err(|error| TelemetryError::Level { given: config.level.clone(), message: error.to_string() })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // When nobody reads the log any more, saying so on the same stream would panic.
        .log_internal_errors(false)
        .with_ansi(false)
        .fmt_fields(EscapedFields)
        .event_format(Line { format: config.format })
        .try_init()
        .map_err(|_| TelemetryError::Already)
}

/// Text with control characters escaped and cut at 4 KiB: safe to put on a terminal or into a line of a log.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(VALUE_LIMIT_BYTES) + 8);
    for character in text.chars() {
        if out.len() >= VALUE_LIMIT_BYTES {
            out.push('…');
            break;
        }
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters, and the marks that turn the direction of a line around.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Writes fields of spans.
struct EscapedFields;

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: tracing_subscriber::field::RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut collected = Collected::default();
        fields.record(&mut collected);
        writer.write_str(&collected.message)?;
        writer.write_str(&collected.text)
    }
}

struct Line {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Collected::default();
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut spans = String::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            spans.push_str(if spans.is_empty() { "" } else { ":" });
            spans.push_str(span.name());
            let extensions = span.extensions();
            if let Some(recorded) = extensions.get::<tracing_subscriber::fmt::FormattedFields<N>>()
                && !recorded.fields.is_empty()
            {
                let _ = write!(spans, "{{{}}}", recorded.fields.trim());
            }
        }
        let metadata = event.metadata();
        match self.format {
            LogFormat::Text => {
                let colon = if spans.is_empty() { "" } else { ": " };
                writeln!(
                    writer,
                    "{time} {:>5} {}: {spans}{colon}{}{}",
                    metadata.level(),
                    metadata.target(),
                    fields.message,
                    fields.text
                )
            }
            LogFormat::Json => {
                write!(
                    writer,
                    "{{\"time\":\"{time}\",\"level\":\"{}\",\"target\":{},\"message\":{}",
                    metadata.level(),
                    json_text(metadata.target()),
                    json_text(&fields.message)
                )?;
                if !spans.is_empty() {
                    write!(writer, ",\"spans\":{}", json_text(&spans))?;
                }
                for (name, value) in &fields.json {
                    write!(writer, ",{}:{value}", json_text(name))?;
                }
                writer.write_str("}\n")
            }
        }
    }
}

/// The fields of one event or span, escaped.
#[derive(Default)]
struct Collected {
    message: String,
    text: String,
    json: Vec<(&'static str, String)>,
}

impl Collected {
    fn put_text(&mut self, field: &Field, value: &str) {
        let value = escape(value);
        if field.name() == "message" {
            self.message = value;
            return;
        }
        if value.is_empty() || value.contains([' ', '"', '=']) {
            let _ = write!(self.text, " {}=\"{}\"", field.name(), value.replace('"', "\\\""));
        } else {
            let _ = write!(self.text, " {}={value}", field.name());
        }
        self.json.push((field.name(), json_text(&value)));
    }

    fn put_plain(&mut self, field: &Field, value: &dyn fmt::Display) {
        let _ = write!(self.text, " {}={value}", field.name());
        self.json.push((field.name(), value.to_string()));
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_plain(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_plain(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_plain(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.put_plain(field, &value);
        } else {
            self.put_text(field, &value.to_string());
        }
    }
}

/// A JSON string; the text holds no control characters any more.
fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<parking_lot::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, act: impl FnOnce()) -> String {
        let shared = Shared::default();
        let writer = shared.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(EscapedFields)
            .event_format(Line { format })
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = shared.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_value_cannot_forge_a_line_or_steer_the_terminal() {
        let evil = "a\r\n2026 ERROR forged \u{1b}[2J";
        for format in [LogFormat::Text, LogFormat::Json] {
            let log = logged(format, || tracing::info!(name = evil, other = %evil, "hello {evil}"));
            assert_eq!(log.matches('\n').count(), 1, "{log}");
            assert!(!log.contains('\u{1b}') && !log.contains('\r'), "{log:?}");
        }
    }

    #[test]
    fn long_values_are_cut() {
        let long = "x".repeat(100_000);
        let log = logged(LogFormat::Text, || tracing::info!(value = long, "m"));
        assert!(log.len() < 5000, "{}", log.len());
    }

    #[test]
    fn json_lines_hold_the_fields_and_the_spans() {
        let log = logged(LogFormat::Json, || {
            let span = tracing::info_span!("request", id = "req_1");
            let _entered = span.enter();
            tracing::warn!(count = 3, text = "say \"hi\"", "done");
        });
        assert!(log.contains("\"level\":\"WARN\"") && log.contains("\"count\":3"), "{log}");
        assert!(log.contains("\"spans\":\"request{id=req_1}\""), "{log}");
        assert!(log.contains("\"text\":\"say \\\"hi\\\"\""), "{log}");
    }
}
