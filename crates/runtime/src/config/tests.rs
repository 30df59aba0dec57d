use std::io::Write;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct Settings {
    data_dir: String,
    listen: std::net::SocketAddr,
    store: Store,
    limits: Limits,
    name: Option<String>,
    external: Vec<External>,
    tags: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
struct Store {
    url: String,
    synchronous: Synchronous,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Synchronous {
    Full,
    Normal,
}

#[derive(Debug, PartialEq, Default, Deserialize, Serialize)]
#[serde(default)]
struct Limits {
    per_key: Option<u32>,
    ratio: f64,
    strict: bool,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct External {
    service: String,
    base_url: String,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: "sqlite:cx.db".into(), synchronous: Synchronous::Full }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/cxmpute".into(),
            listen: ([127, 0, 0, 1], 8080).into(),
            store: Store::default(),
            limits: Limits::default(),
            name: None,
            external: Vec::new(),
            tags: Vec::new(),
        }
    }
}

fn read(file: &str, env: &[(&str, &str)], flags: &str) -> Result<Settings, String> {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(file.as_bytes()).unwrap();
    let path = named.path().to_owned();
    let sources =
        Sources { file: Some(path.clone()), env_prefix: "CXMPUTE".into(), flags: flags.parse().unwrap() };
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load_with(sources, env).map_err(|error| error.to_string().replace(&path.display().to_string(), "cx.toml"))
}

#[test]
fn without_layers_the_defaults_hold() {
    assert_eq!(read("", &[], "").unwrap(), Settings::default());
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let file =
        "data_dir = \"/file\"\nlisten = \"127.0.0.1:1\"\n[store]\nurl = \"file\"\nsynchronous = \"normal\"";
    let env = [("CXMPUTE_DATA_DIR", "/env"), ("CXMPUTE_STORE_URL", "env"), ("CXMPUTE_LIMITS_PER_KEY", "7")];
    let read = read(file, &env, "[store]\nurl = \"flag\"").unwrap();
    assert_eq!(read.data_dir, "/env");
    assert_eq!(read.listen.port(), 1);
    assert_eq!(read.store, Store { url: "flag".into(), synchronous: Synchronous::Normal });
    assert_eq!(read.limits.per_key, Some(7));
}

#[test]
fn text_layers_are_read_as_what_the_key_wants() {
    let env = [("CXMPUTE_LIMITS_STRICT", "yes"), ("CXMPUTE_TAGS", "a, b"), ("CXMPUTE_NAME", "n")];
    let read = read("limits.ratio = 2", &env, "limits.per_key = \"5\"").unwrap();
    assert_eq!(read.limits, Limits { per_key: Some(5), ratio: 2.0, strict: true });
    assert_eq!((read.name.as_deref(), read.tags), (Some("n"), vec!["a".to_owned(), "b".to_owned()]));
}

#[test]
fn errors_name_source_key_value_and_what_is_allowed() {
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);
    let table: [Row; 10] = [
        (
            "[store]\nsynchronous = \"maybe\"",
            &[],
            "",
            "configuration file cx.toml: key `store.synchronous` is \"maybe\", expected one of \"full\", \"normal\"",
        ),
        (
            "",
            &[("CXMPUTE_STORE_SYNCHRONOUS", "off")],
            "",
            "environment variable CXMPUTE_STORE_SYNCHRONOUS: key `store.synchronous` is \"off\", expected one of \"full\", \"normal\"",
        ),
        (
            "",
            &[],
            "limits.per_key = \"many\"",
            "command line: key `limits.per_key` is \"many\", expected a whole number",
        ),
        (
            "limits.per_key = -1",
            &[],
            "",
            "configuration file cx.toml: key `limits.per_key` is -1, expected u32",
        ),
        (
            "limits.strict = 3",
            &[],
            "",
            "configuration file cx.toml: key `limits.strict` is 3, expected true or false",
        ),
        (
            "[store]\nurll = \"x\"",
            &[],
            "",
            "configuration file cx.toml: unknown key `store.urll`; did you mean `store.url`?",
        ),
        (
            "[limits]\nwhatever = 1",
            &[],
            "",
            "configuration file cx.toml: unknown key `limits.whatever`; known keys here: per_key, ratio, strict",
        ),
        ("store = 3", &[], "", "configuration file cx.toml: key `store` is 3, expected a section with keys"),
        (
            "[[external]]\nservice = \"llm:a\"",
            &[],
            "",
            "key `external[0].base_url` is required; set it in the configuration file",
        ),
        ("a = \n", &[], "", "configuration file cx.toml, line 1: "),
    ];
    for (file, env, flags, expected) in table {
        let error = read(file, env, flags).unwrap_err();
        assert!(error.starts_with(expected), "{file:?}: {error}");
    }
    let error = read("listen = \"here\"", &[], "").unwrap_err();
    assert!(error.contains("`listen` is \"here\"") && error.contains("socket address"), "{error}");
}

#[test]
fn a_misspelt_variable_is_refused_and_a_foreign_one_is_not() {
    let error = read("", &[("CXMPUTE_STORE_ULR", "x")], "").unwrap_err();
    assert_eq!(
        error,
        "environment variable CXMPUTE_STORE_ULR belongs to no key; did you mean CXMPUTE_STORE_URL?"
    );
    read("", &[("CXMPUTE_BIN_DIR", "/usr/bin"), ("CXMPUTE_CONFIG", "x.toml")], "").unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let sources = Sources { file: Some("/nowhere/cx.toml".into()), ..Sources::default() };
    let error = load_with::<Settings>(sources, Vec::new()).unwrap_err().to_string();
    assert!(error.starts_with("configuration file /nowhere/cx.toml cannot be read:"), "{error}");
}
