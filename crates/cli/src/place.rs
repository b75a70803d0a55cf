//! Where a server keeps its data and how clients find it.

use std::path::PathBuf;

use serde::Deserialize;

use crate::failure::Failure;

/// `--data-dir` of every command that needs it.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct DataDir {
    /// Folder of the server's state [default: /var/lib/cove as root, else $XDG_DATA_HOME/cove].
    #[arg(long = "data-dir", value_name = "DIR", env = "COVE_DATA_DIR", hide_env = true, global = true)]
    pub(crate) data_dir: Option<PathBuf>,
}

impl DataDir {
    /// The folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(cove_server::config::default_data_dir)
    }
}

/// How to reach a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) data_dir: DataDir,
    /// `--subscription`; the server's first one otherwise.
    pub(crate) subscription: Option<String>,
    /// `COVE_ENDPOINT`: the API's URL.
    pub(crate) endpoint: Option<String>,
    /// `COVE_CA`: certificate to trust.
    pub(crate) ca: Option<PathBuf>,
    /// `COVE_CLIENT_ID`.
    pub(crate) client_id: Option<String>,
    /// `COVE_CLIENT_SECRET`.
    pub(crate) client_secret: Option<String>,
    /// `--dry-run`.
    pub(crate) is_dry_run: bool,
    /// `--verbose`.
    pub(crate) is_verbose: bool,
}

/// What a server wrote into `endpoints.json`, as far as clients need it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Found {
    pub(crate) api: String,
    #[serde(default)]
    pub(crate) http: String,
    #[serde(default)]
    pub(crate) https: String,
    pub(crate) ca: PathBuf,
}

impl Place {
    /// Reads the environment.
    pub(crate) fn new(data_dir: DataDir, subscription: Option<String>) -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            data_dir,
            subscription,
            endpoint: text("COVE_ENDPOINT"),
            ca: text("COVE_CA").map(PathBuf::from),
            client_id: text("COVE_CLIENT_ID"),
            client_secret: text("COVE_CLIENT_SECRET"),
            is_dry_run: false,
            is_verbose: false,
        }
    }

    /// The server's addresses and certificate.
    pub(crate) fn find(&self) -> Result<Found, Failure> {
        let data_dir = self.data_dir.path();
        if let Some(api) = &self.endpoint {
            let ca = self.ca.clone().unwrap_or_else(|| data_dir.join("tls/ca.pem"));
            return Ok(Found {
                api: api.trim_end_matches('/').to_owned(),
                http: String::new(),
                https: String::new(),
                ca,
            });
        }
        let path = data_dir.join("endpoints.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let hint = "start one with: cove serve   (or name another with --data-dir, or COVE_ENDPOINT and COVE_CA)";
            Failure::new(format!("no server was found: `{}`: {error}", path.display())).hint(hint)
        })?;
        let found: Found = serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("`{}` is not as a server writes it: {error}", path.display())))?;
        let ca = self.ca.clone().unwrap_or(found.ca);
        Ok(Found { api: found.api.trim_end_matches('/').to_owned(), ca, ..found })
    }
}
