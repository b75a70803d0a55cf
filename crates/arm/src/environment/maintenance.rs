//! `managedEnvironments/maintenanceConfigurations`: the hours in which Azure may change the platform under an environment.

use serde_json::Value;

use super::child::strip;
use crate::{ArmError, Errors, node::Node, schema::Schema};

/// Body of a configuration.
pub static SCHEMA: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[(
        "scheduledEntries",
        &Schema::List(&Schema::Object(&[
            ("weekDay", &Schema::Word(&["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"])),
            ("startHourUtc", &Schema::Int),
            ("durationHours", &Schema::Int),
        ])),
    )]),
)]);

/// What every answer says.
pub const NO_EFFECT: &str = "The hours are stored only: this server changes nothing by itself, at any hour.";

/// Checks a configuration; an environment has one, named `default`, with one entry.
///
/// # Errors
/// Every problem at once.
pub fn parse(name: &str, mut doc: Value, mut errors: Errors) -> Result<Value, ArmError> {
    strip(&mut doc, &[]);
    if !name.eq_ignore_ascii_case("default") {
        let message = "An environment has one maintenance configuration, named 'default'.";
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    let entries = Node::root(&doc).get("properties").get("scheduledEntries");
    if entries.items().len() != 1 {
        errors.invalid(&entries.path, format!("Expected one entry, found {}.", entries.items().len()));
    }
    for entry in entries.items() {
        for (name, range) in [("startHourUtc", 0..=23), ("durationHours", 8..=24)] {
            let node = entry.get(name);
            match node.int() {
                Some(number) if range.contains(&number) => {}
                Some(number) => errors.invalid(
                    &node.path,
                    format!("{number} is out of range; expected {} to {}.", range.start(), range.end()),
                ),
                None => errors
                    .invalid(&node.path, format!("A number from {} to {} is required.", range.start(), range.end())),
            }
        }
        let day = entry.get("weekDay");
        if !day.exists() {
            errors.invalid(&day.path, "A day of the week is required.");
        }
    }
    errors.into_result()?;
    Ok(doc)
}
