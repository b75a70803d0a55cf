//! The temporary server of the demo: made in a folder of its own, cleared away at the end.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use cove_server::{ClockKind, Config, Options, Server, config::HumanDuration};
use jiff::SignedDuration;
use tokio::time::timeout;

use super::Timeline;
use crate::{
    client::{Client, Wait},
    failure::Failure,
    place::{DataDir, Place},
    purge, serve, text,
};

/// Resource group, environment and app of the demo.
pub(super) const GROUP: &str = "demo";
/// The app's name.
pub(super) const APP: &str = "hello";
/// Time between two looks at the load, instead of Azure's 15 s.
const SAMPLING: SignedDuration = SignedDuration::from_secs(1);
/// Window of a scale-in, instead of Azure's 300 s.
const WINDOW: SignedDuration = SignedDuration::from_secs(2);
/// Longest start of the server.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for the group to be gone.
const CLEAR_LIMIT: Duration = Duration::from_secs(30);
/// Lines of the log that are shown after a failure.
const LOG_LINES: usize = 15;

/// The server, and a client of it.
#[derive(Debug)]
pub(super) struct Stage {
    dir: PathBuf,
    server: Server,
    pub(super) client: Client,
}

impl Stage {
    /// Starts the server.
    pub(super) async fn build(timeline: &Timeline) -> Result<Self, Failure> {
        serve::check_root()?;
        // short: sockets below it have names of at most 107 bytes
        let id = uuid::Uuid::new_v4().simple().to_string();
        let dir = std::env::temp_dir().join(format!("cove-demo-{}", &id[..8]));
        fs::create_dir(&dir).map_err(|error| Failure::new(format!("failed to create `{}`: {error}", dir.display())))?;
        let log = fs::File::create(dir.join("demo.log"))?;
        serve::log_to_file(log);
        let (data_dir, clock) = (dir.join("data"), ClockKind::Real);
        let options = Options { config: config(), data_dir, clock, shim_program: None, take_over: false };
        let started = timeout(START_LIMIT, Server::start(options)).await;
        let server = match started {
            Ok(Ok(server)) => server,
            Ok(Err(error)) => {
                let failure = Failure::from(error).hint("`cove doctor` says what this machine lacks");
                abandon(&dir).await;
                return Err(failure);
            }
            Err(_late) => {
                abandon(&dir).await;
                return Err(Failure::new(format!("the server did not start within {} s", START_LIMIT.as_secs())));
            }
        };
        let place = Place { data_dir: DataDir { data_dir: Some(dir.join("data")) }, ..Place::default() };
        let client = match Client::connect(&place).await {
            Ok(client) => client,
            Err(failure) => {
                server.shutdown().await;
                abandon(&dir).await;
                return Err(failure);
            }
        };
        let endpoints = server.endpoints();
        timeline.say("server", &format!("API {}, apps {}", endpoints.api, endpoints.http));
        Ok(Self { dir, server, client })
    }

    /// Says how to use what was left running.
    pub(super) fn describe(&self) {
        let endpoints = self.server.endpoints();
        let data = self.dir.join("data");
        text::out(&format!(
            "\nThe server stays until ^C. In another terminal:\n\n  export COVE_DATA_DIR={}\n  curl {}\n  cove containerapp list\n  cove containerapp logs show -g {GROUP} -n {APP} --follow\n  cove wakes {APP}\n  cove scale explain {APP}\n  cove az -- containerapp show -g {GROUP} -n {APP}\n\nAPI: {}\n",
            data.display(),
            self.client.app_url(&format!("{APP}.{GROUP}.localhost")),
            endpoints.api,
        ));
    }

    /// The last lines of the server's log.
    pub(super) fn log_end(&self) -> String {
        let text = fs::read_to_string(self.dir.join("demo.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Deletes the app, stops the server, removes network and files.
    pub(super) async fn clear(self, timeline: &Timeline) -> Result<(), Failure> {
        let deleted = timeout(CLEAR_LIMIT, self.client.delete(&self.client.group(GROUP), Wait::Done)).await;
        self.server.shutdown().await;
        // replicas that could not be deleted in order end here
        let purged = purge::everything(&self.dir.join("data")).await;
        let removed = fs::remove_dir_all(&self.dir);
        if let Ok(Err(failure)) = deleted {
            return Err(failure);
        }
        purged?;
        removed.map_err(|error| Failure::new(format!("failed to delete `{}`: {error}", self.dir.display())))?;
        timeline.say("cleared", "nothing is left");
        Ok(())
    }
}

/// Clears away what a failed start left; the start's failure is what is told.
async fn abandon(dir: &std::path::Path) {
    if dir.join("data/cove.db").exists()
        && let Err(error) = purge::everything(&dir.join("data")).await
    {
        text::err(&format!("error: {error:#}"));
    }
    let _gone = fs::remove_dir_all(dir);
}

/// Free ports, a fast autoscaler, short drains.
fn config() -> Config {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config::default();
    config.api.bind = any;
    config.api.retry_after = 0;
    config.ingress.http = any;
    config.ingress.https = any;
    config.controller.drain_period = HumanDuration(Duration::from_secs(1));
    config.controller.fresh_hold = HumanDuration(Duration::from_secs(1));
    config.autoscaler.settings.load_sampling = SAMPLING;
    config.autoscaler.settings.scale_down_window = WINDOW;
    config
}
