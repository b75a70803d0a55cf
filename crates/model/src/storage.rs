//! Storages of an environment: shares that outlive replicas.

use serde::{Deserialize, Serialize};

use crate::ResourceId;

/// `managedEnvironments/storages`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentStorage {
    /// Its id; templates name it by the last part.
    pub id: ResourceId,
    /// Where it is.
    pub share: Share,
    /// Mounted read-only.
    pub is_read_only: bool,
}

/// Where a storage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Share {
    /// SMB share of a storage account; the account key is the secret `account-key` of the resource.
    AzureFile {
        /// Account name.
        account: String,
        /// Share name.
        share: String,
    },
    /// NFS share.
    NfsAzureFile {
        /// Server host.
        server: String,
        /// Exported path, begins with `/`.
        share: String,
    },
}

/// Kind and options of a volume on a storage, as a template gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageVolume {
    /// Name of the environment's storage.
    pub storage: String,
    /// Whether the template said `NfsAzureFile`.
    pub is_nfs: bool,
    /// `mountOptions`, comma-separated; empty when none.
    pub options: String,
}
