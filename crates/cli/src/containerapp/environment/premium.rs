//! `containerapp env premium-ingress`.

use reqwest::Method;
use serde_json::{Value, json};

use super::EnvironmentRef;
use crate::{client::Wait, failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum PremiumCommand {
    /// Show the settings.
    Show(EnvironmentRef),
    /// Set them for the first time.
    Add(PremiumArgs),
    /// Change them.
    Update(PremiumArgs),
    /// Go back to the default way in.
    Remove {
        #[command(flatten)]
        environment: EnvironmentRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PremiumArgs {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Workload profile of the way in.
    #[arg(short = 'w', long)]
    workload_profile_name: Option<String>,
    /// Seconds to drain requests, 0..=3600 [default: 500].
    #[arg(short = 't', long, value_name = "SECONDS")]
    termination_grace_period: Option<u32>,
    /// Minutes until an idle request ends, 4..=30 [default: 4].
    #[arg(long, value_name = "MINUTES")]
    request_idle_timeout: Option<u32>,
    /// Most headers of a request [default: 100].
    #[arg(long, value_name = "N")]
    header_count_limit: Option<u32>,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(session: &Session, command: PremiumCommand) -> Result<(), Failure> {
    match command {
        PremiumCommand::Show(environment) => {
            let found = session.client.get(&environment.path(session)).await?;
            let settings = found["properties"]["ingressConfiguration"].clone();
            let none = "No premium ingress configuration found for this environment, using default values.";
            session.print(if settings.is_object() { settings } else { json!({ "message": none }) }, View::Plain)
        }
        PremiumCommand::Add(args) => {
            if args.workload_profile_name.is_none() {
                return Err(Failure::usage("which workload profile?").hint("add --workload-profile-name NAME"));
            }
            set(session, args).await
        }
        PremiumCommand::Update(args) => set(session, args).await,
        PremiumCommand::Remove { environment, yes, no_wait } => {
            session.confirm("Remove the premium ingress?", yes)?;
            let body = json!({ "properties": { "ingressConfiguration": Value::Null } });
            let wait = Wait::unless(no_wait);
            session.client.write(Method::PATCH, &environment.path(session), Some(&body), wait).await.map(|_| ())
        }
    }
}

async fn set(session: &Session, args: PremiumArgs) -> Result<(), Failure> {
    let mut settings = json!({});
    if let Some(name) = &args.workload_profile_name {
        settings["workloadProfileName"] = name.as_str().into();
    }
    let numbers = [
        ("terminationGracePeriodSeconds", args.termination_grace_period),
        ("requestIdleTimeout", args.request_idle_timeout),
        ("headerCountLimit", args.header_count_limit),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            settings[name] = number.into();
        }
    }
    if settings.as_object().is_some_and(serde_json::Map::is_empty) {
        return Err(Failure::usage("nothing to change").hint("cove containerapp env premium-ingress update --help"));
    }
    let body = json!({ "properties": { "ingressConfiguration": settings } });
    let path = args.environment.path(session);
    let mut changed = session.client.write(Method::PATCH, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    session.print(changed["properties"]["ingressConfiguration"].take(), View::Plain)
}
