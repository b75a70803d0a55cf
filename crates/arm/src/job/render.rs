//! A job as Azure shows it: the stored document, completed with defaults and with what is known at the time.
//!
//! **Invariant:** no collection is ever null: `az` iterates them without looking.

use cove_model::{Counts, Job, JobStrategy, JobTrigger, MissedRuns, Overlap, ResourceId};
use serde_json::{Value, json};

use crate::{
    SystemData,
    container_app::{complete, render_template},
    node::Node,
};

/// What is known of a job when it is shown.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its id, in the case of its creation.
    pub id: &'a ResourceId,
    /// `InProgress`, `Succeeded`, `Failed`, `Canceled`, `Deleting`.
    pub provisioning_state: &'a str,
    /// Origin of the request, such as `https://localhost:8443`: streams are given on it.
    pub origin: &'a str,
    /// Addresses that the job's own connections come from.
    pub outbound_ips: &'a [String],
    /// Who made and changed it.
    pub system_data: Option<&'a SystemData>,
}

/// The job as Azure shows it; `doc` and `job` are what [`super::parse_put`] gave.
#[must_use]
pub fn render(doc: &Value, job: &Job, view: &View<'_>) -> Value {
    let mut properties = doc.get("properties").cloned().unwrap_or_else(|| json!({}));
    let given = |name: &str| properties.get(name).cloned().unwrap_or_else(|| json!({}));
    let (mut configuration, mut template) = (given("configuration"), given("template"));
    complete(&mut configuration, &render_configuration(job));
    let mut known = render_template(&job.template);
    known.as_object_mut().map(|fields| fields.remove("scale"));
    complete(&mut template, &known);
    let facts = json!({
        "provisioningState": view.provisioning_state,
        "runningState": running_state(job, view),
        "environmentId": job.environment.as_str(),
        "workloadProfileName": given("workloadProfileName").as_str().unwrap_or("Consumption"),
        "outboundIpAddresses": view.outbound_ips,
        "eventStreamEndpoint": format!(
            "{}/subscriptions/{}/resourceGroups/{}/jobs/{}/eventstream",
            view.origin, view.id.subscription(), view.id.group_name(), view.id.name()
        ),
    });
    crate::patch::merge(&mut properties, &facts);
    properties["configuration"] = configuration;
    properties["template"] = template;
    let warnings = warnings(doc);
    if !warnings.is_empty() {
        properties["coveWarnings"] = json!(warnings);
    }
    envelope(doc, view, properties)
}

fn running_state(job: &Job, view: &View<'_>) -> &'static str {
    match view.provisioning_state {
        _ if job.is_suspended => "Suspended",
        "InProgress" | "Deleting" => "Progressing",
        _ => "Ready",
    }
}

fn envelope(doc: &Value, view: &View<'_>, properties: Value) -> Value {
    let location = doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": view.id.as_str(),
        "name": view.id.name(),
        "type": cove_model::JOB_KIND,
        "location": crate::provider::display_location(location).unwrap_or(location),
        "identity": { "type": "None" },
        "properties": properties,
    });
    for (name, given) in doc.as_object().into_iter().flatten() {
        if !["location", "properties", "systemData"].contains(&name.as_str()) {
            value[name] = given.clone();
        }
    }
    if let Some(data) = view.system_data {
        value["systemData"] = data.render();
    }
    value
}

/// The configuration with its defaults; the triggers that it has not are null, as in Azure.
fn render_configuration(job: &Job) -> Value {
    let mut value = json!({
        "triggerType": job.trigger.as_arm(),
        "replicaTimeout": job.replica_timeout_secs,
        "replicaRetryLimit": job.replica_retry_limit,
        "manualTriggerConfig": null,
        "scheduleTriggerConfig": null,
        "eventTriggerConfig": null,
    });
    if job.priority != 0 {
        value["covePriority"] = json!(job.priority);
    }
    match &job.trigger {
        JobTrigger::Manual(counts) => value["manualTriggerConfig"] = render_counts(*counts),
        JobTrigger::Schedule(schedule) => {
            let mut config = render_counts(schedule.counts);
            config["cronExpression"] = json!(schedule.cron);
            match schedule.overlap {
                Overlap::Allow => {}
                Overlap::Forbid => config["coveOverlap"] = json!("forbid"),
                Overlap::Replace => config["coveOverlap"] = json!("replace"),
            }
            match schedule.missed {
                MissedRuns::Last => {}
                MissedRuns::Skip => config["coveMissedRuns"] = json!("skip"),
                MissedRuns::All => config["coveMissedRuns"] = json!("all"),
            }
            value["scheduleTriggerConfig"] = config;
        }
        JobTrigger::Event(event) => {
            let mut config = render_counts(event.counts);
            config["scale"] = json!({
                "pollingInterval": event.scale.polling_interval_secs,
                "minExecutions": event.scale.min_executions,
                "maxExecutions": event.scale.max_executions,
            });
            match event.scale.strategy {
                JobStrategy::Default => {}
                JobStrategy::Accurate => config["scale"]["coveStrategy"] = json!("accurate"),
                JobStrategy::Eager => config["scale"]["coveStrategy"] = json!("eager"),
            }
            value["eventTriggerConfig"] = config;
        }
    }
    value
}

fn render_counts(counts: Counts) -> Value {
    json!({ "parallelism": counts.parallelism, "replicaCompletionCount": counts.completions })
}

/// What of a stored document has no effect, in words.
fn warnings(doc: &Value) -> Vec<String> {
    let root = Node::root(doc);
    let configuration = root.get("properties").get("configuration");
    let mut all = Vec::new();
    let mut say = |text: &str| all.push(text.to_owned());
    if root.get("identity").get("type").text().is_some_and(|kind| !kind.eq_ignore_ascii_case("None")) {
        say(
            "identity: ids are made and can be given roles, but the job gets no tokens yet; IDENTITY_ENDPOINT is not set in its containers.",
        );
    }
    if configuration.get("registries").items().iter().any(|registry| registry.get("identity").exists()) {
        say(
            "registries[].identity has no effect yet: images are pulled without a login; give username and passwordSecretRef where one is needed.",
        );
    }
    if !configuration.get("identitySettings").items().is_empty() {
        say("identitySettings have no effect yet: the job gets no tokens.");
    }
    let template = root.get("properties").get("template");
    let has_gpu = |list: &str| {
        let items = template.get(list).items();
        items.iter().any(|item| item.get("resources").get("gpu").number().is_some_and(|count| count != 0.0))
    };
    if has_gpu("containers") || has_gpu("initContainers") {
        say("resources.gpu has no effect yet: the container gets no GPU device.");
    }
    let scale = configuration.get("eventTriggerConfig").get("scale");
    if let Some(scale) = scale.value() {
        let around = cove_scaling::validate::Surroundings { is_job: true, ..Default::default() };
        let found = cove_scaling::validate::validate(scale, &around);
        let places = found.warnings.iter().map(|finding| (finding.place.as_str(), finding.message.as_str()));
        let places = places.chain(found.hints.iter().map(|(place, message)| (place.as_str(), message.as_str())));
        all.extend(places.map(|(place, message)| format!("eventTriggerConfig.scale.{place}: {message}.")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_asks_for_nothing_special_warns_of_nothing() {
        assert_eq!(warnings(&json!({ "identity": { "type": "None" } })), Vec::<String>::new());
        assert_eq!(warnings(&json!({ "identity": { "type": "SystemAssigned" } })).len(), 1);
    }
}
