//! Docker's daemon: how it is reached, and what its refusals mean to an owner.

use std::path::Path;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};

/// Time for the head of an answer. A pull answers once the registry did.
const ANSWER_SECONDS: u64 = 120;
/// Time for the first word of a daemon; a node does not wait longer for one that hangs.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Why a container does not run; each says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerError {
    /// The daemon does not answer.
    #[error(
        "Docker does not answer ({0}); start it, name its socket in docker.socket, or set docker.enabled to false"
    )]
    Away(String),
    /// The registry wants a login.
    #[error(
        "the registry does not let this machine have {image} ({said}); log in as the user of this node: docker login {registry}",
        registry = super::login::registry(image)
    )]
    LoginNeeded {
        /// The image.
        image: String,
        /// The daemon's words.
        said: String,
    },
    /// The registry has no such image.
    #[error("the registry has no {image} ({said}); tell the operator of the catalogue")]
    NoImage {
        /// The image.
        image: String,
        /// The daemon's words.
        said: String,
    },
    /// The registry does not answer.
    #[error("the registry of {image} cannot be reached ({said}); it is tried again")]
    RegistryAway {
        /// The image.
        image: String,
        /// The daemon's words.
        said: String,
    },
    /// What came is not what the digest promises.
    #[error(
        "what the registry gave for {image} has another digest ({said}); it is not used: tell the operator"
    )]
    WrongDigest {
        /// The image.
        image: String,
        /// The daemon's words.
        said: String,
    },
    /// There is no room for it.
    #[error(
        "Docker's disk has no room for {image} ({said}); make room where it keeps images (docker system df)"
    )]
    NoRoom {
        /// The image.
        image: String,
        /// The daemon's words.
        said: String,
    },
    /// The image declares volumes, which nothing limits.
    #[error(
        "{image} declares the volumes {volumes}, which would be writable without limit; it is not used: tell the operator"
    )]
    Volumes {
        /// The image.
        image: String,
        /// Their paths.
        volumes: String,
    },
    /// Docker cannot hand accelerators in.
    #[error("Docker cannot hand accelerators to containers ({0}); install the maker's container toolkit")]
    NoAccelerators(String),
    /// Anything else.
    #[error("Docker refused: {0}")]
    Refused(String),
}

/// Connects, and agrees on a version of the API.
///
/// # Errors
/// Nothing answers at the socket.
pub async fn connect(socket: &Path) -> Result<Docker, DockerError> {
    let away = |error: &Error| DockerError::Away(format!("{}: {error}", socket.display()));
    let docker = Docker::connect_with_unix(&socket.to_string_lossy(), ANSWER_SECONDS, API_DEFAULT_VERSION);
    let docker = docker.map_err(|error| away(&error))?;
    match tokio::time::timeout(FIRST_WORD, docker.negotiate_version()).await {
        Ok(agreed) => agreed.map_err(|error| away(&error)),
        Err(_) => {
            let waited = format!("{}: no word within {} s", socket.display(), FIRST_WORD.as_secs());
            Err(DockerError::Away(waited))
        }
    }
}

/// What an error means; `image` is what it was about.
#[must_use]
pub fn explain(image: &str, error: &Error) -> DockerError {
    match error {
        Error::DockerResponseServerError { message, .. } => judge(image, message),
        Error::DockerStreamError { error } => judge(image, error),
        other => DockerError::Away(other.to_string()),
    }
}

/// What the daemon's words mean. They are no interface; what is not known stays as it is.
fn judge(image: &str, message: &str) -> DockerError {
    let (image, said) = (image.to_owned(), message.trim().to_owned());
    let low = said.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| low.contains(word));
    if says(&["could not select device driver", "nvidia-container"]) {
        DockerError::NoAccelerators(said)
    } else if says(&["no space left on device", "disk quota exceeded"]) {
        DockerError::NoRoom { image, said }
    } else if says(&[
        "verification failed",
        "does not match the digest",
        "unexpected digest",
        "filesystem layer verification",
    ]) {
        DockerError::WrongDigest { image, said }
    } else if says(&[
        "unauthorized",
        "no basic auth",
        "authentication required",
        "access denied",
        "access to the resource is denied",
    ]) {
        DockerError::LoginNeeded { image, said }
    } else if says(&["manifest unknown", "not found", "name unknown"]) {
        DockerError::NoImage { image, said }
    } else if says(&[
        "connection refused",
        "no such host",
        "timeout",
        "timed out",
        "no route to host",
        "network is unreachable",
        "unexpected eof",
        "deadline exceeded",
        "connection reset",
        "tls: ",
        "x509: ",
        "500 internal server error",
        "502 bad gateway",
        "503 service unavailable",
    ]) {
        DockerError::RegistryAway { image, said }
    } else {
        DockerError::Refused(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of Docker 20.10 with Debian's registry; a newer daemon says some of it otherwise.
    #[test]
    fn what_docker_says_is_told_with_what_to_do() {
        let told = |message: &str| judge("r/i@sha256:0", message).to_string();
        for (message, advice) in [
            (
                "Get \"http://127.0.0.1:5/v2/\": dial tcp 127.0.0.1:5: connect: connection refused",
                "cannot be reached",
            ),
            (
                "manifest for r/i@sha256:0 not found: manifest unknown: manifest unknown",
                "the registry has no r/i",
            ),
            ("Head \"http://r/v2/i/manifests/x\": no basic auth credentials", "docker login r"),
            (
                "pull access denied for r/i, repository does not exist or may require 'docker login'",
                "docker login r",
            ),
            ("manifest verification failed for digest sha256:0", "another digest"),
            ("filesystem layer verification failed for digest sha256:0", "another digest"),
            ("write /var/lib/docker/tmp/G: no space left on device", "no room"),
            ("could not select device driver \"\" with capabilities: [[gpu]]", "container toolkit"),
            ("the moon is full", "Docker refused: the moon is full"),
        ] {
            assert!(told(message).contains(advice), "{message}: {}", told(message));
            assert!(told(message).contains(message), "the daemon's own words are lost");
        }
    }
}
