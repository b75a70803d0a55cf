//! `cove scale explain --job`: what the clock or the rules started of a job, and why.

use serde_json::Value;

use super::{FOLLOW_EVERY, list};
use crate::{
    client::{Client, encode},
    failure::Failure,
    output::{Table, View},
    session::Session,
    text,
};

/// Shows the decisions of a job's trigger, or goes on with them as they are taken.
pub(super) async fn explain(session: &Session, name: &str, group: Option<&str>, follow: bool) -> Result<(), Failure> {
    let id = find(&session.client, name, group).await?;
    let path = format!("/cove/v1/jobs/explain?job={}", encode(&id));
    if follow {
        return follow_decisions(session, &path).await;
    }
    let answer = session.client.get(&path).await?;
    if !session.output.is_table() {
        return session.print(answer, View::Plain);
    }
    text::out(&describe(&answer));
    Ok(())
}

/// The id of a job by its name or id.
async fn find(client: &Client, name: &str, group: Option<&str>) -> Result<String, Failure> {
    if name.starts_with('/') {
        return Ok(name.to_owned());
    }
    let scope = match group {
        Some(group) => format!("/subscriptions/{}/resourceGroups/{}", client.subscription(), encode(group)),
        None => format!("/subscriptions/{}", client.subscription()),
    };
    let jobs = client.list(&format!("{scope}/providers/Microsoft.App/jobs")).await?;
    let is_named = |job: &&Value| job["name"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name));
    let mut found = list(&jobs).iter().filter(is_named);
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job["id"].as_str().unwrap_or_default().to_owned()),
        (None, _) => Err(Failure::not_found(format!("there is no job `{name}`")).hint("cove containerapp job list")),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("there are several jobs `{name}`")).hint("add --resource-group"))
        }
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("never").chars().take(19).collect()
}

fn describe(answer: &Value) -> String {
    let trigger = answer["triggerType"].as_str().unwrap_or_default();
    let name = answer["job"].as_str().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
    if trigger == "Manual" {
        return format!("{name}: started by hand only\n");
    }
    let mut text = format!("{name}: trigger {trigger}, next look {}\n\n", word(&answer["nextAt"]));
    let mut table = Table::new(["At", "Times", "Decision"]);
    for decision in list(&answer["value"]) {
        let words = decision["words"].as_str().unwrap_or_default().to_owned();
        table.row([word(&decision["at"]), decision["times"].to_string(), words]);
    }
    text.push_str(&table.render());
    text
}

/// Prints every decision once, oldest first, until the reader goes away.
async fn follow_decisions(session: &Session, path: &str) -> Result<(), Failure> {
    let mut newest = String::new();
    let mut every = tokio::time::interval(FOLLOW_EVERY);
    loop {
        every.tick().await;
        for decision in list(&session.client.get(path).await?["value"]) {
            let at = decision["at"].as_str().unwrap_or_default();
            if newest.as_str() >= at {
                continue;
            }
            at.clone_into(&mut newest);
            if !text::line(&format!("{at}  {}", decision["words"].as_str().unwrap_or_default())) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_of_a_job() {
        let answer = json!({"job": "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/jobs/worker",
        "triggerType": "Event", "nextAt": "2026-05-01T12:00:30.25Z", "value": [
            {"at": "2026-05-01T12:00:00.1Z", "times": 4, "words": "started none: nothing waiting, 0 running, cap 12"},
            {"at": "2026-05-01T12:00:30.1Z", "times": 1, "words": "started 3: 12 waiting, 9 running, cap 12"},
        ]});
        expect![[r#"
            worker: trigger Event, next look 2026-05-01T12:00:30

            At                   Times  Decision
            -------------------  -----  ------------------------------------------------
            2026-05-01T12:00:00  4      started none: nothing waiting, 0 running, cap 12
            2026-05-01T12:00:30  1      started 3: 12 waiting, 9 running, cap 12
        "#]]
        .assert_eq(&describe(&answer));
        let manual = json!({"job": "/x/jobs/by-hand", "triggerType": "Manual", "nextAt": null, "value": []});
        expect![["by-hand: started by hand only\n"]].assert_eq(&describe(&manual));
    }
}
