use cxmpute_wire::MicroCredits;

use super::*;
use crate::price::DEFAULT_SHARE_BP;

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
    let faults: [(&str, &str, usize, &str); 25] = [
        ("[\"builtin\"]", "[\"toaster\"]", 8, "model.engines"),
        ("memory_mb = 2", "capabilities = [\"tools\", \"render\"]", 9, "model.capabilities"),
        ("memory_mb = 2", "voices = { anna = \"en-us\" }", 9, "model.voices"),
        ("memory_mb = 2", "languages = [\"en-US\"]", 9, "model.languages"),
        ("memory_mb = 2", "cpu_memory_mb = 2", 9, "model.cpu_memory_mb"),
        ("memory_mb = 2", "ollama = \"-rf\"", 9, "model.ollama"),
        ("memory_mb = 2", "hub = { repository = \"alone\" }", 9, "model.hub.repository"),
        ("memory_mb = 2", "hub = { repository = \"a/../b\" }", 9, "model.hub.repository"),
        ("memory_mb = 2", "hub = { repository = \"a/b\", revision = \"a b\" }", 9, "model.hub.revision"),
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
        ("memory_mb = 2", "places = \"pixels\"", 9, "model.places"),
        ("memory_mb = 2", "capabilities = [\"detect\"]\nplaces = \"inches\"", 10, "model.places"),
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

/// The names of the first seed's catalogue, in its order, and the two models that the second seed names.
const SEEDS: &str = "
nomic-embed-text mxbai-embed-large bge-m3 snowflake-arctic-embed:22m snowflake-arctic-embed:33m
snowflake-arctic-embed:110m snowflake-arctic-embed:137m snowflake-arctic-embed:335m snowflake-arctic-embed2
all-minilm:22m all-minilm:33m
gemma3:1b gemma3:4b gemma3:12b gemma3:24b llama3.2-vision:11b minicpm-v llava-llama3 moondream granite3.2-vision
mistral-small3.1 qwen2.5vl:3b qwen2.5vl:7b qwen2.5vl:32b qwen2.5vl:72b
cogito:3b cogito:8b cogito:14b cogito:32b cogito:70b deepseek-r1:1.5b deepseek-r1:7b deepseek-r1:8b deepseek-r1:14b
deepseek-r1:32b deepseek-r1:70b llama3.1:8b llama3.2:1b llama3.2:3b llama3.3 mistral mistral-nemo phi4 phi4-mini
phi4-reasoning:14b qwen2.5:7b qwen2.5:14b qwen2.5:32b qwen2.5:72b qwq qwen3:4b qwen3:8b qwen3:14b qwen3:30b-a3b
qwen3:32b
mathstral qwen2-math:7b qwen2-math:72b deepscaler kokoro-82m
qwen2.5-coder:3b qwen2.5-coder:7b qwen2.5-coder:14b qwen2.5-coder:32b deepcoder:14b codegemma:2b codegemma:7b
deepseek-coder:1.3b deepseek-coder:6.7b deepseek-coder-v2:16b
phi-2 xtts-v2 stable-diffusion-2-1-base
";

#[test]
fn the_shipped_catalogue_has_what_the_seeds_had_and_the_services() {
    let catalogue = Catalogue::shipped().unwrap();
    let names: Vec<&str> = SEEDS.split_whitespace().collect();
    assert_eq!(names.len(), 70 + 2 + 1);
    let mut ids: Vec<&str> = names.iter().map(|name| &*catalogue.resolve(name).expect(name).id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 73, "each name is a model of its own");
    let here = ["cxm-tiny", "espeak-ng", "pocketsphinx", "pocketsphinx-digits", "tesseract", "scrape"];
    assert_eq!(catalogue.entries().len(), 73 + here.len());
    for (name, service, delivery) in [
        ("tiny", "llm:cxm-tiny", Delivery::Pinned),
        ("all-minilm", "embeddings:all-minilm", Delivery::Pinned),
        ("tts-1", "tts:espeak-ng", Delivery::Program),
        ("whisper-1", "stt:pocketsphinx", Delivery::Program),
        ("ocr", "vision:tesseract", Delivery::Program),
        ("scrape", "scrape", Delivery::Program),
        ("llama3.2:1b", "llm:llama3.2:1b", Delivery::Library),
        ("kokoro-82m", "tts:kokoro", Delivery::Library),
        ("phi-2", "llm:phi-2", Delivery::Library),
        ("xtts-v2", "tts:xtts-v2", Delivery::Library),
        ("stable-diffusion-2-1", "image:stable-diffusion-2-1-base", Delivery::Library),
        ("gemma3:24b", "llm:gemma3:27b", Delivery::Library),
    ] {
        let entry = catalogue.resolve(name).expect(name);
        assert_eq!((entry.service.as_str(), entry.delivery()), (service, delivery), "{name}");
        assert_eq!(catalogue.by_service(&entry.service).unwrap().id, entry.id);
        assert_eq!(entry.target, 8);
    }
    assert_eq!(catalogue.resolve("all-minilm").unwrap().dimensions, Some(384));
}

#[test]
fn what_the_shipped_catalogue_says_of_its_entries_holds_together() {
    let catalogue = Catalogue::shipped().unwrap();
    let dear = |id: &str| catalogue.resolve(id).unwrap().price.prompt.0;
    let tiers = ["llama3.2:3b", "mistral", "phi4", "llama3.3"].map(dear);
    assert_eq!(tiers, [150_000, 350_000, 1_200_000, 3_500_000]);
    for entry in catalogue.entries() {
        let id = &entry.id;
        assert!(!entry.engines.is_empty() && !entry.description.is_empty(), "{id}");
        if entry.delivery() != Delivery::Library {
            continue;
        }
        assert!(entry.files.is_empty() && entry.vram > entry.disk, "{id}: the prior has room for a context");
        assert!(!entry.engines.contains(&Engine::Builtin), "{id}: nobody pins what it would load");
        if entry.kind == ServiceKind::Image {
            assert!(entry.price.image.0 > 0 && entry.canvas.is_some(), "{id}");
            continue;
        }
        // A gateway has no tokenizer of it before its operator puts one there.
        assert!(entry.price.character.0 > 0, "{id}");
        let small = entry.disk < Bytes(4096 << 20);
        assert_eq!(entry.cpu_memory.is_some(), small, "{id}: large models want an accelerator");
    }
    let gemma = catalogue.resolve("gemma3:4b").unwrap();
    assert_eq!(gemma.input_modalities(), ["text", "image"]);
    assert!(!gemma.supports(Parameter::Tools) && gemma.supports(Parameter::StructuredOutputs));
    assert!(!catalogue.resolve("gemma3:1b").unwrap().can(Capability::Vision));
    let finders: Vec<&str> = catalogue
        .entries()
        .iter()
        .filter(|entry| entry.can(Capability::Detect) && entry.can(Capability::Point))
        .map(|entry| entry.id.as_str())
        .collect();
    assert_eq!(finders, ["qwen2.5vl:3b", "qwen2.5vl:7b", "qwen2.5vl:32b", "qwen2.5vl:72b"]);
    assert_eq!(catalogue.resolve("qwen2.5vl").unwrap().places, Places::Pixels);
    let qwen = catalogue.resolve("qwen3:8b").unwrap();
    assert!(qwen.supports(Parameter::Tools) && !qwen.supports(Parameter::TopK));
    assert_eq!((qwen.name_for(Engine::Ollama), qwen.name_for(Engine::Vllm)), ("qwen3:8b", "Qwen/Qwen3-8B"));
    assert_eq!(catalogue.resolve("phi-2").unwrap().name_for(Engine::Ollama), "phi:2.7b");
    let speech = catalogue.resolve("espeak-ng").unwrap();
    assert_eq!(speech.voices.get("alloy").map(String::as_str), Some("en-us"));
    assert!(speech.voices.contains_key("af_bella") && speech.voices.contains_key("fr-fr"));
    assert_eq!((speech.input_modalities(), speech.output_modalities()), (vec!["text"], vec!["audio"]));
    let prices = ["pocketsphinx", "tesseract", "scrape"].map(|id| {
        let price = &catalogue.resolve(id).unwrap().price;
        (price.second, price.image, price.url)
    });
    let micro = MicroCredits;
    assert_eq!(prices[0], (micro(100_000_000), micro(0), micro(0)));
    assert_eq!(prices[1], (micro(0), micro(12_000_000_000), micro(0)));
    assert_eq!(prices[2], (micro(0), micro(0), micro(600_000_000)));
    assert_eq!(catalogue.resolve("pocketsphinx").unwrap().languages, ["en-US"]);
}

#[test]
fn a_model_without_pinned_files_is_for_those_whose_engine_has_it() {
    let catalogue = Catalogue::shipped().unwrap();
    let [tiny, llama, espeak] =
        ["cxm-tiny", "llama3.2:1b", "espeak-ng"].map(|id| catalogue.resolve(id).unwrap());
    assert!(tiny.is_servable(Engine::Builtin, false, false));
    assert!(!tiny.is_servable(Engine::External, false, true), "nobody sends a model to an owner's server");
    assert!(tiny.is_servable(Engine::External, true, false));
    assert!(!llama.is_servable(Engine::Ollama, false, false));
    assert!(llama.is_servable(Engine::Ollama, true, false));
    assert!(llama.is_servable(Engine::Ollama, false, true), "the operator lets engines download");
    assert!(espeak.is_servable(Engine::EspeakNg, false, false));
}

#[test]
fn entries_of_operators_come_on_top_and_may_not_take_a_name() {
    let mut catalogue = Catalogue::shipped().unwrap();
    let shipped = catalogue.entries().len();
    catalogue
        .read(GOOD.replace("\"small\"", "\"smallest\"").replace("\"tiny\"", "\"own\"").as_str(), "own.toml")
        .unwrap();
    assert_eq!(catalogue.entries().len(), shipped + 2);
    assert_eq!(catalogue.resolve("smallest").unwrap().id, "own");
    let fault = Catalogue::shipped().unwrap().read(GOOD, "own.toml").unwrap_err();
    assert_eq!(fault.to_string(), "own.toml:3: model.id: `tiny` names another model already (cxm-tiny)");
}

/// The model in the repository is the one the catalogue promises.
#[test]
fn the_tiny_model_is_the_file_that_the_catalogue_names() {
    use sha2::Digest;
    let catalogue = Catalogue::shipped().unwrap();
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
