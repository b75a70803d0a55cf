//! `containerapp dapr`, and the Dapr flags of `create`.

use serde_json::{Value, json};

use super::{AppRef, whole};
use crate::{failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DaprCommand {
    /// Turn Dapr on and set it up.
    Enable {
        #[command(flatten)]
        app: AppRef,
        #[command(flatten)]
        dapr: DaprArgs,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Turn Dapr off; its settings stay.
    Disable {
        #[command(flatten)]
        app: AppRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// Settings of an app's Dapr.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Dapr")]
pub(crate) struct DaprArgs {
    /// Name of the app for Dapr.
    #[arg(long, value_name = "NAME")]
    dapr_app_id: Option<String>,
    /// Port on which Dapr reaches the app.
    #[arg(long, value_name = "PORT")]
    dapr_app_port: Option<u16>,
    /// http or grpc.
    #[arg(long, ignore_case = true, value_parser = ["http", "grpc"])]
    dapr_app_protocol: Option<String>,
    /// Largest header that Dapr reads, in KB.
    #[arg(long, alias = "dhrbs", value_name = "KB")]
    dapr_http_read_buffer_size: Option<u32>,
    /// Largest request that Dapr takes, in MB.
    #[arg(long, alias = "dhmrs", value_name = "MB")]
    dapr_http_max_request_size: Option<u32>,
    /// info, debug, warn or error.
    #[arg(long, ignore_case = true, value_parser = ["info", "debug", "warn", "error"])]
    dapr_log_level: Option<String>,
    /// Log Dapr's calls.
    #[arg(long, alias = "dal", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    dapr_enable_api_logging: Option<bool>,
}

impl DaprArgs {
    /// Lays the flags that were given over `dapr`.
    fn apply(&self, dapr: &mut Value) {
        let texts = [
            ("appId", &self.dapr_app_id),
            ("appProtocol", &self.dapr_app_protocol),
            ("logLevel", &self.dapr_log_level),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                dapr[name] = text.as_str().into();
            }
        }
        let numbers = [
            ("appPort", self.dapr_app_port.map(u32::from)),
            ("httpReadBufferSize", self.dapr_http_read_buffer_size),
            ("httpMaxRequestSize", self.dapr_http_max_request_size),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                dapr[name] = number.into();
            }
        }
        if let Some(logged) = self.dapr_enable_api_logging {
            dapr["enableApiLogging"] = logged.into();
        }
    }

    /// The settings of a new app; nothing unless Dapr is named.
    pub(super) fn body(&self, enabled: Option<bool>) -> Option<Value> {
        let mut dapr = json!({});
        self.apply(&mut dapr);
        let is_named = enabled.is_some() || dapr.as_object().is_some_and(|fields| !fields.is_empty());
        is_named.then(|| {
            dapr["enabled"] = enabled.unwrap_or(false).into();
            dapr
        })
    }
}

pub(super) async fn run(session: &Session, command: DaprCommand) -> Result<(), Failure> {
    let (app, no_wait, args) = match command {
        DaprCommand::Enable { app, dapr, no_wait } => (app, no_wait, Some(dapr)),
        DaprCommand::Disable { app, no_wait } => (app, no_wait, None),
    };
    let path = app.path(session);
    let changed = whole::edit(session, &path, no_wait, |app| {
        let dapr = &mut app["properties"]["configuration"]["dapr"];
        if !dapr.is_object() {
            *dapr = json!({});
        }
        dapr["enabled"] = args.is_some().into();
        if let Some(args) = args {
            args.apply(dapr);
        }
        Ok(())
    });
    session.print(changed.await?["properties"]["configuration"]["dapr"].take(), View::Plain)
}
