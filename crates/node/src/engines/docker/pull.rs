//! The image of a container, by its digest: there already, or pulled with its progress told.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::CreateImageOptionsBuilder;
use cxmpute_wire::Bytes;
use cxmpute_wire::control::ContainerImage;
use futures_util::{Stream, StreamExt as _};

use super::daemon::explain;
use super::{DockerError, kept, login};

/// A pull that says nothing for so long does not go on any more. Large layers are unpacked in silence.
const SILENCE: Duration = Duration::from_secs(600);

/// How far a pull is, over all layers that have begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Layer {
    here: u64,
    size: u64,
}

impl Progress {
    /// Takes one of the daemon's lines in.
    pub fn push(&mut self, line: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&line.id, &line.status) else { return };
        let layer = self.layers.entry(id.clone()).or_default();
        let detail = line.progress_detail.as_ref();
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        match status.as_str() {
            "Downloading" => {
                layer.here = number(detail.and_then(|detail| detail.current));
                layer.size = layer.size.max(number(detail.and_then(|detail| detail.total)));
            }
            "Verifying Checksum" | "Download complete" | "Extracting" | "Pull complete" => {
                layer.here = layer.size
            }
            _ => {}
        }
    }

    /// Bytes that are here, and bytes of the layers whose size is known.
    #[must_use]
    pub fn bytes(&self) -> (Bytes, Bytes) {
        let sum = |of: fn(&Layer) -> u64| Bytes(self.layers.values().map(of).sum());
        (sum(|layer| layer.here), sum(|layer| layer.size))
    }

    /// The same for people.
    #[must_use]
    pub fn sentence(&self, image: &str) -> String {
        let (here, all) = self.bytes();
        format!("pulling {image}: {} of {} MiB", here.0 >> 20, all.0.div_ceil(1 << 20))
    }
}

/// Makes sure that an image is there, with the owner's login where the registry has one; gives its id. What is pulled is noted in the data directory; `progress` hears of every step of a pull.
///
/// # Errors
/// It cannot be had, is not what its digest says, or declares volumes.
pub async fn fetch(
    docker: &Docker,
    image: &ContainerImage,
    logins: Option<&Path>,
    data_dir: &Path,
    progress: impl FnMut(&Progress),
) -> Result<String, DockerError> {
    let found = match docker.inspect_image(&image.image).await {
        Ok(found) => found,
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            kept::note(data_dir, &image.image)
                .map_err(|error| DockerError::Refused(format!("{}: {error}", data_dir.display())))?;
            let login = match logins {
                Some(file) => login::find(file, &image.image).await,
                None => None,
            };
            let wanted = CreateImageOptionsBuilder::default().from_image(&image.image).build();
            let lines = docker.create_image(Some(wanted), None, login);
            follow(&image.image, lines, SILENCE, progress).await?;
            docker.inspect_image(&image.image).await.map_err(|error| explain(&image.image, &error))?
        }
        Err(error) => return Err(explain(&image.image, &error)),
    };
    judge(image, found)
}

/// Hears a pull out. Dropping the lines ends it at the daemon, too.
async fn follow(
    image: &str,
    lines: impl Stream<Item = Result<CreateImageInfo, Error>>,
    silence: Duration,
    mut progress: impl FnMut(&Progress),
) -> Result<(), DockerError> {
    let mut lines = std::pin::pin!(lines);
    let mut so_far = Progress::default();
    progress(&so_far);
    loop {
        let line = tokio::time::timeout(silence, lines.next()).await.map_err(|_| {
            DockerError::Away(format!("the pull of {image} said nothing for {} s", silence.as_secs()))
        })?;
        let Some(line) = line else { return Ok(()) };
        so_far.push(&line.map_err(|error| explain(image, &error))?);
        progress(&so_far);
    }
}

/// The id of an image that is what the catalogue says, and harmless.
fn judge(image: &ContainerImage, found: ImageInspect) -> Result<String, DockerError> {
    let digests = found.repo_digests.unwrap_or_default();
    if !digests.iter().any(|known| known.split_once('@').is_some_and(|(_, digest)| digest == image.digest()))
    {
        return Err(DockerError::WrongDigest {
            image: image.image.clone(),
            said: format!("Docker knows {digests:?}"),
        });
    }
    let volumes = found.config.and_then(|config| config.volumes).unwrap_or_default();
    if !volumes.is_empty() {
        return Err(DockerError::Volumes { image: image.image.clone(), volumes: volumes.join(", ") });
    }
    found.id.ok_or_else(|| DockerError::Refused("an image without an id".to_owned()))
}

#[cfg(test)]
mod tests {
    use bollard::models::{ImageConfig, ProgressDetail};

    use super::*;

    fn line(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
            ..CreateImageInfo::default()
        }
    }

    #[tokio::test]
    async fn a_pull_that_falls_silent_is_given_up() {
        let said = || futures_util::stream::iter([Ok(line("a", "Downloading", 3 << 20, 8 << 20))]);
        let mut seen = Vec::new();
        let silence = Duration::from_millis(50);
        let silent = said().chain(futures_util::stream::pending());
        let error = follow("r/i", silent, silence, |at| seen.push(at.bytes().0)).await.unwrap_err();
        assert!(matches!(&error, DockerError::Away(why) if why.contains("r/i said nothing")), "{error}");
        assert_eq!(seen, [Bytes(0), Bytes(3 << 20)]);
        follow("r/i", said(), silence, |_| {}).await.unwrap();
    }

    #[test]
    fn progress_counts_each_layer_once() {
        let mut progress = Progress::default();
        progress.push(&CreateImageInfo { status: Some("Digest: x".into()), ..CreateImageInfo::default() });
        for (line, here, all) in [
            (line("a", "Pulling fs layer", 0, 0), 0, 0),
            (line("a", "Downloading", 3 << 20, 8 << 20), 3, 8),
            (line("b", "Downloading", 1 << 20, 4 << 20), 4, 12),
            (line("a", "Verifying Checksum", 0, 0), 9, 12),
            // Counted in unpacked bytes: that is another number.
            (line("a", "Extracting", 1 << 20, 30 << 20), 9, 12),
            (line("a", "Pull complete", 0, 0), 9, 12),
            (line("c", "Already exists", 0, 0), 9, 12),
        ] {
            progress.push(&line);
            assert_eq!(progress.bytes(), (Bytes(here << 20), Bytes(all << 20)), "{line:?}");
        }
        assert_eq!(progress.sentence("r/i@sha256:0"), "pulling r/i@sha256:0: 9 of 12 MiB");
    }

    #[test]
    fn an_image_under_another_digest_or_with_volumes_is_not_used() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let image: ContainerImage = serde_json::from_value(serde_json::json!({
            "image": format!("docker.io/a/b@{digest}"), "command": ["/e", "{socket}"], "pids": 1, "tmp": 0, "shared_memory": 0,
        }))
        .unwrap();
        let found = |digest: &str, volumes: &[&str]| ImageInspect {
            id: Some("sha256:id".into()),
            // Docker leaves its own hub's name out.
            repo_digests: Some(vec![format!("a/b@{digest}")]),
            config: Some(ImageConfig {
                volumes: Some(volumes.iter().map(|&path| path.to_owned()).collect()),
                ..ImageConfig::default()
            }),
            ..ImageInspect::default()
        };
        assert_eq!(judge(&image, found(&digest, &[])).as_deref(), Ok("sha256:id"));
        let other = judge(&image, found(&digest.replace('0', "1"), &[]));
        assert!(matches!(other, Err(DockerError::WrongDigest { .. })), "{other:?}");
        let volumes = judge(&image, found(&digest, &["/data"])).unwrap_err().to_string();
        assert!(volumes.contains("/data"), "{volumes}");
    }
}
