//! `cxmpute serve`.

use cxmpute_runtime::lifecycle;
use serde::Serialize;

use super::Output;
use crate::app::{App, Listeners, Parts, serve};
use crate::config::{Config, Tls};

/// What is said once the gateway listens.
#[derive(Serialize)]
struct Started {
    base_url: String,
    metrics_url: Option<String>,
    pid: u32,
}

/// Runs the gateway until a signal.
pub fn run(config: Config, output: &Output) -> anyhow::Result<()> {
    use_small_pages();
    let workers = match config.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    // One worker needs no scheduler that hands tasks from thread to thread, and does not pay for its wake-ups.
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // Counting and file work; each thread costs memory, and more of them would only queue for the same cores.
    builder
        .worker_threads(workers)
        .max_blocking_threads(workers.max(2) * 4)
        .thread_name("cxmpute")
        .enable_all();
    builder.build()?.block_on(listen(config, output))
}

/// Thousands of streams each have a little memory at different places: in pages of 2 MiB they would take a third more
/// than they use, and the process would never give it back.
fn use_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "the system keeps its large pages");
    }
}

async fn listen(config: Config, output: &Output) -> anyhow::Result<()> {
    // Sockets first: a taken port is found before anything is written.
    let listeners = Listeners::bind(&config).await?;
    let app = App::build(config, parts()?).await?;
    lifecycle::signals(&app.tasks)?;
    announce(&app, &listeners, output)?;
    serve(app.clone(), listeners).await;
    #[cfg(feature = "sabotage")]
    if app.sabotage == Some(crate::sabotage::Sabotage::ImmediateExit) {
        return Ok(());
    }
    app.stop().await;
    Ok(())
}

/// System clock and fresh tasks; with the feature `sabotage`, also the variant that a gate asked for.
pub(super) fn parts() -> anyhow::Result<Parts> {
    #[cfg(feature = "sabotage")]
    if let Some(name) = cxmpute_runtime::config::env_var("CXMPUTE_SABOTAGE") {
        let sabotage = crate::sabotage::Sabotage::from_name(&name);
        let sabotage =
            sabotage.ok_or_else(|| anyhow::anyhow!("CXMPUTE_SABOTAGE is {name}, which is no variant."))?;
        return Ok(Parts { sabotage: Some(sabotage), ..Parts::default() });
    }
    Ok(Parts::default())
}

fn announce(app: &App, listeners: &Listeners, output: &Output) -> anyhow::Result<()> {
    let base_url = base_url(app, listeners)?;
    let metrics = listeners.metrics.as_ref().map(|listener| listener.local_addr()).transpose()?;
    let started = Started {
        metrics_url: metrics.map(|address| format!("http://{address}/metrics")),
        pid: std::process::id(),
        base_url,
    };
    output.show(&started, format_args!("cxmpute listens at {}", started.base_url))
}

/// The address for clients on this machine.
pub(super) fn base_url(app: &App, listeners: &Listeners) -> anyhow::Result<String> {
    let scheme = if app.config.server.tls == Tls::Off { "http" } else { "https" };
    Ok(format!("{scheme}://{}/api/v1", listeners.address()?))
}
