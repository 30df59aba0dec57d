use super::*;

const GOOD: &str = r#"
[[model]]
id = "tiny"
aliases = ["small"]
kind = "llm"
context_length = 128
max_completion_tokens = 64
engines = ["builtin"]
memory_mb = 2
price = { version = 1, prompt = 10, completion = 20 }

[[model.file]]
role = "model"
name = "tiny.gguf"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
size = 5

[[model]]
id = "vectors:small"
kind = "embeddings"
context_length = 128
dimensions = 3
price = { version = 2, embedding = 10, share_bp = 5000 }
"#;

#[test]
fn a_good_catalogue_resolves_ids_and_aliases() {
    let catalogue = Catalogue::parse(GOOD, "models.toml").unwrap();
    let tiny = catalogue.resolve("small").unwrap();
    assert_eq!(tiny.id, "tiny");
    assert_eq!(tiny.service.as_str(), "llm:tiny");
    assert_eq!(tiny.memory, Bytes(2 << 20));
    assert_eq!(tiny.price.share_bp, DEFAULT_SHARE_BP);
    let vectors = catalogue.resolve("vectors:small").unwrap();
    assert_eq!(vectors.service.model(), Some("vectors:small"));
    assert_eq!(catalogue.by_service(&vectors.service).unwrap().price.version, 2);
    assert!(catalogue.resolve("TINY").is_none());
    assert!(tiny.supports(Parameter::Tools) && !tiny.supports(Parameter::ReasoningEffort));
    assert_eq!(vectors.supported_parameters, [Parameter::Input, Parameter::EncodingFormat]);
    let bare = GOOD.replace("memory_mb = 2", "supported_parameters = [\"tools\"]");
    let bare = Catalogue::parse(&bare, "models.toml").unwrap();
    assert_eq!(bare.resolve("tiny").unwrap().supported_parameters, [Parameter::Tools]);
}

/// Each fault is named with its line and key.
#[test]
fn faults_name_file_line_and_key() {
    let faults: [(&str, &str, usize, &str); 14] = [
        ("memory_mb = 2", "supported_parameters = [\"tools\", \"toolz\"]", 9, "model.supported_parameters"),
        ("prompt = 10, ", "prompt = -1, ", 10, "model.price.prompt"),
        ("prompt = 10, ", "prompt = 0, ", 10, "model.price.prompt"),
        ("prompt = 10, ", "", 10, "model.price.prompt"),
        ("prompt = 10, ", "free = true, prompt = 10, ", 10, "model.price"),
        ("prompt = 10, ", "prompt = 1.5, ", 10, "syntax"),
        ("share_bp = 5000", "share_bp = 10001", 23, "model.price"),
        ("version = 1", "version = 0", 10, "model.price.version"),
        ("kind = \"llm\"", "kind = \"dog\"", 5, "model.kind"),
        ("[\"small\"]", "[\"vectors:small\"]", 19, "model.id"),
        ("max_completion_tokens = 64", "max_completion_tokens = 129", 7, "model.max_completion_tokens"),
        ("size = 5", "size = 0", 16, "model.file.size"),
        ("\"tiny.gguf\"", "\"../tiny.gguf\"", 12, "model.file.name"),
        ("memory_mb", "memory_md", 9, "syntax"),
    ];
    for (good, bad, line, key) in faults {
        assert!(GOOD.contains(good), "{good}");
        let fault = Catalogue::parse(&GOOD.replacen(good, bad, 1), "models.toml").unwrap_err();
        assert_eq!((fault.file.as_str(), fault.key.as_str()), ("models.toml", key), "{fault}");
        assert!(fault.line.abs_diff(line) <= 1, "{fault}: expected line {line}");
    }
}

#[test]
fn the_shipped_catalogue_loads() {
    let text = include_str!("../../../../catalogue/models.toml");
    let catalogue = Catalogue::parse(text, "catalogue/models.toml").unwrap();
    assert!(catalogue.resolve("cxm-tiny").is_some());
    assert_eq!(catalogue.resolve("all-minilm").unwrap().dimensions, Some(384));
}

/// The model in the repository is the one the catalogue promises.
#[test]
fn the_tiny_model_is_the_file_that_the_catalogue_names() {
    use sha2::Digest;
    let text = include_str!("../../../../catalogue/models.toml");
    let catalogue = Catalogue::parse(text, "catalogue/models.toml").unwrap();
    let file = &catalogue.resolve("cxm-tiny").unwrap().files[0];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/tiny-model/cxm-tiny-q8.gguf");
    let bytes = std::fs::read(path).unwrap();
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((file.size.0, file.sha256.as_str()), (bytes.len() as u64, digest.as_str()));
}

#[test]
fn a_model_may_name_its_quantisation_and_a_longer_first_token_time() {
    let more = GOOD.replace("memory_mb = 2", "quantization = \"q8_0\"\nfirst_token_ms_per_1k = 40");
    let catalogue = Catalogue::parse(&more, "models.toml").unwrap();
    let tiny = catalogue.resolve("tiny").unwrap();
    assert_eq!(tiny.quantization.as_deref(), Some("q8_0"));
    assert_eq!(tiny.first_token, Some((Millis(0), Millis(40))));
    let error = Catalogue::parse(&more.replace("q8_0", "Q8 0"), "models.toml").unwrap_err();
    assert_eq!(error.key, "model.quantization");
}
