//! Where requests bring their sound and pictures: as many are taken apart at a time as there are processors, and addresses
//! of pictures are fetched through the guard.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_egress::fetch::FetchError;
use cxmpute_egress::{Connector, Fetcher, Limits, Policy, Wanted};
use cxmpute_market::picture::Detail;
use cxmpute_runtime::Clock;
use tokio::sync::Semaphore;

use super::unpack::unpack;
use super::{Ffmpeg, FrameError, Packer, Picture, PictureError, Sound, SoundError, View};
use crate::config::Config;
use crate::limits;

/// How the gateway calls itself when it fetches a picture.
const AGENT: &str = concat!("cxmpute/", env!("CARGO_PKG_VERSION"), " (pictures of a request)");
/// Media types of pictures that are fetched. What is declared counts for nothing more than this.
const TYPES: [&str; 5] = ["image/png", "image/jpeg", "image/webp", "image/gif", "application/octet-stream"];

/// Takes media apart. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Desk {
    /// Packs speech.
    pub packer: Packer,
    ffmpeg: Option<Ffmpeg>,
    fetcher: Fetcher,
    places: Arc<Semaphore>,
}

/// Why a request's picture cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoPicture {
    /// It was not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The site answered with this status.
    #[error("the site answers with status {0}")]
    Status(u16),
    /// It is none.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

impl Desk {
    /// A desk with the configured guard and encoder.
    #[must_use]
    pub fn new(config: &Config, clock: &Clock) -> Self {
        let mut own = vec![config.server.bind];
        own.extend(config.metrics.address().ok().flatten());
        let policy = Policy { allowed: config.media.allow.clone(), own, ..Policy::default() };
        let bounds = Limits { decoded_bytes: limits::IMAGE_BYTES, ..Limits::default() };
        let places = std::thread::available_parallelism().map_or(1, usize::from);
        let ffmpeg = Ffmpeg::find(config.media.ffmpeg.as_deref(), &config.store.data_dir);
        Self {
            packer: Packer::new(ffmpeg.clone()),
            ffmpeg,
            fetcher: Fetcher::new(Connector::new(policy), bounds, AGENT, clock.clone()),
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Decodes a recording.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn sound(&self, file: Bytes, longest: Duration) -> Result<Sound, SoundError> {
        let same = file.clone();
        let decoded =
            self.work(move || Sound::decode(same, longest)).await.unwrap_or(Err(SoundError::Broken));
        match (&self.ffmpeg, decoded) {
            (Some(ffmpeg), Err(SoundError::Unknown)) => {
                let _place = self.places.acquire().await.map_err(|_| SoundError::Broken)?;
                unpack(ffmpeg, &file, longest).await
            }
            (_, decoded) => decoded,
        }
    }

    /// Decodes a picture.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn picture(&self, file: Bytes) -> Result<Picture, PictureError> {
        self.work(move || Picture::decode(&file)).await.unwrap_or(Err(PictureError::Broken))
    }

    /// Works on a picture of a node.
    ///
    /// # Errors
    /// As the work itself says.
    pub async fn frame(
        &self,
        work: impl FnOnce() -> Result<Bytes, FrameError> + Send + 'static,
    ) -> Result<Bytes, FrameError> {
        self.work(work).await.unwrap_or(Err(FrameError::Broken))
    }

    /// Fetches and decodes a picture.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn fetch(&self, url: &str) -> Result<Picture, NoPicture> {
        let file = self.get(url).await?;
        Ok(self.picture(file).await?)
    }

    /// Makes of a picture what a model gets.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn view(&self, file: Bytes, detail: Detail) -> Result<View, PictureError> {
        self.work(move || View::of(&file, detail)).await.unwrap_or(Err(PictureError::Broken))
    }

    /// Reads the file of a picture and makes of it what a model gets, both where a processor is free; none when nothing was
    /// read.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn view_of(
        &self,
        read: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
        detail: Detail,
    ) -> Result<Option<View>, PictureError> {
        let work = move || read().map(|file| View::of(&file, detail)).transpose();
        self.work(work).await.unwrap_or(Err(PictureError::Broken))
    }

    /// Fetches a picture and makes of it what a model gets.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn fetch_view(&self, url: &str, detail: Detail) -> Result<View, NoPicture> {
        let file = self.get(url).await?;
        Ok(self.view(file, detail).await?)
    }

    /// Fetches the file of a picture.
    async fn get(&self, url: &str) -> Result<Bytes, NoPicture> {
        let wanted = Wanted {
            accept: "image/png, image/jpeg, image/webp, image/gif".to_owned(),
            types: TYPES.iter().map(|&name| name.to_owned()).collect(),
            ..Wanted::default()
        };
        let page = self.fetcher.get(url, &wanted).await?;
        if !page.status.is_success() {
            return Err(NoPicture::Status(page.status.as_u16()));
        }
        Ok(page.body)
    }

    /// Runs work of a processor when one is free; none when it panicked.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.ok()
    }
}
