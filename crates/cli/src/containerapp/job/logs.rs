//! `containerapp job logs` and `job replica`: what the containers of an execution wrote, also after their end.

use serde_json::Value;

use super::{
    super::{
        AppRef,
        logs::{self, Kind, StreamArgs},
    },
    KIND,
};
use crate::{client::encode, failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum LogsCommand {
    /// Print lines of a container, or system events of the job.
    Show(Box<ShowArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    job: AppRef,
    #[command(flatten)]
    stream: StreamArgs,
    /// Output of a container, or events of the platform.
    #[arg(short = 't', long = "type", value_parser = ["console", "system"], default_value = "console")]
    kind: String,
    /// Execution [default: the newest].
    #[arg(long)]
    execution: Option<String>,
    /// Replica, also one that has ended [default: the newest].
    #[arg(long)]
    replica: Option<String>,
    /// Container [default: the first].
    #[arg(long)]
    container: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ReplicaCommand {
    /// List replicas of an execution, also those that have ended.
    List {
        #[command(flatten)]
        job: AppRef,
        /// Execution [default: the newest].
        #[arg(long)]
        execution: Option<String>,
    },
}

/// The name of the execution that is asked for, or of the newest one.
pub(super) async fn execution(session: &Session, job: &AppRef, asked: Option<&str>) -> Result<String, Failure> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    let executions = session.client.list(&format!("{}/executions", job.path_of(session, KIND))).await?;
    let newest = executions[0]["name"].as_str().map(str::to_owned);
    newest
        .ok_or_else(|| Failure::new(format!("the job `{}` has not run yet", job.name)).hint("start it with job start"))
}

/// Replicas of the execution, or of the newest one.
async fn replicas(session: &Session, job: &AppRef, asked: Option<&str>) -> Result<(String, Value), Failure> {
    let path = job.path_of(session, KIND);
    let name = execution(session, job, asked).await?;
    let found = session.client.list(&format!("{path}/executions/{}/replicas", encode(&name))).await?;
    Ok((name, found))
}

pub(super) async fn replica(session: &Session, command: ReplicaCommand) -> Result<(), Failure> {
    let ReplicaCommand::List { job, execution } = command;
    let (_, found) = replicas(session, &job, execution.as_deref()).await?;
    session.print(found, View::Replicas)
}

pub(super) async fn run(session: &Session, command: LogsCommand) -> Result<(), Failure> {
    let LogsCommand::Show(args) = command;
    if args.kind == "system" {
        let job = session.client.get(&args.job.path_of(session, KIND)).await?;
        let endpoint = job["properties"]["eventStreamEndpoint"].as_str().unwrap_or_default();
        return logs::print(session, endpoint, &args.stream, Kind::System).await;
    }
    let (execution, found) = replicas(session, &args.job, args.execution.as_deref()).await?;
    let endpoint = endpoint(&found, args.replica.as_deref(), args.container.as_deref()).ok_or_else(|| {
        Failure::new(format!("execution `{execution}` has no such replica and container"))
            .hint(format!("see job replica list --execution {execution}, and job logs show --type system"))
    })?;
    logs::print(session, endpoint, &args.stream, Kind::Console).await
}

/// Where the lines of a container are: of the replica and container asked for, else of the first.
fn endpoint<'a>(replicas: &'a Value, replica: Option<&str>, container: Option<&str>) -> Option<&'a str> {
    let is = |value: &Value, name: Option<&str>| name.is_none_or(|name| value["name"] == name);
    let replica = replicas.as_array()?.iter().find(|found| is(found, replica))?;
    let lists = ["containers", "initContainers"].iter().filter_map(|list| replica[*list].as_array());
    lists.flatten().find(|found| is(found, container))?["logStreamEndpoint"].as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_replicas_first_container_is_meant() {
        let one = |name: &str| json!({ "name": name, "logStreamEndpoint": format!("/{name}") });
        let replicas = json!([
            { "name": "b", "containers": [one("b1"), one("b2")], "initContainers": [one("b3")] },
            { "name": "a", "containers": [one("a1")] },
        ]);
        assert_eq!(endpoint(&replicas, None, None), Some("/b1"));
        assert_eq!(endpoint(&replicas, None, Some("b3")), Some("/b3"));
        assert_eq!(endpoint(&replicas, Some("a"), None), Some("/a1"));
        assert_eq!(endpoint(&replicas, Some("a"), Some("b1")), None);
        assert_eq!(endpoint(&json!([]), None, None), None);
    }
}
