//! `cove clock`: the platform's time, and moving a virtual one.
//!
//! A long way is gone in several requests, each a part of it: the server answers after a while wherever it is, and is asked
//! again until the clock is where it was to go. Ctrl-C stops it between two instants.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use cove_server::ClockKind;

use crate::{
    failure::Failure,
    output::{Table, View},
    session::{Globals, Session, block_on},
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClockCommand {
    /// Show the platform's time and, on a virtual clock, the next instant that something waits for.
    Show,
    /// Move a virtual clock forward, over every instant between that something waits for (`cove serve --clock virtual`).
    Advance(AdvanceArgs),
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct AdvanceArgs {
    /// How far: `90s`, `5m`, `2h`.
    by: Option<String>,
    /// Until when: `2026-01-31T08:00:00Z`.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    to: Option<Timestamp>,
}

/// Reads `--clock`: `real`, `virtual`, or `virtual=` and the instant at which it starts.
pub(crate) fn kind(text: &str) -> Result<ClockKind, String> {
    match text.split_once('=') {
        None if text == "real" => Ok(ClockKind::Real),
        None if text == "virtual" => Ok(ClockKind::Virtual { start: None }),
        Some(("virtual", start)) => Ok(ClockKind::Virtual { start: Some(instant(start)?) }),
        _ => Err("expected real, virtual or virtual=2026-01-31T08:00:00Z".to_owned()),
    }
}

/// An instant with an offset, or a day, which begins at midnight UTC.
fn instant(text: &str) -> Result<Timestamp, String> {
    let day = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok();
    text.parse()
        .ok()
        .or_else(|| Some(day()?.timestamp()))
        .ok_or_else(|| "expected an instant such as 2026-01-31T08:00:00Z, or a day such as 2026-01-31".to_owned())
}

pub(crate) fn run(command: &ClockCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        match command {
            ClockCommand::Show => {
                let shown = session.client.get("/cove/v1/clock").await?;
                session.print(shown, View::Plain)
            }
            ClockCommand::Advance(args) => advance(&session, args).await,
        }
    })
}

async fn advance(session: &Session, args: &AdvanceArgs) -> Result<(), Failure> {
    let mut body = match (&args.by, args.to) {
        (Some(by), _) => json!({ "by": by }),
        (None, to) => json!({ "to": to }),
    };
    let mut all = Value::Null;
    loop {
        let part = session.client.post("/cove/v1/clock/advance", Some(&body)).await?;
        body = json!({ "to": part["to"] });
        let is_over = part["isDone"] != false;
        join(&mut all, part);
        if is_over {
            break;
        }
    }
    if session.output.is_table() && !session.client.has_shown() {
        text::out(&story(&all));
        return Ok(());
    }
    session.print(all, View::Plain)
}

/// Puts the answer for a further part of the way to those before.
fn join(all: &mut Value, mut part: Value) {
    if all.is_null() {
        *all = part;
        return;
    }
    for list in ["changes", "events", "unsettled"] {
        if let (Some(all), Some(more)) = (all[list].as_array_mut(), part[list].as_array_mut()) {
            all.append(more);
        }
    }
    for count in ["steps", "leftOut"] {
        all[count] = json!(all[count].as_u64().unwrap_or(0) + part[count].as_u64().unwrap_or(0));
    }
    for last in ["now", "isDone"] {
        all[last] = part[last].take();
    }
}

/// What happened, for people.
fn story(moved: &Value) -> String {
    let mut table = Table::new(["Time", "App", "Event", "Message"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = moved["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    for event in events {
        let app = text(&event["app"]).rsplit('/').next().unwrap_or_default().to_owned();
        table.row([text(&event["at"]), app, text(&event["reason"]), text(&event["message"])]);
    }
    let mut story = table.render();
    if moved["leftOut"] != 0 {
        story += &format!("{} more are not shown\n", moved["leftOut"]);
    }
    for late in moved["unsettled"].as_array().map(Vec::as_slice).unwrap_or_default() {
        story += &format!("not waited for any longer: {}\n", text(late));
    }
    story + &format!("It is {} after {} steps.\n", text(&moved["now"]), moved["steps"])
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_clock_of_a_server_is_named() {
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        for (text, expected) in [
            ("real", Ok(ClockKind::Real)),
            ("virtual", Ok(ClockKind::Virtual { start: None })),
            ("virtual=2026-01-31", Ok(ClockKind::Virtual { start: at("2026-01-31T00:00:00Z") })),
            ("virtual=2026-01-31T08:00:00+01:00", Ok(ClockKind::Virtual { start: at("2026-01-31T07:00:00Z") })),
            ("virtual=soon", Err("expected an instant such as 2026-01-31T08:00:00Z, or a day such as 2026-01-31")),
            ("virtual=", Err("expected an instant such as 2026-01-31T08:00:00Z, or a day such as 2026-01-31")),
            ("fast", Err("expected real, virtual or virtual=2026-01-31T08:00:00Z")),
        ] {
            assert_eq!(kind(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn parts_of_a_way_are_one_story() {
        let event = |at: &str, message: &str| {
            json!({"at": at, "app": "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/containerApps/web",
                "reason": "KEDAScaleTargetDeactivated", "message": message})
        };
        let part = |now: &str, is_done: bool, event: Value| {
            json!({"from": "2026-01-31T08:00:00Z", "now": now, "to": "2026-01-31T09:00:00Z", "isDone": is_done, "steps": 20,
                "changes": [], "events": [event], "leftOut": 0, "unsettled": []})
        };
        let mut all = Value::Null;
        join(
            &mut all,
            part("2026-01-31T08:30:00Z", false, event("2026-01-31T08:05:15Z", "Scaled `web--1` from 1 to 0")),
        );
        join(
            &mut all,
            part("2026-01-31T09:00:00Z", true, event("2026-01-31T08:45:00Z", "Scaled `web--1` from 0 to 1")),
        );
        assert_eq!((&all["from"], &all["isDone"]), (&json!("2026-01-31T08:00:00Z"), &json!(true)));
        expect![[r#"
            Time                  App  Event                       Message
            --------------------  ---  --------------------------  ---------------------------
            2026-01-31T08:05:15Z  web  KEDAScaleTargetDeactivated  Scaled `web--1` from 1 to 0
            2026-01-31T08:45:00Z  web  KEDAScaleTargetDeactivated  Scaled `web--1` from 0 to 1
            It is 2026-01-31T09:00:00Z after 40 steps.
        "#]]
        .assert_eq(&story(&all));
    }
}
