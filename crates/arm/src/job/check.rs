//! From a normalised document to the model: trigger, limits, rules, and what a job shares with apps.
//!
//! **Invariant:** whatever is wrong is noted and reading goes on, so that the caller gets all problems at once.

use std::collections::BTreeSet;

use cove_model::{
    Counts, Job, JobEvent, JobScale, JobSchedule, JobStrategy, JobTrigger, MissedRuns, Overlap, ResourceId, ScaleRule,
    ScaleRuleAuth, ScaleRuleKind, check_app_name,
};
use cove_scaling::{
    schedule::Schedule,
    validate::{self as scaling, Surroundings},
};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{ParsedJob, TRIGGERS};
use crate::{
    ArmError, Errors,
    container_app::{
        PutContext,
        check::{self as shared, Scope, range},
        later, template,
    },
    environment::asks_for_something,
    node::Node,
    user_identity::{Assigned, read_block},
};

/// Longest run of a replica in seconds: 30 days.
const TIMEOUT_MAX: u32 = 30 * 24 * 3600;
/// Most failed runs that an execution may survive.
const RETRIES_MAX: u32 = 1000;
/// Most replicas at once, and most that must succeed.
const COUNT_MAX: u32 = 1000;
/// Most executions of an event-driven job at once.
const EXECUTIONS_MAX: u32 = 1000;
/// Longest polling interval in seconds: a day.
const POLLING_MAX: u32 = 24 * 3600;
/// Longest starting deadline in seconds: a day.
const DEADLINE_MAX: u32 = 24 * 3600;
/// Highest and, negative, lowest priority.
const PRIORITY_MAX: i64 = 1000;
/// Longest cron expression.
const CRON_LENGTH_MAX: usize = 200;

/// Reads the whole job; the document is made canonical on the way.
pub(super) fn job(mut doc: Value, context: &PutContext<'_>, errors: &mut Errors) -> ParsedJob {
    let name = context.id.name();
    if check_app_name(name).is_err() {
        let message = format!("Job name '{name}' is not valid: {}.", cove_model::APP_NAME_RULE);
        errors.push(ArmError::new(400, "ContainerAppInvalidName", message));
    }
    if !doc.is_object() {
        doc = json!({});
    }
    let environment = shared::environment(&Node::root(&doc), context, errors);
    let identities = read_block(&mut doc, errors);
    let (secrets, job) = {
        let root = Node::root(&doc);
        shared::location(&root, errors);
        let properties = root.get("properties");
        refuse_foreign(&root, errors);
        let configuration = properties.get("configuration");
        let secrets = shared::secrets(&configuration, context.known_secrets, errors);
        let profile = shared::profile(&properties.get("workloadProfileName"));
        let scope =
            scope(name, secrets.keys().cloned().collect(), context.known_secrets, profile.is_none(), identities);
        check_identity_settings(&configuration, &scope, errors);
        let job = Job {
            id: context.id.clone(),
            environment: environment.clone(),
            workload_profile: profile,
            template: template::read(&properties.get("template"), &scope, errors),
            trigger: trigger(&configuration, &scope, errors),
            replica_timeout_secs: timeout(&configuration, errors),
            replica_retry_limit: range(&configuration.get("replicaRetryLimit"), 0..=RETRIES_MAX, 0, errors),
            registries: shared::registries(&configuration, &scope, errors),
            is_suspended: false,
            priority: priority(&configuration, errors),
        };
        (secrets, job)
    };
    make_canonical(&mut doc, &environment);
    let workload_profile = doc.pointer("/properties/workloadProfileName").and_then(Value::as_str).map(str::to_owned);
    ParsedJob { job, doc, secrets, workload_profile }
}

/// What the parts of a job need to know of each other.
pub(super) fn scope<'a>(
    name: &'a str,
    secrets: BTreeSet<String>,
    known_secrets: &BTreeSet<String>,
    is_consumption: bool,
    identities: Assigned,
) -> Scope<'a> {
    let removed_secrets = known_secrets.difference(&secrets).cloned().collect();
    Scope {
        app: name,
        secrets,
        removed_secrets,
        has_ingress: false,
        is_consumption,
        identities,
        secrets_path: shared::SECRETS_PATH,
    }
}

/// One spelling of the environment, names instead of secret values.
fn make_canonical(doc: &mut Value, environment: &ResourceId) {
    if !doc["properties"].is_object() {
        doc["properties"] = json!({});
    }
    doc["properties"]["environmentId"] = json!(environment.as_str());
    if let Some(fields) = doc["properties"].as_object_mut() {
        fields.remove("managedEnvironmentId");
    }
    let secrets = doc.pointer_mut("/properties/configuration/secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        *secret = json!({ "name": secret["name"] });
    }
}

/// What belongs to apps, and what Azure has and Cove has not.
fn refuse_foreign(root: &Node<'_>, errors: &mut Errors) {
    let location = root.get("extendedLocation");
    if location.value().is_some_and(asks_for_something) {
        errors.push(ArmError::not_implemented(&location.path, "An extended location", "leave it out"));
    }
    let properties = root.get("properties");
    let configuration = properties.get("configuration");
    for (node, instead) in [
        (properties.get("template").get("scale"), "put rules into configuration.eventTriggerConfig.scale"),
        (configuration.get("ingress"), "nothing can call a job; leave it out"),
        (configuration.get("activeRevisionsMode"), "a job has no revisions; leave it out"),
    ] {
        if node.exists() {
            errors.invalid(&node.path, format!("'{}' is a property of apps, not of jobs: {instead}.", node.path));
        }
    }
}

fn check_identity_settings(configuration: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) {
    for settings in configuration.get("identitySettings").items() {
        let node = settings.get("identity");
        if !node.exists() {
            errors.invalid(&node.path, "An entry of identitySettings needs an identity: 'system' or the id of one.");
        }
        later::check_identity_ref(&node, &scope.identities, errors);
    }
}

fn timeout(configuration: &Node<'_>, errors: &mut Errors) -> u32 {
    let node = configuration.get("replicaTimeout");
    if !node.exists() {
        let message = format!("replicaTimeout is required: the seconds that a replica may run, 1 to {TIMEOUT_MAX}.");
        errors.invalid(&node.path, message);
    }
    range(&node, 1..=TIMEOUT_MAX, 1800, errors)
}

fn priority(configuration: &Node<'_>, errors: &mut Errors) -> i32 {
    let node = configuration.get("covePriority");
    let Some(number) = node.int() else { return 0 };
    match i32::try_from(number).ok().filter(|_| number.abs() <= PRIORITY_MAX) {
        Some(priority) => priority,
        None => {
            let message = format!("The value {number} is not valid; expected -{PRIORITY_MAX} to {PRIORITY_MAX}.");
            errors.invalid(&node.path, message);
            0
        }
    }
}

fn trigger(configuration: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> JobTrigger {
    let node = configuration.get("triggerType");
    let Some(kind) = node.text() else {
        errors.invalid(&node.path, "triggerType is required: Manual, Schedule or Event.");
        return JobTrigger::Manual(Counts::default());
    };
    for (other, name) in TRIGGERS.iter().filter(|(other, _)| *other != kind) {
        let config = configuration.get(name);
        if config.exists() {
            let message =
                format!("{name} belongs to triggerType '{other}', and triggerType is '{kind}'; leave it out.");
            errors.invalid(&config.path, message);
        }
    }
    match kind {
        "Schedule" => JobTrigger::Schedule(schedule(&configuration.get("scheduleTriggerConfig"), errors)),
        "Event" => JobTrigger::Event(event(&configuration.get("eventTriggerConfig"), scope, errors)),
        _ => JobTrigger::Manual(counts(&configuration.get("manualTriggerConfig"), errors)),
    }
}

fn counts(node: &Node<'_>, errors: &mut Errors) -> Counts {
    Counts {
        parallelism: range(&node.get("parallelism"), 1..=COUNT_MAX, 1, errors),
        completions: range(&node.get("replicaCompletionCount"), 1..=COUNT_MAX, 1, errors),
    }
}

fn schedule(node: &Node<'_>, errors: &mut Errors) -> JobSchedule {
    let cron_node = node.get("cronExpression");
    let cron = cron_node.text().unwrap_or("").trim();
    if cron.is_empty() {
        let message =
            "A job with triggerType 'Schedule' needs a cronExpression of five fields, such as '0 2 * * *' (UTC).";
        errors.invalid(&cron_node.path, message);
    } else if cron.len() > CRON_LENGTH_MAX {
        errors.invalid(&cron_node.path, format!("The expression is longer than {CRON_LENGTH_MAX} characters."));
    } else if let Err(error) = Schedule::parse(cron, TimeZone::UTC) {
        let shown: String = cron.chars().take(80).collect();
        errors.invalid(&cron_node.path, format!("The cron expression '{shown}' is not valid: {error}."));
    }
    let deadline = node.get("coveStartingDeadlineSeconds");
    JobSchedule {
        cron: cron.to_owned(),
        time_zone: node.get("coveTimeZone").text().map(str::to_owned),
        overlap: match node.get("coveOverlap").text() {
            Some("forbid") => Overlap::Forbid,
            Some("replace") => Overlap::Replace,
            _ => Overlap::Allow,
        },
        missed: match node.get("coveMissedRuns").text() {
            Some("skip") => MissedRuns::Skip,
            Some("all") => MissedRuns::All,
            _ => MissedRuns::Last,
        },
        starting_deadline_secs: deadline.exists().then(|| range(&deadline, 1..=DEADLINE_MAX, DEADLINE_MAX, errors)),
        counts: counts(node, errors),
    }
}

fn event(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> JobEvent {
    let scale = node.get("scale");
    check_scale(&scale, scope, errors);
    let whole = |name: &str, default: u32| {
        let given = scale.get(name).int();
        given.map_or(default, |number| u32::try_from(number).unwrap_or(u32::MAX))
    };
    JobEvent {
        counts: counts(node, errors),
        scale: JobScale {
            polling_interval_secs: whole("pollingInterval", 30),
            min_executions: whole("minExecutions", 0),
            max_executions: whole("maxExecutions", 100),
            strategy: match scale.get("coveStrategy").text() {
                Some("accurate") => JobStrategy::Accurate,
                Some("eager") => JobStrategy::Eager,
                _ => JobStrategy::Default,
            },
            rules: scale.get("rules").items().iter().map(|rule| read_rule(rule, scope, errors)).collect(),
        },
    }
}

/// Notes what the catalogue of scalers and the limits of ScaledJobs know to be wrong.
fn check_scale(scale: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) {
    let around = Surroundings { is_job: true, secrets: scope.secrets.clone(), ..Surroundings::default() };
    let found = scaling::validate(scale.value().unwrap_or(&Value::Null), &around);
    for finding in found.errors {
        let message = format!("The scale options provided for job '{}' are incorrect: {}.", scope.app, finding.message);
        let code = format!("{:?}", finding.code);
        errors.push(ArmError::new(400, &code, message).at(format!("{}.{}", scale.path, finding.place)));
    }
    for (name, most, code) in [
        ("minExecutions", EXECUTIONS_MAX, "MinExecutionsOutOfRange"),
        ("maxExecutions", EXECUTIONS_MAX, "MaxExecutionsOutOfRange"),
        ("pollingInterval", POLLING_MAX, "PollingIntervalInvalid"),
    ] {
        let node = scale.get(name);
        if node.int().is_some_and(|number| number > i64::from(most)) {
            let message = format!(
                "The scale options provided for job '{}' are incorrect: {name} must not be above {most}.",
                scope.app
            );
            errors.push(ArmError::new(400, code, message).at(&node.path));
        }
    }
    let limit = |name: &str, default: i64| scale.get(name).int().unwrap_or(default);
    if limit("minExecutions", 0) > limit("maxExecutions", 100) {
        let message = format!(
            "The scale options provided for job '{}' are incorrect: minExecutions is above maxExecutions (100 unless given).",
            scope.app
        );
        errors.push(ArmError::new(400, "MinExecutionsOutOfRange", message).at(&scale.get("minExecutions").path));
    }
}

fn read_rule(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> ScaleRule {
    let identity = node.get("identity");
    later::check_identity_ref(&identity, &scope.identities, errors);
    let text = |name: &str| node.get(name).text().unwrap_or("").trim().to_owned();
    let metadata = node.get("metadata").members();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.text().unwrap_or("").to_owned()));
    let auth = node.get("auth").items().into_iter().map(|item| ScaleRuleAuth {
        secret_ref: item.get("secretRef").text().unwrap_or("").to_owned(),
        trigger_parameter: item.get("triggerParameter").text().unwrap_or("").to_owned(),
    });
    ScaleRule {
        name: text("name"),
        kind: ScaleRuleKind::Custom {
            scaler: text("type"),
            metadata: metadata.collect(),
            auth: auth.collect(),
            identity: identity.text().map(str::to_owned),
        },
    }
}
