//! `containerapp ingress`: the way in, and how traffic is split.

mod policies;

use serde_json::{Value, json};

use super::{
    AppRef,
    create::IngressType,
    whole::{self, ingress},
};
use crate::{failure::Failure, output::View, pairs, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum IngressCommand {
    /// Show the ingress.
    Show(AppRef),
    /// Give the app a way in.
    Enable {
        #[command(flatten)]
        app: AppRef,
        #[command(flatten)]
        args: IngressArgs,
    },
    /// Take the way in away.
    Disable(AppRef),
    /// Change the way in.
    Update {
        #[command(flatten)]
        app: AppRef,
        #[command(flatten)]
        args: IngressArgs,
    },
    /// Shares of the revisions.
    #[command(subcommand)]
    Traffic(TrafficCommand),
    /// Addresses that may come in, or may not.
    #[command(subcommand)]
    AccessRestriction(policies::AccessCommand),
    /// What browsers of other origins may do.
    #[command(subcommand)]
    Cors(policies::CorsCommand),
    /// Whether a client stays with its replica.
    #[command(subcommand)]
    StickySessions(policies::StickyCommand),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IngressArgs {
    /// Who may reach the app.
    #[arg(long = "type", value_enum)]
    kind: Option<IngressType>,
    /// Port that the app listens on.
    #[arg(long, value_name = "PORT")]
    target_port: Option<u16>,
    /// auto, http, http2 or tcp.
    #[arg(long)]
    transport: Option<String>,
    /// Port of a tcp ingress.
    #[arg(long, value_name = "PORT")]
    exposed_port: Option<u16>,
    /// Serve plain HTTP too.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    allow_insecure: Option<bool>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TrafficCommand {
    /// Show the shares.
    Show(AppRef),
    /// Set the shares; they add up to 100.
    Set {
        #[command(flatten)]
        app: AppRef,
        /// `revision=weight …`; `latest=weight` for the latest revision.
        #[arg(long, alias = "traffic-weight", num_args = 1.., value_name = "REVISION=WEIGHT")]
        revision_weight: Vec<String>,
        /// `label=weight …`
        #[arg(long, num_args = 1.., value_name = "LABEL=WEIGHT")]
        label_weight: Vec<String>,
    },
}

pub(crate) async fn run(session: &Session, command: IngressCommand) -> Result<(), Failure> {
    match command {
        IngressCommand::Show(app) => {
            let app = session.client.get(&app.path(session)).await?;
            session.print(ingress(&app)?.clone(), View::Plain)
        }
        IngressCommand::Enable { app, args } => {
            if args.kind.is_none() {
                return Err(Failure::usage("who may reach the app?").hint("add --type external or internal"));
            }
            change(session, &app, args.body()).await
        }
        IngressCommand::Update { app, args } => {
            ingress(&session.client.get(&app.path(session)).await?)?;
            change(session, &app, args.body()).await
        }
        IngressCommand::Disable(app) => {
            let path = app.path(session);
            let changed = whole::edit(session, &path, false, |app| {
                app["properties"]["configuration"]["ingress"] = Value::Null;
                Ok(())
            });
            changed.await.map(|_| ())
        }
        IngressCommand::AccessRestriction(command) => policies::access(session, command).await,
        IngressCommand::Cors(command) => policies::cors(session, command).await,
        IngressCommand::StickySessions(command) => policies::sticky(session, command).await,
        IngressCommand::Traffic(TrafficCommand::Show(app)) => {
            let app = session.client.get(&app.path(session)).await?;
            session.print(ingress(&app)?["traffic"].clone(), View::Traffic)
        }
        IngressCommand::Traffic(TrafficCommand::Set { app, revision_weight, label_weight }) => {
            let path = app.path(session);
            let old = session.client.get(&path).await?;
            let traffic = weights(&ingress(&old)?["traffic"], &revision_weight, &label_weight)?;
            let patch = json!({ "ingress": { "traffic": traffic } });
            let app = whole::patch_configuration(session, &path, patch).await?;
            session.print(ingress(&app)?["traffic"].clone(), View::Traffic)
        }
    }
}

async fn change(session: &Session, app: &AppRef, body: Value) -> Result<(), Failure> {
    let app = whole::patch_configuration(session, &app.path(session), json!({ "ingress": body })).await?;
    session.print(ingress(&app)?.clone(), View::Plain)
}

impl IngressArgs {
    fn body(&self) -> Value {
        let mut body = json!({});
        if let Some(kind) = self.kind {
            body["external"] = (kind == IngressType::External).into();
        }
        if let Some(port) = self.target_port {
            body["targetPort"] = port.into();
        }
        if let Some(transport) = &self.transport {
            body["transport"] = transport.as_str().into();
        }
        if let Some(port) = self.exposed_port {
            body["exposedPort"] = port.into();
        }
        if let Some(allowed) = self.allow_insecure {
            body["allowInsecure"] = allowed.into();
        }
        body
    }
}

/// The new shares: what was named gets its weight, labels stay where they are.
fn weights(old: &Value, revisions: &[String], labels: &[String]) -> Result<Vec<Value>, Failure> {
    let number = |text: &str, flag: &str| {
        text.parse::<u32>().ok().filter(|weight| *weight <= 100).ok_or_else(|| {
            Failure::usage(format!("{flag}: `{text}` is not a weight"))
                .hint("weights are whole numbers of 0 to 100 that add up to 100")
        })
    };
    if revisions.is_empty() && labels.is_empty() {
        return Err(Failure::usage("which shares?").hint("add --revision-weight latest=100"));
    }
    // whoever is not named loses its share, but keeps its label
    let old = old.as_array().map_or(&[][..], Vec::as_slice);
    let mut traffic: Vec<Value> = old.iter().filter(|entry| entry["label"].is_string()).cloned().collect();
    for entry in &mut traffic {
        entry["weight"] = 0.into();
    }
    for pair in labels {
        let (label, weight) = pairs::split(pair, "--label-weight")?;
        let weight = number(weight, "--label-weight")?;
        let entry = traffic.iter_mut().find(|entry| entry["label"] == label);
        entry.ok_or_else(|| Failure::not_found(format!("no revision has the label `{label}`")))?["weight"] =
            weight.into();
    }
    for pair in revisions {
        let (name, weight) = pairs::split(pair, "--revision-weight")?;
        let weight = number(weight, "--revision-weight")?;
        let is_latest = name.eq_ignore_ascii_case("latest");
        let known = traffic
            .iter_mut()
            .find(|entry| if is_latest { entry["latestRevision"] == true } else { entry["revisionName"] == name });
        match known {
            Some(entry) => entry["weight"] = weight.into(),
            None if is_latest => traffic.push(json!({ "latestRevision": true, "weight": weight })),
            None => traffic.push(json!({ "revisionName": name, "weight": weight })),
        }
    }
    let total: u64 = traffic.iter().filter_map(|entry| entry["weight"].as_u64()).sum();
    if total != 100 {
        return Err(Failure::usage(format!("the weights add up to {total}, not 100")));
    }
    Ok(traffic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(old: &Value, revisions: &[&str], labels: &[&str]) -> Result<Value, String> {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        weights(old, &list(revisions), &list(labels)).map(Value::Array).map_err(|failure| failure.text)
    }

    #[test]
    fn shares_are_replaced_and_labels_kept() {
        let old =
            json!([{"latestRevision": true, "weight": 80}, {"revisionName": "a--1", "weight": 20, "label": "blue"}]);
        assert_eq!(
            set(&old, &["latest=100"], &[]).unwrap(),
            json!([{"revisionName": "a--1", "weight": 0, "label": "blue"}, {"latestRevision": true, "weight": 100}])
        );
        assert_eq!(
            set(&old, &["a--2=70"], &["blue=30"]).unwrap(),
            json!([{"revisionName": "a--1", "weight": 30, "label": "blue"}, {"revisionName": "a--2", "weight": 70}])
        );
        assert_eq!(set(&old, &["a--2=70"], &[]), Err("the weights add up to 70, not 100".to_owned()));
        assert_eq!(set(&old, &["a--2=x"], &[]), Err("--revision-weight: `x` is not a weight".to_owned()));
        assert_eq!(set(&old, &["latest=70"], &["red=30"]), Err("no revision has the label `red`".to_owned()));
    }
}
