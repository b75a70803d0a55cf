//! `containerapp env storage`: storages that apps of the environment mount.

use reqwest::Method;
use serde_json::{Value, json};

use super::EnvironmentRef;
use crate::{
    client::{Wait, encode},
    failure::Failure,
    output::View,
    session::Session,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum StorageCommand {
    /// List storages.
    List(EnvironmentRef),
    /// Show a storage.
    Show(StorageRef),
    /// Add a storage or change it.
    Set(Box<SetArgs>),
    /// Remove a storage.
    Remove {
        #[command(flatten)]
        storage: StorageRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StorageRef {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Name of the storage.
    #[arg(long)]
    storage_name: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    storage: StorageRef,
    /// azurefile or nfsazurefile.
    #[arg(long, default_value = "azurefile", ignore_case = true, value_parser = ["azurefile", "nfsazurefile"])]
    storage_type: String,
    /// Storage account.
    #[arg(short = 'a', long, alias = "account-name", value_name = "NAME")]
    azure_file_account_name: Option<String>,
    /// Key of the storage account.
    #[arg(short = 'k', long, alias = "storage-account-key", value_name = "KEY")]
    azure_file_account_key: Option<String>,
    /// File share; for nfsazurefile its path on the server, such as /account/share.
    #[arg(short = 'f', long, alias = "file-share", value_name = "SHARE")]
    azure_file_share_name: String,
    /// NFS server, for nfsazurefile.
    #[arg(long, value_name = "HOST")]
    server: Option<String>,
    /// ReadWrite or ReadOnly.
    #[arg(long, ignore_case = true, value_parser = ["ReadWrite", "ReadOnly"])]
    access_mode: String,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

impl StorageRef {
    fn path(&self, session: &Session) -> String {
        format!("{}/storages/{}", self.environment.path(session), encode(&self.storage_name))
    }
}

pub(super) async fn run(session: &Session, command: StorageCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        StorageCommand::List(environment) => {
            session.print(client.list(&format!("{}/storages", environment.path(session))).await?, View::Storages)
        }
        StorageCommand::Show(storage) => session.print(client.get(&storage.path(session)).await?, View::Storages),
        StorageCommand::Set(args) => {
            let path = args.storage.path(session);
            let body = body(&args)?;
            let wait = Wait::unless(args.no_wait);
            session.print(client.write(Method::PUT, &path, Some(&body), wait).await?, View::Storages)
        }
        StorageCommand::Remove { storage, yes } => {
            session.confirm(&format!("Remove the storage `{}`?", storage.storage_name), yes)?;
            let path = storage.path(session);
            client.get(&path).await?;
            client.delete(&path, Wait::Done).await
        }
    }
}

fn body(args: &SetArgs) -> Result<Value, Failure> {
    if args.storage_type == "nfsazurefile" {
        let server = args.server.as_ref().ok_or_else(|| {
            Failure::usage("an NFS storage needs a server").hint("add --server, such as account.file.core.windows.net")
        })?;
        return Ok(json!({ "properties": { "nfsAzureFile": { "server": server,
            "shareName": args.azure_file_share_name, "accessMode": args.access_mode } } }));
    }
    let (Some(account), Some(key)) = (&args.azure_file_account_name, &args.azure_file_account_key) else {
        return Err(Failure::usage("a storage needs an account and its key")
            .hint("add --azure-file-account-name and --azure-file-account-key"));
    };
    for (what, text) in
        [("--azure-file-share-name", &args.azure_file_share_name), ("--azure-file-account-name", account)]
    {
        if text.len() < 3 {
            return Err(Failure::usage(format!("{what}: `{text}` is too short")).hint("three characters or more"));
        }
    }
    Ok(json!({ "properties": { "azureFile": { "accountName": account, "accountKey": key,
        "shareName": args.azure_file_share_name, "accessMode": args.access_mode } } }))
}
