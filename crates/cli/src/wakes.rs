//! `cove wakes`: how long each wake from zero took, and in which phase.

use serde_json::Value;

use crate::{
    client::{Client, encode},
    failure::Failure,
    output::Table,
    session::{Globals, Session, block_on},
    text,
};

#[derive(Debug, clap::Args)]
pub(crate) struct WakesArgs {
    /// Name or id of an app; all apps otherwise.
    app: Option<String>,
    /// Resource group of the app.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
    /// How many, newest first.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Phases in the order they happen: field of the record and title.
const PHASES: [(&str, &str); 8] = [
    ("planned_us", "planned"),
    ("thawed_us", "thawed"),
    ("network_us", "network"),
    ("root_us", "root"),
    ("started_us", "started"),
    ("listening_us", "listening"),
    ("ready_us", "ready"),
    ("first_byte_us", "first byte"),
];

pub(crate) fn run(args: WakesArgs, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let app = match &args.app {
            Some(name) => Some(find_app(&session.client, name, args.group.as_deref()).await?),
            None => None,
        };
        let wakes = fetch(&session.client, app.as_deref(), args.limit).await?;
        if !session.output.is_table() {
            return session.print(wakes, crate::output::View::Plain);
        }
        text::out(&table(&wakes));
        Ok(())
    })
}

/// The newest wakes, of one app or of all.
pub(crate) async fn fetch(client: &Client, app: Option<&str>, limit: u32) -> Result<Value, Failure> {
    let app = app.map(|app| format!("&app={}", encode(app))).unwrap_or_default();
    let mut answer = client.get(&format!("/cove/v1/wakes?limit={limit}{app}")).await?;
    Ok(answer["value"].take())
}

/// The id of an app given by name or id; without a group the name must be unique.
pub(crate) async fn find_app(client: &Client, name: &str, group: Option<&str>) -> Result<String, Failure> {
    if name.starts_with('/') {
        return Ok(name.to_owned());
    }
    if let Some(group) = group {
        let app = client.get(&client.app(group, name)).await?;
        return Ok(app["id"].as_str().unwrap_or_default().to_owned());
    }
    let path = format!("/subscriptions/{}/providers/Microsoft.App/containerApps", client.subscription());
    let apps = client.list(&path).await?;
    let apps = apps.as_array().map_or(&[][..], Vec::as_slice);
    let mut found =
        apps.iter().filter(|app| app["name"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name)));
    match (found.next(), found.next()) {
        (Some(app), None) => Ok(app["id"].as_str().unwrap_or_default().to_owned()),
        (None, _) => Err(Failure::not_found(format!("there is no app `{name}`")).hint("cove containerapp list")),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("there are several apps `{name}`")).hint("add --resource-group"))
        }
    }
}

fn table(wakes: &Value) -> String {
    let mut table = Table::new(
        ["Accepted", "Replica", "From"].into_iter().chain(PHASES.iter().map(|(_, title)| *title)).collect::<Vec<_>>(),
    );
    for wake in wakes.as_array().map_or(&[][..], Vec::as_slice) {
        let text = |name: &str| wake[name].as_str().unwrap_or_default().to_owned();
        let accepted: String = text("accepted_at").chars().take(23).collect();
        let from = match wake["from_slot"] == true {
            true => "slot",
            false if wake["thawed_us"].is_u64() => "frozen",
            false => "cold",
        };
        let phases = PHASES.iter().map(|(field, _)| wake[*field].as_u64().map(millis).unwrap_or_default());
        table.row([accepted, text("replica"), from.to_owned()].into_iter().chain(phases));
    }
    let text = table.render();
    if text.is_empty() {
        "no wake was recorded\n".to_owned()
    } else {
        format!("{text}\nmilliseconds after the request was accepted\n")
    }
}

/// Phases of one wake in a line: `planned 0.6 · started 1.9 · … · first byte 8.1 ms`.
pub(crate) fn phases(wake: &Value) -> String {
    let phases = PHASES.iter().filter_map(|(field, title)| Some(format!("{title} {}", millis(wake[*field].as_u64()?))));
    format!("{} ms", phases.collect::<Vec<_>>().join(" · "))
}

/// Microseconds as milliseconds with one digit.
pub(crate) fn millis(us: u64) -> String {
    format!("{}.{}", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn wake() -> Value {
        json!({"accepted_at": "2026-01-01T00:00:00.123456789Z", "replica": "web--a-1", "from_slot": true,
            "planned_us": 590, "network_us": null, "root_us": null, "started_us": 1891, "listening_us": 5803,
            "ready_us": 6687, "first_byte_us": 7113})
    }

    #[test]
    fn phases_that_did_not_occur_are_left_out() {
        expect!["planned 0.5 · started 1.8 · listening 5.8 · ready 6.6 · first byte 7.1 ms"]
            .assert_eq(&phases(&wake()));
    }

    #[test]
    fn a_table_shows_every_phase() {
        let thawed = json!({"accepted_at": "2026-01-01T00:00:00.123456789Z", "replica": "web--a-1", "from_slot": false,
            "planned_us": 590, "thawed_us": 950, "first_byte_us": 1420});
        expect![[r#"
            Accepted                 Replica   From    planned  thawed  network  root  started  listening  ready  first byte
            -----------------------  --------  ------  -------  ------  -------  ----  -------  ---------  -----  ----------
            2026-01-01T00:00:00.123  web--a-1  slot    0.5                             1.8      5.8        6.6    7.1
            2026-01-01T00:00:00.123  web--a-1  frozen  0.5      0.9                                               1.4

            milliseconds after the request was accepted
        "#]]
        .assert_eq(&table(&json!([wake(), thawed])));
        expect![[r#"
            no wake was recorded
        "#]]
        .assert_eq(&table(&json!([])));
    }
}
