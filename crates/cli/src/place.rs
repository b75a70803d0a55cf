//! Where a server keeps its data and how clients find it.

use std::path::PathBuf;

/// `--data-dir` of every command that needs it.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct DataDir {
    /// Folder of the server's state [default: /var/lib/cove as root, else $XDG_DATA_HOME/cove].
    #[arg(long = "data-dir", value_name = "DIR", env = "COVE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl DataDir {
    /// The folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(cove_server::config::default_data_dir)
    }
}
