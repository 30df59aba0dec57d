//! The owner's logins at registries, kept as Docker's own command keeps them: in its `config.json`, or with a helper program
//! that the file names. A login goes to Docker's daemon for the registry that it is for, and nowhere else; no word of it is
//! ever logged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use cxmpute_runtime::Secret;
use cxmpute_runtime::config::env_var;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Docker's own registry in its configuration.
const HUB: &str = "https://index.docker.io/v1/";
/// Hosts that mean the same.
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The user's name with which a helper says that it gives a token instead of a password.
const TOKEN: &str = "<token>";
/// Longest that a helper may take; it may have to ask a keychain.
const HELPER_TIME: Duration = Duration::from_secs(30);
/// Most that is read of its answer, in bytes.
const ANSWER_BYTES: u64 = 64 * 1024;

/// What is read of Docker's `config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Logins {
    auths: BTreeMap<String, Login>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

/// One login in the file.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    /// `USER:PASSWORD` in base64.
    auth: Option<Secret<String>>,
    #[serde(rename = "identitytoken")]
    token: Option<Secret<String>>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    username: String,
    secret: Secret<String>,
}

/// The file of logins: as configured, else where Docker's own command has it.
#[must_use]
pub fn file(configured: Option<&Path>) -> Option<PathBuf> {
    let home = || Some(PathBuf::from(env_var("HOME")?).join(".docker"));
    let folder = || env_var("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    configured.map(Path::to_owned).or_else(|| Some(folder()?.join("config.json")))
}

/// The owner's login at the registry of an image; none where there is none.
pub async fn find(file: &Path, image: &str) -> Option<DockerCredentials> {
    let registry = registry(image);
    let text = Secret::new(std::fs::read(file).ok()?);
    let logins: Logins = match serde_json::from_slice(text.expose()) {
        Ok(logins) => logins,
        Err(error) => {
            // Its words could quote what stands there.
            let (line, column) = (error.line(), error.column());
            tracing::warn!(file = %file.display(), line, column, "the file of Docker's logins is not understood");
            return None;
        }
    };
    if let Some(helper) = logins.helper(registry) {
        let asked = match crate::engines::find_program(None, &format!("docker-credential-{helper}")) {
            Some(program) => ask(&program, registry, HELPER_TIME).await,
            None => Err("it is not on the path".to_owned()),
        };
        match asked {
            Ok(Some(login)) => return Some(login),
            Ok(None) => {}
            Err(why) => tracing::warn!(helper, registry, why, "a helper of Docker's logins gives none"),
        }
    }
    logins.stated(registry)
}

impl Logins {
    /// The helper that knows this registry's login, where its name is a plain one.
    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.helpers.iter().find(|(key, _)| is(key, registry)).map(|(_, helper)| helper);
        let plain = |name: &&str| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        own.or(self.store.as_ref()).map(String::as_str).filter(plain).filter(|name| !name.is_empty())
    }

    /// The login that stands in the file itself.
    fn stated(&self, registry: &str) -> Option<DockerCredentials> {
        let (_, login) = self.auths.iter().find(|(key, _)| is(key, registry))?;
        if let Some(token) = login.token.as_ref().filter(|token| !token.expose().is_empty()) {
            return Some(token_of(registry, token));
        }
        let pair = Secret::new(STANDARD.decode(login.auth.as_ref()?.expose().trim()).ok()?);
        let pair = std::str::from_utf8(pair.expose()).ok()?.trim_end_matches('\0');
        let (user, password) = pair.split_once(':').filter(|(user, _)| !user.is_empty())?;
        Some(password_of(registry, user, password))
    }
}

/// Asks a helper for the login at a registry: `get`, the registry on its input, JSON on its output.
async fn ask(program: &Path, registry: &str, time: Duration) -> Result<Option<DockerCredentials>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut input) = input {
            // One that knows without reading closes its end.
            let _ = input.write_all(address(registry).as_bytes()).await;
        }
        let mut said = Vec::new();
        if let Some(output) = output {
            let _ = output.take(ANSWER_BYTES).read_to_end(&mut said).await;
        }
        (Secret::new(said), child.wait().await)
    };
    let (said, status) = tokio::time::timeout(time, talk)
        .await
        .map_err(|_| format!("it took longer than {} s", time.as_secs()))?;
    // It says by its status that it knows none.
    if !status.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let told: Told =
        serde_json::from_slice(said.expose()).map_err(|_| "its answer is not understood".to_owned())?;
    Ok(Some(match told.username.as_str() {
        TOKEN => token_of(registry, &told.secret),
        user => password_of(registry, user, told.secret.expose()),
    }))
}

fn password_of(registry: &str, user: &str, password: &str) -> DockerCredentials {
    DockerCredentials {
        username: Some(user.to_owned()),
        password: Some(password.to_owned()),
        serveraddress: Some(address(registry).to_owned()),
        ..DockerCredentials::default()
    }
}

fn token_of(registry: &str, token: &Secret<String>) -> DockerCredentials {
    DockerCredentials {
        identitytoken: Some(token.expose().clone()),
        serveraddress: Some(address(registry).to_owned()),
        ..DockerCredentials::default()
    }
}

/// The registry of an image whose name has one, as pinned ones have.
#[must_use]
pub fn registry(image: &str) -> &str {
    image.split_once('/').map_or(image, |(registry, _)| registry)
}

/// What Docker calls a registry in its configuration, and to helpers.
fn address(registry: &str) -> &str {
    if HUB_HOSTS.contains(&registry) { HUB } else { registry }
}

/// Whether a key of the configuration (`HOST`, or an address of older versions) means this registry.
fn is(key: &str, registry: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = key.split('/').next().unwrap_or(key);
    address(host).eq_ignore_ascii_case(address(registry))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn logins(text: &str) -> Logins {
        serde_json::from_str(text).unwrap()
    }

    fn user(login: Option<DockerCredentials>) -> Option<(String, String)> {
        login.and_then(|login| Some((login.username?, login.password?)))
    }

    #[test]
    fn a_login_is_found_under_every_spelling_of_its_registry_and_under_no_other() {
        let pair = STANDARD.encode("ada:open: sesame");
        for (key, registry, found) in [
            ("r.example:5000", "r.example:5000", true),
            ("https://r.example:5000/v1/", "r.example:5000", true),
            ("R.Example", "r.example", true),
            ("r.example", "r.example:5000", false),
            ("r.example.evil.test", "r.example", false),
            ("evil.test/r.example", "r.example", false),
            (HUB, "docker.io", true),
            ("docker.io", "registry-1.docker.io", true),
            (HUB, "ghcr.io", false),
        ] {
            let logins = logins(&format!(r#"{{"auths": {{"{key}": {{"auth": "{pair}"}}}}, "psFormat": 1}}"#));
            let expected = found.then(|| ("ada".to_owned(), "open: sesame".to_owned()));
            assert_eq!(user(logins.stated(registry)), expected, "{key} {registry}");
        }
        for bad in [r#"{"auth": "%%"}"#, r#"{"auth": "bm9jb2xvbg=="}"#, "{}"] {
            let login = logins(&format!(r#"{{"auths": {{"r": {bad}}}}}"#)).stated("r");
            assert_eq!(login, None, "{bad}");
        }
        let token =
            logins(r#"{"auths": {"r": {"auth": "YTpi", "identitytoken": "t"}}}"#).stated("r").unwrap();
        assert_eq!((token.identitytoken.as_deref(), token.password), (Some("t"), None));
        assert_eq!(registry("127.0.0.1:5/a/b@sha256:0"), "127.0.0.1:5");
    }

    #[test]
    fn the_registrys_own_helper_goes_before_the_store_and_never_leads_elsewhere() {
        let both =
            logins(r#"{"credsStore": "secretservice", "credHelpers": {"gcr.io": "gcloud", "x.y": "../sh"}}"#);
        assert_eq!(both.helper("gcr.io"), Some("gcloud"));
        assert_eq!(both.helper("docker.io"), Some("secretservice"));
        assert_eq!(both.helper("x.y"), None);
        assert_eq!(logins("{}").helper("gcr.io"), None);
    }

    #[tokio::test]
    async fn a_helper_is_asked_by_its_protocol() {
        let dir = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let long = Duration::from_secs(60);
        let knows = r#"[ "$*" = get ] || exit 9; read registry
            echo "{\"ServerURL\":\"$registry\",\"Username\":\"$registry\",\"Secret\":\"s\"}""#;
        let knows = helper("knows", knows);
        let login = ask(&knows, "r.example:5000", long).await.unwrap();
        assert_eq!(user(login), Some(("r.example:5000".to_owned(), "s".to_owned())));
        assert_eq!(user(ask(&knows, "docker.io", long).await.unwrap()).unwrap().0, HUB);
        let token = helper("token", r#"echo '{"Username":"<token>","Secret":"t"}'"#);
        let login = ask(&token, "r", long).await.unwrap().unwrap();
        assert_eq!((login.identitytoken.as_deref(), login.username), (Some("t"), None));
        let unknown = helper("unknown", "echo credentials not found in native keychain; exit 1");
        assert_eq!(ask(&unknown, "r", long).await, Ok(None));
        let nonsense = ask(&helper("nonsense", "echo open sesame"), "r", long).await.unwrap_err();
        assert!(!nonsense.contains("sesame"), "{nonsense}");
        let hangs = ask(&helper("hangs", "exec sleep 1000"), "r", Duration::from_millis(50)).await;
        assert!(hangs.unwrap_err().contains("longer"));
    }
}
