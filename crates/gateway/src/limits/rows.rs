//! The bounds as a table for people; the reference page shows it.

use super::{
    BIASES, BODY, CHOICES, CONVERSATION_BODY, DRAWN, DRAWN_CHARACTERS, DRAWN_STEPS, FIELDS, HEAD,
    IMAGE_BYTES, IMAGE_PIXELS, IMAGES, INPUT_TOKENS, INPUTS, JSON_DEPTH, MEDIA_BODY, MESSAGES, METADATA,
    METADATA_KEY, METADATA_VALUE, N, PAGE_BYTES, PAGES, PARTS, PROVIDER_BODY, SCHEMA, SCHEMA_DEPTH,
    SOUND_BYTES, SOUND_SECONDS, SPEECH_CHARACTERS, STOP_BYTES, STOPS, TIMEOUT_MS, TOOLS, URI,
};

/// One bound.
#[derive(Debug)]
pub struct Row {
    /// What is bounded.
    pub what: &'static str,
    /// How much is allowed.
    pub most: String,
    /// What happens over it.
    pub over: &'static str,
}

/// A size for people.
#[must_use]
pub fn size(bytes: usize) -> String {
    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;
    match bytes {
        MIB.. if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        KIB.. if bytes.is_multiple_of(KIB) => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} bytes"),
    }
}

/// The table.
#[must_use]
pub fn rows() -> Vec<Row> {
    const PARAMETER: &str = "400 `invalid_parameter`";
    let row = |what, most, over| Row { what, most, over };
    vec![
        row("Address", size(URI), "414 `uri_too_long`"),
        row("Head of a request", format!("{}, {FIELDS} fields", size(HEAD)), "431 `head_too_large`"),
        row("Body", size(BODY), "413 `body_too_large`"),
        row("Body of a conversation with images", size(CONVERSATION_BODY), "413 `body_too_large`"),
        row("Body of the routes for nodes and devices", size(PROVIDER_BODY), "413 `body_too_large`"),
        row("Nesting of JSON", format!("{JSON_DEPTH} levels"), "400 `invalid_json`"),
        row("Messages of a conversation", MESSAGES.to_string(), PARAMETER),
        row("Parts of a message", PARTS.to_string(), PARAMETER),
        row("Images of a conversation", format!("{IMAGES}, {} each", size(IMAGE_BYTES)), PARAMETER),
        row("Declared tools", TOOLS.to_string(), PARAMETER),
        row("JSON schema", format!("{}, {SCHEMA_DEPTH} levels", size(SCHEMA)), PARAMETER),
        row("Stop texts", format!("{STOPS} of {STOP_BYTES} bytes"), PARAMETER),
        row("n, and prompts times n", format!("{N}, {CHOICES}"), PARAMETER),
        row("Entries of logit_bias", BIASES.to_string(), PARAMETER),
        row(
            "Entries of metadata",
            format!("{METADATA}, keys of {METADATA_KEY} and values of {METADATA_VALUE} bytes"),
            PARAMETER,
        ),
        row("Embedded texts", format!("{INPUTS} texts, {INPUT_TOKENS} tokens in all"), PARAMETER),
        row("Body with sound or a picture", size(MEDIA_BODY), "413 `body_too_large`"),
        row("Recording", format!("{}, {SOUND_SECONDS} s", size(SOUND_BYTES)), PARAMETER),
        row("Text to say", format!("{SPEECH_CHARACTERS} characters"), PARAMETER),
        row(
            "Picture",
            format!("{}, {} million pixels", size(IMAGE_BYTES), IMAGE_PIXELS / 1_000_000),
            PARAMETER,
        ),
        row(
            "Pictures to draw",
            format!("{DRAWN}, from {DRAWN_CHARACTERS} characters in {DRAWN_STEPS} steps"),
            PARAMETER,
        ),
        row(
            "Pages",
            format!("{PAGES} addresses, {} each", size(PAGE_BYTES)),
            "400, or an error of that page",
        ),
        row("X-Cxmpute-Timeout-Ms", format!("{TIMEOUT_MS} ms"), PARAMETER),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_whole_unit() {
        for (bytes, text) in
            [(1, "1 bytes"), (1024, "1 KiB"), (1536, "1536 bytes"), (4 << 20, "4 MiB"), (3 << 19, "1536 KiB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert!(rows().iter().all(|row| !row.most.is_empty() && row.over.starts_with('4')));
    }
}
