//! `containerapp identity` and `containerapp job identity`: which identities an app has.

use serde_json::{Map, Value, json};

use super::{AppRef, whole};
use crate::{failure::Failure, output::View, session::Session, text};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum IdentityCommand {
    /// Show the identities.
    Show(AppRef),
    /// Give it identities.
    Assign {
        #[command(flatten)]
        app: AppRef,
        /// An identity of its own.
        #[arg(long)]
        system_assigned: bool,
        /// Names or ids of identities.
        #[arg(long, num_args = 1.., value_name = "ID")]
        user_assigned: Vec<String>,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take identities away.
    Remove {
        #[command(flatten)]
        app: AppRef,
        /// Its own identity.
        #[arg(long)]
        system_assigned: bool,
        /// Names or ids of identities; all of them when none is named.
        #[arg(long, num_args = 0.., value_name = "ID")]
        user_assigned: Option<Vec<String>>,
        /// Do not ask.
        #[arg(short, long, hide = true)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// `kind` is `containerApps` or `jobs`.
pub(super) async fn run(session: &Session, command: IdentityCommand, kind: &str) -> Result<(), Failure> {
    let path = |app: &AppRef| session.client.resource(&app.group.group, kind, &app.name);
    match command {
        IdentityCommand::Show(app) => print(session, session.client.get(&path(&app)).await?),
        IdentityCommand::Assign { app, system_assigned, user_assigned, no_wait } => {
            if !system_assigned && user_assigned.is_empty() {
                return Err(Failure::usage("which identities?").hint("add --system-assigned or --user-assigned ID"));
            }
            let ids: Vec<String> = user_assigned.iter().map(|id| full(session, &app, id)).collect();
            let path = path(&app);
            let changed = whole::edit(session, &path, no_wait, |app| {
                app["identity"] = assigned(&app["identity"], system_assigned, &ids);
                Ok(())
            });
            print(session, changed.await?)
        }
        IdentityCommand::Remove { app, system_assigned, user_assigned, no_wait, .. } => {
            if !system_assigned && user_assigned.is_none() {
                return Err(Failure::usage("which identities?").hint("add --system-assigned or --user-assigned ID"));
            }
            let ids = user_assigned.map(|ids| ids.iter().map(|id| full(session, &app, id)).collect::<Vec<_>>());
            let path = path(&app);
            let changed = whole::edit(session, &path, no_wait, |app| {
                app["identity"] = removed(&app["identity"], system_assigned, ids.as_deref())?;
                Ok(())
            });
            print(session, changed.await?)
        }
    }
}

fn print(session: &Session, mut app: Value) -> Result<(), Failure> {
    let identity = app["identity"].take();
    session.print(if identity.is_object() { identity } else { json!({ "type": "None" }) }, View::Plain)
}

/// The id of an identity given by name or id; a name is of the app's group.
fn full(session: &Session, app: &AppRef, id: &str) -> String {
    session.client.identity(&app.group.group, id)
}

fn users(identity: &Value) -> Map<String, Value> {
    let users = identity["userAssignedIdentities"].as_object();
    // what the server adds to each is not sent back
    users.map(|users| users.keys().map(|id| (id.clone(), json!({}))).collect()).unwrap_or_default()
}

fn has_system(identity: &Value) -> bool {
    identity["type"].as_str().is_some_and(|kind| kind.contains("SystemAssigned"))
}

fn body(has_system: bool, users: Map<String, Value>) -> Value {
    match (has_system, users.is_empty()) {
        (false, true) => json!({ "type": "None" }),
        (true, true) => json!({ "type": "SystemAssigned" }),
        (false, false) => json!({ "type": "UserAssigned", "userAssignedIdentities": users }),
        (true, false) => json!({ "type": "SystemAssigned,UserAssigned", "userAssignedIdentities": users }),
    }
}

fn assigned(identity: &Value, system: bool, ids: &[String]) -> Value {
    let mut users = users(identity);
    for id in ids {
        if users.keys().any(|known| known.eq_ignore_ascii_case(id)) {
            text::note(&format!("It has the identity `{id}` already."));
        } else {
            users.insert(id.clone(), json!({}));
        }
    }
    body(system || has_system(identity), users)
}

fn removed(identity: &Value, system: bool, ids: Option<&[String]>) -> Result<Value, Failure> {
    if system && !has_system(identity) {
        return Err(Failure::new("it has no identity of its own"));
    }
    let mut users = users(identity);
    match ids {
        Some([]) => users.clear(),
        Some(ids) => {
            for id in ids {
                let before = users.len();
                users.retain(|known, _| !known.eq_ignore_ascii_case(id));
                if users.len() == before {
                    return Err(Failure::not_found(format!("it has no identity `{id}`")));
                }
            }
        }
        None => {}
    }
    Ok(body(has_system(identity) && !system, users))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_come_and_go() {
        let both = assigned(&json!({"type": "SystemAssigned", "principalId": "p"}), false, &["/a".to_owned()]);
        assert_eq!(both, json!({"type": "SystemAssigned,UserAssigned", "userAssignedIdentities": {"/a": {}}}));
        assert_eq!(assigned(&both, true, &["/A".to_owned()]), both);
        assert_eq!(removed(&both, true, None).unwrap()["type"], "UserAssigned");
        assert_eq!(removed(&both, false, Some(&[])).unwrap(), json!({"type": "SystemAssigned"}));
        assert_eq!(removed(&both, true, Some(&["/A".to_owned()])).unwrap(), json!({"type": "None"}));
        assert!(removed(&both, false, Some(&["/b".to_owned()])).unwrap_err().is_not_found());
        assert!(removed(&json!({"type": "None"}), true, None).is_err());
    }
}
