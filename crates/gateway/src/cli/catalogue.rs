//! `cxmpute catalogue`: what the network offers, and whether an operator's files would be taken.

mod pin;
mod sign;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use cxmpute_market::catalogue::{Catalogue, Delivery, ModelEntry};
use cxmpute_market::price::{PriceRow, print_exactly};
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_wire::{Bytes, MicroCredits, ServiceKind};
use serde::Serialize;
use serde_json::{Value, json};

use self::pin::PinArgs;
use self::sign::SignArgs;
use super::Output;
use crate::catalogue;
use crate::config::CatalogueConfig;

/// Subcommands of `catalogue`.
#[derive(Subcommand)]
pub enum CatalogueCommand {
    /// Check the configured catalogue, or what it would be with these files on top.
    Check {
        /// Files with entries, or folders with such files.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List all entries.
    List,
    /// Show one entry.
    Show(ShowArgs),
    /// Read files of a model and print the lines that pin them.
    Pin(PinArgs),
    /// Seal the configured catalogue, so that nodes follow it and no older one.
    Sign(SignArgs),
}

/// Flags of `catalogue show`.
#[derive(Args)]
pub struct ShowArgs {
    /// Id or alias.
    model: String,
}

/// Carries out a subcommand.
pub fn run(config: &CatalogueConfig, command: CatalogueCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        CatalogueCommand::Check { files } => {
            let mut all = if files.is_empty() { catalogue::load(config)? } else { catalogue::base(config)? };
            catalogue::add(&mut all, &files, "the command line")?;
            let counts = Counts::of(&all);
            output.show(&counts, counts.sentence())
        }
        CatalogueCommand::List => {
            let all = catalogue::load(config)?;
            let rows: Vec<Row<'_>> = all.entries().iter().map(|entry| Row(entry)).collect();
            output.show_all(&rows, Row::line)
        }
        CatalogueCommand::Pin(arguments) => pin::pin(&arguments, output),
        CatalogueCommand::Sign(arguments) => sign::sign(&catalogue::load(config)?, &arguments, output),
        CatalogueCommand::Show(ShowArgs { model }) => {
            let all = catalogue::load(config)?;
            let entry = all.resolve(&model).ok_or_else(|| {
                ExitError::new(
                    exit::OTHER,
                    format!("No entry has the id or alias `{model}`; `cxmpute catalogue list` names all."),
                )
            })?;
            output.show(&Row(entry), Row(entry).page())
        }
    }
}

#[derive(Serialize)]
struct Counts {
    entries: usize,
    pinned: usize,
    programs: usize,
    library: usize,
}

impl Counts {
    fn of(catalogue: &Catalogue) -> Self {
        let of = |delivery| catalogue.entries().iter().filter(|entry| entry.delivery() == delivery).count();
        Self {
            entries: catalogue.entries().len(),
            pinned: of(Delivery::Pinned),
            programs: of(Delivery::Program),
            library: of(Delivery::Library),
        }
    }

    fn sentence(&self) -> String {
        format!(
            "{} entries are good: {} with pinned files, {} that need only a program,\n\
             {} for nodes whose engines hold the model.",
            self.entries, self.pinned, self.programs, self.library
        )
    }
}

/// One entry, as it is shown.
struct Row<'a>(&'a ModelEntry);

impl Serialize for Row<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object().serialize(serializer)
    }
}

impl Row<'_> {
    fn object(&self) -> Value {
        let entry = self.0;
        let engines: Vec<&str> = entry.engines.iter().map(|engine| engine.name()).collect();
        let capabilities: Vec<&str> = entry.capabilities.iter().map(|one| one.name()).collect();
        let parameters: Vec<&str> = entry.supported_parameters.iter().map(|one| one.name()).collect();
        let files: Vec<Value> = entry
            .files
            .iter()
            .map(|file| json!({"role": file.role, "name": file.name, "sha256": file.sha256, "size": file.size, "hub": file.hub, "urls": file.urls}))
            .collect();
        let hub = entry
            .hub
            .as_ref()
            .map(|hub| json!({"repository": hub.repository, "revision": hub.revision, "file": hub.file}));
        let canvas = entry.canvas.map(|canvas| {
            let (width, height) = canvas.usual;
            json!({"usual": format!("{width}x{height}"), "most_side": canvas.most_side, "unit_pixels": canvas.unit_pixels})
        });
        json!({
            "id": entry.id, "aliases": entry.aliases, "name": entry.name, "description": entry.description,
            "service": entry.service, "kind": entry.kind, "owned_by": entry.owned_by, "licence": entry.licence,
            "context_length": entry.context_length, "max_completion_tokens": entry.max_completion_tokens,
            "dimensions": entry.dimensions, "engines": engines, "delivery": delivery(entry), "files": files,
            "hub": hub, "ollama": entry.ollama, "container": entry.container.as_deref(), "capabilities": capabilities,
            "input_modalities": entry.input_modalities(), "output_modalities": entry.output_modalities(),
            "supported_parameters": parameters, "voices": entry.voices, "languages": entry.languages,
            "canvas": canvas, "vram": entry.vram, "memory": entry.memory, "cpu_memory": entry.cpu_memory, "disk": entry.disk,
            "target": entry.target, "quantization": entry.quantization, "price": *entry.price,
        })
    }

    /// One line of 80 columns.
    fn line(&self) -> String {
        let entry = self.0;
        let id: String = entry.id.chars().take(27).collect();
        let sizes = format!("{:>7} {:>7}", size(entry.vram), size(entry.cpu_memory.unwrap_or(entry.memory)));
        let line = format!(
            "{id:<27} {:<10} {:<8} {sizes}  {}",
            entry.kind,
            delivery(entry),
            price(entry.kind, &entry.price)
        );
        line.trim_end().to_owned()
    }

    fn page(&self) -> String {
        let entry = self.0;
        let mut page = String::new();
        let mut say = |name: &str, text: String| {
            if !text.is_empty() {
                let mut lines = wrapped(&text, 80 - 14).into_iter();
                let _ = write!(page, "{name:<14}{}", lines.next().unwrap_or_default());
                for line in lines {
                    let _ = write!(page, "\n{:14}{line}", "");
                }
                page.push('\n');
            }
        };
        let names = |list: Vec<&str>| list.join(", ");
        say("id", entry.id.clone());
        say("aliases", entry.aliases.join(", "));
        say("name", entry.name.clone());
        say("", entry.description.clone());
        say("service", entry.service.to_string());
        say("from", entry.owned_by.clone());
        if entry.context_length.0 > 0 {
            say("context", format!("{} tokens", entry.context_length.0));
        }
        if entry.max_completion_tokens.0 > 0 {
            say("output", format!("at most {} tokens", entry.max_completion_tokens.0));
        }
        say("dimensions", entry.dimensions.map(|count| count.to_string()).unwrap_or_default());
        say("engines", names(entry.engines.iter().map(|engine| engine.name()).collect()));
        say("nodes get it", how(entry));
        for file in &entry.files {
            say("file", format!("{} ({} bytes) sha256 {}", file.name, file.size.0, file.sha256));
        }
        say("licence", entry.licence.clone().unwrap_or_default());
        say("ollama", entry.ollama.clone().unwrap_or_default());
        say("hub", entry.hub.as_ref().map(|hub| hub.repository.clone()).unwrap_or_default());
        if let Some(container) = &entry.container {
            say("image", container.image.clone());
            say("command", container.command.join(" "));
        }
        say("capabilities", names(entry.capabilities.iter().map(|one| one.name()).collect()));
        say("languages", entry.languages.join(", "));
        say("voices", names(entry.voices.keys().map(String::as_str).collect()));
        say(
            "draws",
            entry.canvas.map_or_else(String::new, |canvas| {
                let (width, height) = canvas.usual;
                let (most, unit) = (canvas.most_side, canvas.unit_pixels);
                format!("{width}x{height} by itself, sides up to {most}; charged once for each begun {unit} pixels")
            }),
        );
        say("accelerator", if entry.vram.0 > 0 { size(entry.vram) } else { String::new() });
        say("memory", memory(entry));
        say("disk", size(entry.disk));
        say("price", price(entry.kind, &entry.price));
        say("target", entry.target.to_string());
        page.trim_end().to_owned()
    }
}

fn delivery(entry: &ModelEntry) -> &'static str {
    match entry.delivery() {
        Delivery::Pinned => "pinned",
        Delivery::Library => "library",
        Delivery::Program => "program",
    }
}

fn how(entry: &ModelEntry) -> String {
    match entry.delivery() {
        Delivery::Pinned => "by its files, whose hashes are pinned",
        Delivery::Library => {
            "when an engine of theirs holds the model; nobody pins its files (see catalogue.hub_downloads)"
        }
        Delivery::Program => "when they report that the program is there",
    }
    .to_owned()
}

fn memory(entry: &ModelEntry) -> String {
    match entry.cpu_memory {
        Some(alone) if entry.vram.0 > 0 => {
            format!("{} beside an accelerator, {} without", size(entry.memory), size(alone))
        }
        _ => size(entry.memory),
    }
}

/// Mebibytes, or gibibytes with one decimal.
pub(super) fn size(bytes: Bytes) -> String {
    const GIB: u64 = 1 << 30;
    match bytes.0 {
        0 => "-".to_owned(),
        small if small < GIB => format!("{} MiB", small >> 20),
        large => format!("{}.{} GiB", large / GIB, large % GIB * 10 / GIB),
    }
}

/// What a unit, or a million of them, costs in credits.
fn price(kind: ServiceKind, row: &PriceRow) -> String {
    if row.free {
        return "free".to_owned();
    }
    let million = |price: MicroCredits| print_exactly(i128::from(price.0) * 1_000_000);
    let one = |price: MicroCredits| print_exactly(price.0.into());
    match kind {
        ServiceKind::Llm => format!("{}+{} /1M tok", million(row.prompt), million(row.completion)),
        ServiceKind::Embeddings => format!("{} /1M tok", million(row.embedding)),
        ServiceKind::Tts => format!("{} /1M char", million(row.character)),
        ServiceKind::Stt => format!("{} /second", one(row.second)),
        ServiceKind::Vision | ServiceKind::Image => format!("{} /image", one(row.image)),
        ServiceKind::Scrape => format!("{} /page", one(row.url)),
    }
}

/// Lines of at most `width` characters, broken at spaces; a longer word stands alone.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_pages_fit_a_terminal_of_80_columns() {
        let all = Catalogue::shipped().unwrap();
        for entry in all.entries() {
            let row = Row(entry);
            let line = row.line();
            assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
            assert!(line.starts_with(&entry.id) && !line.ends_with(' '), "{line}");
            let page = row.page();
            // A hash is one word.
            let long = page.lines().find(|line| line.chars().count() > 80 && !line.contains("sha256"));
            assert_eq!(long.filter(|line| line.split_whitespace().all(|word| word.len() < 64)), None);
            assert!(page.contains(&entry.id) && page.contains("price"), "{page}");
        }
    }

    #[test]
    fn prices_and_sizes_are_printed_as_they_are() {
        let all = Catalogue::shipped().unwrap();
        let said = |id: &str| {
            let entry = all.resolve(id).unwrap();
            price(entry.kind, &entry.price)
        };
        assert_eq!(said("llama3.2:1b"), "0.15+0.3 /1M tok");
        assert_eq!(said("bge-m3"), "0.02 /1M tok");
        assert_eq!(said("espeak-ng"), "18.75 /1M char");
        assert_eq!(said("pocketsphinx"), "0.0001 /second");
        assert_eq!(said("tesseract"), "0.012 /image");
        assert_eq!(said("scrape"), "0.0006 /page");
        assert_eq!(size(Bytes(1560 << 20)), "1.5 GiB");
        assert_eq!(size(Bytes(32 << 20)), "32 MiB");
    }

    #[test]
    fn the_object_has_every_part_of_an_entry() {
        let all = Catalogue::shipped().unwrap();
        let object = Row(all.resolve("tts-1").unwrap()).object();
        assert_eq!(object["id"], "espeak-ng");
        assert_eq!(object["voices"]["alloy"], "en-us");
        assert_eq!(object["price"]["character"], 18_750_000);
        let counts = Counts::of(&all);
        assert_eq!((counts.entries, counts.pinned, counts.programs), (79, 2, 5));
        assert_eq!(counts.library, 72);
    }
}
