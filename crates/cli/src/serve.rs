//! `cove serve`: the platform in the foreground.
//!
//! Flags lie over the environment, which lies over the file. One line on stdout says that it is ready; everything else
//! it has to say goes to stderr.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use cove_server::{ClockKind, Config, Endpoints, Options, config::HumanSize};

use crate::{failure::Failure, place::DataDir, text};

/// Log filter when `COVE_LOG` is not set.
const LOG_DEFAULT: &str = "info";
/// Longest wait for blocking calls after the server has drained.
const END_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API over TLS; port 0 takes any free one [default: 127.0.0.1:8443].
    #[arg(long, value_name = "ADDRESS")]
    api: Option<SocketAddr>,
    /// Address of the apps over HTTP [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Address of the apps over HTTPS [default: 127.0.0.1:8444].
    #[arg(long, value_name = "ADDRESS")]
    https: Option<SocketAddr>,
    /// Suffix of host names: apps are `<app>.<environment>.<domain>` [default: localhost].
    #[arg(long)]
    domain: Option<String>,
    /// Source of time: real, virtual, or virtual=START; a virtual clock stands still until `cove clock advance`.
    #[arg(long, value_name = "CLOCK", value_parser = crate::clock::kind, default_value = "real")]
    clock: ClockKind,
    /// Keep no created-not-started replicas for apps at zero: less memory, slower wakes.
    #[arg(long)]
    no_slots: bool,
    /// Take over from the server that runs on the data directory: no port is closed, no request is lost. Without one, it
    /// just starts.
    #[arg(long)]
    take_over: bool,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Refuses to begin what needs root.
pub(crate) fn check_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("containers can only be run as root")
        .hint("start it with sudo; `cove doctor` says what else this machine lacks"))
}

pub(crate) fn run(args: ServeArgs, data_dir: &DataDir) -> Result<(), Failure> {
    check_root()?;
    start_log(args.log_format, std::io::stderr, text::stderr_is_terminal());
    let mut config = Config::load(args.config.as_deref())?;
    config.api.bind = args.api.unwrap_or(config.api.bind);
    config.ingress.http = args.http.unwrap_or(config.ingress.http);
    config.ingress.https = args.https.unwrap_or(config.ingress.https);
    if let Some(domain) = args.domain {
        config.ingress.domain = domain;
    }
    if args.no_slots {
        config.runtime.slot_memory = HumanSize(0);
    }
    let (data_dir, clock, take_over) = (data_dir.path(), args.clock, args.take_over);
    let options = Options { config, data_dir, clock, shim_program: None, take_over };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(cove_server::run_until_signal(options, ready));
    // what still hangs in a blocking call must not hold the process
    runtime.shutdown_timeout(END_LIMIT);
    done?;
    Ok(())
}

fn ready(endpoints: &Endpoints) {
    let Endpoints { api, http, https, .. } = endpoints;
    text::out(&format!("cove ready api={api} http={http} https={https}\n"));
}

/// Writes the log to a file, for a server inside another command.
pub(crate) fn log_to_file(file: std::fs::File) {
    start_log(LogFormat::Text, std::sync::Mutex::new(file), false);
}

fn start_log<W>(format: LogFormat, writer: W, colours: bool)
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    use tracing_subscriber::EnvFilter;
    let filter = std::env::var("COVE_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = EnvFilter::new(filter.as_deref().unwrap_or(LOG_DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // a second log of the same process is a programming error of a test only: the first one goes on
    let _set = match format {
        LogFormat::Text => log.with_ansi(colours).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
