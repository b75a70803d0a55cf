//! `containerapp update`: the template changed in place and sent as a patch.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use super::{AppRef, create, environment::profile, revision, template};
use crate::{
    client::{Wait, encode},
    failure::Failure,
    output::View,
    pairs,
    session::Session,
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    app: AppRef,
    /// The app as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    /// End of the new revision's name.
    #[arg(long, value_name = "SUFFIX")]
    revision_suffix: Option<String>,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, alias = "tgp", value_name = "SECONDS")]
    termination_grace_period: Option<u32>,
    /// Workload profile of the environment.
    #[arg(short = 'w', long, value_name = "NAME")]
    workload_profile_name: Option<String>,
    /// `key=value …`, instead of the old ones.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    tags: Option<Vec<String>>,
    /// Folder into which all secrets are mounted.
    #[arg(long, value_name = "PATH")]
    secret_volume_mount: Option<String>,
    /// Restart the latest revision.
    #[arg(long)]
    force_restart: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
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
    #[command(flatten)]
    scale: template::ScaleArgs,
}

pub(crate) async fn run(session: &Session, args: UpdateArgs) -> Result<(), Failure> {
    let client = &session.client;
    let path = args.app.path(session);
    let old = client.get(&path).await?;
    let mut patch = match &args.yaml {
        Some(file) => create::from_file(file)?,
        None => patch(&old, &args)?,
    };
    if let Some(kind) = args.container.gpu()? {
        let environment = old["properties"]["environmentId"].as_str().unwrap_or_default();
        patch["properties"]["workloadProfileName"] = profile::ensure(session, environment, kind).await?.into();
    }
    let app = if patch.as_object().is_some_and(|patch| !patch.is_empty()) {
        client.write(Method::PATCH, &path, Some(&patch), Wait::unless(args.no_wait)).await?
    } else if args.force_restart {
        old
    } else {
        return Err(Failure::usage("nothing to update").hint("cove containerapp update --help"));
    };
    if args.force_restart {
        revision::restart(session, &path, revision::latest(&app)?).await?;
    }
    session.print(app, View::Apps)
}

/// A new revision of the template of `from`, or of the latest revision, with the flags' changes.
pub(super) async fn copy(session: &Session, from: Option<String>, args: UpdateArgs) -> Result<(), Failure> {
    let client = &session.client;
    let path = args.app.path(session);
    let mut old = client.get(&path).await?;
    let from = match from {
        Some(from) => from,
        None => revision::latest(&old)?.to_owned(),
    };
    let mut source = client.get(&format!("{path}/revisions/{}", encode(&from))).await?;
    old["properties"]["template"] = source["properties"]["template"].take();
    let mut patch = patch(&old, &args)?;
    if patch["properties"]["template"].is_null() {
        patch["properties"]["template"] = old["properties"]["template"].take();
        patch["properties"]["template"]["revisionSuffix"] = Value::Null;
    }
    let app = client.write(Method::PATCH, &path, Some(&patch), Wait::unless(args.no_wait)).await?;
    session.print(app, View::Apps)
}

/// The merge patch; empty when no flag asks for a change.
fn patch(old: &Value, args: &UpdateArgs) -> Result<Value, Failure> {
    let mut patch = json!({});
    let mut template = old["properties"]["template"].clone();
    let before = template.clone();
    change_containers(&mut template, &args.app.name, args)?;
    if args.scale.is_given() {
        args.scale.apply(&mut template["scale"])?;
    }
    if let Some(path) = &args.secret_volume_mount {
        template::mount_secrets(&mut template, path);
    }
    if let Some(seconds) = args.termination_grace_period {
        template["terminationGracePeriodSeconds"] = seconds.into();
    }
    if template != before || args.revision_suffix.is_some() {
        // the old suffix is taken: without a new one the server chooses
        template["revisionSuffix"] = json!(args.revision_suffix);
        patch["properties"]["template"] = template;
    }
    if let Some(profile) = &args.workload_profile_name {
        patch["properties"]["workloadProfileName"] = profile.as_str().into();
    }
    if let Some(tags) = &args.tags {
        patch["tags"] = pairs::object(tags, "--tags")?;
    }
    Ok(patch)
}

fn change_containers(template: &mut Value, app: &str, args: &UpdateArgs) -> Result<(), Failure> {
    let flags = &args.container;
    let Some(containers) = template["containers"].as_array_mut() else {
        return Err(Failure::new("the app has no containers"));
    };
    let index = match &flags.container_name {
        Some(name) => containers.iter().position(|container| container["name"] == name.as_str()),
        None if containers.len() == 1 => Some(0),
        None => containers.iter().position(|container| container["name"] == app),
    };
    let is_asked = flags.image.is_some()
        || flags.command.is_some()
        || flags.args.is_some()
        || flags.cpu.is_some()
        || flags.memory.is_some()
        || args.replace_env_vars.is_some()
        || args.remove_all_env_vars
        || !args.set_env_vars.is_empty()
        || !args.remove_env_vars.is_empty();
    if !is_asked {
        return Ok(());
    }
    let container = match (index, &flags.container_name, &flags.image) {
        (Some(index), _, _) => &mut containers[index],
        (None, Some(_), Some(_)) => {
            containers.push(template::container(flags, app, &[]));
            let last = containers.len() - 1;
            &mut containers[last]
        }
        (None, Some(name), None) => {
            return Err(
                Failure::not_found(format!("the app has no container `{name}`")).hint("add --image to add a container")
            );
        }
        (None, None, _) => {
            let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
            return Err(Failure::usage(format!("which container? the app has: {}", names.join(", ")))
                .hint("add --container-name"));
        }
    };
    template::apply(flags, container);
    change_environment(container, args)
}

fn change_environment(container: &mut Value, args: &UpdateArgs) -> Result<(), Failure> {
    let mut env: Vec<Value> = container["env"].as_array().cloned().unwrap_or_default();
    let before = env.clone();
    if args.remove_all_env_vars {
        env.clear();
    }
    if let Some(replaced) = &args.replace_env_vars {
        env = pairs::environment(replaced, "--replace-env-vars")?;
    }
    for variable in pairs::environment(&args.set_env_vars, "--set-env-vars")? {
        match env.iter_mut().find(|known| known["name"] == variable["name"]) {
            Some(known) => *known = variable,
            None => env.push(variable),
        }
    }
    env.retain(|variable| !args.remove_env_vars.iter().any(|name| variable["name"] == name.as_str()));
    if env != before {
        container["env"] = Value::Array(env);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
