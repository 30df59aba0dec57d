//! One file from its sources: one after the other, each asked again while it brings something, until the whole has the sum
//! that the plan names.

use std::time::Duration;

use cxmpute_runtime::{Backoff, random};
use cxmpute_wire::control::ServiceState;

use super::client::{Client, STALL_BYTES, Trouble};
use super::delivery::{Bar, Inner, Report, Wanted};
use super::error::DeliveryError;
use super::format;
use super::partial::{Claim, Partial};
use super::shelf::Lease;
use super::source::Source;

/// First wait before a source is asked again; doubles up to the cap.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Longest wait before it is.
const AGAIN_CAP: Duration = Duration::from_secs(30);
/// Answers with next to nothing new after which the next source is asked.
const FRUITLESS: u32 = 4;
/// A source that was away is left alone for this time.
const AWAY: Duration = Duration::from_secs(60);
/// A source that does not have the file is left alone for this time.
const ABSENT: Duration = Duration::from_secs(600);
/// A source whose file is another one is left alone for this time.
const WRONG: Duration = Duration::from_secs(3600);
/// How often it is looked whether another service has brought the file.
const LOOK: Duration = Duration::from_millis(200);

impl Inner {
    /// Brings a file. Without a claim another service brings it: its end is waited for.
    pub(super) async fn obtain(
        &self,
        wanted: Wanted<'_>,
        claim: Option<Claim>,
        report: &Report,
    ) -> Result<Lease, DeliveryError> {
        let mut claim = claim;
        let claim = loop {
            if let Some(claim) = claim.take() {
                break claim;
            }
            if let Some(lease) = self.lease(wanted, report).await? {
                report.found(wanted.size);
                return Ok(lease);
            }
            tokio::time::sleep(LOOK).await;
            claim = Claim::take(&self.shelf.partial_folder(), wanted.digest, wanted.size, self.piece_bytes)
                .map_err(|error| self.disk_error(error, wanted.size))?;
        };
        // The other one may have been done in this very moment.
        if let Some(lease) = self.lease(wanted, report).await? {
            claim.discard()?;
            report.found(wanted.size);
            return Ok(lease);
        }
        let _slot = self.slots.acquire().await.map_err(std::io::Error::other)?;
        let telling = report.clone();
        let resume = move || claim.resume(|_| telling.say(ServiceState::Verifying));
        let resumed = tokio::task::spawn_blocking(resume).await.map_err(std::io::Error::other)?;
        let partial = resumed.map_err(|error| self.given_up(error, wanted))?;
        report.found(partial.at());
        self.ask_all(wanted, partial, report).await
    }

    async fn ask_all(
        &self,
        wanted: Wanted<'_>,
        mut partial: Partial,
        report: &Report,
    ) -> Result<Lease, DeliveryError> {
        let client = self
            .client
            .as_ref()
            .map_err(|why| DeliveryError::Unavailable { file: wanted.file.name.clone(), why: why.clone() })?;
        let sources = self.bases.sources(wanted.file, wanted.digest);
        if partial.at() == partial.size() {
            // An earlier run had all of it and did not come to publish it.
            if partial.digest() == wanted.digest {
                return self.publish(wanted, partial, &sources, report).await;
            }
            partial = self.restart(partial, wanted, report).await?;
        }
        loop {
            // Only where all of them have another file there is none to hope for.
            let (mut whys, mut wrong, mut again) = (Vec::new(), !sources.is_empty(), false);
            for source in &sources {
                if let Some(bar) = self.bar(wanted, source) {
                    wrong &= bar.wrong;
                    whys.push(format!("{}: {}", source.label(), bar.why));
                    continue;
                }
                let unmixed = self.unmixed.lock().contains(&wanted.digest);
                if unmixed && partial.sources().iter().any(|label| *label != source.label()) {
                    partial = self.restart(partial, wanted, report).await?;
                }
                let (back, ended) = self.ask_one(client, wanted, source, partial, report).await?;
                partial = back;
                if let Err(bar) = ended {
                    tracing::warn!(
                        file = wanted.file.name,
                        source = source.label(),
                        why = bar.why,
                        "a source failed"
                    );
                    if bar.wrong && partial.at() == partial.size() {
                        // It would have gone on: what is here is not the file, and leaves no byte to ask others for.
                        partial = self.restart(partial, wanted, report).await?;
                    }
                    wrong &= bar.wrong;
                    whys.push(format!("{}: {}", source.label(), bar.why));
                    self.bars.lock().insert((wanted.digest, source.url.clone()), bar);
                    continue;
                }
                let found = partial.digest();
                if found == wanted.digest {
                    return self.publish(wanted, partial, &sources, report).await;
                }
                let givers = partial.sources().clone();
                let why = format!("what it gave has the hash {found}, the catalogue pins {}", wanted.digest);
                tracing::warn!(file = wanted.file.name, sources = ?givers, why, "what came is deleted");
                partial = self.restart(partial, wanted, report).await?;
                if givers.len() > 1 && self.unmixed.lock().insert(wanted.digest) {
                    // Nobody can tell whose part was wrong; each has to give all of it now.
                    again = true;
                    break;
                }
                whys.push(format!("{}: {why}", source.label()));
                let until = self.clock.mono() + WRONG;
                self.bars.lock().insert((wanted.digest, source.url.clone()), Bar { until, why, wrong: true });
            }
            if again {
                continue;
            }
            let (file, why) = (wanted.file.name.clone(), whys.join("; "));
            if wrong {
                partial.discard()?;
                return Err(DeliveryError::Wrong { file, why });
            }
            return Err(DeliveryError::Unavailable { file, why });
        }
    }

    /// Asks one source until it has given everything or nothing more is to be hoped from it now.
    async fn ask_one(
        &self,
        client: &Client,
        wanted: Wanted<'_>,
        source: &Source,
        mut partial: Partial,
        report: &Report,
    ) -> Result<(Partial, Result<(), Bar>), DeliveryError> {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_CAP);
        let mut rng = random::rng();
        let bar =
            |span: Duration, why: String, wrong| Err(Bar { until: self.clock.mono() + span, why, wrong });
        let label = source.label();
        tracing::info!(
            file = wanted.file.name,
            source = label,
            from = partial.at(),
            of = wanted.size,
            "fetching"
        );
        report.asks(&label);
        loop {
            self.gate.opened().await;
            let before = partial.at();
            let came = |bytes| report.came(bytes, &label);
            let (back, ended) = client.fetch(source, wanted.digest, partial, &self.gate, came).await;
            let Some(back) = back else {
                let Err(Trouble::Disk(error)) = ended else {
                    return Err(DeliveryError::Disk(std::io::Error::other("a file was lost")));
                };
                return Err(self.disk_error(error, wanted.size));
            };
            partial = back;
            let (why, after) = match ended {
                Ok(()) => return Ok((partial, Ok(()))),
                Err(Trouble::Disk(error)) => return Err(self.disk_error(error, wanted.size)),
                Err(Trouble::Absent(why)) => return Ok((partial, bar(ABSENT, why, false))),
                Err(Trouble::Wrong(why)) => return Ok((partial, bar(WRONG, why, true))),
                Err(Trouble::Held) => {
                    tracing::info!(
                        file = wanted.file.name,
                        at = partial.at(),
                        "held: the owner lets nothing come now"
                    );
                    continue;
                }
                Err(Trouble::Away(why, after)) => (why, after),
            };
            if partial.at() - before >= STALL_BYTES {
                backoff.reset();
            }
            if backoff.tries() >= FRUITLESS {
                return Ok((partial, bar(AWAY, why, false)));
            }
            let wait = backoff.next(&mut rng).max(after.unwrap_or_default());
            tracing::info!(file = wanted.file.name, source = label, at = partial.at(), why, "asked again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn restart(
        &self,
        partial: Partial,
        wanted: Wanted<'_>,
        report: &Report,
    ) -> Result<Partial, DeliveryError> {
        report.lost(partial.at());
        let begun = tokio::task::spawn_blocking(move || partial.restart()).await;
        begun.map_err(std::io::Error::other)?.map_err(|error| self.given_up(error, wanted))
    }

    /// What a disk that failed before the first byte means. Where it is full, what is there of the file goes.
    fn given_up(&self, error: std::io::Error, wanted: Wanted<'_>) -> DeliveryError {
        let error = self.disk_error(error, wanted.size);
        if matches!(error, DeliveryError::DiskLow { .. }) {
            let folder = self.shelf.partial_folder();
            // Where no place can be taken either, taking it has tidied up.
            if let Ok(Some(claim)) = Claim::take(&folder, wanted.digest, wanted.size, self.piece_bytes) {
                let _ = claim.discard();
            }
        }
        error
    }

    /// Looks at what came and puts it among the blobs.
    async fn publish(
        &self,
        wanted: Wanted<'_>,
        partial: Partial,
        sources: &[Source],
        report: &Report,
    ) -> Result<Lease, DeliveryError> {
        report.say(ServiceState::Verifying);
        let (shelf, name, digest, now) =
            (self.shelf.clone(), wanted.file.name.clone(), wanted.digest, self.clock.now());
        let publishing = move || -> std::io::Result<Option<String>> {
            if let Err(error) = format::check(&name, &mut partial.reader()?) {
                partial.discard()?;
                return Ok(Some(error.to_string()));
            }
            shelf.publish(partial, digest, now).map(|()| None)
        };
        let published = tokio::task::spawn_blocking(publishing).await.map_err(std::io::Error::other)?;
        let refused = published.map_err(|error| self.disk_error(error, wanted.size))?;
        if let Some(why) = refused {
            // These bytes are what the catalogue pins; no other source has better ones.
            let until = self.clock.mono() + WRONG;
            let bar = |source: &Source| {
                ((digest, source.url.clone()), Bar { until, why: why.clone(), wrong: true })
            };
            self.bars.lock().extend(sources.iter().map(bar));
            return Err(DeliveryError::Format { file: wanted.file.name.clone(), why });
        }
        self.unmixed.lock().remove(&digest);
        self.hashes.note(&self.shelf.blob(digest), digest).await?;
        tracing::info!(file = wanted.file.name, blob = %digest, "fetched");
        let lease = self.lease(wanted, report).await?;
        lease.ok_or_else(|| DeliveryError::Disk(std::io::Error::other("a blob vanished")))
    }

    /// Refuses at once while no source of a file may be asked.
    pub(super) fn check_bars(&self, wanted: Wanted<'_>) -> Result<(), DeliveryError> {
        let sources = self.bases.sources(wanted.file, wanted.digest);
        let bars: Vec<(String, Option<Bar>)> =
            sources.iter().map(|source| (source.label(), self.bar(wanted, source))).collect();
        if bars.iter().any(|(_, bar)| bar.is_none()) {
            return Ok(());
        }
        let wrong = !bars.is_empty() && bars.iter().flat_map(|(_, bar)| bar).all(|bar| bar.wrong);
        let say = |(label, bar): (String, Option<Bar>)| {
            format!("{label}: {}", bar.map(|bar| bar.why).unwrap_or_default())
        };
        let whys: Vec<String> = bars.into_iter().map(say).collect();
        let (file, why) = (wanted.file.name.clone(), whys.join("; "));
        Err(if wrong { DeliveryError::Wrong { file, why } } else { DeliveryError::Unavailable { file, why } })
    }

    fn bar(&self, wanted: Wanted<'_>, source: &Source) -> Option<Bar> {
        let mut bars = self.bars.lock();
        let now = self.clock.mono();
        bars.retain(|_, bar| bar.until > now);
        bars.get(&(wanted.digest, source.url.clone())).cloned()
    }
}
