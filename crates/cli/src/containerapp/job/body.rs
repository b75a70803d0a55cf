//! The JSON of a job from flags or a file.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{AppRef, create, environment::profile, template, whole},
    KIND,
};
use crate::{client::Wait, failure::Failure, file, output::View, pairs, session::Session};

/// Image of a job without one, as az's.
const QUICKSTART: &str = "mcr.microsoft.com/k8se/quickstart:latest";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    job: AppRef,
    /// Name or id of the environment.
    #[arg(long)]
    environment: Option<String>,
    /// The job as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    container: template::ContainerArgs,
    /// `key=value …`; `key=secretref:name` for a secret's value.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    env_vars: Vec<String>,
    #[command(flatten)]
    configuration: create::ConfigurationArgs,
    /// An identity of its own.
    #[arg(long, alias = "system-assigned")]
    mi_system_assigned: bool,
    /// Names or ids of identities.
    #[arg(long, alias = "user-assigned", num_args = 1.., value_name = "ID")]
    mi_user_assigned: Vec<String>,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    job: AppRef,
    /// The job as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    container: template::ContainerArgs,
    /// Add or change variables: `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    set_env_vars: Vec<String>,
    /// Remove variables by name.
    #[arg(long, num_args = 0.., value_name = "KEY", help_heading = "Container")]
    remove_env_vars: Vec<String>,
    /// Set these variables and remove all others.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    replace_env_vars: Option<Vec<String>>,
    /// Remove all variables.
    #[arg(long, help_heading = "Container")]
    remove_all_env_vars: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

/// Triggers and where their configuration is.
const SECTIONS: [(&str, &str); 3] =
    [("manual", "manualTriggerConfig"), ("schedule", "scheduleTriggerConfig"), ("event", "eventTriggerConfig")];

/// When and how often it runs.
#[derive(Clone, Debug, Default, clap::Args)]
struct RunArgs {
    /// Manual, Schedule or Event.
    #[arg(long, ignore_case = true, value_parser = ["Manual", "Schedule", "Event"])]
    trigger_type: Option<String>,
    /// Seconds that a replica may take.
    #[arg(long, value_name = "SECONDS")]
    replica_timeout: Option<u32>,
    /// Times that a replica is tried again.
    #[arg(long, value_name = "N")]
    replica_retry_limit: Option<u32>,
    /// Replicas that must succeed.
    #[arg(long, alias = "rcc", value_name = "N")]
    replica_completion_count: Option<u32>,
    /// Replicas at the same time.
    #[arg(long, value_name = "N")]
    parallelism: Option<u32>,
    /// When it runs, for Schedule: such as `0 */2 * * *`.
    #[arg(long, value_name = "CRON")]
    cron_expression: Option<String>,
    /// Zone that the expression is read in, for Schedule [default: UTC].
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// What a tick does while an execution runs, for Schedule [default: allow].
    #[arg(long, value_parser = ["allow", "forbid", "replace"])]
    overlap: Option<String>,
    /// Which ticks are made up for after a standstill, for Schedule [default: last].
    #[arg(long, value_parser = ["last", "skip", "all"])]
    missed_runs: Option<String>,
    /// Goes first when the machine is short: -1000..=1000 [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// How running executions count against the queue, for Event [default: default].
    #[arg(long, value_parser = ["default", "accurate", "eager"])]
    strategy: Option<String>,
    /// Fewest executions per look, for Event.
    #[arg(long, value_name = "N")]
    min_executions: Option<u32>,
    /// Most executions per look, for Event.
    #[arg(long, value_name = "N")]
    max_executions: Option<u32>,
    /// Seconds between two looks, for Event.
    #[arg(long, value_name = "SECONDS")]
    polling_interval: Option<u32>,
    /// Name of the scale rule, for Event.
    #[arg(long, alias = "srn", value_name = "NAME")]
    scale_rule_name: Option<String>,
    /// Type of the scale rule, for Event.
    #[arg(long, alias = "srt", value_name = "TYPE")]
    scale_rule_type: Option<String>,
    /// Metadata of the rule: `key=value …`
    #[arg(long, alias = "srm", num_args = 1.., value_name = "KEY=VALUE")]
    scale_rule_metadata: Vec<String>,
    /// Secrets of the rule: `parameter=secret …`
    #[arg(long, alias = "sra", num_args = 1.., value_name = "PARAMETER=SECRET")]
    scale_rule_auth: Vec<String>,
    /// Workload profile of the environment.
    #[arg(short = 'w', long, value_name = "NAME")]
    workload_profile_name: Option<String>,
    /// `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    tags: Option<Vec<String>>,
}

impl RunArgs {
    /// Lays the flags that were given over `configuration`.
    fn apply(&self, configuration: &mut Value) -> Result<(), Failure> {
        if let Some(trigger) = &self.trigger_type {
            configuration["triggerType"] = trigger.as_str().into();
        }
        let numbers = [("replicaTimeout", self.replica_timeout), ("replicaRetryLimit", self.replica_retry_limit)];
        for (name, number) in numbers {
            if let Some(number) = number {
                configuration[name] = number.into();
            }
        }
        if let Some(priority) = self.priority {
            configuration["covePriority"] = priority.into();
        }
        let kind = configuration["triggerType"].as_str().unwrap_or_default().to_ascii_lowercase();
        let known = SECTIONS.iter().find(|(known, _)| *known == kind);
        let section = known.map_or("manualTriggerConfig", |(_, section)| *section);
        let trigger = &mut configuration[section];
        let counts = [("parallelism", self.parallelism), ("replicaCompletionCount", self.replica_completion_count)];
        for (name, count) in counts {
            if trigger[name].is_null() || count.is_some() {
                trigger[name] = count.unwrap_or(1).into();
            }
        }
        let texts = [
            ("cronExpression", &self.cron_expression),
            ("coveTimeZone", &self.time_zone),
            ("coveOverlap", &self.overlap),
            ("coveMissedRuns", &self.missed_runs),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                trigger[name] = text.as_str().into();
            }
        }
        if section == "eventTriggerConfig" {
            self.apply_scale(&mut trigger["scale"])?;
        }
        Ok(())
    }

    fn apply_scale(&self, scale: &mut Value) -> Result<(), Failure> {
        let numbers = [
            ("minExecutions", self.min_executions),
            ("maxExecutions", self.max_executions),
            ("pollingInterval", self.polling_interval),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                scale[name] = number.into();
            }
        }
        if let Some(strategy) = &self.strategy {
            scale["coveStrategy"] = strategy.as_str().into();
        }
        let Some(name) = &self.scale_rule_name else { return Ok(()) };
        let kind = self.scale_rule_type.as_deref().ok_or_else(|| {
            Failure::usage("the scale rule needs a type").hint("add --scale-rule-type, such as azure-servicebus")
        })?;
        let auth = self.scale_rule_auth.iter().map(|pair| {
            let (parameter, secret) = pairs::split(pair, "--scale-rule-auth")?;
            Ok(json!({ "triggerParameter": parameter, "secretRef": secret }))
        });
        scale["rules"] = json!([{ "name": name, "type": kind,
            "metadata": pairs::object(&self.scale_rule_metadata, "--scale-rule-metadata")?,
            "auth": auth.collect::<Result<Vec<_>, Failure>>()? }]);
        Ok(())
    }
}

pub(super) async fn create(session: &Session, args: CreateArgs) -> Result<(), Failure> {
    let client = &session.client;
    let mut body = match &args.yaml {
        Some(path) => file::yaml(path)?,
        None => body(&args)?,
    };
    if let Some(environment) = &args.environment {
        body["properties"]["environmentId"] = client.environment(&args.job.group.group, environment).into();
    }
    let Some(environment) = body["properties"]["environmentId"].as_str().map(str::to_owned) else {
        return Err(Failure::usage("the job needs an environment").hint("add --environment NAME"));
    };
    if body["location"].as_str().is_none_or(str::is_empty) {
        body["location"] = client.get(&environment).await?["location"].take();
    }
    if let Some(identity) =
        create::identity(session, &args.job.group.group, args.mi_system_assigned, &args.mi_user_assigned)
    {
        body["identity"] = identity;
    }
    if let Some(kind) = args.container.gpu()? {
        body["properties"]["workloadProfileName"] = profile::ensure(session, &environment, kind).await?.into();
    }
    let path = args.job.path_of(session, KIND);
    let made = client.write(Method::PUT, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    session.print(made, View::Jobs)
}

fn body(args: &CreateArgs) -> Result<Value, Failure> {
    if args.run.replica_timeout.is_none() || args.run.replica_retry_limit.is_none() {
        return Err(Failure::usage("a job needs limits").hint("add --replica-timeout and --replica-retry-limit"));
    }
    let mut container = args.container.clone();
    container.image.get_or_insert_with(|| QUICKSTART.to_owned());
    let env = pairs::environment(&args.env_vars, "--env-vars")?;
    let mut configuration = json!({ "triggerType": "Manual" });
    args.run.apply(&mut configuration)?;
    let mut secrets = pairs::secrets(&args.configuration.secrets)?;
    if let Some(registry) = create::registry(&args.configuration, &mut secrets)? {
        configuration["registries"] = json!([registry]);
    }
    if !secrets.is_empty() {
        configuration["secrets"] = Value::Array(secrets);
    }
    let template = json!({ "containers": [template::container(&container, &args.job.name, &env)] });
    let mut body = json!({ "properties": { "configuration": configuration, "template": template } });
    if let Some(profile) = &args.run.workload_profile_name {
        body["properties"]["workloadProfileName"] = profile.as_str().into();
    }
    if let Some(tags) = &args.run.tags {
        body["tags"] = pairs::object(tags, "--tags")?;
    }
    Ok(body)
}

pub(super) async fn update(session: &Session, args: UpdateArgs) -> Result<(), Failure> {
    let path = args.job.path_of(session, KIND);
    let mut job = session.client.get(&path).await?;
    let patch = match &args.yaml {
        Some(file) => file::yaml(file)?,
        None => {
            whole::fill_secrets(session, &path, &mut job).await?;
            patch(job, &args)?
        }
    };
    let changed = session.client.write(Method::PATCH, &path, Some(&patch), Wait::unless(args.no_wait)).await?;
    session.print(changed, View::Jobs)
}

fn patch(mut job: Value, args: &UpdateArgs) -> Result<Value, Failure> {
    let properties = &mut job["properties"];
    let configuration = &mut properties["configuration"];
    args.run.apply(configuration)?;
    // the old trigger's configuration does not stay behind
    let kind = configuration["triggerType"].as_str().unwrap_or_default().to_ascii_lowercase();
    for (_, section) in SECTIONS.iter().filter(|(other, _)| *other != kind) {
        configuration[*section] = Value::Null;
    }
    let wanted = args.container.container_name.as_deref();
    let containers = properties["template"]["containers"].as_array_mut();
    let container = containers.and_then(|list| match wanted {
        Some(name) => list.iter_mut().find(|container| container["name"] == name),
        None => list.first_mut(),
    });
    let container = container.ok_or_else(|| Failure::not_found("the job has no such container"))?;
    template::apply(&args.container, container);
    let mut env = container["env"].as_array().cloned().unwrap_or_default();
    if args.remove_all_env_vars {
        env.clear();
    }
    if let Some(replaced) = &args.replace_env_vars {
        env = pairs::environment(replaced, "--replace-env-vars")?;
    }
    for variable in pairs::environment(&args.set_env_vars, "--set-env-vars")? {
        env.retain(|known| known["name"] != variable["name"]);
        env.push(variable);
    }
    env.retain(|variable| !args.remove_env_vars.iter().any(|name| variable["name"] == name.as_str()));
    container["env"] = Value::Array(env);
    let mut patch = json!({ "properties": {
        "configuration": properties["configuration"].take(), "template": properties["template"].take() } });
    if let Some(profile) = &args.run.workload_profile_name {
        patch["properties"]["workloadProfileName"] = profile.as_str().into();
    }
    if let Some(tags) = &args.run.tags {
        patch["tags"] = pairs::object(tags, "--tags")?;
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn check(line: &str) -> Result<Value, String> {
        let args = Line::parse_from(format!("x -g rg -n job {line}").split(' ')).args;
        body(&args).map(|mut body| body["properties"].take()).map_err(|failure| failure.text)
    }

    #[test]
    fn flags_become_azures_json() {
        assert_eq!(
            check("--trigger-type manual --image a:b --cpu 8 --memory 32Gi --parallelism 1 --replica-timeout 7200 --replica-retry-limit 3 --env-vars EPOCHS=100").unwrap(),
            json!({
                "configuration": {"triggerType": "manual", "replicaTimeout": 7200, "replicaRetryLimit": 3,
                    "manualTriggerConfig": {"parallelism": 1, "replicaCompletionCount": 1}},
                "template": {"containers": [{"name": "job", "image": "a:b",
                    "resources": {"cpu": 8.0, "memory": "32Gi"}, "env": [{"name": "EPOCHS", "value": "100"}]}]},
            })
        );
        let event = check("--trigger-type Event --replica-timeout 1 --replica-retry-limit 0 --max-executions 5 --scale-rule-name q --scale-rule-type azure-servicebus --scale-rule-metadata queueName=a --scale-rule-auth connection=s").unwrap();
        assert_eq!(
            event["configuration"]["eventTriggerConfig"]["scale"],
            json!({"maxExecutions": 5, "rules": [{"name": "q", "type": "azure-servicebus", "metadata": {"queueName": "a"},
                "auth": [{"triggerParameter": "connection", "secretRef": "s"}]}]})
        );
        assert_eq!(check("--image a"), Err("a job needs limits".to_owned()));
    }
}
