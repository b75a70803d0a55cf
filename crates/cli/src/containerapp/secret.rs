//! `containerapp secret`.

use serde_json::{Value, json};

use super::{AppRef, whole};
use crate::{failure::Failure, output::View, pairs, session::Session, text};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SecretCommand {
    /// List secrets.
    List {
        #[command(flatten)]
        app: AppRef,
        /// Their values too.
        #[arg(long)]
        show_values: bool,
    },
    /// Show one secret with its value.
    Show {
        #[command(flatten)]
        app: AppRef,
        /// Name of the secret.
        #[arg(long)]
        secret_name: String,
    },
    /// Add or change secrets: `name=value …`
    Set {
        #[command(flatten)]
        app: AppRef,
        /// `name=value …`
        #[arg(short, long, num_args = 1.., required = true, value_name = "NAME=VALUE")]
        secrets: Vec<String>,
    },
    /// Remove secrets.
    Remove {
        #[command(flatten)]
        app: AppRef,
        /// Names of the secrets.
        #[arg(long, num_args = 1.., required = true)]
        secret_names: Vec<String>,
        /// az asks for jobs.
        #[arg(short, long, hide = true)]
        yes: bool,
    },
}

/// `kind` is `containerApps` or `jobs`.
pub(crate) async fn run(session: &Session, command: SecretCommand, kind: &str) -> Result<(), Failure> {
    match command {
        SecretCommand::List { app, show_values: false } => {
            let app = session.client.get(&app.path_of(session, kind)).await?;
            session.print(secrets_of(&app), View::Secrets)
        }
        SecretCommand::List { app, show_values: true } => {
            session.print(values(session, &app.path_of(session, kind)).await?, View::Secrets)
        }
        SecretCommand::Show { app, secret_name } => {
            let secrets = values(session, &app.path_of(session, kind)).await?;
            let found =
                secrets.as_array().and_then(|list| list.iter().find(|secret| secret["name"] == secret_name.as_str()));
            let found = found.cloned();
            let missing = || Failure::not_found(format!("the app has no secret `{secret_name}`"));
            session.print(found.ok_or_else(missing)?, View::Secrets)
        }
        SecretCommand::Set { app, secrets } => {
            let new = pairs::secrets(&secrets)?;
            let path = app.path_of(session, kind);
            let changed = whole::edit(session, &path, false, |app| {
                let mut list = secrets_of(app).as_array().cloned().unwrap_or_default();
                for secret in new {
                    match list.iter_mut().find(|known| known["name"] == secret["name"]) {
                        Some(known) => *known = secret,
                        None => list.push(secret),
                    }
                }
                app["properties"]["configuration"]["secrets"] = Value::Array(list);
                Ok(())
            });
            say_restart(session, changed.await?)
        }
        SecretCommand::Remove { app, secret_names, .. } => {
            let path = app.path_of(session, kind);
            let changed = whole::edit(session, &path, false, |app| {
                let mut list = secrets_of(app).as_array().cloned().unwrap_or_default();
                for name in &secret_names {
                    let before = list.len();
                    list.retain(|secret| secret["name"] != name.as_str());
                    if list.len() == before {
                        return Err(Failure::not_found(format!("the app has no secret `{name}`")));
                    }
                }
                app["properties"]["configuration"]["secrets"] = Value::Array(list);
                Ok(())
            });
            say_restart(session, changed.await?)
        }
    }
}

fn secrets_of(app: &Value) -> Value {
    app.pointer("/properties/configuration/secrets").cloned().unwrap_or_else(|| json!([]))
}

async fn values(session: &Session, path: &str) -> Result<Value, Failure> {
    let mut answer = session.client.post(&format!("{path}/listSecrets"), None).await?;
    Ok(answer["value"].take())
}

fn say_restart(session: &Session, app: Value) -> Result<(), Failure> {
    text::note("Running replicas keep the old values; restart the revision to apply the new ones.");
    session.print(secrets_of(&app), View::Secrets)
}
