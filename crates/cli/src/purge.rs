//! `cove purge`: ends everything that a data directory owns and deletes it.
//!
//! Replicas outlive their server on purpose; this is the way to end them for good.
//!
//! **Invariant:** nothing is deleted that a server did not make.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;
use cove_images::{ImageStore, StoreConfig};
use cove_network::Network;
use cove_runtime::Runtime as _;
use cove_runtime_oci::{OciConfig, OciRuntime};
use cove_store::Store;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    failure::Failure,
    place::DataDir,
    session::{block_on, confirm},
    text,
};

/// Grace of a replica between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Longest wait for all replicas to end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// What a server makes in its data directory.
const ENTRIES: [&str; 26] = [
    "az",
    "auth-sessions",
    "console",
    "executions",
    "cove.db",
    "cove.db-shm",
    "cove.db-wal",
    "clock.json",
    "clock.json.tmp",
    "decisions",
    "disks",
    "endpoints.json",
    "endpoints.json.tmp",
    "handover.sock",
    "images",
    "logs",
    "network",
    "rehearsals",
    "replicas",
    "secrets.key",
    "secrets.key.tmp",
    "shares",
    "sandboxes",
    "snapshots",
    "tls",
    "cove.lock",
];

#[derive(Debug, clap::Args)]
pub(crate) struct PurgeArgs {
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: &PurgeArgs, data_dir: &DataDir) -> Result<(), Failure> {
    let dir = data_dir.path();
    if !dir.join("cove.db").exists() {
        return Err(Failure::not_found(format!("`{}` is not the data directory of a server", dir.display()))
            .hint("name it with --data-dir"));
    }
    confirm(&format!("End every replica of `{}` and delete all its data?", dir.display()), args.yes)?;
    block_on(async { Ok(everything(&dir).await?) })?;
    text::err(&format!("`{}` is gone", dir.display()));
    Ok(())
}

/// Ends the replicas, removes the network, deletes the files.
pub(crate) async fn everything(dir: &Path) -> anyhow::Result<()> {
    cove_server::install_crypto();
    let lock = Store::lock(dir).context("a server may be running: stop it first, with SIGTERM")?;
    let network = cove_server::network_config(dir)?;
    end_replicas(dir, &network).await?;
    let data_dir = camino::Utf8Path::from_path(dir).context("the data directory's name is not UTF-8")?;
    cove_runtime_oci::SharesConfig::new(data_dir).unmount_all().context("failed to unmount the shares")?;
    Network::purge_leftovers(&network).context("failed to remove the network of the replicas")?;
    drop(lock);
    for entry in ENTRIES {
        let path = dir.join(entry);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to delete `{}`", path.display()));
            }
            _ => {}
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            bail!("`{}` holds files that no server made; they stay", dir.display())
        }
        done => done.with_context(|| format!("failed to delete `{}`", dir.display())),
    }
}

async fn end_replicas(dir: &Path, config: &cove_network::NetworkConfig) -> anyhow::Result<()> {
    let path = |name: &str| {
        Utf8PathBuf::from_path_buf(dir.join(name)).map_err(|path| anyhow::anyhow!("`{}` is not UTF-8", path.display()))
    };
    let mut network_config = config.clone();
    network_config.pool_size = 0;
    let network = Network::open(network_config).await.context("failed to open the network of the replicas")?;
    let images = ImageStore::open(&path("images")?, StoreConfig::default()).context("failed to open the images")?;
    let oci = OciConfig::new(path("replicas")?, path("console")?, config.name.clone());
    let (events, mut seen) = mpsc::channel(64);
    let drain = tokio::spawn(async move { while seen.recv().await.is_some() {} });
    let runtime =
        OciRuntime::open(oci, images, network.clone(), events).await.context("failed to find the replicas")?;
    let board = runtime.observations();
    let mut changes = board.subscribe();
    let ended = timeout(END_LIMIT, async {
        loop {
            let replicas: Vec<_> = board.snapshot().into_iter().flat_map(|(_, replicas)| replicas.to_vec()).collect();
            if replicas.is_empty() {
                return;
            }
            for replica in replicas {
                runtime.stop(&replica.name, GRACE);
                runtime.remove(&replica.name);
            }
            changes.next().await;
        }
    });
    if ended.await.is_err() {
        bail!("some replicas did not end within {} s", END_LIMIT.as_secs());
    }
    drop(changes);
    drop(runtime);
    drain.abort();
    network.close().await;
    Ok(())
}
