//! `containerapp revision`.

use serde_json::{Value, json};

use super::{AppRef, update, whole};
use crate::{
    client::encode,
    failure::Failure,
    output::View,
    session::{GroupArg, Session},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RevisionCommand {
    /// List active revisions.
    List {
        #[command(flatten)]
        app: AppRef,
        /// Inactive ones too.
        #[arg(long)]
        all: bool,
    },
    /// Show a revision.
    Show(RevisionRef),
    /// Let a revision run again.
    Activate(RevisionRef),
    /// End a revision's replicas and its traffic.
    Deactivate(RevisionRef),
    /// Replace a revision's replicas.
    Restart(RevisionRef),
    /// Make a new revision of the template of another one, with changes.
    Copy {
        /// Revision to copy [default: the latest].
        #[arg(long)]
        from_revision: Option<String>,
        #[command(flatten)]
        changes: Box<update::UpdateArgs>,
    },
    /// Names that stay with a revision.
    #[command(subcommand)]
    Label(LabelCommand),
    /// One active revision or several.
    SetMode {
        #[command(flatten)]
        app: AppRef,
        /// single or multiple.
        #[arg(long)]
        mode: String,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum LabelCommand {
    /// Give a revision a label; it moves from the one that has it.
    Add {
        #[command(flatten)]
        app: AppRef,
        /// The label.
        #[arg(long)]
        label: String,
        /// The revision.
        #[arg(long)]
        revision: String,
        /// az asks before it moves a label.
        #[arg(short, long, alias = "no-prompt", hide = true)]
        yes: bool,
    },
    /// Exchange two labels.
    Swap {
        #[command(flatten)]
        app: AppRef,
        /// One label.
        #[arg(long)]
        source: String,
        /// The other label.
        #[arg(long)]
        target: String,
    },
    /// Take a label away.
    Remove {
        #[command(flatten)]
        app: AppRef,
        /// The label.
        #[arg(long)]
        label: String,
    },
}

/// A revision: `--revision REV [--name APP]`, or `--name REV --app APP`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RevisionRef {
    /// Name of the app; of the revision where --app names the app.
    #[arg(short, long)]
    name: Option<String>,
    /// Name of the revision.
    #[arg(long)]
    revision: Option<String>,
    /// Name of the app.
    #[arg(long)]
    app: Option<String>,
    #[command(flatten)]
    group: GroupArg,
}

impl RevisionRef {
    /// App and revision.
    fn resolve(&self) -> Result<(String, String), Failure> {
        let (app, revision) = match (&self.app, &self.revision, &self.name) {
            (Some(app), Some(revision), _) => (Some(app.as_str()), revision),
            (Some(app), None, Some(revision)) => (Some(app.as_str()), revision),
            (None, Some(revision), Some(app)) => (Some(app.as_str()), revision),
            // a revision's name begins with its app's
            (None, Some(revision), None) => (revision.rsplit_once("--").map(|(app, _)| app), revision),
            (None, None, Some(name)) if name.contains("--") => (name.rsplit_once("--").map(|(app, _)| app), name),
            _ => return Err(Failure::usage("which revision?").hint("add --revision NAME")),
        };
        let app = app.ok_or_else(|| {
            Failure::usage(format!("which app has the revision `{revision}`?")).hint("add --name APP")
        })?;
        Ok((app.to_owned(), revision.clone()))
    }

    fn path(&self, session: &Session) -> Result<String, Failure> {
        let (app, revision) = self.resolve()?;
        Ok(format!("{}/revisions/{}", session.client.app(&self.group.group, &app), encode(&revision)))
    }
}

pub(crate) async fn run(session: &Session, command: RevisionCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        RevisionCommand::List { app, all } => {
            let mut revisions = client.list(&format!("{}/revisions", app.path(session))).await?;
            if let Some(revisions) = revisions.as_array_mut().filter(|_| !all) {
                revisions.retain(|revision| revision["properties"]["active"].as_bool() == Some(true));
            }
            session.print(revisions, View::Revisions)
        }
        RevisionCommand::Show(revision) => session.print(client.get(&revision.path(session)?).await?, View::Revisions),
        RevisionCommand::Activate(revision) => act(session, &revision, "activate").await,
        RevisionCommand::Deactivate(revision) => act(session, &revision, "deactivate").await,
        RevisionCommand::Restart(revision) => act(session, &revision, "restart").await,
        RevisionCommand::Copy { from_revision, changes } => update::copy(session, from_revision, *changes).await,
        RevisionCommand::Label(LabelCommand::Add { app, label, revision, .. }) => {
            relabel(session, &app, &label, Some(&revision)).await
        }
        RevisionCommand::Label(LabelCommand::Remove { app, label }) => relabel(session, &app, &label, None).await,
        RevisionCommand::Label(LabelCommand::Swap { app, source, target }) => {
            let path = app.path(session);
            let old = session.client.get(&path).await?;
            let traffic = whole::ingress(&old)?["traffic"].as_array().cloned().unwrap_or_default();
            put_traffic(session, &path, swapped(traffic, &source, &target)?).await
        }
        RevisionCommand::SetMode { app, mode } => {
            let path = app.path(session);
            let app = whole::edit(session, &path, false, |app| {
                app["properties"]["configuration"]["activeRevisionsMode"] = mode.as_str().into();
                Ok(())
            });
            let mode = app.await?["properties"]["configuration"]["activeRevisionsMode"].take();
            session.print(mode, View::Plain)
        }
    }
}

async fn act(session: &Session, revision: &RevisionRef, verb: &str) -> Result<(), Failure> {
    let path = revision.path(session)?;
    let answer = session.client.post(&format!("{path}/{verb}"), None).await?;
    session.print(if answer.is_null() { json!("Success") } else { answer }, View::Plain)
}

/// Moves a label to a revision, or away.
async fn relabel(session: &Session, app: &AppRef, label: &str, revision: Option<&str>) -> Result<(), Failure> {
    let path = app.path(session);
    let old = session.client.get(&path).await?;
    let traffic = whole::ingress(&old)?["traffic"].as_array().cloned().unwrap_or_default();
    put_traffic(session, &path, relabelled(traffic, label, revision)?).await
}

async fn put_traffic(session: &Session, path: &str, traffic: Vec<Value>) -> Result<(), Failure> {
    let app = whole::patch_configuration(session, path, json!({ "ingress": { "traffic": traffic } })).await?;
    session.print(whole::ingress(&app)?["traffic"].clone(), View::Traffic)
}

fn swapped(mut traffic: Vec<Value>, one: &str, other: &str) -> Result<Vec<Value>, Failure> {
    if one.eq_ignore_ascii_case(other) {
        return Err(Failure::usage("the labels are the same").hint("name two labels with --source and --target"));
    }
    for label in [one, other] {
        let has = |entry: &Value| entry["label"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(label));
        if !traffic.iter().any(has) {
            return Err(Failure::not_found(format!("no revision has the label `{label}`")));
        }
    }
    for entry in &mut traffic {
        let known = entry["label"].as_str().unwrap_or_default();
        if known.eq_ignore_ascii_case(one) {
            entry["label"] = other.into();
        } else if known.eq_ignore_ascii_case(other) {
            entry["label"] = one.into();
        }
    }
    Ok(traffic)
}

fn relabelled(mut traffic: Vec<Value>, label: &str, revision: Option<&str>) -> Result<Vec<Value>, Failure> {
    let mut is_known = false;
    for entry in &mut traffic {
        if entry["label"] == label
            && let Some(entry) = entry.as_object_mut()
        {
            entry.remove("label");
            is_known = true;
        }
    }
    let Some(revision) = revision else {
        return if is_known {
            Ok(traffic)
        } else {
            Err(Failure::not_found(format!("no revision has the label `{label}`")))
        };
    };
    match traffic.iter_mut().find(|entry| entry["revisionName"] == revision) {
        Some(entry) => entry["label"] = label.into(),
        None => traffic.push(json!({ "revisionName": revision, "weight": 0, "label": label })),
    }
    Ok(traffic)
}

/// Restarts the revision `name` of the app at `path`.
pub(super) async fn restart(session: &Session, path: &str, name: &str) -> Result<(), Failure> {
    session.client.post(&format!("{path}/revisions/{}/restart", encode(name)), None).await.map(|_| ())
}

/// Name of the latest revision.
pub(super) fn latest(app: &Value) -> Result<&str, Failure> {
    let name = app["properties"]["latestRevisionName"].as_str().filter(|name| !name.is_empty());
    name.ok_or_else(|| Failure::not_found("the app has no revision yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: Option<&str>, revision: Option<&str>, app: Option<&str>) -> Result<(String, String), String> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let group = GroupArg { group: "rg".into() };
        RevisionRef { name: text(name), revision: text(revision), app: text(app), group }.resolve().map_err(|f| f.text)
    }

    #[test]
    fn all_spellings_name_the_same_revision() {
        let expected = Ok(("web".to_owned(), "web--a".to_owned()));
        assert_eq!(resolve(Some("web"), Some("web--a"), None), expected);
        assert_eq!(resolve(None, Some("web--a"), None), expected);
        assert_eq!(resolve(Some("web--a"), None, Some("web")), expected);
        assert_eq!(resolve(Some("web--a"), None, None), expected);
        assert_eq!(resolve(Some("web"), None, None), Err("which revision?".to_owned()));
        assert_eq!(resolve(None, Some("a"), None), Err("which app has the revision `a`?".to_owned()));
    }

    #[test]
    fn a_label_is_on_one_revision() {
        let old = vec![
            json!({"latestRevision": true, "weight": 100}),
            json!({"revisionName": "a--1", "weight": 0, "label": "blue"}),
        ];
        let moved = relabelled(old.clone(), "blue", Some("a--2")).unwrap();
        assert_eq!(
            Value::Array(moved),
            json!([
                {"latestRevision": true, "weight": 100},
                {"revisionName": "a--1", "weight": 0},
                {"revisionName": "a--2", "weight": 0, "label": "blue"},
            ])
        );
        let swapped = swapped(
            vec![json!({"revisionName": "a", "label": "blue"}), json!({"revisionName": "b", "label": "green"})],
            "blue",
            "GREEN",
        );
        assert_eq!(swapped.unwrap()[0]["label"], "GREEN");
        assert!(relabelled(old.clone(), "blue", None).unwrap()[1].get("label").is_none());
        assert!(relabelled(old, "red", None).unwrap_err().is_not_found());
    }
}
