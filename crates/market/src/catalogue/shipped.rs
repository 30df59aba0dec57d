//! The files that ship with the program.

/// Name and text of each shipped file, in the order of the list of models.
pub const SHIPPED: [(&str, &str); 8] = [
    ("catalogue/models.toml", include_str!("../../../../catalogue/models.toml")),
    ("catalogue/services.toml", include_str!("../../../../catalogue/services.toml")),
    ("catalogue/chat.toml", include_str!("../../../../catalogue/chat.toml")),
    ("catalogue/code.toml", include_str!("../../../../catalogue/code.toml")),
    ("catalogue/vision.toml", include_str!("../../../../catalogue/vision.toml")),
    ("catalogue/image.toml", include_str!("../../../../catalogue/image.toml")),
    ("catalogue/embeddings.toml", include_str!("../../../../catalogue/embeddings.toml")),
    ("catalogue/speech.toml", include_str!("../../../../catalogue/speech.toml")),
];
