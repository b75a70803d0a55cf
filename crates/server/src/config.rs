//! Configuration of the server: `cove.toml`, then `COVE_<SECTION>__<KEY>` of the environment, then flags.
//!
//! Unknown keys are errors. Durations are written `"90s"`, sizes `"64MiB"`.
//!
//! **Invariant:** this is the only place that reads the environment and the configuration file.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use camino::{Utf8Path, Utf8PathBuf};
use cove_model::AccessLog;
use cove_runtime_oci::{ShareBinding, ShareTarget, SharesConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// More threads than this serve nobody better.
const THREADS_MAX: usize = 256;

/// Everything that can be set.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[api]`
    pub api: ApiConfig,
    /// `[ingress]`
    pub ingress: IngressSection,
    /// `[runtime]`
    pub runtime: RuntimeConfig,
    /// `[registries]`
    pub registries: RegistriesConfig,
    /// `[logs]`
    pub logs: LogsConfig,
    /// `[storage]`
    pub storage: StorageSection,
    /// `[controller]`
    pub controller: ControllerSection,
    /// `[capacity]`
    pub capacity: CapacitySection,
    /// `[sessions]`
    pub sessions: crate::sessions::SessionsSection,
    /// `[scalers]`
    pub scalers: ScalersSection,
    /// `[acme]`
    pub acme: AcmeSection,
    /// `[autoscaler]`: timings of every revision; see the scaling page of the guide.
    pub autoscaler: cove_autoscaler::Config,
}

/// `[scalers]`: the event sources of scale rules.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScalersSection {
    /// PEM files with certificates that sign those of event sources, besides the system's. Read when the server starts.
    /// Default none.
    pub ca_certificates: Vec<Utf8PathBuf>,
}

impl ScalersSection {
    /// The certificates of the files.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate.
    pub(crate) fn roots(&self) -> anyhow::Result<cove_scalers::Roots> {
        let mut texts = Vec::new();
        for path in &self.ca_certificates {
            let text = std::fs::read_to_string(path);
            texts
                .push(text.with_context(|| format!("`scalers.ca_certificates` names `{path}`, which cannot be read"))?);
        }
        cove_scalers::Roots::from_pem(&texts)
            .context("a file of `scalers.ca_certificates` holds no certificate in PEM form")
    }
}

/// `[acme]`: managed certificates from an authority outside; without it the server's own authority signs them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AcmeSection {
    /// Address of the authority's directory, https. Default none: the server's own authority signs.
    pub directory: Option<String>,
    /// Where the authority may write to, `mailto:…`. Default none.
    pub contact: Vec<String>,
    /// You agree to the authority's terms of service; must be `true` where `directory` is set.
    pub terms_agreed: bool,
    /// PEM file with the certificates that sign the directory's own, instead of the system's. Default none.
    pub root: Option<Utf8PathBuf>,
    /// How long before its end a certificate is ordered anew, at most a third of its life. Default `"720h"`.
    pub renew_before: HumanDuration,
    /// Kind of the certificates' keys: `p256` (default) or `p384`.
    pub key: AcmeKey,
    /// Account at the authority that was made elsewhere, `{ key_id, hmac_key }`. Default none.
    pub external_account: Option<ExternalAccountConfig>,
    /// Resolver that is asked for TXT records, `address:port`. Default: the machine's first.
    pub resolver: Option<SocketAddr>,
}

/// Kind of a certificate's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AcmeKey {
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
}

impl AcmeKey {
    /// The algorithm that makes it.
    pub(crate) fn algorithm(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }
}

/// An account at an authority that was made elsewhere (RFC 8555, 7.3.4).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccountConfig {
    /// Its name.
    pub key_id: String,
    /// Its key, base64url.
    pub hmac_key: String,
}

impl ExternalAccountConfig {
    /// The key's bytes.
    ///
    /// # Errors
    /// When it is not base64url.
    pub(crate) fn key(&self) -> anyhow::Result<Vec<u8>> {
        let text = self.hmac_key.trim().trim_end_matches('=');
        URL_SAFE_NO_PAD.decode(text).context("`acme.external_account.hmac_key` is not base64url")
    }
}

impl AcmeSection {
    fn check(&self) -> anyhow::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        if !directory.starts_with("https://") {
            bail!("`acme.directory` is `{directory}`; use an address that begins with https://");
        }
        if !self.terms_agreed {
            bail!("`acme.directory` needs `acme.terms_agreed = true`: read the authority's terms of service first");
        }
        if let Some(contact) = self.contact.iter().find(|contact| !contact.starts_with("mailto:")) {
            bail!("`acme.contact` names `{contact}`; write it as `mailto:name@example.com`");
        }
        self.external_account.as_ref().map_or(Ok(()), |external| external.key().map(drop))
    }
}

impl Default for AcmeSection {
    fn default() -> Self {
        Self {
            directory: None,
            contact: Vec::new(),
            terms_agreed: false,
            root: None,
            renew_before: HumanDuration(Duration::from_secs(30 * 24 * 3600)),
            key: AcmeKey::default(),
            external_account: None,
            resolver: None,
        }
    }
}

/// `[api]`: the ARM API, login and metadata.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Address of the API over TLS. Default `127.0.0.1:8443`; port 0 takes any free one.
    pub bind: SocketAddr,
    /// Further names in the API's certificate, for clients on other machines. Default none.
    pub host_names: Vec<String>,
    /// Seconds that clients wait between two polls of an operation. Default `1`.
    pub retry_after: u32,
    /// Who may log in; needed when `bind` is not a loopback address. Default none: anybody on this machine.
    pub clients: Vec<ClientConfig>,
}

/// A service principal of this server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Application id, as in `az login --service-principal -u`.
    pub client_id: String,
    /// Its secret.
    pub secret: String,
}

/// `[ingress]`: the way to the apps.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngressSection {
    /// Plain HTTP. Default `127.0.0.1:8080`.
    pub http: SocketAddr,
    /// HTTPS. Default `127.0.0.1:8444`.
    pub https: SocketAddr,
    /// Suffix of environments' domains: apps are `<app>.<environment>.<domain>`. Default `localhost`.
    pub domain: String,
    /// Longest time from a request's head to its response's, waking included. Default `"240s"`, Azure's.
    pub request_timeout: HumanDuration,
    /// Longest silence inside an answer. Default `"240s"`; then it is cut.
    pub idle_timeout: HumanDuration,
    /// Size of a request's body, where the app does not say one; then 413. Default `"0"`: any.
    pub request_body_max: HumanSize,
    /// Most of a request's body that is kept for another try, where the app has a retry policy; a longer body is not retried.
    /// Default `"64KiB"`; `"0"`: nothing is kept.
    pub retry_body_max: HumanSize,
    /// The same over all requests at once. Default `"64MiB"`; beyond it bodies are not kept.
    pub retry_bodies_max: HumanSize,
    /// Requests held at once over all apps; more are answered 503. Default `10000`.
    pub held_requests_max: usize,
    /// Requests held at once for one revision. Default `1000`.
    pub held_per_revision_max: usize,
    /// Redirect plain HTTP of apps without `allowInsecure` to HTTPS, as Azure does. Default `false`.
    pub redirect_http: bool,
    /// Longest silence of a connection to an app with `transport: tcp`. Default `"240s"`; then it is closed.
    pub tcp_idle_timeout: HumanDuration,
    /// How long open connections may go on when the server stops or another one takes over. Default `"30s"`.
    pub drain_grace: HumanDuration,
    /// Peers that begin every connection with a PROXY protocol header, such as a load balancer: networks, `10.0.0.0/8`.
    /// Default none.
    pub proxy_protocol_peers: Vec<ipnet::IpNet>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` headers are believed and added to, such as a proxy in front: networks.
    /// Default none: what a client writes there is dropped.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// Threads that serve connections to apps. Default `0`: one per core.
    pub threads: usize,
}

impl IngressSection {
    /// Threads that serve connections.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads.min(THREADS_MAX),
        }
    }
}

/// `[runtime]`: replicas on this machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Memory for created-not-started slots of apps at zero. Default `"512MiB"`; `"0"` turns slots off.
    pub slot_memory: HumanSize,
    /// Network namespaces kept ready. Default `16`.
    pub network_pool: usize,
    /// Registries that are spoken to without TLS, `host:port`. Loopback ones always are. Default none.
    pub insecure_registries: Vec<String>,
}

/// `[registries]`: where images come from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// Registries whose images are found at another host, `"example.azurecr.io" = "cove.local"`; `cove.local` is the
    /// embedded registry. Default none. Logins are not sent to a mirror.
    pub mirrors: BTreeMap<String, String>,
}

/// `[logs]`: console and system logs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsConfig {
    /// Days that logs are kept, 1..=730. Default `30`, as a new Log Analytics workspace.
    pub retention_days: u16,
    /// Which requests get a row in the access log where their app does not say it: `all`, `errors`, `off`. Default `all`.
    pub http: AccessLog,
    /// Share of requests without an error that get a row, 0..=100. Default `100`.
    pub http_sample_percent: u8,
    /// Rows of one second at most; the rest is counted. Default `500`.
    pub http_rows_per_second_max: u32,
    /// Whether rows keep the query of the path, which may hold secrets. Default `false`.
    pub http_query: bool,
    /// Disk that the access log may take; the oldest rows go first. Default `"1GiB"`, at least 8 MiB are used.
    pub http_disk_max: HumanSize,
}

/// `[storage]`: where the shares of environments' storages are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// Shares are directories below it, `<account or server>/<share>`, made when first used. Default: `shares` in the data
    /// directory.
    pub root: Option<Utf8PathBuf>,
    /// Longest that mounting a share may take. Default `"30s"`.
    pub mount_limit: HumanDuration,
    /// Shares that are elsewhere. Default none.
    pub shares: Vec<ShareSection>,
}

/// One of `[[storage.shares]]`: a share that is another directory or a file system to be mounted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShareSection {
    /// Storage account, or server of an NFS share.
    pub account: String,
    /// Share name; of NFS the exported path.
    pub share: String,
    /// A directory of this machine, which must exist.
    pub directory: Option<Utf8PathBuf>,
    /// What to mount: `//host/share`, `host:/path`. Either this or `directory`.
    pub mount: Option<String>,
    /// Type of the file system to mount: `cifs`, `nfs4`, ….
    #[serde(default)]
    pub kind: String,
    /// Options of the mount. Default none.
    #[serde(default)]
    pub options: String,
}

impl StorageSection {
    /// As the driver takes it.
    #[must_use]
    pub fn shares(&self, data_dir: &Utf8Path) -> SharesConfig {
        let target = |share: &ShareSection| match (&share.directory, &share.mount) {
            (Some(directory), _) => ShareTarget::Directory(directory.clone()),
            (None, mount) => ShareTarget::Mount {
                source: mount.clone().unwrap_or_default(),
                kind: share.kind.clone(),
                options: share.options.clone(),
            },
        };
        let binding = |share: &ShareSection| ShareBinding {
            owner: share.account.clone(),
            share: share.share.clone(),
            target: target(share),
        };
        let default = SharesConfig::new(data_dir);
        SharesConfig {
            root: self.root.clone().unwrap_or(default.root),
            mounts: default.mounts,
            mount_limit: self.mount_limit.0,
            bindings: self.shares.iter().map(binding).collect(),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        for ShareSection { account, share, directory, mount, kind, .. } in &self.shares {
            let shown = format!("`[[storage.shares]]` of account `{account}`, share `{share}`");
            match (directory, mount) {
                (Some(directory), None) if directory.is_absolute() => {}
                (None, Some(_)) if !kind.is_empty() => {}
                (None, Some(_)) => bail!("{shown}: `kind` is missing, such as `cifs` or `nfs4`"),
                (Some(_), None) => bail!("{shown}: `directory` must be an absolute path"),
                _ => bail!("{shown}: give either `directory` or `mount`"),
            }
        }
        match &self.root {
            Some(root) if !root.is_absolute() => bail!("`storage.root` is `{root}`; use an absolute path"),
            _ => Ok(()),
        }
    }
}

impl Default for StorageSection {
    fn default() -> Self {
        Self { root: None, mount_limit: HumanDuration(Duration::from_secs(30)), shares: Vec::new() }
    }
}

/// `[controller]`: rollouts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControllerSection {
    /// How long a new revision may take to become ready before it has failed. Default `"10m"`.
    pub provisioning_deadline: HumanDuration,
    /// How long a replica that leaves may finish its open requests before SIGTERM. Default `"30s"`.
    pub drain_period: HumanDuration,
    /// How long a revision that just became ready keeps its first replicas, whatever is wanted. Default `"30s"`.
    pub fresh_hold: HumanDuration,
    /// How long an execution of a job that waits for room may be passed by others of its priority. Default `"5m"`.
    pub line_patience: HumanDuration,
}

/// `[capacity]`: what replicas may ask for together. What they ask for is a ceiling, not a reservation: most use a small
/// part of it, so more is given away than there is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacitySection {
    /// Cores that count as this machine's. Default `0`: as many as it has.
    pub cores: u32,
    /// Memory that counts as this machine's. Default `"0"`: as much as it has.
    pub memory: HumanSize,
    /// How many times over cores are given away, 1..=1000. Default `8`.
    pub cpu_overcommit: u32,
    /// How many times over memory is given away, 1..=1000. Default `4`.
    pub memory_overcommit: u32,
}

impl CapacitySection {
    /// What replicas may ask for together: the machine, or what is said of it here, given away several times over.
    pub(crate) fn amount(&self) -> cove_reconcile::Amount {
        let machine_cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = if self.cores == 0 { u32::try_from(machine_cores()).unwrap_or(1) } else { self.cores };
        let memory = match self.memory.0 {
            0 => nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total()),
            given => given,
        };
        cove_reconcile::Amount {
            cpu: cove_model::MilliCpu(cores.saturating_mul(1000).saturating_mul(self.cpu_overcommit)),
            memory: cove_model::Bytes(memory.saturating_mul(u64::from(self.memory_overcommit))),
        }
    }
}

impl Default for CapacitySection {
    fn default() -> Self {
        Self { cores: 0, memory: HumanSize(0), cpu_overcommit: 8, memory_overcommit: 4 }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { bind: loopback(8443), host_names: Vec::new(), retry_after: 1, clients: Vec::new() }
    }
}

impl Default for IngressSection {
    fn default() -> Self {
        Self {
            http: loopback(8080),
            https: loopback(8444),
            domain: "localhost".into(),
            request_timeout: HumanDuration(Duration::from_secs(240)),
            idle_timeout: HumanDuration(Duration::from_secs(240)),
            request_body_max: HumanSize(0),
            retry_body_max: HumanSize(64 << 10),
            retry_bodies_max: HumanSize(64 << 20),
            held_requests_max: 10_000,
            threads: 0,
            held_per_revision_max: 1000,
            redirect_http: false,
            tcp_idle_timeout: HumanDuration(Duration::from_secs(240)),
            drain_grace: HumanDuration(Duration::from_secs(30)),
            proxy_protocol_peers: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { slot_memory: HumanSize(512 << 20), network_pool: 16, insecure_registries: Vec::new() }
    }
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            retention_days: 30,
            http: AccessLog::All,
            http_sample_percent: 100,
            http_rows_per_second_max: 500,
            http_query: false,
            http_disk_max: HumanSize(1 << 30),
        }
    }
}

impl Default for ControllerSection {
    fn default() -> Self {
        Self {
            provisioning_deadline: HumanDuration(Duration::from_secs(600)),
            drain_period: HumanDuration(Duration::from_secs(30)),
            fresh_hold: HumanDuration(Duration::from_secs(30)),
            line_patience: HumanDuration(Duration::from_secs(300)),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A duration written as text: `"90s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

/// A size written as text: `"64MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanSize(pub u64);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        cove_base::parse_duration(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a duration such as \"90s\" or \"5m\"")))
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl<'de> Deserialize<'de> for HumanSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        cove_base::parse_size(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a size such as \"64MiB\"")))
    }
}

impl Serialize for HumanSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}B", self.0))
    }
}

impl Config {
    /// Reads a file (or none) and lays the environment's `COVE_…__…` variables over it.
    ///
    /// # Errors
    /// When the file cannot be read, has an unknown key, or a value does not fit; the message says which.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("failed to read the configuration `{}`", path.display()))?,
            None => String::new(),
        };
        Self::parse(&text, std::env::vars())
            .with_context(|| file.map_or_else(|| "configuration".to_owned(), |path| format!("in `{}`", path.display())))
    }

    fn parse(text: &str, variables: impl IntoIterator<Item = (String, String)>) -> anyhow::Result<Self> {
        let mut table: toml::Table = toml::from_str(text)?;
        for (name, value) in variables {
            let Some((section, key)) = name.strip_prefix("COVE_").and_then(|name| name.split_once("__")) else {
                continue;
            };
            let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
            let entry = table.entry(section).or_insert_with(|| toml::Table::new().into());
            let toml::Value::Table(section) = entry else { bail!("`{name}`: that section is not a table") };
            // numbers, booleans and lists as TOML writes them; everything else is text
            let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
            let value = parsed.and_then(|mut table| table.remove("value")).unwrap_or(toml::Value::String(value));
            section.insert(key, value);
        }
        let config: Self = table.try_into()?;
        config.check()?;
        Ok(config)
    }

    /// What no type can say.
    ///
    /// # Errors
    /// With the rule that is broken.
    pub fn check(&self) -> anyhow::Result<()> {
        if !is_loopback(self.api.bind.ip()) && self.api.clients.is_empty() {
            bail!(
                "the API would listen on {} for everybody: set `[[api.clients]]` with `client_id` and `secret`, or bind it to 127.0.0.1",
                self.api.bind
            );
        }
        if self.api.clients.iter().any(|client| client.client_id.is_empty() || client.secret.len() < 8) {
            bail!("each of `[[api.clients]]` needs a `client_id` and a `secret` of at least 8 characters");
        }
        for (from, to) in &self.registries.mirrors {
            crate::mirrors::check(from, to).map_err(anyhow::Error::msg)?;
        }
        self.storage.check()?;
        self.acme.check()?;
        if !(1..=730).contains(&self.logs.retention_days) {
            bail!("`logs.retention_days` is {}; use 1 to 730", self.logs.retention_days);
        }
        if self.logs.http_sample_percent > 100 {
            bail!("`logs.http_sample_percent` is {}; use 0 to 100", self.logs.http_sample_percent);
        }
        self.sessions.check()?;
        let CapacitySection { cpu_overcommit, memory_overcommit, .. } = self.capacity;
        if !(1..=1000).contains(&cpu_overcommit) || !(1..=1000).contains(&memory_overcommit) {
            bail!("`capacity.cpu_overcommit` and `capacity.memory_overcommit` must be 1 to 1000");
        }
        Ok(())
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

/// The data directory without `--data-dir`: `/var/lib/cove` as root, else `$XDG_DATA_HOME/cove`.
#[must_use]
pub fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/cove");
    }
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("."));
    home.join("cove")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Config::parse(text, variables).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "[ingress]\nrequest_timeout = \"90s\"\n[api]\nretry_after = 5\n";
        let config =
            parse(text, &[("COVE_API__RETRY_AFTER", "0"), ("COVE_INGRESS__DOMAIN", "apps.test"), ("PATH", "/")]);
        let config = config.unwrap();
        assert_eq!(config.api.retry_after, 0);
        assert_eq!(config.ingress.domain, "apps.test");
        assert_eq!(config.ingress.request_timeout.0, Duration::from_secs(90));
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_remedy() {
        for (text, says) in [
            ("[ingres]\n", "unknown field `ingres`"),
            ("[api]\nbind = \"0.0.0.0:8443\"\n", "set `[[api.clients]]`"),
            ("[logs]\nretention_days = 0\n", "use 1 to 730"),
            ("[logs]\nhttp_sample_percent = 101\n", "use 0 to 100"),
            ("[logs]\nhttp = \"some\"\n", "expected one of `all`, `errors`, `off`"),
            ("[ingress]\nrequest_timeout = \"soon\"\n", "not a duration"),
            ("[acme]\ndirectory = \"http://ca\"\n", "begins with https://"),
            ("[acme]\ndirectory = \"https://ca\"\n", "acme.terms_agreed = true"),
            ("[acme]\ndirectory = \"https://ca\"\nterms_agreed = true\ncontact = [\"me\"]\n", "mailto:"),
            ("[acme]\nkey = \"rsa\"\n", "unknown variant `rsa`"),
        ] {
            let error = parse(text, &[]).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
